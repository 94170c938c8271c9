"""A network that fails on purpose: a TCP proxy before a site, which can cut one exchange.

It reads along just enough of HTTP to know where in an exchange it is: a message's head ends with an
empty line and says how long its body is.
"""

import contextlib
import random
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

_HEAD_END: Final = b"\r\n\r\n"
_LENGTH: Final = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_WORK: Final = re.compile(rb"POST \S*/(session|api_call) ")
_DELAY_S: Final = 0.7
_CHUNK: Final = 1 << 16
_RESET: Final = struct.pack("ii", 1, 0)


class Point(Enum):
    """Where in an exchange the network is cut."""

    SENDING = "sending"
    COMPUTING = "computing"
    RECEIVING = "receiving"
    BETWEEN = "between rounds"


class Mode(Enum):
    """What becomes of the connection there."""

    DELAY = "delay"
    RESET = "reset"
    HALF_CLOSED = "half-closed"
    BLACK_HOLE = "black hole"
    GARBAGE = "garbage"
    TRICKLE = "1 byte/s"


@dataclass(frozen=True, slots=True)
class Cut:
    """One cut: in the n-th request for work from now, counted from 1."""

    point: Point
    mode: Mode
    request: int


class FaultProxy:
    """Passes on what a site and its callers say, until it is told to cut an exchange.

    Args:
        port: Where the site listens on 127.0.0.1.
    """

    def __init__(self, port: int) -> None:
        self._site = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.closed = threading.Event()
        self._cut: Cut | None = None
        self._requests = 0
        self._counting = threading.Lock()
        self._open: set[_Connection] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, cut: Cut) -> None:
        """Cut the network once."""
        with self._counting:
            self._requests, self._cut = 0, cut

    def mend(self) -> bool:
        """Pass on everything again, over new connections; whether all was cut that was to be."""
        with self._counting:
            is_done, self._cut = self._cut is None, None
            connections = list(self._open)
        for connection in connections:
            connection.end()
        return is_done

    def close(self) -> None:
        """End it with all of its connections."""
        self.closed.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.mend()

    def due(self) -> Cut | None:
        """Count a request for work; the cut that it is for, which then is nobody else's."""
        with self._counting:
            if self._cut is None:
                return None
            self._requests += 1
            if self._requests < self._cut.request:
                return None
            cut, self._cut = self._cut, None
            return cut

    def _accept(self) -> None:
        while not self.closed.is_set():
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return
            try:
                site = socket.create_connection(self._site, timeout=5)
            except OSError:  # it does not listen, and neither does whoever stands in for it
                _reset(caller)
                continue
            site.settimeout(None)
            connection = _Connection(self, caller, site)
            with self._counting:
                self._open.add(connection)
            connection.start()

    def forget(self, connection: "_Connection") -> None:
        """Be told that a connection has ended."""
        with self._counting:
            self._open.discard(connection)


class _Messages:
    """Follows the messages in one direction."""

    def __init__(self) -> None:
        self._head = b""
        self._left = 0

    def split(self, data: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
        """Give the pieces of `data`: the head that ends with a piece or b"", it, whether all is."""
        while data:
            head = b""
            if not self._left:
                before = len(self._head)
                whole, found, _ = (self._head + data).partition(_HEAD_END)
                if not found:
                    self._head += data
                    yield b"", data, False
                    return
                head, self._head = whole + found, b""
                length = _LENGTH.search(head)
                self._left = int(length[1]) if length else 0
                size = len(head) - before + min(self._left, len(data) - len(head) + before)
                self._left -= size - (len(head) - before)
            else:
                size = min(self._left, len(data))
                self._left -= size
            piece, data = data[:size], data[size:]
            yield head, piece, not self._left


class _Connection:
    """One connection, from its caller to the site."""

    def __init__(self, proxy: FaultProxy, caller: socket.socket, site: socket.socket) -> None:
        self._proxy = proxy
        self._caller = caller
        self._site = site
        self._cut: Cut | None = None
        self._is_slow = False
        self._over = threading.Event()
        # Held while the network fails: neither side hears anything meanwhile.
        self._passing = threading.Lock()

    def start(self) -> None:
        """Pass on what both sides say."""
        for passes in (self._pass_requests, self._pass_answers):
            threading.Thread(target=self._until_over, args=(passes,), daemon=True).start()

    def end(self) -> None:
        """Close both sides; one that was reset has ended already, without a goodbye."""
        if self._over.is_set():
            return
        self._over.set()
        for each in (self._caller, self._site):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._proxy.forget(self)

    def _until_over(self, passes: Callable[[], None]) -> None:
        with contextlib.suppress(OSError):
            passes()
        self.end()

    def _pass_requests(self) -> None:
        messages = _Messages()
        while data := self._caller.recv(_CHUNK):
            for head, piece, is_end in messages.split(data):
                if _WORK.match(head):
                    self._cut = self._proxy.due() or self._cut
                self._pass(piece, self._site, Point.SENDING, Point.COMPUTING if is_end else None)

    def _pass_answers(self) -> None:
        messages = _Messages()
        while data := self._site.recv(_CHUNK):
            for _, piece, is_end in messages.split(data):
                self._pass(piece, self._caller, Point.RECEIVING, Point.BETWEEN if is_end else None)

    def _pass(self, piece: bytes, to: socket.socket, within: Point, then: Point | None) -> None:
        """Pass a piece on; cut in the middle of it, or `then`."""
        with self._passing:
            cut = self._cut
            if cut is not None and cut.point is within:
                half = len(piece) // 2
                to.sendall(piece[:half])
                self._fail(cut.mode, to, piece[half:])
                return
            self._send(to, piece)
            if cut is not None and cut.point is then:
                self._fail(cut.mode, self._caller, b"")

    def _fail(self, mode: Mode, to: socket.socket, rest: bytes) -> None:
        """Have the network fail; `rest` is what would be passed on `to` next."""
        self._cut = None
        match mode:
            case Mode.DELAY:
                self._over.wait(_DELAY_S)
                to.sendall(rest)
            case Mode.RESET:
                self._over.set()
                for each in (self._caller, self._site):
                    _reset(each)
                self._proxy.forget(self)
            case Mode.HALF_CLOSED:
                to.shutdown(socket.SHUT_WR)
                self._over.wait()
            case Mode.BLACK_HOLE:
                self._over.wait()
            case Mode.GARBAGE:
                noise = random.Random(len(rest))  # noqa: S311 - the same in each run
                to.sendall(noise.randbytes(max(64, len(rest))))
            case Mode.TRICKLE:
                self._is_slow = True
                self._send(to, rest)

    def _send(self, to: socket.socket, data: bytes) -> None:
        if not self._is_slow:
            to.sendall(data)
            return
        for byte in data:
            if self._over.wait(1):
                return
            to.sendall(bytes([byte]))


def _reset(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        connection.shutdown(socket.SHUT_RD)  # wakes who reads from it, and says nothing
    connection.close()
