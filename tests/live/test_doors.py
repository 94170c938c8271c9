"""PySyft's own doors at a live site, tried with PySyft's own client: all shut but those named.

`datasite.doors` says why: PySyft executes approved code in its own process (CVE-2026-31220).
"""

from collections.abc import Iterator
from typing import Any, Final

import httpx
import pytest
import syft as sy
from live_site import AUDITOR, OPERATOR, RESEARCHER, LiveSite, signed_call
from syft.client.api import SyftAPICall, debox_signed_syftapicall_response
from syft.server.credentials import SyftSigningKey
from syft.service.response import SyftError
from syft.service.service import ServiceConfigRegistry
from syft.types.uid import UID

from core.pysyft_patches import REFUSED
from datasite.caller import Role
from datasite.doors import CALLS, HANDLE_PATH, SESSION_PATH

pytestmark = pytest.mark.live

ACCOUNTS: Final = {
    Role.OPERATOR: OPERATOR,
    Role.AUDITOR: AUDITOR,
    Role.RESEARCHER: RESEARCHER,
}
OURS: Final = {HANDLE_PATH, SESSION_PATH}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveSite]:
    """Give a live site."""
    made = LiveSite(tmp_path_factory.mktemp("doors"))
    made.register()
    made.start()
    yield made
    made.end()


@pytest.fixture(scope="module")
def notebooks(site: LiveSite) -> dict[Role, sy.DatasiteClient]:
    """Log every role in with PySyft's own client."""
    return {role: site.notebook(email) for role, email in ACCOUNTS.items()}


@pytest.fixture(scope="module")
def notebook(notebooks: dict[Role, sy.DatasiteClient]) -> sy.DatasiteClient:
    """Give a researcher's."""
    return notebooks[Role.RESEARCHER]


@pytest.fixture(scope="module")
def operator(notebooks: dict[Role, sy.DatasiteClient]) -> sy.DatasiteClient:
    """Give the operator's."""
    return notebooks[Role.OPERATOR]


def is_refused(answer: object) -> bool:
    """Say whether `answer` is one of the site's own refusals."""
    return isinstance(answer, SyftError) and answer.message.startswith(REFUSED)


def pysyfts_paths() -> list[str]:
    """Give every path that PySyft's services have."""
    return sorted(set(ServiceConfigRegistry.get_registered_configs()) - OURS)


def test_pysyft_has_many_doors() -> None:
    """The test below is about all of them; those of its advisory are among them."""
    paths = pysyfts_paths()
    assert len(paths) > 150
    assert {"code.submit", "code.call", "api.add", "request.apply", "job.get_all"} <= set(paths)


@pytest.mark.parametrize("role", Role)
def test_all_that_pysyft_offers_is_refused_but_what_is_named(
    site: LiveSite, notebooks: dict[Role, sy.DatasiteClient], role: Role
) -> None:
    """Each path, called without arguments: refused before PySyft looks at it."""
    client = notebooks[role]
    served = {path for path in pysyfts_paths() if not is_refused(signed_call(client, path))}
    own = {"user.update"}  # for the own account alone, which a call without arguments names not
    assert served - own == CALLS[role] - OURS - own


def test_every_named_call_is_one_of_pysyfts() -> None:
    """A list of what is served holds no name that nothing stands behind."""
    assert set().union(*CALLS.values()) - OURS <= set(pysyfts_paths())


def test_strangers_are_refused_every_path(site: LiveSite) -> None:
    """With a key of their own, which anybody can make."""
    guest = sy.login_as_guest(url=site.url)
    assert [
        path
        for path in [*pysyfts_paths(), *OURS]
        if not is_refused(signed_call(guest, path, key=SyftSigningKey.generate()))
    ] == []


def submit_code(client: sy.DatasiteClient) -> object:
    """Ask for one's own code to be run on private rows."""

    @sy.syft_function_single_use()
    def peek() -> int:
        return 1

    return client.code.request_code_execution(peek)


def add_an_endpoint(client: sy.DatasiteClient) -> object:
    """Have the site serve one's own function."""

    @sy.api_endpoint(path="mine.peek")
    def peek(context: Any) -> int:
        return 1

    return client.api.services.api.add(endpoint=peek)


@pytest.mark.parametrize(
    ("role", "act"),
    [
        pytest.param(Role.RESEARCHER, submit_code, id="researcher submits code"),
        pytest.param(Role.OPERATOR, submit_code, id="operator submits code"),
        pytest.param(Role.OPERATOR, add_an_endpoint, id="operator adds an endpoint"),
    ],
)
def test_what_a_notebook_would_do_is_refused(
    notebooks: dict[Role, sy.DatasiteClient], role: Role, act: Any
) -> None:
    """As PySyft's documentation has it; the error that the notebook shows says who refused."""
    with pytest.raises(Exception, match=REFUSED):
        act(notebooks[role])


@pytest.mark.parametrize(
    "path",
    [
        "log.get",
        "log.get_stdout",
        "log.get_stderr",
        "log.append",
        "job.get_all",
        "job.get",
        "job.kill",
        "output.get",
        "worker.logs",
        "worker.get_all",
        "worker.start_workers",
        "worker_pool.launch",
        "worker_image.submit",
        "settings.update",
        "settings.allow_guest_signup",
        "settings.enable_notifications",
        "user.request_password_reset",
        "migration.get_migration_data",
        "sync._get_state",
        "network.exchange_credentials_with",
        "network.add_peer",
        "attestation.get_cpu_attestation",
        "blob_storage.mount_azure",
        "notifications.send",
    ],
)
def test_a_dangerous_door_is_shut_to_the_operator_too(
    operator: sy.DatasiteClient, path: str
) -> None:
    """Whose account somebody may have stolen; each is a door that there is."""
    assert path in pysyfts_paths()
    assert is_refused(signed_call(operator, path))


def test_no_job_is_begun(site: LiveSite, notebook: sy.DatasiteClient) -> None:
    """A call that would become a job is refused, one that is served otherwise too."""
    for path in ("dataset.get_all", HANDLE_PATH):
        call = SyftAPICall(server_uid=notebook.id, path=path, args=[], kwargs={}, blocking=False)
        signed = call.sign(credentials=notebook.credentials)
        answer = notebook.connection.make_call(signed)
        assert is_refused(debox_signed_syftapicall_response(answer).unwrap())


def test_a_call_for_another_site_is_not_carried_on(notebook: sy.DatasiteClient) -> None:
    """PySyft would forward it."""
    call = SyftAPICall(server_uid=UID(), path="dataset.get_all", args=[], kwargs={})
    signed = call.sign(credentials=notebook.credentials)
    answer = debox_signed_syftapicall_response(notebook.connection.make_call(signed)).unwrap()
    assert is_refused(answer)


@pytest.mark.parametrize(
    ("method", "route"),
    [
        ("POST", "register"),
        ("POST", "reset_password"),
        ("POST", "forgot_password"),
        ("GET", "stream/peer/path"),
        ("PUT", "stream/peer/path"),
        ("POST", "stream/peer/path"),
        ("GET", "openapi.json"),
        ("GET", "docs"),
        ("POST", "syft_new_api"),
        ("POST", "syft_new_api_call"),
        ("GET", "vpn_status"),
    ],
)
def test_a_route_that_nobody_needs_does_not_exist(site: LiveSite, method: str, route: str) -> None:
    """Sign-up, reset by token, streams to other servers, descriptions of the API."""
    answer = httpx.request(method, f"{site.url}/api/v2/{route}", content=b"x")
    assert answer.status_code == 404


def test_metadata_says_that_nobody_may_sign_up(site: LiveSite) -> None:
    """From the first boot on."""
    told = httpx.get(f"{site.url}/api/v2/metadata").json()
    assert told["signup_enabled"] is False
    assert told["eager_execution_enabled"] is False


def test_every_refusal_above_is_on_the_log(site: LiveSite) -> None:
    """With who and what; of hundreds in a minute, some by their number alone."""
    site.end()
    paths = {row["detail"].get("path") for row in site.audit() if row["who"] == RESEARCHER}
    assert paths & set(pysyfts_paths()) - CALLS[Role.RESEARCHER]
    for email in ACCOUNTS.values():
        assert site.refusals_of(email) > 100
    assert site.refusals_of("a stranger") > 150
    assert len(site.audit()) < 600
