"""The site as a process: checks before the slow start, and a clean stop."""

import asyncio
import contextlib
import errno
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import uvicorn
from loguru import logger

from core.exceptions import ConfigurationError, DataSiteError
from core.packing import Allocate
from core.wire import Parcel
from datasite.accounts import Accounts
from datasite.caller import Caller
from datasite.identity import Identity, require_email, require_strong_password
from datasite.log_in_route import LogInRoute
from datasite.protocol import SiteProtocol
from datasite.publishing import PublishedDataset
from datasite.routes import Routes
from datasite.session_route import SessionRoute

if TYPE_CHECKING:
    from datasite.certificates import SiteTls
    from datasite.server import PySyftSite

_DRAIN_S: Final = 5
_KEPT_S: Final = 75
"""An orchestrator's connection outlives the training of the other sites."""


def _nobody_asks() -> None:
    """Do nothing when the site is ready."""


def _log_refusal(email: str, path: str) -> None:
    logger.warning("refused {} to {}", path, email or "a stranger")


class PySyftServer:
    """A site served by PySyft over HTTP, in this process.

    Args:
        site_id: The site's name; PySyft shows it, and errors begin with it.
        state: The directory of everything that is kept; made private to this account (0700), and
            from then on the whole process creates files for this account alone (umask 077).
        host: The address to listen on.
        port: The port to listen on; 0 takes a free one, which `port` then is.
        operator_email: The operator's account.
        operator_password: Its password. The configuration is the authority: when it has changed,
            so does the account at the next start.
        handle: Answers requests; called from several threads at once.
        tls: With it the site speaks https, and takes up a renewed certificate on SIGHUP.
        on_ready: Called once, when the site answers.
        on_refused: Told of each refused call: the caller's e-mail ("" for a stranger), the path.
        allocate: Gives memory for what comes in.

    Raises:
        ConfigurationError: The operator's e-mail or password will not do.
    """

    def __init__(
        self,
        *,
        site_id: str,
        state: Path,
        host: str,
        port: int,
        operator_email: str,
        operator_password: str,
        handle: Callable[[Parcel, Caller], Parcel],
        tls: "SiteTls | None" = None,
        on_ready: Callable[[], None] = _nobody_asks,
        on_refused: Callable[[str, str], None] = _log_refusal,
        allocate: Allocate = bytearray,
    ) -> None:
        self.site_id = site_id
        self.port = port
        self._host = host
        self._state = state
        self._email = require_email(operator_email)
        require_strong_password(operator_password, email=self._email)
        self._password = operator_password
        self._handle = handle
        self._tls = tls
        self._on_ready = on_ready
        self._on_refused = on_refused
        self._allocate = allocate
        self._socket: socket.socket | None = None
        self._site: PySyftSite | None = None

    def open(self) -> None:
        """Take the port, then start PySyft; opening again does nothing.

        Accounts and datasets can be changed from here on, before anybody is answered.

        Raises:
            DataSiteError: The port is taken; found out before the slow part.
            ConfigurationError: The kept identity cannot be read.
        """
        if self._site is not None:
            return
        self._socket = self._bind()
        os.umask(0o077)
        identity = Identity.open(self._state)
        from datasite.server import PySyftSite  # noqa: PLC0415  importing PySyft takes seconds

        self._site = PySyftSite(
            site_id=self.site_id,
            state=self._state,
            identity=identity,
            operator_email=self._email,
            operator_password=self._password,
            handle=lambda request, caller: self._handle(Parcel.of(request), caller).joined(),
            on_refused=self._on_refused,
        )

    @property
    def url(self) -> str:
        """Where the site answers, on this machine."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'http' if self._tls is None else 'https'}://{host}:{self.port}"

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT, finish what is being answered (5 s at most), and return.

        Raises:
            DataSiteError: As `open`.
            ConfigurationError: As `open`.
        """
        self.open()
        log_ins = LogInRoute(self._opened().log_in, self._on_refused)
        protocol = SiteProtocol.with_sessions(self._session_route())
        config = uvicorn.Config(
            Routes(self._opened(), log_ins),
            http=protocol,
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=_DRAIN_S,
            timeout_keep_alive=_KEPT_S,
        )
        server = _Server(config, on_ready=self._tell_ready)
        if self._tls is not None:
            _speak_tls(server, self._tls)
        try:
            server.run(sockets=self._sockets())
        finally:
            protocol.work.shutdown(wait=False, cancel_futures=True)
            log_ins.close()
            self.close()

    def close(self) -> None:
        """Give the port back and stop PySyft; the site can be opened again."""
        for open_socket in self._sockets():
            open_socket.close()
        if self._site is not None:
            self._site.close()
        self._socket = self._site = None

    def publish(self, dataset: PublishedDataset) -> None:
        """Show `dataset` to researchers; the same name and version again changes nothing.

        Raises:
            DataSiteError: PySyft could not store it, or the site is not open.
        """
        self._opened().publish(dataset)

    def unpublish(self, name: str) -> None:
        """Take the dataset `name` away, rows and mock; nothing happens without one."""
        self._opened().unpublish(name)

    def published_names(self) -> list[str]:
        """Name the published datasets, in alphabetical order."""
        return self._opened().published_names()

    @property
    def accounts(self) -> Accounts:
        """The accounts; they can be changed while the site is open.

        Raises:
            DataSiteError: It is not.
        """
        return self._opened().accounts

    def _session_route(self) -> SessionRoute:
        site = self._opened()
        return SessionRoute(
            site_id=self.site_id,
            sessions=site.sessions,
            caller_of=site.caller_of,
            handle=self._handle,
            on_refused=self._on_refused,
            allocate=self._allocate,
        )

    def _opened(self) -> "PySyftSite":
        if self._site is None:
            message = f"{self.site_id} is not open yet; wait until it is ready"
            raise DataSiteError(message, site_id=self.site_id)
        return self._site

    def _sockets(self) -> list[socket.socket]:
        return [] if self._socket is None else [self._socket]

    def _tell_ready(self) -> None:
        logger.info("{} is ready on {}", self.site_id, self.url)
        self._on_ready()

    def _bind(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        taken = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind((self._host, self.port))
            # Two sites may both bind with SO_REUSEADDR until one listens; an early client waits.
            taken.listen()
        except OSError as exc:
            taken.close()
            reason = (
                f"port {self.port} is in use; stop what listens there, or choose another port"
                if exc.errno == errno.EADDRINUSE
                else f"{self._host}:{self.port} cannot be listened on: {exc.strerror}"
            )
            raise DataSiteError(f"{self.site_id}: {reason}", site_id=self.site_id) from exc
        self.port = taken.getsockname()[1]
        return taken


class _Server(uvicorn.Server):
    """uvicorn, with a call when it listens, and without its habit to repeat a signal at the end.

    Repeating it would end the process before PySyft is closed.
    """

    def __init__(self, config: uvicorn.Config, *, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready
        self.on_hangup: Callable[[], None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.on_hangup is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.on_hangup)
        await asyncio.to_thread(self._on_ready)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        kept = {
            number: signal.signal(number, self.handle_exit)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in kept.items():
                signal.signal(number, handler)


def _speak_tls(server: _Server, tls: "SiteTls") -> None:
    def renew() -> None:
        try:
            tls.read_again()
        except ConfigurationError as exc:
            logger.error("the renewed certificate is not used, the one before still is: {}", exc)

    server.config.load()  # it sets `ssl`, which uvicorn reads when it begins to listen
    server.config.ssl = tls.context
    server.on_hangup = renew
