"""The two PySyft edges, over HTTP: what is carried, what is refused, what survives."""

import os
import re
import signal
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeAlias

import httpx
import pytest
import syft as sy
from echo_site import MOCK_VALUE, PRIVATE_VALUE
from site_process import OPERATOR, RESEARCHER, SiteProcess
from syft.client.api import SyftAPICall, debox_signed_syftapicall_response
from syft.server.credentials import SyftSigningKey
from syft.service.response import SyftError
from syft.service.user.user import check_pwd, salt_and_hash_password

from core.exceptions import (
    AuthenticationError,
    CommunicationError,
    ConfigurationError,
    DataSiteError,
    DeadlineError,
    ProtocolError,
    SecurityError,
)
from core.pysyft_patches import REFUSED, deserialize_only
from core.wire import Parcel
from datasite.caller import Role
from datasite.operator_door import socket_path
from datasite.pysyft.accounts import NO_ACCOUNT_HASH
from datasite.pysyft.edge import ENVELOPE
from orchestrator.communication.pysyft import PySyftCarrier

pytestmark = pytest.mark.live

Notebook: TypeAlias = sy.DatasiteClient

CHANGED_PASSWORD: Final = "another-for-the-operator"
_DEADLINE_S: Final = 20.0


@pytest.fixture(scope="module")
def carrier(site: SiteProcess) -> Iterator[PySyftCarrier]:
    """Give a researcher's open carrier."""
    opened = site.carrier()
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def notebook(site: SiteProcess) -> Notebook:
    """Give a researcher's session as PySyft's own client opens it."""
    return sy.login(url=site.url, email=RESEARCHER[0], password=RESEARCHER[1])


@pytest.fixture(scope="module")
def operator_notebook(site: SiteProcess) -> Notebook:
    """Give the operator's session as PySyft's own client opens it."""
    return sy.login(url=site.url, email=OPERATOR[0], password=OPERATOR[1])


def call(
    client: Notebook, path: str, *, key: SyftSigningKey | None = None, **kwargs: object
) -> Any:
    """Send a signed call past the client's own checks; what the site answers."""
    signed = SyftAPICall(server_uid=client.id, path=path, args=[], kwargs=kwargs).sign(
        credentials=key or client.credentials
    )
    return debox_signed_syftapicall_response(client.connection.make_call(signed)).unwrap()


def is_refused(answer: object) -> bool:
    """Say whether `answer` is one of the site's own refusals."""
    return isinstance(answer, SyftError) and answer.message.startswith(REFUSED)


def test_guests_and_sign_up_are_refused_from_the_first_boot(fresh_site: SiteProcess) -> None:
    """A site that was never restarted lets no stranger in by any of PySyft's ways."""
    metadata = httpx.get(f"{fresh_site.url}/api/v2/metadata").json()
    stranger = SyftSigningKey.generate()
    guest = sy.login_as_guest(url=fresh_site.url)

    assert metadata["signup_enabled"] is False
    assert is_refused(call(guest, "dataset.get_all", key=stranger))
    assert is_refused(call(guest, "user.get_current_user", key=stranger))
    for route in ("register", "reset_password", "forgot_password"):
        assert httpx.post(f"{fresh_site.url}/api/v2/{route}", content=b"x").status_code == 404
    api = {"verify_key": str(stranger.verify_key), "communication_protocol": "4"}
    assert httpx.get(f"{fresh_site.url}/api/v2/api", params=api).status_code == 403


@pytest.mark.parametrize("size", [0, 10, 40_000, 10_000_000], ids=lambda size: f"{size}-bytes")
def test_bytes_arrive_and_return_unchanged(carrier: PySyftCarrier, size: int) -> None:
    """Any bytes come back as they were sent, none and ten million included."""
    request = Parcel.of(os.urandom(size))
    assert carrier.exchange(request, deadline_s=_DEADLINE_S) == request


@pytest.mark.parametrize(
    ("account", "role"),
    [(OPERATOR, Role.OPERATOR), (RESEARCHER, Role.RESEARCHER)],
    ids=["operator", "researcher"],
)
def test_the_site_learns_who_calls(site: SiteProcess, account: tuple[str, str], role: Role) -> None:
    """The e-mail and the role of the account that signed arrive with the bytes."""
    carrier = site.carrier(account)
    assert carrier.site_id == "factory-1"
    answer = carrier.exchange(Parcel.of(b"who am I?"), deadline_s=_DEADLINE_S)
    assert answer.joined() == f"{account[0]} {role.value}".encode()
    carrier.close()


def test_one_carrier_serves_many_threads(carrier: PySyftCarrier) -> None:
    """Answers do not get mixed up between threads that share a carrier."""
    requests = [Parcel.of(str(number).encode() * 100) for number in range(64)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda r: carrier.exchange(r, deadline_s=_DEADLINE_S), requests))
    assert answers == requests


def test_a_failing_site_tells_no_values(carrier: PySyftCarrier) -> None:
    """An error in the site's own code arrives as a DataSiteError without its message."""
    with pytest.raises(DataSiteError) as failure:
        carrier.exchange(Parcel.of(b"fail"), deadline_s=_DEADLINE_S)
    assert str(PRIVATE_VALUE) not in str(failure.value)


def test_a_refused_log_in_does_not_tell_which_half_was_wrong(site: SiteProcess) -> None:
    """A wrong password and an unknown account give the same error but for the e-mail."""
    said = []
    for email, password in ((RESEARCHER[0], "not the password"), ("nobody@lab.example.com", "x")):
        with pytest.raises(AuthenticationError) as refusal:
            PySyftCarrier.open(site.url, email=email, password=password)
        said.append(str(refusal.value).replace(email, "..."))
    assert said[0] == said[1]


def test_a_log_in_without_an_account_costs_what_any_costs() -> None:
    """The hash checked in its place is of PySyft's kind and number of rounds, and opens nothing."""
    _, hashed = salt_and_hash_password("some-password-1", 12)
    assert NO_ACCOUNT_HASH[:7] == hashed[:7] == "$2b$12$"
    assert len(NO_ACCOUNT_HASH) == len(hashed)
    assert not check_pwd("some-password-1", NO_ACCOUNT_HASH)


def test_an_account_that_is_deleted_is_out_at_once(
    site: SiteProcess, operator_notebook: Notebook
) -> None:
    """An open carrier is refused at the next call after its account is gone."""
    account = ("guest@lab.example.com", "Guest-of-the-lab-1")
    with site.door() as door:
        door.create_user(email=account[0], name="Guest", password=account[1], role=Role.RESEARCHER)
    carrier = site.carrier(account)
    assert carrier.exchange(Parcel.of(b"in"), deadline_s=_DEADLINE_S) == Parcel.of(b"in")

    found = call(operator_notebook, "user.search", email=account[0]).value
    call(operator_notebook, "user.delete", uid=found[0].id)

    with pytest.raises(SecurityError, match="disabled"):
        carrier.exchange(Parcel.of(b"in"), deadline_s=_DEADLINE_S)
    with pytest.raises(AuthenticationError):
        site.carrier(account)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1", "http://no-such-site.invalid:80"], ids=["closed-port", "no-name"]
)
def test_a_site_that_is_not_there_is_reported_soon(url: str) -> None:
    """Nothing waits for a site that cannot be reached."""
    began = time.monotonic()
    with pytest.raises(CommunicationError, match="not reached") as failure:
        PySyftCarrier.open(url, email="a@b.example.com", password="x", timeout_s=10)
    assert failure.value.retryable
    assert time.monotonic() - began < 10


def test_https_at_a_site_without_tls_is_told(site: SiteProcess) -> None:
    """The error says what to write, not only that it failed."""
    with pytest.raises(ProtocolError, match="write http:// into the URL"):
        PySyftCarrier.open(site.url.replace("http", "https"), email="a@b.example.com", password="x")


def test_a_server_that_is_no_site_is_a_protocol_error(site: SiteProcess) -> None:
    """Something else that speaks HTTP is not mistaken for a site."""
    with pytest.raises(ProtocolError, match="PySyft site"):
        PySyftCarrier.open(f"{site.url}/elsewhere", email="a@b.example.com", password="x")


def test_bytes_that_are_no_call_are_refused_without_a_crash(site: SiteProcess) -> None:
    """Garbage at the door gives HTTP 400."""
    for content in (b"", b"garbage", b"\0" * 64, sy.serialize({"x": b"1"}, to_bytes=True)):
        response = httpx.post(f"{site.url}/api/v2/api_call", content=content)
        assert response.status_code == 400


def test_a_frozen_site_is_given_up_at_the_deadline(
    site: SiteProcess, carrier: PySyftCarrier
) -> None:
    """A stopped process costs the deadline and no more, and works again when it goes on."""
    site.send(signal.SIGSTOP)
    try:
        for request in (b"small", bytes(12_000_000)):  # more than the system takes in for it
            began = time.monotonic()
            with pytest.raises(DeadlineError, match="no answer within 1 s"):
                carrier.exchange(Parcel.of(request), deadline_s=1)
            assert time.monotonic() - began < 2
        with pytest.raises(DeadlineError):
            PySyftCarrier.open(site.url, email="a@b.example.com", password="x", timeout_s=0.5)
    finally:
        site.send(signal.SIGCONT)
    assert carrier.exchange(Parcel.of(b"again"), deadline_s=_DEADLINE_S) == Parcel.of(b"again")


def test_a_notebook_sees_description_schema_and_mock(notebook: Notebook) -> None:
    """PySyft's own client lists the datasets and shows all that is public about them."""
    assert sorted(dataset.name for dataset in notebook.datasets) == ["many-pumps", "pumps"]
    pumps = notebook.datasets["pumps"]
    assert "hall 2" in pumps.description.text
    assert "temperature_c: {unit: degC" in pumps.description.text
    for dataset, rows in ((pumps, 5), (notebook.datasets["many-pumps"], 200_000)):
        mock = dataset.assets[0].mock["temperature_c"]
        assert (mock[0], len(mock)) == (MOCK_VALUE, rows)


def test_a_notebook_cannot_read_private_rows(
    notebook: Notebook, operator_notebook: Notebook
) -> None:
    """None of PySyft's ways to private data gives a researcher any, nor a hint of a value."""
    asset = notebook.datasets["many-pumps"].assets[0]
    kept = call(operator_notebook, "action.get", uid=asset.action_id).value
    blob = kept.syft_blob_storage_entry_id
    assert blob is not None

    assert asset.data is None
    attempts = [
        call(notebook, "action.get", uid=asset.action_id),
        call(notebook, "action.get_pointer", uid=asset.action_id),
        call(notebook, "blob_storage.read", uid=blob),
        call(notebook, "action.get_mock", uid=blob),
        call(notebook, "sync._get_state"),
        call(notebook, "migration.get_migration_data"),
    ]
    assert all(isinstance(answer, SyftError) for answer in attempts)
    assert str(PRIVATE_VALUE) not in repr(attempts)
    assert str(PRIVATE_VALUE) not in repr(notebook.datasets["pumps"].assets[0].__dict__)


def test_code_is_taken_from_nobody(
    site: SiteProcess, notebook: Notebook, operator_notebook: Notebook
) -> None:
    """Submitting, requesting, approving, calling and adding endpoints are refused, and reported."""

    @sy.syft_function_single_use()
    def peek() -> int:
        return 1

    with pytest.raises(Exception, match=REFUSED):
        notebook.code.request_code_execution(peek)
    paths = ["code.submit", "code.call", "request.submit", "api.add", "api.call", "job.get_all"]
    for path in [*paths, "worker.get_all", "user.get_all", "blob_storage.allocate", "queue"]:
        assert is_refused(call(notebook, path)), path
    for path in [*paths, "request.apply", "code_status.update", "policy.add", "settings.update"]:
        assert is_refused(call(operator_notebook, path)), path

    with site.door() as door:
        refused = door.status()["refused"]
    assert isinstance(refused, list)
    assert [RESEARCHER[0], "code.submit"] in refused
    assert [OPERATOR[0], "request.apply"] in refused


def test_an_account_changes_its_own_password_only(
    notebook: Notebook, operator_notebook: Notebook
) -> None:
    """Neither another account, nor the own role, nor a weak password goes through."""
    own = notebook.api.services.user.get_current_user()
    other = operator_notebook.api.services.user.get_current_user()

    assert is_refused(call(notebook, "user.update", uid=own.id, role="ADMIN"))
    assert is_refused(call(notebook, "user.update", uid=own.id, password="short"))
    answer = call(notebook, "user.update", uid=other.id, password="A-new-operator-password-1")
    assert isinstance(answer, SyftError)


def test_a_password_changed_in_a_notebook_ends_what_the_old_one_began(site: SiteProcess) -> None:
    """A log-in gives a key away, so the key changes too: the notebook's own is of no use either."""
    old, new = ("own@lab.example.com", "Own-of-the-lab-1"), "Own-of-the-lab-2"
    with site.door() as door:
        door.create_user(email=old[0], name="Own", password=old[1], role=Role.RESEARCHER)
    carrier = site.carrier(old)
    notebook = sy.login(url=site.url, email=old[0], password=old[1])
    notebook.account.set_password(new, confirm=False)

    with pytest.raises(SecurityError, match="unknown or disabled"):
        carrier.exchange(Parcel.of(b"in"), deadline_s=_DEADLINE_S)
    assert is_refused(call(notebook, "user.get_current_user"))
    with pytest.raises(AuthenticationError):
        site.carrier(old)
    site.carrier((old[0], new)).close()


def test_what_is_not_signed_is_not_done(notebook: Notebook) -> None:
    """A message that brings another "decoded" form than the signed one is read as it was signed."""
    signed = SyftAPICall(
        server_uid=notebook.id, path="user.get_current_user", args=[], kwargs={}
    ).sign(credentials=notebook.credentials)
    signed.cached_deseralized_message = SyftAPICall(
        server_uid=notebook.id, path="dataset.get_all", args=[], kwargs={}
    )
    answer = debox_signed_syftapicall_response(notebook.connection.make_call(signed)).unwrap()
    assert answer.value.email == RESEARCHER[0]


@pytest.mark.parametrize(
    "name",
    [b"SignedSyftAPICall\0", b"SyftVerifyKey\0", b"signature\0"],
    ids=["call", "key", "field"],
)
def test_a_text_without_an_end_does_not_end_the_site(
    site: SiteProcess, notebook: Notebook, name: bytes
) -> None:
    """One byte by a stranger: Cap'n Proto's reader ends the process over it (pycapnp 2.0.0)."""
    call = SyftAPICall(server_uid=notebook.id, path="dataset.get_all", args=[], kwargs={})
    blob = sy.serialize(call.sign(credentials=SyftSigningKey.generate()), to_bytes=True)
    assert blob.count(name) == 1
    response = httpx.post(
        f"{site.url}/api/v2/api_call", content=blob.replace(name, name[:-1] + b"\xaf")
    )
    assert response.status_code == 400
    assert site.answers()


def test_a_strangers_envelope_builds_nothing_of_another_type(notebook: Notebook) -> None:
    """PySyft would build whatever is named in it, before anybody has looked who signed it."""
    call = SyftAPICall(server_uid=notebook.id, path="dataset.get_all", args=[], kwargs={})
    signed = call.sign(credentials=SyftSigningKey.generate())
    whole = sy.serialize(signed, to_bytes=True)
    assert deserialize_only(whole, "SignedSyftAPICall", parts=ENVELOPE).is_valid
    signed.__dict__["signature"] = {"x": b"1"}
    stuffed = sy.serialize(signed, to_bytes=True)
    with pytest.raises(ValueError, match="a PySyft 'dict' has no place here"):
        deserialize_only(stuffed, "SignedSyftAPICall", parts=ENVELOPE)


def test_a_message_cannot_claim_to_hold_more_than_it_does(site: SiteProcess) -> None:
    """A list of half a billion names, of no bytes each, in 48 bytes: it is not read to its end."""
    segment = [1 | 4 << 48, 0, 1 | (3 << 2) | 0, 0, 0, 0]
    segment[2] = 1 | (1 << 29) - 1 << 35  # a list of elements of no size, at the place of the names
    blob = (len(segment) << 32).to_bytes(8, "little") + b"".join(
        (word % (1 << 64)).to_bytes(8, "little") for word in segment
    )
    began = time.monotonic()
    response = httpx.post(f"{site.url}/api/v2/api_call", content=blob, timeout=60)
    assert response.status_code == 400
    assert time.monotonic() - began < 5


def test_the_door_opens_accounts_and_lists_them(site: SiteProcess) -> None:
    """The operator adds accounts through the door; mistakes come back as the errors they are."""
    with site.door() as door:
        made = door.create_user(
            email="second@lab.example.com",
            name="Second",
            password="Second-of-the-lab-1",
            role=Role.RESEARCHER,
        )
        assert made in door.users()
        assert OPERATOR[0] in {account.email for account in door.users()}
        with pytest.raises(DataSiteError, match="already exists"):
            door.create_user(
                email=made.email, name="Again", password="Second-of-the-lab-1", role=made.role
            )
        for email, password in (("third@lab.local", "Third-of-the-lab-1"), (made.email, "weak")):
            with pytest.raises(ConfigurationError):
                door.create_user(email=email, name="Third", password=password, role=made.role)
        assert door.publish() == ["many-pumps", "pumps"]


def test_what_the_site_keeps_is_private(site: SiteProcess) -> None:
    """No file of the site can be read by another account of the machine."""
    kept = [site.state, *site.state.rglob("*")]
    assert [path for path in kept if stat.S_IMODE(path.stat().st_mode) & 0o077] == []
    assert stat.S_IMODE((site.state / "identity.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(socket_path(site.state).stat().st_mode) == 0o600


def test_all_that_matters_survives_a_stop_and_a_kill(
    site: SiteProcess, carrier: PySyftCarrier
) -> None:
    """Identity, accounts, datasets and carriers outlive both; a new configured password holds."""
    before = httpx.get(f"{site.url}/api/v2/metadata").json()
    for number, exit_code in ((signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)):
        assert site.end(number) == exit_code
        assert socket_path(site.state).exists() == (number is signal.SIGKILL)
        with site.door() as door, pytest.raises(DataSiteError, match="is not running"):
            door.status()
        with pytest.raises(CommunicationError):
            carrier.exchange(Parcel.of(b"nobody there"), deadline_s=5)

        site.start(password=CHANGED_PASSWORD)

        assert httpx.get(f"{site.url}/api/v2/metadata").json() == before
        assert carrier.exchange(Parcel.of(b"still here"), deadline_s=_DEADLINE_S) == Parcel.of(
            b"still here"
        )
        with site.door() as door:
            assert door.status()["published"] == ["many-pumps", "pumps"]
            assert RESEARCHER[0] in {account.email for account in door.users()}
        site.carrier((OPERATOR[0], CHANGED_PASSWORD)).close()
        with pytest.raises(AuthenticationError):
            site.carrier(OPERATOR)


def test_the_log_holds_no_secrets_and_no_noise(site: SiteProcess) -> None:
    """What three boots printed is the site's own entries, without password or key."""
    log = site.log.read_text(encoding="utf-8")
    identity = (site.state / "identity.json").read_text(encoding="utf-8")
    for secret in (
        CHANGED_PASSWORD,
        OPERATOR[1],
        RESEARCHER[1],
        "signing key",
        "SQLite",
        identity[-20:-2],
    ):
        assert secret not in log
    entries = [line for line in log.splitlines() if re.match(r"\d{4}-\d\d-\d\d ", line)]
    assert len(entries) < 10  # a failure that a test caused has its traceback below its entry
