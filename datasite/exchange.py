"""One request in a session, from its headers to its answer.

The tag is looked at once the head is there and before anything of the body is kept, so a stranger
cannot have the site hold more than a head. A body is hashed while it comes in. Of a body that the
site has from the request before, only the hash is sent.

The protocol of the connection tells an exchange what comes in, instead of an ASGI server an
application, because tasks, queues and wrapped requests cost several times what is done here. All
of it happens in the thread of the event loop, except what the site does and what is written down.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from blake3 import blake3
from loguru import logger

from core.arena import Buffer
from core.limits import MAX_HEADER_BYTES, MAX_MESSAGE_BYTES
from core.packing import content_hash
from core.sessions import is_tag, tag
from core.wire import Parcel
from datasite.session_route import SessionRoute
from datasite.sessions import Session

_JOINED_BYTES: Final = 1 << 17
_EMPTY: Final = content_hash()
_UNKNOWN: Final = "no such session; open one by a signed call"
_ENDS: Final = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.REQUEST_ENTITY_TOO_LARGE})
"""After these the connection is closed, whatever else is on its way over it."""

_GRACE_S: Final = 10.0
_SLOWEST_BYTES_S: Final = 32 * 1024
"""A request may take ten seconds, and for what is longer as many as this speed needs."""

Headers = Mapping[bytes, bytes]
"""A request's headers by their names in lower case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What is sent back.

    Attributes:
        parts: Its content, sent one after the other and never joined.
        closes: The connection is closed after it.
    """

    status: int
    headers: Mapping[str, str]
    parts: Sequence[Buffer]
    closes: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Envelope:
    """What the headers of a request say."""

    session: Session
    counter: int
    head_bytes: int
    body_bytes: int
    body_hash: bytes
    tag: str


class _Refused(Exception):  # noqa: N818 - it is an answer
    """The request is answered with this status; or, with 200, with an error under the tag.

    Args:
        note: What is written down of it, and about whose session; nothing about a stranger.
    """

    def __init__(self, status: int, why: str, note: tuple[Session, str] | None = None) -> None:
        super().__init__(why)
        self.status = status
        self.note = note


class Exchange:
    """One request, as it comes in, until it is answered.

    Args:
        headers: The request's.
        answer: Called once with the answer, from any thread.
        work: Where the site works and refusals are written down.
    """

    def __init__(
        self,
        route: SessionRoute,
        headers: Headers,
        *,
        answer: Callable[[Answer], None],
        work: Executor,
    ) -> None:
        self._route = route
        self._answer = answer
        self._work = work
        self._head = bytearray()
        self._body: Buffer | None = None
        self._filled = 0
        self._hasher = blake3()
        self.is_open = True
        """Whether more of the request is waited for."""
        try:
            self._envelope = self._read(headers)
        except _Refused as refused:
            self._refuse(refused)

    @property
    def patience_s(self) -> float:
        """How long all of an open request may take from here on."""
        envelope = self._envelope
        return _GRACE_S + (envelope.head_bytes + envelope.body_bytes) / _SLOWEST_BYTES_S

    def receive(self, data: bytes) -> None:
        """Be given the next of the request's content."""
        if self.is_open:
            try:
                self._take(data)
            except _Refused as refused:
                self._refuse(refused)

    def end(self) -> None:
        """Be told that the request ends here, and have it answered."""
        if not self.is_open:
            return
        try:
            asked = self._whole()
        except _Refused as refused:
            self._refuse(refused)
        else:
            self.is_open = False
            self._work.submit(self._reply, asked)

    def give_up(self) -> None:
        """Be told that the time for the request to come in is over."""
        if self.is_open:
            why = "the request came in too slowly"
            self._refuse(_Refused(408, why, (self._envelope.session, "too slow")))

    def leave(self) -> None:
        """Be told that the caller has gone; what is not there of the request is not waited for."""
        self.is_open = False

    def _read(self, headers: Headers) -> _Envelope:
        """Read the headers.

        Raises:
            _Refused: They are none of a session's that is open, or name more than is allowed.
        """
        sessions = self._route.sessions
        session_id = headers.get(b"x-session", b"").decode("latin-1")
        over = sessions.end_if_over(session_id)
        if over is not None:
            raise _Refused(401, _UNKNOWN, (over, "its time is over"))
        session = sessions.find(session_id)
        if session is None:
            raise _Refused(401, _UNKNOWN)
        try:
            length, head_bytes = int(headers[b"content-length"]), int(headers[b"x-head"])
            envelope = _Envelope(
                session=session,
                counter=int(headers[b"x-counter"]),
                head_bytes=head_bytes,
                body_bytes=length - head_bytes,
                body_hash=bytes.fromhex(headers[b"x-body-hash"].decode("latin-1")),
                tag=headers[b"x-tag"].decode("latin-1"),
            )
        except (KeyError, ValueError) as exc:
            why = "a header is missing or cannot be read"
            raise _Refused(400, why, (session, "unreadable headers")) from exc
        if not (
            0 <= envelope.counter < 1 << 63
            and 0 <= head_bytes <= min(length, MAX_HEADER_BYTES)
            and length <= MAX_MESSAGE_BYTES
        ):
            why = f"a message has at most {MAX_MESSAGE_BYTES} bytes"
            raise _Refused(413, why, (session, "too large"))
        return envelope

    def _take(self, data: bytes) -> None:
        """Add `data` to what is there.

        Raises:
            _Refused: The head is not the session's own, or there is more than was said.
        """
        if self._body is None:
            wanted = self._envelope.head_bytes - len(self._head)
            self._head += data[:wanted]
            if len(data) < wanted:
                return
            data = data[wanted:]
            self._require_own()
            self._body = self._begun_body()
        if not data:
            return
        end = self._filled + len(data)
        if end > self._envelope.body_bytes:
            why = "the request is longer than it says"
            raise _Refused(413, why, (self._envelope.session, "longer than announced"))
        memoryview(self._body)[self._filled : end] = data
        self._hasher.update(data)
        self._filled = end

    def _require_own(self) -> None:
        """Do nothing when the head was sealed in this session and not seen before.

        Raises:
            _Refused: It was not.
        """
        envelope, session = self._envelope, self._envelope.session
        if not is_tag(
            envelope.tag,
            session.keys.request,
            counter=envelope.counter,
            head=bytes(self._head),
            body_hash=envelope.body_hash,
        ):
            raise _Refused(401, _UNKNOWN, (session, "wrong tag"))
        if not session.take(envelope.counter):
            why = f"the counter {envelope.counter} was used before"
            raise _Refused(200, why, (session, "replayed counter"))

    def _begun_body(self) -> Buffer:
        """Give memory for the body; or the whole of it, when it was left out.

        Raises:
            _Refused: The site does not have the one that was left out.
        """
        envelope = self._envelope
        if envelope.body_bytes:
            return self._route.allocate(envelope.body_bytes)
        known, body = envelope.session.body
        if known == envelope.body_hash:
            return body
        if envelope.body_hash == _EMPTY:
            return b""
        raise _Refused(409, "the site does not have this body; send it")

    def _whole(self) -> Parcel:
        """Give the message.

        Raises:
            _Refused: It is not all there, or its body is not the one announced.
        """
        envelope, session = self._envelope, self._envelope.session
        if self._body is None:
            why = "the request ends before its head does"
            raise _Refused(400, why, (session, "cut short"))
        if envelope.body_bytes:
            if self._filled < len(self._body) or self._hasher.digest() != envelope.body_hash:
                why = "the body is not the one that its hash names"
                raise _Refused(200, why, (session, "wrong hash"))
            self._route.sessions.keep_body(session, envelope.body_hash, self._body)
        return Parcel(bytes(self._head), self._body, envelope.body_hash)

    def _reply(self, asked: Parcel) -> None:
        session = self._envelope.session
        try:
            reply = self._route.reply_to(session, asked)
        except Exception as exc:  # noqa: BLE001 - nobody else would see it
            logger.opt(exception=exc).bind(site_id=self._route.site_id).error("request failed")
            self._answer(_plain(500, "the site failed; its log says why", closes=True))
        else:
            self._answer(self._sealed(reply))

    def _refuse(self, refused: _Refused) -> None:
        self.is_open = False
        if refused.note is None:
            self._answer(self._refusal(refused))
        else:
            self._work.submit(self._noted, refused, *refused.note)

    def _noted(self, refused: _Refused, session: Session, what: str) -> None:
        session.refusals += 1
        self._route.write_down(session, what)
        self._answer(self._refusal(refused))

    def _refusal(self, refused: _Refused) -> Answer:
        if refused.status == HTTPStatus.OK:
            return self._sealed(self._route.failure(str(refused)))
        return _plain(refused.status, str(refused), closes=refused.status in _ENDS)

    def _sealed(self, reply: Parcel) -> Answer:
        """Give a reply under its tag."""
        envelope = self._envelope
        headers = {
            "content-type": "application/octet-stream",
            "content-length": str(len(reply)),
            "x-head": str(len(reply.head)),
            "x-tag": tag(
                envelope.session.keys.reply,
                counter=envelope.counter,
                head=reply.head,
                body_hash=reply.body_hash,
            ),
        }
        is_small = len(reply.body) <= _JOINED_BYTES
        parts = (reply.joined(),) if is_small else (reply.head, reply.body)
        return Answer(status=200, headers=headers, parts=parts)


def _plain(status: int, why: str, *, closes: bool) -> Answer:
    text = why.encode()
    headers = {"content-type": "text/plain; charset=utf-8", "content-length": str(len(text))}
    return Answer(status=status, headers=headers, parts=(text,), closes=closes)
