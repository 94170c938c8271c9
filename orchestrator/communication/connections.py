"""Kept HTTP connections to one address: how requests go out, and how answers come in.

A large request is sent in parts that are never joined, and an answer is read into one piece of
memory of its size. Each read and each write has the time that is left, so what trickles in is given
up at its deadline too.
"""

import contextlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, cast

from core.arena import Buffer
from core.limits import MAX_MESSAGE_BYTES
from orchestrator.communication.answers import Plain, Timed
from orchestrator.communication.traffic import Traffic

_CONNECT_S: Final = 5.0
_KEPT: Final = 16
_CHUNK_BYTES: Final = 1 << 18
_JOINED_BYTES: Final = 1 << 17

_KEEPALIVE: Final = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3}
"""A host that is silent for five seconds is asked three times, every other second."""

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

    def extend(self, by_s: float) -> None:
        """Put it off, by what the caller took for itself."""
        self._end += by_s

    def required_s(self) -> float:
        """Give the seconds left.

        Raises:
            TimeoutError: It is too late.
        """
        left_s = self._end - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        return left_s


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
    content: memoryview


class Receiver:
    """Takes an answer's content in as it comes; this one keeps it and does no more."""

    def begin(self, headers: Mapping[str, str], size_bytes: int) -> memoryview:
        """Give memory of that size, when there is room for it."""
        del headers
        return memoryview(bytearray(size_bytes))

    def came(self, part: memoryview) -> None:
        """Be told of each part, in order, as soon as it is there."""


class NotReachedError(Exception):
    """No connection came about; the cause is the socket's own error."""


class _LostError(Exception):
    """The connection ended before an answer had begun; the cause says how."""


class Connections:
    """Connections to one address, kept open between requests; several threads may ask at once.

    Args:
        tls: Settings of an https address; None for http.
        traffic: Counts what passes.
    """

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None, traffic: Traffic) -> None:
        self._address = host, port
        named = f"[{host}]" if ":" in host else host.encode("idna").decode()
        self._named = f"{named}:{port}"
        self._tls = tls
        self._idle: list[socket.socket] = []
        self._changing = threading.Lock()
        self._traffic = traffic

    def ask(
        self, make: Callable[[], Ask], deadline: Deadline, receiver: Receiver | None = None
    ) -> Answer:
        """Send a request and give the answer, whatever its status.

        Args:
            make: Gives the request; called again when a kept connection had ended, before anything
                of an answer arrived, for a new one.
            deadline: By when all of the answer must be there.
            receiver: Takes the content in, where it is not only to be kept.

        Raises:
            NotReachedError: No connection came about.
            TimeoutError: It is too late.
            OSError: The connection broke.
            http.client.HTTPException: What came back is no HTTP, or ended too early.
        """
        receiver = receiver or Receiver()
        kept = self._take()
        if kept is not None:
            with contextlib.suppress(_LostError):
                return self._exchange(kept, make(), deadline, receiver)
        try:
            return self._exchange(self._connect(deadline), make(), deadline, receiver)
        except _LostError as exc:
            raise exc.args[0] from None

    def close(self) -> None:
        """Close those that are kept; closing again does nothing."""
        with self._changing:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _take(self) -> socket.socket | None:
        with self._changing:
            return self._idle.pop() if self._idle else None

    def _keep(self, connection: socket.socket) -> None:
        with self._changing:
            if len(self._idle) < _KEPT:
                self._idle.append(connection)
                return
        connection.close()

    def _connect(self, deadline: Deadline) -> socket.socket:
        timeout_s = min(_CONNECT_S, deadline.left_s())
        with contextlib.ExitStack() as undo:
            try:
                connection = socket.create_connection(self._address, timeout=timeout_s)
                undo.callback(connection.close)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                _notice_a_lost_host(connection)
                if self._tls is not None:
                    connection = self._tls.wrap_socket(connection, server_hostname=self._address[0])
            except OSError as exc:
                raise NotReachedError(exc.strerror or str(exc) or "no connection in time") from exc
            undo.pop_all()
        return connection

    def _exchange(
        self, connection: socket.socket, ask: Ask, deadline: Deadline, receiver: Receiver
    ) -> Answer:
        try:
            is_whole = self._send(connection, ask, deadline)
            timed = Timed(connection, deadline)
            try:
                plain = timed.look()
                response = _begun(timed, ask) if plain is None else None
            except LOST as exc:
                raise _LostError(exc) from exc
            if response is not None:
                with response:
                    answer, closes = _read(response, deadline, receiver)
            else:
                status, headers, size_bytes, closes = cast("Plain", plain)
                content = _taken(timed.readinto, headers, size_bytes, deadline, receiver)
                answer = Answer(status, headers, content)
                closes = closes or timed.is_ahead  # of what nobody asked for
        except BaseException:
            connection.close()
            raise
        if closes or not is_whole:
            connection.close()
        else:
            self._keep(connection)
        sent = sum(len(part) for part in ask.parts)
        self._traffic.add(sent=sent, received=len(answer.content))
        return answer

    def _send(self, connection: socket.socket, ask: Ask, deadline: Deadline) -> bool:
        """Send the request; False when it was not heard to its end."""
        size_bytes = sum(len(part) for part in ask.parts)
        said = {"Host": self._named, **ask.headers, "Content-Length": str(size_bytes)}
        lines = [f"{name}: {value}" for name, value in said.items()]
        start = "\r\n".join([f"{ask.method} {ask.path} HTTP/1.1", *lines, "", ""]).encode("ascii")
        parts: tuple[Buffer, ...] = (start, *ask.parts)
        if size_bytes <= _JOINED_BYTES:  # to be one packet, and one event at the other side
            parts = (b"".join(parts),)
        try:
            for part in parts:
                connection.settimeout(deadline.left_s())
                connection.sendall(part)
        except (BrokenPipeError, ConnectionResetError):
            return False  # it may have answered before, which is then there to be read
        return True


def _notice_a_lost_host(connection: socket.socket) -> None:
    """Have the kernel ask the other one, while an answer is waited for, whether it is there.

    A process that dies ends its connections, and a frozen one is there: a host that vanished would
    else not be told from either until the deadline.
    """
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _fitting(size_bytes: int) -> int:
    """Give the size, which is within the limit.

    Raises:
        http.client.HTTPException: It is not.
    """
    if size_bytes > MAX_MESSAGE_BYTES:
        raise http.client.HTTPException(f"an answer of {size_bytes} bytes")
    return size_bytes


def _begun(timed: Timed, ask: Ask) -> http.client.HTTPResponse:
    """Give an answer of any form, read to the end of its headers by Python's own reader.

    Raises:
        http.client.HTTPException: It is no HTTP, or ended among the headers.
    """
    response = http.client.HTTPResponse(cast("socket.socket", timed), method=ask.method)
    with contextlib.ExitStack() as undo:
        undo.callback(response.close)
        response.begin()
        if timed.has_ended:  # of which those that came would be taken
            raise http.client.IncompleteRead(b"")
        undo.pop_all()
    return response


def _read(
    response: http.client.HTTPResponse, deadline: Deadline, receiver: Receiver
) -> tuple[Answer, bool]:
    """Give an answer of any form, and whether the connection ends with it."""
    headers = {name.lower(): value for name, value in response.headers.items()}
    content = (
        _undeclared(response)
        if response.length is None
        else _taken(response.readinto, headers, response.length, deadline, receiver)
    )
    return Answer(response.status, headers, content), response.will_close


def _taken(
    read: Callable[[memoryview], int],
    headers: Mapping[str, str],
    size_bytes: int,
    deadline: Deadline,
    receiver: Receiver,
) -> memoryview:
    """Give the content, read into one piece of memory.

    Raises:
        http.client.HTTPException: There is less than was said, or more than is allowed.
    """
    begin = time.monotonic()
    content = receiver.begin(headers, _fitting(size_bytes))
    deadline.extend(time.monotonic() - begin)  # to wait for room is no delay of theirs
    there = 0
    while there < len(content):
        count = read(content[there : there + _CHUNK_BYTES])
        if not count:
            raise http.client.IncompleteRead(b"", len(content) - there)
        receiver.came(content[there : there + count])
        there += count
    return content


def _undeclared(response: http.client.HTTPResponse) -> memoryview:
    content = bytearray()
    while True:
        chunk = response.read1(_CHUNK_BYTES)
        if not chunk:
            return memoryview(content)
        content += chunk
        if len(content) > MAX_MESSAGE_BYTES:
            raise http.client.HTTPException("an answer without an end")
