"""What a site refuses to start with, and the operator's door without a site behind it."""

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from site_process import OPERATOR, SiteProcess

from core.exceptions import ConfigurationError, DataSiteError, SecurityError
from datasite.accounts import Account, Accounts
from datasite.caller import Role
from datasite.operator_door import DoorActions, OperatorDoor, open_door, socket_path
from datasite.serving import PySyftServer

pytestmark = pytest.mark.live


def unopened(state: Path, **changes: object) -> PySyftServer:
    """Give a server that was configured and not opened."""
    options: dict[str, Any] = {
        "site_id": "factory-2",
        "state": state,
        "host": "127.0.0.1",
        "port": 0,
        "operator_email": OPERATOR[0],
        "operator_password": OPERATOR[1],
        "handle": lambda request, _caller: request,
    }
    return PySyftServer(**(options | changes))


@pytest.mark.parametrize(
    ("email", "password"),
    [
        (OPERATOR[0], "changethis"),
        (OPERATOR[0], ""),
        (OPERATOR[0], "11-letters!"),
        (OPERATOR[0], OPERATOR[0]),
        (OPERATOR[0], "x" * 73),
        ("operator@factory.local", OPERATOR[1]),
        ("operator", OPERATOR[1]),
    ],
    ids=["default", "empty", "short", "e-mail", "cut-by-bcrypt", "reserved-domain", "no-e-mail"],
)
def test_weak_credentials_refuse_to_start(tmp_path: Path, email: str, password: str) -> None:
    """A site with a password that others guess, or an e-mail PySyft rejects, is not built."""
    with pytest.raises(ConfigurationError, match=r"choose|use one") as refusal:
        unopened(tmp_path, operator_email=email, operator_password=password)
    assert password in {"", OPERATOR[0]} or password not in str(refusal.value)


def test_a_port_in_use_is_named(site: SiteProcess, tmp_path: Path) -> None:
    """Starting a second site on a port says which port, before anything is written."""
    with pytest.raises(DataSiteError, match=f"factory-2: port {site.port} is in use"):
        unopened(tmp_path / "state", port=site.port).open()
    assert not (tmp_path / "state").exists()


def test_a_broken_identity_is_not_replaced(tmp_path: Path) -> None:
    """A site never takes a new identity by itself when the kept one cannot be read."""
    (tmp_path / "identity.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="no site identity"):
        unopened(tmp_path).open()
    assert (tmp_path / "identity.json").read_text(encoding="utf-8") == "{}"


def refuse() -> list[str]:
    """Refuse to publish."""
    raise SecurityError("not today")


class OneAccount:
    """The accounts of a site that has one and keeps to it."""

    def all(self) -> list[Account]:
        """Give the one."""
        return [Account(email=OPERATOR[0], name="Operator", role=Role.OPERATOR)]

    def __getattr__(self, name: str) -> object:
        """Fail the test: nothing else is to be asked for."""
        return pytest.fail(f"{name} was not asked for")


@pytest.fixture
def actions() -> DoorActions:
    """Give the actions of a site that has one account and publishes nothing."""
    accounts = cast("Accounts", OneAccount())
    return DoorActions(status=lambda: {"datasets": 2}, accounts=accounts, publish=refuse)


@pytest.fixture(params=[10, 120], ids=["short-path", "path-too-long-for-a-socket"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Give a state directory with a name of some length; no socket is left behind."""
    made = tmp_path / ("s" * request.param)
    made.mkdir()
    yield made
    assert not socket_path(made).exists()


def test_the_door_works_wherever_the_state_is(state: Path, actions: DoorActions) -> None:
    """A path longer than a socket may have changes nothing for either side."""
    with open_door(actions, state), OperatorDoor(site_id="factory-2", state=state) as door:
        assert stat.S_IMODE(socket_path(state).stat().st_mode) == 0o600
        assert door.status() == {"datasets": 2}
        assert [account.role for account in door.users()] == [Role.OPERATOR]


def test_an_error_comes_through_the_door_as_it_was(tmp_path: Path, actions: DoorActions) -> None:
    """Class, message and so the exit code are those that the site raised."""
    with (
        open_door(actions, tmp_path),
        OperatorDoor(site_id="factory-2", state=tmp_path) as door,
        pytest.raises(SecurityError, match="not today") as refusal,
    ):
        door.publish()
    assert refusal.value.site_id == "factory-2"


def test_a_running_sites_door_is_not_taken_over(tmp_path: Path, actions: DoorActions) -> None:
    """A second site on the same state ends with an error, and the first one's door still opens."""
    with open_door(actions, tmp_path), OperatorDoor(site_id="factory-2", state=tmp_path) as door:
        with (
            pytest.raises(DataSiteError, match="running on this state"),
            open_door(actions, tmp_path),
        ):
            pytest.fail("opened twice")
        assert door.status() == {"datasets": 2}
