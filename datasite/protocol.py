"""How a site speaks HTTP: uvicorn's protocol, less patient, and with a way of its own for sessions.

uvicorn waits for ever for the headers of a request, so a stranger could hold every connection that
the system gives; here they have a time. A request in a session is handed to `Exchange`, everything
else to the application, as ASGI has it.
"""

import asyncio
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Final, Self, cast

from loguru import logger
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from datasite import session_route
from datasite.exchange import Answer, Exchange
from datasite.session_route import SessionRoute

HEADERS_S: Final = 10.0
"""From a connection, or the first byte of a further request, to the end of the headers."""

_AT_ONCE: Final = 40
"""Requests in sessions that are worked on at the same time; the others wait."""

_SESSION: Final = (b"POST", session_route.PATH.encode())
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_CLOSE: Final = (b"connection", b"close")


class SiteProtocol(HttpToolsProtocol):
    """One connection to a site.

    Attributes:
        route: Answers requests in sessions; without it the application has these too.
        work: Where it works, with threads of its own.
    """

    headers_s = HEADERS_S
    route: SessionRoute | None = None
    work: Executor
    _patience_s: float | None = None
    """How long may be taken over what has begun to come in, if anything has."""
    _giving_up: asyncio.TimerHandle | None = None
    _exchange: Exchange | None = None
    """The request in a session that is not answered yet."""
    _is_last = False
    """Whether the connection is closed after the answer to it."""

    @classmethod
    def with_sessions(cls, route: SessionRoute) -> "type[Self]":
        """Give the protocol for uvicorn, which makes one of it for each connection."""
        work = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="session")
        return type(cls.__name__, (cls,), {"route": route, "work": work})

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self._patience_s = self.headers_s
        self._wait()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`; most often a request is there at once, and waited for never."""
        super().data_received(data)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._stop_waiting()
        if self._exchange is not None:
            self._exchange.leave()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Be told by the parser of a request's first byte."""
        if self._patience_s is None:
            self._patience_s = self.headers_s
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Be told by the parser that the headers are there."""
        self._stop_waiting()
        is_session = (self.parser.get_method(), self.url) == _SESSION and self.route is not None
        answering = self.cycle is not None and not self.cycle.response_complete
        if self._exchange is not None or (is_session and answering):
            self.transport.close()  # of what nobody here sends: requests ahead of their answers
        elif is_session:
            self._begin()
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Be told by the parser of content."""
        if self._exchange is not None:
            self._exchange.receive(body)
        elif self.cycle is not None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Be told by the parser that a request ends."""
        self._stop_waiting()
        if self._exchange is not None:
            self._exchange.end()
        elif self.cycle is not None:
            super().on_message_complete()

    def shutdown(self) -> None:
        """Be told that the server stops: what is being answered still is."""
        if self._exchange is None:
            super().shutdown()
        else:
            self._is_last = True

    def _begin(self) -> None:
        self._is_last = self.parser.get_http_version() == "1.0" or _CLOSE in self.headers
        exchange = Exchange(
            cast("SessionRoute", self.route),
            dict(self.headers),
            answer=self._send_soon,
            work=self.work,
        )
        self._exchange = exchange
        if exchange.is_open:
            if self.expect_100_continue:
                self.transport.write(_CONTINUE)
            self._patience_s = exchange.patience_s

    def _send_soon(self, answer: Answer) -> None:
        self.loop.call_soon_threadsafe(self._send, answer)

    def _send(self, answer: Answer) -> None:
        self._exchange = None
        if self.transport.is_closing():
            return
        is_last = self._is_last or answer.closes
        headers = {**answer.headers, **({"connection": "close"} if is_last else {})}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        first, *others = answer.parts
        self.transport.write(
            b"".join((STATUS_LINE[answer.status], lines.encode("latin-1"), b"\r\n", first))
        )
        for part in others:
            self.transport.write(part)
        if is_last:
            self.transport.close()
        self.on_response_complete()

    def _wait(self) -> None:
        if self._patience_s is not None and self._giving_up is None:
            self._giving_up = self.loop.call_later(self._patience_s, self._give_up)

    def _stop_waiting(self) -> None:
        self._patience_s = None
        if self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None

    def _give_up(self) -> None:
        self._stop_waiting()
        if self._exchange is not None and self._exchange.is_open:
            self._exchange.give_up()
        else:
            logger.warning("a connection was closed: a request did not come within its time")
            self.transport.close()
