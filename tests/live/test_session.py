"""Sessions with a live site: as the orchestrator opens them, and as somebody between hears them."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
import syft as sy
import torch
from syft.service.user.user_roles import ServiceRole
from wiretap import Overheard, Wiretap, tapped

from core import wire
from core.exceptions import (
    CommunicationError,
    FederatedLearningError,
    PlanError,
    ProtocolError,
    SecurityError,
)
from core.messages import DescribeRequest, Failure, Message, SiteDescription
from core.wire import Parcel
from datasite.caller import Role
from datasite.operator_door import OperatorDoor
from orchestrator.communication.channel import Deadline
from orchestrator.communication.live import PySyftCommunication
from orchestrator.communication.pysyft import PySyftCarrier
from orchestrator.communication.session import SessionCarrier
from orchestrator.configuration import ChannelKind
from orchestrator.testbed.processes import Testbed, run_datasite
from orchestrator.testbed.settings import OPERATOR, RESEARCHER

pytestmark = pytest.mark.live

SITE: Final = "factory-1"
SIGNED: Final = "/api/v2/api_call"
IN_SESSION: Final = "/api/v2/session"
DESCRIBE: Final = DescribeRequest(kind="describe")
_DEADLINE_S: Final = 20.0


class Factory:
    """A live site of this file's own, with an audit log."""

    def __init__(self, folder: Path) -> None:
        self._testbed = Testbed(folder)
        self._testbed.up(1)
        self.url = self._testbed.sites()[0].url
        self.config = str(self._testbed.config_file(SITE))

    def restart(self) -> None:
        """Kill the site, and start it on its state and port."""
        process = self._testbed.sites()[0].process()
        assert process is not None
        process.kill()
        process.wait(timeout=20)
        self._testbed.up(1)
        assert self._testbed.sites()[0].url == self.url

    def end(self) -> None:
        """Stop the site."""
        self._testbed.down()

    def password(self, account: str) -> str:
        """Give the password of the operator or of the researcher."""
        path = self._testbed.folder / SITE / f"{account}.password"
        return path.read_text(encoding="utf-8").strip()

    def refused(self) -> list[tuple[str, str]]:
        """Give what the audit log says was refused: whom, and what."""
        rows: list[dict[str, Any]] = json.loads(
            run_datasite("audit", "show", "--last", "1000", "--json", "-c", self.config)
        )
        return [
            (row["who"], row["detail"]["path"])
            for row in rows
            if (row["action"], row["outcome"]) == ("call refused", "SecurityError")
        ]

    def open_account(self, email: str, password: str) -> dict[str, str]:
        """Open a researcher's account; its credentials."""
        state = self._testbed.folder / SITE / "state"
        with OperatorDoor(site_id=SITE, state=state) as door:
            door.create_user(email=email, name=email, password=password, role=Role.RESEARCHER)
        return {"email": email, "password": password}

    def operator(self) -> sy.DatasiteClient:
        """Log the operator in, as PySyft's own client does."""
        return sy.login(url=self.url, email=OPERATOR, password=self.password("operator"))


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Factory]:
    """Give a live site."""
    made = Factory(tmp_path_factory.mktemp("sessions") / "testbed")
    yield made
    made.end()


@pytest.fixture(scope="module")
def line(factory: Factory) -> Iterator[Wiretap]:
    """Give the way to it, on which somebody listens."""
    with tapped(factory.url) as wiretap:
        yield wiretap


@pytest.fixture
def wiretap(line: Wiretap) -> Iterator[Wiretap]:
    """Give the listener, who has heard nothing yet and changes nothing afterwards."""
    line.forget()
    yield line
    line.change = lambda answer: answer


def log_in(
    wiretap: Wiretap, credentials: dict[str, str], channel: ChannelKind = ChannelKind.SESSION
) -> PySyftCommunication:
    """Connect through the wiretap."""
    communication = PySyftCommunication(channel=channel, connect_s=_DEADLINE_S, call_s=_DEADLINE_S)
    communication.connect_to_datasite(wiretap.url, credentials)
    return communication


@pytest.fixture
def signed(wiretap: Wiretap, factory: Factory) -> Iterator[PySyftCarrier]:
    """Give the researcher's signed calls."""
    opened = PySyftCarrier.open(
        wiretap.url, email=RESEARCHER, password=factory.password("researcher")
    )
    yield opened
    opened.close()


@pytest.fixture
def carrier(signed: PySyftCarrier) -> SessionCarrier:
    """Give the researcher's sessions, of which none is open yet."""
    return SessionCarrier(signed)


def ask(carrier: SessionCarrier) -> Message:
    """Have the site describe itself."""
    return wire.decode(carrier.exchange(wire.encode(DESCRIBE), deadline_s=_DEADLINE_S))


def describe(communication: PySyftCommunication) -> SiteDescription:
    """Have the site describe itself."""
    return communication.request(DESCRIBE, SiteDescription, SITE)


def credentials(factory: Factory) -> dict[str, str]:
    """Give the researcher's."""
    return {"email": RESEARCHER, "password": factory.password("researcher")}


TRAINING: Final[dict[str, Any]] = {
    "plan_id": "0" * 64,
    "round_num": 0,
    "seed": 7,
    "model": {"type": "cnn", "options": {}},
    "algorithm": {"name": "fedavg", "hyperparameters": {}},
    "training": {
        "local_epochs": 1,
        "batch_size": 8,
        "learning_rate": 0.1,
        "optimizer": "sgd",
        "momentum": 0.0,
        "weight_decay": 0.0,
        "gradient_clip": None,
        "focal_gamma": 0.0,
    },
    "preprocessing": {"mean": [0.0], "scale": [1.0], "positive_weight": 1.0},
    "deadline_s": _DEADLINE_S,
}


@pytest.mark.parametrize(
    ("channel", "counts"),
    [
        pytest.param(ChannelKind.SESSION, (1, 3), id="session"),
        pytest.param(ChannelKind.SIGNED, (3, 0), id="signed"),
    ],
)
def test_one_signed_call_opens_a_session_for_all_requests(
    factory: Factory, wiretap: Wiretap, channel: ChannelKind, counts: tuple[int, int]
) -> None:
    """Where the channel is `signed`, each request is a signed call instead."""
    communication = log_in(wiretap, credentials(factory), channel)
    for _ in range(3):
        assert describe(communication)["datasite_id"] == SITE
    assert (wiretap.count(SIGNED), wiretap.count(IN_SESSION)) == counts
    communication.disconnect_from_datasite(SITE)


def test_a_model_that_the_site_has_does_not_travel_again(
    factory: Factory, wiretap: Wiretap
) -> None:
    """The second request for it is its head alone; the site answers it as the first."""
    communication = log_in(wiretap, credentials(factory))
    communication.send_model({"w": torch.zeros(10_000)}, SITE)
    for _ in range(2):
        with pytest.raises(PlanError):
            communication.request_training(TRAINING, SITE)
    with_model, without = (
        len(request.content) - int(request.headers["x-head"])
        for request in wiretap.requests
        if request.path == IN_SESSION
    )
    assert (with_model, without) == (40_000, 0)
    communication.disconnect_from_datasite(SITE)


def test_threads_share_a_session_without_a_refusal(
    factory: Factory, wiretap: Wiretap, carrier: SessionCarrier
) -> None:
    """Two threads and a hundred requests: one session, and nothing for the audit log."""
    before = factory.refused()
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda _: ask(carrier), range(100)))
    assert all(wire.is_kind(answer, SiteDescription) for answer in answers)
    assert (wiretap.count(SIGNED), wiretap.count(IN_SESSION)) == (1, 100)
    counters = [r.headers["x-counter"] for r in wiretap.requests if r.path == IN_SESSION]
    assert len(set(counters)) == 100
    assert factory.refused() == before


def test_a_request_said_again_is_refused_and_written_down(
    factory: Factory, wiretap: Wiretap, carrier: SessionCarrier
) -> None:
    """Who overheard it cannot have it done twice; the caller goes on undisturbed."""
    ask(carrier)
    overheard = wiretap.requests[-1]
    before = factory.refused()
    failure = wire.decode(Parcel.of(wiretap.say(overheard).content))
    assert wire.is_kind(failure, Failure)
    assert failure["error"] == "SecurityError"
    assert factory.refused() == [*before, (RESEARCHER, "session: replayed counter")]
    assert wire.is_kind(ask(carrier), SiteDescription)
    assert wiretap.count(SIGNED) == 1


def test_a_changed_request_is_refused_and_written_down(
    factory: Factory, wiretap: Wiretap, carrier: SessionCarrier
) -> None:
    """Under the next counter its tag is wrong: 401, and the caller goes on undisturbed."""
    ask(carrier)
    overheard = wiretap.requests[-1]
    next_one = {"x-counter": str(int(overheard.headers["x-counter"]) + 1)}
    before = factory.refused()
    answer = wiretap.say(replace(overheard, headers=overheard.headers | next_one))
    assert answer.status == 401
    assert factory.refused() == [*before, (RESEARCHER, "session: wrong tag")]
    assert wire.is_kind(ask(carrier), SiteDescription)
    assert wiretap.count(SIGNED) == 1


@pytest.mark.parametrize(
    "half", [bytes(32), bytes(31), b""], ids=["low order", "too short", "none"]
)
def test_a_bad_half_of_an_exchange_opens_no_session(signed: PySyftCarrier, half: bytes) -> None:
    """The signed call is answered with what an exchange takes; asking again is of no use."""
    with pytest.raises(FederatedLearningError, match="32 bytes of X25519") as caught:
        signed._call("federation.open_session", half, Deadline(_DEADLINE_S))
    assert not caught.value.retryable
    assert caught.value.site_id == SITE


def damaged(answer: Overheard) -> Overheard:
    """Change one letter of it."""
    return replace(answer, content=answer.content.replace(b"factory-1", b"factory-2", 1))


def untagged(answer: Overheard) -> Overheard:
    """Leave out the tag."""
    return replace(answer, headers={n: v for n, v in answer.headers.items() if n != "x-tag"})


def shifted(answer: Overheard) -> Overheard:
    """Say that its head is shorter than it is."""
    return replace(answer, headers=answer.headers | {"x-head": "8"})


@pytest.mark.parametrize("change", [damaged, untagged, shifted], ids=lambda c: c.__name__)
def test_an_answer_that_is_not_the_sites_is_not_taken(
    wiretap: Wiretap, carrier: SessionCarrier, change: Callable[[Overheard], Overheard]
) -> None:
    """The error says so, and asking again is of no use while somebody else answers."""
    ask(carrier)
    wiretap.change = change
    with pytest.raises(ProtocolError, match=r"cannot be read|not the site's") as caught:
        ask(carrier)
    assert caught.value.site_id == SITE


def test_an_old_answer_is_not_taken(wiretap: Wiretap, carrier: SessionCarrier) -> None:
    """It was the site's own, to another request."""
    ask(carrier)
    old = wiretap.answers[-1]
    wiretap.change = lambda _answer: old
    with pytest.raises(ProtocolError, match="not to this request"):
        ask(carrier)


def test_an_old_offer_of_a_session_is_of_no_use(
    factory: Factory, wiretap: Wiretap, carrier: SessionCarrier
) -> None:
    """The site signed it, for another half: who is given it again comes to other keys."""
    ask(carrier)
    offer = next(answer for answer in wiretap.answers if answer.path == SIGNED)
    again = SessionCarrier(carrier._signed)
    wiretap.change = lambda answer: offer if answer.path == SIGNED else answer
    before = factory.refused()
    with pytest.raises(ProtocolError, match="opens sessions and does not know them"):
        ask(again)
    assert factory.refused() == [*before, *[(RESEARCHER, "session: wrong tag")] * 2]


@pytest.mark.parametrize(
    ("status", "calls"),
    [
        pytest.param(401, (2, 2), id="no session"),
        pytest.param(409, (1, 2), id="no body"),
        pytest.param(413, (1, 1), id="too large"),
        pytest.param(502, (1, 1), id="a proxy's"),
    ],
)
def test_a_status_that_does_not_end_is_an_error(
    wiretap: Wiretap, carrier: SessionCarrier, status: int, calls: tuple[int, int]
) -> None:
    """Whoever says it again and again, sessions are not opened without an end."""
    wiretap.change = lambda answer: (
        replace(answer, status=status) if answer.path == IN_SESSION else answer
    )
    says = "does not know them" if status == 401 else f"HTTP {status}"
    with pytest.raises(CommunicationError, match=says) as caught:
        ask(carrier)
    assert caught.value.retryable == (status == 502)
    assert (wiretap.count(SIGNED), wiretap.count(IN_SESSION)) == calls


@pytest.mark.parametrize("how", ["disabled", "deleted"])
def test_an_account_that_is_out_is_refused_in_its_open_session(
    factory: Factory, wiretap: Wiretap, how: str
) -> None:
    """At the next request, and at every one after it; another account is not disturbed."""
    email = f"{how}@lab.example.com"
    communication = log_in(wiretap, factory.open_account(email, "Guest-of-the-lab-1"))
    describe(communication)
    other = log_in(wiretap, credentials(factory))
    describe(other)

    users = factory.operator().api.services.user
    found = users.search(email=email)[0]
    if how == "disabled":
        users.update(uid=found.id, role=ServiceRole.GUEST)
    else:
        users.delete(uid=found.id)

    for _ in range(2):
        with pytest.raises(SecurityError, match="unknown or disabled") as caught:
            describe(communication)
        assert caught.value.site_id == SITE
    assert (email, "session: disabled account") in factory.refused()
    assert "all as they were written" in run_datasite("audit", "verify", "-c", factory.config)
    assert describe(other)["datasite_id"] == SITE


def test_a_restarted_site_is_spoken_to_again_in_a_new_session(
    factory: Factory, wiretap: Wiretap
) -> None:
    """A kill takes every session along; the next request opens another by itself."""
    communication = log_in(wiretap, credentials(factory))
    describe(communication)
    first = wiretap.requests[-1].headers["x-session"]
    factory.restart()
    assert describe(communication)["datasite_id"] == SITE
    assert wiretap.requests[-1].headers["x-session"] != first
    assert wiretap.count(SIGNED) == 2
    communication.disconnect_from_datasite(SITE)
