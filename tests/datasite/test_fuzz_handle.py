"""Ten thousand hostile messages to a site's `handle`: each gets a typed answer, and does nothing.

They are the same each time that the code is. A few beyond the ten thousand are so little damaged
that they are valid messages still (another seed, another name of a run); these are answered as
such. All others get a `Failure`, and leave no trace but their rows on the audit log.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any, Final, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sites import (
    BUDGET,
    PRIVATE,
    RESEARCHER,
    RIVAL,
    ask,
    encoded,
    evaluate_request,
    in_a_process,
    planned,
    proposal,
    register,
    site_settings,
    train_request,
)
from sqlalchemy import text

from core import exceptions, wire
from core.exceptions import FederatedLearningError
from core.wire import Parcel
from datasite import audit
from datasite.caller import SECURE_KINDS, Caller, Role
from datasite.ledger import AuditRow, Table
from datasite.site import FactoryDataSite

MESSAGES: Final = 10_000
_CLASSES: Final = 5
_LONGEST_ROW: Final = 3000

AUDITOR: Final = Caller(email="auditor@authority.example.com", role=Role.AUDITOR)
CALLERS: Final = st.sampled_from([RESEARCHER, RIVAL, AUDITOR])

some_of_them = settings(
    max_examples=MESSAGES // _CLASSES * 23 // 20,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def secure_requests(plan_id: str) -> dict[str, dict[str, Any]]:
    """Give each step of secure aggregation as it might be asked for, if the plan allowed it."""
    said = {"plan_id": plan_id, "round_num": 0, "session_id": "5" * 32}
    keys = {
        "sharing": "0" * 64,
        "masking": "1" * 64,
        "commitment": "2" * 64,
        "signature": "3" * 128,
    }
    more: dict[str, dict[str, Any]] = {
        "secure_keys": {},
        "secure_shares": {"keys": {"factory-1": keys}},
        "secure_mask": {"sealed": {"factory-2": "4" * 96}},
        "secure_confirm": {"survivors": ["factory-1"]},
        "secure_unmask": {"confirmations": {"factory-1": "5" * 128}},
    }
    return {kind: {"kind": kind, **said, **fields} for kind, fields in more.items()}


class Target:
    """A site with data, an approved plan and an answer under it, and what it kept of all that.

    Attributes:
        valid: One valid request of each kind, as its fields.
        harmless: How many messages were valid after all.
        failed: How many were answered by a failure.
    """

    def __init__(self, site: FactoryDataSite) -> None:
        self.site = site
        plan_id = planned(site)
        private = planned(site, **PRIVATE)
        self.valid: dict[str, dict[str, Any]] = {
            "describe": {"kind": "describe"},
            "propose": proposal(),
            "plan_status": {"kind": "plan_status", "plan_id": plan_id},
            "statistics": {"kind": "statistics", "plan_id": plan_id},
            "privacy_account": {
                "kind": "privacy_account",
                "plan_id": private,
                "deadline_s": 60.0,
            },
            "train": train_request(plan_id),
            "evaluate": evaluate_request(plan_id),
            "audit": {"kind": "audit", "after": 0},
            "plans": {"kind": "plans", "after": 0},
            **secure_requests(plan_id),
        }
        assert ask(site, self.valid["privacy_account"])["kind"] == "privacy_spent"
        self.blobs = {kind: encoded(fields).joined() for kind, fields in self.valid.items()}
        self.update = ask(site, self.valid["train"])
        assert self.update["kind"] == "update"
        self.kept = self._content()
        self.harmless = self.failed = 0

    def send(self, blob: bytes, caller: Caller = RESEARCHER) -> None:
        """Send bytes; what is answered must be a typed failure, unless they are a valid message."""
        reply = cast("dict[str, Any]", wire.decode(self.site.handle(Parcel.of(blob), caller)))
        if reply["kind"] != "failure":
            wire.decode(Parcel.of(blob))
            self.harmless += 1
            return
        error = getattr(exceptions, reply["error"])
        assert issubclass(error, FederatedLearningError)
        assert "its log says why" not in reply["message"], "an error that nobody thought of"
        assert reply["datasite_id"] == "factory-1"
        self.failed += 1

    def require_unchanged(self) -> None:
        """Fail when anything but the audit log has changed, or the site does not train any more."""
        after = self._content()
        if self.harmless:  # an answer to another valid request takes the place of the one before
            after["answers"] = self.kept["answers"]
            after["plans"] = [row for row in after["plans"] if row in self.kept["plans"]]
        assert after == self.kept
        with self.site.ledger.read() as session:
            audit.verify(audit.written(session))
            rows = session.query(AuditRow).all()
        assert max(len(json.dumps(audit.as_json(row))) for row in rows) < _LONGEST_ROW
        again = ask(self.site, self.valid["train"])
        assert again["kind"] == "update"
        assert all(
            again["parameters"][name].equal(tensor)
            for name, tensor in self.update["parameters"].items()
        )

    def _content(self) -> dict[str, list[Any]]:
        """Give every row of every table but the audit log's."""
        tables = [name for name in Table.metadata.tables if name != AuditRow.__tablename__]
        with self.site.ledger.read() as session:
            return {
                name: [tuple(row) for row in session.execute(text(f"SELECT * FROM {name}"))]  # noqa: S608
                for name in tables
            }


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """Give one site for all of them, with a trainer in a child process."""
    folder = tmp_path_factory.mktemp("fuzzed")
    site = FactoryDataSite(in_a_process)
    site.initialize_datasite(site_settings(folder, budget=BUDGET))
    register(site, folder)
    yield Target(site)
    site.close()


def with_fields(blob: bytes, fields: str) -> bytes:
    """Give the message with other fields, as this JSON has them; its tensors stay."""
    length = int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8 : 8 + length])
    said = f'{{"version": "{wire.VERSION}", "fields": {fields}}}'
    header["__metadata__"] = {"message": said}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + blob[8 + length :]


def written(fields: dict[str, Any], name: str, value: str) -> str:
    """Give the fields as JSON, one of them as `value` has it, which may be no JSON at all."""
    rest = {key: json.dumps(other) for key, other in fields.items() if key != "parameters"}
    pairs = {**rest, name: value}
    return "{" + ", ".join(f"{json.dumps(key)}: {said}" for key, said in pairs.items()) + "}"


WORK: Final = [
    "describe",
    "propose",
    "plan_status",
    "statistics",
    "privacy_account",
    "train",
    "evaluate",
]
kinds = st.sampled_from([*WORK, "audit", "plans", *sorted(SECURE_KINDS)])

VALUES: Final = [
    "null",
    "true",
    "-1",
    "0",
    "1.5",
    "1e308",
    "-1e308",
    "1e999",
    "NaN",
    "-Infinity",
    str(2**53 + 1),
    "9" * 400,
    "9" * 5000,
    '""',
    '"' + "x" * 300 + '"',
    '"' + "x" * 100_000 + '"',
    '"\\ud800"',
    '"\\u0000"',
    '"../../etc/passwd"',
    '"\'; DROP TABLE plans; --"',
    "[]",
    "{}",
    "[" * 400 + "]" * 400,
    "[" * 100_000,
    '{"a": ' * 400 + "1" + "}" * 400,
    "[1e999]",
    '{"type": "cnn", "options": {"channels": 1000000000000}}',
    '{"name": "fedavg", "hyperparameters": {"mu": 1e300}}',
    '{"__proto__": {}}',
]
"""Values that no field should take, or none but a few, as JSON or what looks like it."""

NAMES: Final = [
    "kind",
    "version",
    "parameters",
    "control",
    "state",
    "é",
    "",
    "x" * 1000,
    "__class__",
]


def attack(target: Target, send: Callable[..., None]) -> None:
    """Run all the examples of one class, and look at the site afterwards."""
    before = target.failed
    send()
    assert target.failed - before >= MESSAGES // _CLASSES
    target.require_unchanged()


def test_noise(target: Target) -> None:
    """Any bytes at all, with and without something that looks like a length in front."""

    @some_of_them
    @given(noise=st.binary(max_size=400), length=st.none() | st.integers(0, 2**64 - 1), who=CALLERS)
    def send(noise: bytes, length: int | None, who: Caller) -> None:
        front = b"" if length is None else (min(length, length % 500)).to_bytes(8, "little")
        target.send(front + noise, who)

    attack(target, send)


def test_valid_messages_with_bits_flipped(target: Target) -> None:
    """One to eight bits of the head, where all decisions are made."""

    @some_of_them
    @given(
        kind=kinds.filter(lambda kind: kind != "describe"),
        places=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=8),
        bit=st.integers(0, 7),
    )
    def send(kind: str, places: list[float], bit: int) -> None:
        blob = bytearray(target.blobs[kind])
        head_bytes = 8 + int.from_bytes(blob[:8], "little")
        for place in places:
            blob[int(place * head_bytes)] ^= 1 << bit
        target.send(bytes(blob))

    attack(target, send)


def test_valid_messages_cut_short_or_drawn_out(target: Target) -> None:
    """At any byte; with a piece taken out of the middle; with more behind."""

    @some_of_them
    @given(
        kind=kinds,
        start=st.floats(0, 1, exclude_max=True),
        taken=st.integers(1, 10_000),
        more=st.binary(max_size=20),
    )
    def send(kind: str, start: float, taken: int, more: bytes) -> None:
        blob = target.blobs[kind]
        place = int(start * len(blob))
        target.send(blob[:place] + more + blob[place + taken :])

    attack(target, send)


def test_valid_messages_with_a_hostile_value(target: Target) -> None:
    """In any field, an unknown one too: huge, deep, of another type, of another kind."""

    @some_of_them
    @given(
        kind=kinds,
        place=st.integers(0, 30),
        value=st.sampled_from(VALUES) | kinds.map(json.dumps),
        who=CALLERS,
    )
    def send(kind: str, place: int, value: str, who: Caller) -> None:
        fields = target.valid[kind]
        names = [*fields, *NAMES]
        hostile = written(fields, names[place % len(names)], value)
        target.send(with_fields(target.blobs[kind], hostile), who)

    attack(target, send)


def test_tensors_that_are_none(target: Target) -> None:
    """Of a train or evaluate request: dtypes, shapes, offsets and names that cannot be."""
    entries = st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "F64", "I64", "BOOL", "F8_E4M3", "C64", "", "x" * 99]),
            "shape": st.lists(st.integers(-1, 2**62), max_size=4),
            "data_offsets": st.lists(st.integers(-1, 2**62), min_size=2, max_size=2),
        }
    )

    @some_of_them
    @given(
        kind=st.sampled_from(["train", "evaluate"]),
        name=st.sampled_from(["parameters/x", "control/x", "x", "", "parameters/../x"]),
        entry=entries | st.none() | st.integers() | st.text(max_size=5),
        body=st.binary(max_size=64),
    )
    def send(kind: str, name: str, entry: object, body: bytes) -> None:
        blob = target.blobs[kind]
        length = int.from_bytes(blob[:8], "little")
        metadata = json.loads(blob[8 : 8 + length])["__metadata__"]
        header = json.dumps({"__metadata__": metadata, name: entry}).encode()
        header += b" " * (-len(header) % 8)
        target.send(len(header).to_bytes(8, "little") + header + body)

    attack(target, send)
