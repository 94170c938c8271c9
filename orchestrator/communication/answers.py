"""The beginning of an answer, read quickly where it is of the form in which sites give it.

Of any other form Python's own reader knows more, and is given what was looked at.
"""

import io
import re
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple, Self

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from orchestrator.communication.connections import Deadline

_FIRST_BYTES: Final = 1 << 14
_HEADERS_END: Final = b"\r\n\r\n"
_STATUS_LINE: Final = re.compile(r"HTTP/1\.1 [2-5][0-9]{2} [^\r\n]*")
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")
_SIZE: Final = re.compile(r"[0-9]{1,18}")
_WITHOUT_CONTENT: Final = frozenset({204, 304})


class Timed(io.RawIOBase):
    """What answers are read from: each read of the socket has the time that is left.

    A timeout of the socket's own is for each of the reads that fill a line or a buffer, and would
    begin anew with each byte that trickles in.

    Attributes:
        has_ended: Whether the other side has said its last.
    """

    def __init__(self, connection: socket.socket, deadline: "Deadline") -> None:
        self._connection = connection
        self._deadline = deadline
        self._ahead = memoryview(b"")
        self.has_ended = False

    def readable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        """See `io.RawIOBase`; first what was looked at and not taken.

        Raises:
            TimeoutError: It is too late.
        """
        view = memoryview(buffer).cast("B")
        count = min(len(view), len(self._ahead))
        if count:
            view[:count] = self._ahead[:count]
            self._ahead = self._ahead[count:]
            return count
        return self._received(view)

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Give what to read from, as a socket does."""
        return io.BufferedReader(self)

    @property
    def is_ahead(self) -> bool:
        """Whether more was read than was asked for."""
        return len(self._ahead) > 0

    def look(self) -> "Plain | None":
        """Read the beginning of an answer, to its headers' end; None if it is not a plain one.

        What was looked at is there to be read, but for the headers of a plain answer.
        """
        buffer = bytearray(_FIRST_BYTES)
        view, there, end = memoryview(buffer), 0, -1
        while end < 0 and there < len(buffer):
            count = self._received(view[there:])
            if not count:
                break
            there += count
            end = buffer.find(_HEADERS_END, 0, there)
        self._ahead = view[:there]
        plain = Plain.read(buffer[:end]) if end >= 0 else None
        if plain is not None:
            self._ahead = view[end + len(_HEADERS_END) : there]
        return plain

    def _received(self, view: memoryview) -> int:
        self._connection.settimeout(self._deadline.required_s())
        count = self._connection.recv_into(view)
        self.has_ended = not count
        return count


class Plain(NamedTuple):
    """The headers of an answer in the form that sites give it, which is quickly read.

    Of any other form (chunks, a length that is not told, whatever is not quite HTTP) Python's own
    reader knows more.
    """

    status: int
    headers: Mapping[str, str]
    size_bytes: int
    closes: bool

    @classmethod
    def read(cls, block: bytes | bytearray) -> Self | None:
        """Read status line and headers; None if they are not of that form."""
        first, *lines = block.decode("latin-1").split("\r\n")
        if not _STATUS_LINE.fullmatch(first):
            return None
        pairs = [line.partition(":") for line in lines]
        headers = {name.lower(): value.strip(" ") for name, _, value in pairs}
        size, status = headers.get("content-length", ""), int(first[9:12])
        is_plain = (
            len(headers) == len(pairs)
            and block.count(b"\n") == len(lines)
            and all(map(_NAME.fullmatch, headers))
            and "transfer-encoding" not in headers
            and _SIZE.fullmatch(size) is not None
            and status not in _WITHOUT_CONTENT
        )
        closes = "close" in headers.get("connection", "").lower()
        return cls(status, headers, int(size), closes) if is_plain else None
