"""The route of sessions: requests and replies as they are, each with its counter and its HMAC.

    POST /api/v2/session      X-Session, X-Counter, X-Head, X-Body-Hash, X-Tag;  head, then body
    200                       X-Head, X-Tag;                                     head, then body
    401                       no such session, or not its tag: open one by a signed call
    409                       the body was left out, and the site does not have it (any more)

Head and body are those of `core.wire.Parcel`. The tag is looked at once the head is there and
before anything of the body is kept, so a stranger cannot have the site hold more than a head. A
body is hashed while it comes in. Of a body that the site has from the request before, only the hash
is sent.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final

from blake3 import blake3
from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from loguru import logger
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from core import wire
from core.arena import Buffer
from core.exceptions import FederatedLearningError, SecurityError
from core.limits import MAX_HEADER_BYTES, MAX_MESSAGE_BYTES
from core.packing import Allocate, content_hash
from core.sessions import is_tag, tag
from core.wire import Parcel
from datasite.caller import Caller
from datasite.failures import as_failure
from datasite.sessions import Session, Sessions

PATH: Final = "/api/v2/session"

_BINARY: Final = "application/octet-stream"
_JOINED_BYTES: Final = 1 << 17
_EMPTY: Final = content_hash()
_ENDS: Final = {408: {"Connection": "close"}, 413: {"Connection": "close"}}
"""After these the connection is closed, whatever else is on its way over it."""

_GRACE_S: Final = 10.0
_SLOWEST_BYTES_S: Final = 32 * 1024
"""A request may take ten seconds, and for what is longer as many as this speed needs."""


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
    """The request is answered with this status, and who sent it cannot be sure by whom."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.response = Response(why, status_code=status, headers=_ENDS.get(status))


class SessionRoute:
    """Answers requests in sessions.

    Args:
        site_id: The site's name.
        sessions: Those that are open.
        caller_of: Gives the account behind a verify key as it is now; None when it may do nothing.
        handle: The site.
        on_refused: Told of each refusal: the account's e-mail, what was refused.
        allocate: Gives memory for a body.
    """

    def __init__(
        self,
        *,
        site_id: str,
        sessions: Sessions,
        caller_of: Callable[[str], Caller | None],
        handle: Callable[[Parcel, Caller], Parcel],
        on_refused: Callable[[str, str], None],
        allocate: Allocate = bytearray,
    ) -> None:
        self._site_id = site_id
        self._sessions = sessions
        self._caller_of = caller_of
        self._handle = handle
        self._on_refused = on_refused
        self._allocate = allocate

    async def answer(self, request: Request) -> "Response | Sealed":
        """Answer one request."""
        try:
            envelope = await self._envelope(request)
            async with asyncio.timeout(self._patience_s(envelope)):
                asked = await self._receive(request, envelope)
        except _Refused as exc:
            return exc.response
        except TimeoutError:
            await self._note(envelope.session, "too slow")
            return Response("the request came in too slowly", 408, _ENDS[408])
        except ClientDisconnect:
            return Response(status_code=400)
        except SecurityError as exc:
            reply = wire.encode(as_failure(exc, site_id=self._site_id))
        else:
            reply = await run_in_threadpool(self._answered, envelope.session, asked)
        return Sealed(envelope.session, envelope.counter, reply)

    async def _envelope(self, request: Request) -> _Envelope:
        """Read the headers.

        Raises:
            _Refused: They are none of a session's that is open, or name more than is allowed.
        """
        given = request.headers
        session_id = given.get("x-session", "")
        over = self._sessions.end_if_over(session_id)
        if over is not None:
            await self._note(over, "its time is over")
        session = self._sessions.find(session_id)
        if session is None:
            raise _Refused(401, "no such session; open one by a signed call")
        try:
            length, head_bytes = int(given["content-length"]), int(given["x-head"])
            envelope = _Envelope(
                session=session,
                counter=int(given["x-counter"]),
                head_bytes=head_bytes,
                body_bytes=length - head_bytes,
                body_hash=bytes.fromhex(given["x-body-hash"]),
                tag=given["x-tag"],
            )
        except (KeyError, ValueError) as exc:
            await self._note(session, "unreadable headers")
            raise _Refused(400, "a header is missing or cannot be read") from exc
        if not (
            0 <= envelope.counter < 1 << 63
            and 0 <= head_bytes <= min(length, MAX_HEADER_BYTES)
            and length <= MAX_MESSAGE_BYTES
        ):
            await self._note(session, "too large")
            raise _Refused(413, f"a message has at most {MAX_MESSAGE_BYTES} bytes")
        return envelope

    def _patience_s(self, envelope: _Envelope) -> float:
        return _GRACE_S + (envelope.head_bytes + envelope.body_bytes) / _SLOWEST_BYTES_S

    async def _receive(self, request: Request, envelope: _Envelope) -> Parcel:
        """Give the message, when it is the session's own, new and whole.

        Raises:
            _Refused: The tag is not the message's, or the site does not have the body.
            SecurityError: The counter was there before, or the body is not the one announced.
        """
        session, chunks = envelope.session, request.stream()
        head, rest = await self._head(chunks, envelope)
        await self._require_own(envelope, head)
        if not session.take(envelope.counter):
            await self._note(session, "replayed counter")
            raise SecurityError(f"{self._site_id}: the counter {envelope.counter} was used before")
        if envelope.body_bytes == 0:
            return Parcel(head, self._known_body(envelope), envelope.body_hash)
        body = await self._body(rest, chunks, envelope)
        self._sessions.keep_body(session, envelope.body_hash, body)
        return Parcel(head, body, envelope.body_hash)

    async def _head(self, chunks: AsyncIterator[bytes], envelope: _Envelope) -> tuple[bytes, bytes]:
        """Give the head, and what of the body came with it."""
        received = bytearray()
        while len(received) < envelope.head_bytes:
            chunk = await anext(chunks, None)
            if chunk is None:
                await self._note(envelope.session, "cut short")
                raise _Refused(400, "the request ends before its head does")
            received += chunk
        return bytes(received[: envelope.head_bytes]), bytes(received[envelope.head_bytes :])

    async def _body(
        self, rest: bytes, chunks: AsyncIterator[bytes], envelope: _Envelope
    ) -> bytearray | memoryview:
        """Give the body, into memory of its size and hashed as it comes in."""
        body = self._allocate(envelope.body_bytes)
        view, hasher, received = memoryview(body), blake3(), 0
        chunk: bytes | None = rest
        while chunk is not None:
            end = received + len(chunk)
            if end > len(body):
                await self._note(envelope.session, "longer than announced")
                raise _Refused(413, "the request is longer than it says")
            view[received:end] = chunk
            hasher.update(chunk)
            received = end
            chunk = await anext(chunks, None)
        if received < len(body) or hasher.digest() != envelope.body_hash:
            await self._note(envelope.session, "wrong hash")
            raise SecurityError(f"{self._site_id}: the body is not the one that its hash names")
        return body

    async def _require_own(self, envelope: _Envelope, head: bytes) -> None:
        if not is_tag(
            envelope.tag,
            envelope.session.keys.request,
            counter=envelope.counter,
            head=head,
            body_hash=envelope.body_hash,
        ):
            await self._note(envelope.session, "wrong tag")
            raise _Refused(401, "no such session; open one by a signed call")

    @staticmethod
    def _known_body(envelope: _Envelope) -> Buffer:
        known, body = envelope.session.body
        if known == envelope.body_hash:
            return body
        if envelope.body_hash == _EMPTY:
            return b""
        raise _Refused(409, "the site does not have this body; send it")

    def _answered(self, session: Session, asked: Parcel) -> Parcel:
        caller = self._caller_of(session.caller_key)
        if caller is None:
            self._sessions.end(session.session_id)
            self._write_down(session.email, "session: disabled account")
            refusal = SecurityError(
                f"{self._site_id}: the account {session.email} is unknown or disabled; ask the "
                "operator"
            )
            return wire.encode(as_failure(refusal, site_id=self._site_id))
        return self._handle(asked, caller)

    async def _note(self, session: Session, what: str) -> None:
        session.refusals += 1
        await run_in_threadpool(self._write_down, session.email, f"session: {what}")

    def _write_down(self, email: str, what: str) -> None:
        try:
            self._on_refused(email, what)
        except FederatedLearningError as exc:  # a full disk: it is refused all the same
            logger.bind(site_id=self._site_id).error("no audit row: {}", exc)


class Sealed:
    """A reply under its tag, sent in its two parts.

    Args:
        counter: That of the request it answers.
    """

    status_code: Final = 200

    def __init__(self, session: Session, counter: int, reply: Parcel) -> None:
        self._reply = reply
        self._tag = tag(
            session.keys.reply, counter=counter, head=reply.head, body_hash=reply.body_hash
        )

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        """Send it, as ASGI has it."""
        head, body = self._reply.head, self._reply.body
        headers = {
            "content-type": _BINARY,
            "content-length": str(len(self._reply)),
            "x-head": str(len(head)),
            "x-tag": self._tag,
        }
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            }
        )
        if len(body) <= _JOINED_BYTES:
            await send({"type": "http.response.body", "body": self._reply.joined()})
        else:
            await send({"type": "http.response.body", "body": head, "more_body": True})
            await send({"type": "http.response.body", "body": body})
