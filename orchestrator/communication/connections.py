"""Kept HTTP connections to one address, by Python's own client, which costs the least of all.

A request is sent in parts that are never joined, and an answer is read into one piece of memory of
its size. Each step has the time that is left, so what trickles in is given up at its deadline too.
"""

import http.client
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

from core.limits import MAX_MESSAGE_BYTES

_CONNECT_S: Final = 5.0
_KEPT: Final = 16
_CHUNK_BYTES: Final = 1 << 20

Buffer: TypeAlias = bytes | bytearray | memoryview

LOST: Final = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError)
"""How a connection ends before an answer has begun."""


class Deadline:
    """A moment by which something must have happened."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._end = time.monotonic() + limit_s

    def left_s(self) -> float:
        """Give the seconds left; never quite 0, which sockets would read as not to wait at all."""
        return max(self._end - time.monotonic(), 0.001)

    def require_left(self) -> None:
        """Do nothing while there is time.

        Raises:
            TimeoutError: It is too late.
        """
        if time.monotonic() >= self._end:
            raise TimeoutError


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A request.

    Attributes:
        parts: The content, one part after the other.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    parts: Sequence[Buffer] = ()


class Answer(NamedTuple):
    """What came back; the headers' names are in small letters."""

    status: int
    headers: Mapping[str, str]
    content: bytearray


def at_once(_size_bytes: int) -> None:
    """Do nothing: there is room for an answer of this size."""


class NotReachedError(Exception):
    """No connection came about; the cause is the socket's own error."""


class Connections:
    """Connections to one address, kept open between requests; several threads may ask at once.

    Args:
        tls: Settings of an https address; None for http.
    """

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        self._host = host
        self._port = port
        self._tls = tls
        self._idle: list[http.client.HTTPConnection] = []
        self._changing = threading.Lock()

    def ask(
        self, make: Callable[[], Ask], deadline: Deadline, admit: Callable[[int], None] = at_once
    ) -> Answer:
        """Send a request and give the answer, whatever its status.

        Args:
            make: Gives the request; called again when a kept connection had ended, before anything
                of an answer arrived, for a new one.
            deadline: By when all of the answer must be there.
            admit: Called with the answer's size, in bytes, before it is read.

        Raises:
            NotReachedError: No connection came about.
            TimeoutError: It is too late.
            OSError: The connection broke.
            http.client.HTTPException: What came back is no HTTP, or ended too early.
        """
        kept = self._take()
        if kept is not None:
            try:
                return self._exchange(kept, make(), deadline, admit)
            except LOST:
                pass
        return self._exchange(self._connect(deadline), make(), deadline, admit)

    def close(self) -> None:
        """Close those that are kept; closing again does nothing."""
        with self._changing:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _take(self) -> http.client.HTTPConnection | None:
        with self._changing:
            return self._idle.pop() if self._idle else None

    def _keep(self, connection: http.client.HTTPConnection) -> None:
        with self._changing:
            if len(self._idle) < _KEPT:
                self._idle.append(connection)
                return
        connection.close()

    def _connect(self, deadline: Deadline) -> http.client.HTTPConnection:
        timeout_s = min(_CONNECT_S, deadline.left_s())
        connection = (
            http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)
            if self._tls is None
            else http.client.HTTPSConnection(
                self._host, self._port, timeout=timeout_s, context=self._tls
            )
        )
        try:
            connection.connect()
        except OSError as exc:
            connection.close()
            raise NotReachedError(exc.strerror or str(exc) or "no connection in time") from exc
        return connection

    def _exchange(
        self,
        connection: http.client.HTTPConnection,
        ask: Ask,
        deadline: Deadline,
        admit: Callable[[int], None],
    ) -> Answer:
        try:
            is_whole = self._send(connection, ask, deadline)
            socket = connection.sock
            socket.settimeout(deadline.left_s())
            response = connection.getresponse()
            admit(response.length or 0)
            content = _content(response, lambda: socket.settimeout(deadline.left_s()), deadline)
        except BaseException:
            connection.close()
            raise
        if response.will_close or not is_whole:
            connection.close()
        else:
            self._keep(connection)
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Answer(response.status, headers, content)

    @staticmethod
    def _send(connection: http.client.HTTPConnection, ask: Ask, deadline: Deadline) -> bool:
        """Send the request; False when it was not heard to its end."""
        connection.sock.settimeout(deadline.left_s())
        connection.putrequest(ask.method, ask.path, skip_accept_encoding=True)
        for name, value in ask.headers.items():
            connection.putheader(name, value)
        if ask.parts:
            connection.putheader("Content-Length", str(sum(len(part) for part in ask.parts)))
        try:
            connection.endheaders(ask.parts[0] if ask.parts else None)
            for part in ask.parts[1:]:
                connection.sock.settimeout(deadline.left_s())
                connection.sock.sendall(part)
        except (BrokenPipeError, ConnectionResetError):
            return False  # it may have answered before, which is then there to be read
        return True


def _content(
    response: http.client.HTTPResponse, keep_time: Callable[[], None], deadline: Deadline
) -> bytearray:
    """Read the content, in one piece of memory where its length is said.

    Raises:
        http.client.HTTPException: It is too long, or shorter than it says.
    """
    if response.length is None:
        return _undeclared(response, keep_time, deadline)
    if response.length > MAX_MESSAGE_BYTES:
        raise http.client.HTTPException(f"an answer of {response.length} bytes")
    content = bytearray(response.length)
    view, read = memoryview(content), 0
    while read < len(content):
        deadline.require_left()
        keep_time()
        count = response.readinto(view[read:])
        if not count:
            raise http.client.IncompleteRead(b"", len(content) - read)
        read += count
    response.read()  # ends the response, so that the connection can be used again
    return content


def _undeclared(
    response: http.client.HTTPResponse, keep_time: Callable[[], None], deadline: Deadline
) -> bytearray:
    content = bytearray()
    while True:
        deadline.require_left()
        keep_time()
        chunk = response.read1(_CHUNK_BYTES)
        if not chunk:
            return content
        content += chunk
        if len(content) > MAX_MESSAGE_BYTES:
            raise http.client.HTTPException("an answer without an end")
