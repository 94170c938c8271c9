"""How long a site listens to one who does not say what it wants.

uvicorn waits for ever for the headers of a request, so a stranger could hold every connection that
the system gives. What comes after the headers is limited by `datasite.session_route`.
"""

import asyncio
from typing import Final

from loguru import logger
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADERS_S: Final = 10.0
"""From a connection, or the first byte of a further request, to the end of the headers."""


class PatientProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which closes a connection whose headers take too long."""

    headers_s = HEADERS_S
    _giving_up: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._stop_waiting()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Be told by the parser of a request's first byte."""
        if self._giving_up is None:
            self._wait()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Be told by the parser that the headers are there."""
        self._stop_waiting()
        super().on_headers_complete()

    def _wait(self) -> None:
        self._giving_up = self.loop.call_later(self.headers_s, self._give_up)

    def _stop_waiting(self) -> None:
        if self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None

    def _give_up(self) -> None:
        self._giving_up = None
        logger.warning("a connection was closed: its headers did not come within their time")
        self.transport.close()
