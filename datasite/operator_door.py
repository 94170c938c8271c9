"""The operator's local door into the running site: a Unix socket that only its owner can open.

Whoever may open `<state>/operator.sock` is the operator; the file's permission is the authority,
so there is no password to keep. The commands of the operator's CLI use the `OperatorDoor` client.
"""

import contextlib
import hashlib
import os
import socket
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import httpx
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, JsonValue, SecretStr, TypeAdapter, ValidationError

from core import exceptions
from core.exceptions import DataSiteError, FederatedLearningError
from datasite.accounts import Account, Accounts
from datasite.caller import Role

_SOCKET_PATH_BYTES: Final = 100
"""Linux allows 107 bytes for a socket's path and others less."""

_ERROR_STATUS: Final = 409
_TIMEOUT_S: Final = 120.0
"""Publishing a large dataset takes a while; the site is on this machine and answers or is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DoorActions:
    """What the site does for its operator; each may raise a `FederatedLearningError`.

    Attributes:
        status: Tells how the site is, in JSON's types.
        accounts: The site's accounts.
        publish: Publishes the datasets registered since; gives the names of those it published.
    """

    status: Callable[[], Mapping[str, JsonValue]]
    accounts: Accounts
    publish: Callable[[], Sequence[str]]


class _NewAccount(BaseModel):
    email: str
    name: str
    password: SecretStr
    role: Role


class _Email(BaseModel):
    email: str


class _NewRole(_Email):
    role: Role


class _NewPassword(_Email):
    password: SecretStr


class _Refusal(BaseModel):
    """How an error travels: the name of its class in `core.exceptions`, and its message."""

    error: str
    message: str


_ACCOUNT: Final = TypeAdapter(Account)
_ACCOUNTS: Final = TypeAdapter(list[Account])
_NAMES: Final = TypeAdapter(list[str])
_STATUS: Final = TypeAdapter(dict[str, JsonValue])


def build_door(actions: DoorActions) -> FastAPI:
    """Give the app behind the door; `open_door` serves it."""
    app = FastAPI(openapi_url=None)

    @app.exception_handler(FederatedLearningError)
    def refuse(_request: Request, exc: FederatedLearningError) -> JSONResponse:
        refusal = _Refusal(error=type(exc).__name__, message=str(exc))
        return JSONResponse(refusal.model_dump(), status_code=_ERROR_STATUS)

    @app.get("/status")
    def status() -> dict[str, JsonValue]:
        return dict(actions.status())

    _route_accounts(app, actions.accounts)

    @app.post("/publish")
    def publish() -> list[str]:
        return list(actions.publish())

    return app


def _route_accounts(app: FastAPI, accounts: Accounts) -> None:
    @app.get("/users")
    def users() -> list[Account]:
        return list(accounts.all())

    @app.post("/users")
    def create(account: _NewAccount) -> Account:
        return accounts.create(
            email=account.email,
            name=account.name,
            password=account.password.get_secret_value(),
            role=account.role,
        )

    @app.post("/users/disable")
    def disable(account: _Email) -> Account:
        return accounts.disable(account.email)

    @app.post("/users/enable")
    def enable(account: _NewRole) -> Account:
        return accounts.enable(account.email, role=account.role)

    @app.post("/users/password")
    def set_password(account: _NewPassword) -> Account:
        return accounts.set_password(account.email, account.password.get_secret_value())


@contextlib.contextmanager
def open_door(actions: DoorActions, state: Path) -> Iterator[None]:
    """Serve the door of the site whose state is in `state`, from a thread, until the block ends.

    A socket file that a killed site left behind is replaced; the running site's is not.

    Raises:
        DataSiteError: Another process serves this door, or the socket cannot be made.
    """
    path = socket_path(state)
    with _listening(path) as listener:
        config = uvicorn.Config(
            build_door(actions),
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(
            target=server.run, kwargs={"sockets": [listener]}, name="operator-door", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            server.should_exit = True
            thread.join()


def socket_path(state: Path) -> Path:
    """Give the path of the door's socket: `<state>/operator.sock`, or a short one in its place.

    Where that path is longer than the system allows, both sides use the same one in a directory
    under the temporary directory that belongs to this account and that nobody else may enter.

    Raises:
        DataSiteError: That directory belongs to somebody else, or others may enter it.
    """
    path = state.resolve() / "operator.sock"
    if len(os.fsencode(path)) <= _SOCKET_PATH_BYTES:
        return path
    directory = Path(tempfile.gettempdir()) / f"datasite-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    found = directory.lstat()
    if (
        not stat.S_ISDIR(found.st_mode)
        or found.st_uid != os.getuid()
        or stat.S_IMODE(found.st_mode) & 0o077
    ):
        message = f"{directory} is not this account's private directory; remove it, or set TMPDIR"
        raise DataSiteError(message)
    return directory / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}.sock"


@contextlib.contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    if path.exists() and _is_served(path):
        message = f"{path}: a site is running on this state already; stop it first"
        raise DataSiteError(message)
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            listener.bind(os.fspath(path))
            # Nobody can connect between the two: a bound socket refuses until it listens.
            path.chmod(0o600)
            listener.listen()
        except OSError as exc:
            message = f"{path}: the operator's socket cannot be made ({exc.strerror})"
            raise DataSiteError(message) from exc
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except OSError:
            return False
    return True


class OperatorDoor:
    """The other side of the door: asks the running site to do what its operator wants.

    Every method raises `DataSiteError` when the site is not running, and otherwise what the site
    raised, as the class it was raised as.

    Args:
        site_id: The site's name, for messages.
        state: The directory its state is kept in.
    """

    def __init__(self, *, site_id: str, state: Path) -> None:
        self._site_id = site_id
        self._path = socket_path(state)
        self._client = httpx.Client(
            transport=httpx.HTTPTransport(uds=os.fspath(self._path)),
            base_url="http://operator",
            trust_env=False,
            timeout=_TIMEOUT_S,
        )

    def __enter__(self) -> Self:
        """Give the door itself."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Close the connection."""
        self.close()

    def close(self) -> None:
        """Close the connection; closing again does nothing."""
        self._client.close()

    def is_running(self) -> bool:
        """Tell whether the site runs."""
        return _is_served(self._path)

    def status(self) -> dict[str, JsonValue]:
        """Tell how the site is."""
        return _STATUS.validate_json(self._ask("GET", "/status"))

    def users(self) -> list[Account]:
        """Give the site's accounts."""
        return _ACCOUNTS.validate_json(self._ask("GET", "/users"))

    def create_user(self, *, email: str, name: str, password: str, role: Role) -> Account:
        """Open an account."""
        wanted = {"email": email, "name": name, "password": password, "role": role.value}
        return _ACCOUNT.validate_json(self._ask("POST", "/users", wanted))

    def disable_user(self, email: str) -> Account:
        """Take everything that an account may do from it, at once."""
        return _ACCOUNT.validate_json(self._ask("POST", "/users/disable", {"email": email}))

    def enable_user(self, email: str, *, role: Role) -> Account:
        """Let an account that is disabled do again what `role` may."""
        wanted = {"email": email, "role": role.value}
        return _ACCOUNT.validate_json(self._ask("POST", "/users/enable", wanted))

    def set_password(self, email: str, password: str) -> Account:
        """Give an account another password and another signing key."""
        wanted = {"email": email, "password": password}
        return _ACCOUNT.validate_json(self._ask("POST", "/users/password", wanted))

    def publish(self) -> list[str]:
        """Have the datasets registered since published; their names."""
        return _NAMES.validate_json(self._ask("POST", "/publish"))

    def _ask(self, method: str, path: str, body: Mapping[str, str] | None = None) -> bytes:
        if not self.is_running():  # asked first: httpcore leaks the socket of a refused connection
            raise self._not_running("no answer")
        try:
            response = self._client.request(method, path, json=body)
        except httpx.ConnectError as exc:
            raise self._not_running(str(exc)) from exc
        except httpx.TransportError as exc:
            message = f"{self._site_id} did not finish '{method} {path}' ({exc}); see its log"
            raise DataSiteError(message, site_id=self._site_id) from exc
        if response.is_success:
            return response.content
        raise self._error_in(response)

    def _not_running(self, why: str) -> DataSiteError:
        return DataSiteError(
            f"{self._site_id} is not running ({self._path}: {why}): start it with "
            "'datasite serve --config ...'",
            site_id=self._site_id,
        )

    def _error_in(self, response: httpx.Response) -> FederatedLearningError:
        try:
            refusal = _Refusal.model_validate_json(response.content)
        except ValidationError:
            message = f"{self._site_id} failed (HTTP {response.status_code}); see its log"
            return DataSiteError(message, site_id=self._site_id)
        kind = getattr(exceptions, refusal.error, DataSiteError)
        return kind(refusal.message, site_id=self._site_id)
