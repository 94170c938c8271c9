"""The route of sessions: requests and replies as they are, each with its counter and its HMAC.

    POST /api/v2/session      X-Session, X-Counter, X-Head, X-Body-SHA256, X-Tag;  head, then body
    200                       X-Head, X-Body-SHA256, X-Tag;                        head, then body
    401                       no such session, or not its tag: open one by a signed call
    409                       the body was left out, and the site does not have it (any more)

A message is a blob of `core.wire`; its head is everything before the tensors, which are its body.
The tag is looked at once the head is there and before anything of the body is kept, so a stranger
cannot have the site hold more than a head. A body is hashed while it comes in. Of a body that the
site has from the request before, only the hash is sent.
"""

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from loguru import logger
from starlette.requests import ClientDisconnect

from core import wire
from core.exceptions import FederatedLearningError, ProtocolError, SecurityError
from core.sessions import is_tag, tag
from datasite.caller import Caller
from datasite.failures import as_failure
from datasite.sessions import Session, Sessions

PATH: Final = "/api/v2/session"

_BINARY: Final = "application/octet-stream"
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
    body_sha256: bytes
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
    """

    def __init__(
        self,
        *,
        site_id: str,
        sessions: Sessions,
        caller_of: Callable[[str], Caller | None],
        handle: Callable[[bytes, Caller], bytes],
        on_refused: Callable[[str, str], None],
    ) -> None:
        self._site_id = site_id
        self._sessions = sessions
        self._caller_of = caller_of
        self._handle = handle
        self._on_refused = on_refused

    async def answer(self, request: Request) -> Response:
        """Answer one request."""
        try:
            envelope = self._envelope(request)
            async with asyncio.timeout(self._patience_s(envelope)):
                blob = await self._receive(request, envelope)
        except _Refused as exc:
            return exc.response
        except TimeoutError:
            self._note(envelope.session, "too slow")
            return Response("the request came in too slowly", 408, _ENDS[408])
        except ClientDisconnect:
            return Response(status_code=400)
        except SecurityError as exc:
            reply = wire.encode(as_failure(exc, site_id=self._site_id))
        else:
            reply = await run_in_threadpool(self._answered, envelope.session, blob)
        return self._sealed(envelope, reply)

    def _envelope(self, request: Request) -> _Envelope:
        """Read the headers.

        Raises:
            _Refused: They are none of a session's that is open, or name more than is allowed.
        """
        given = request.headers
        session = self._sessions.find(given.get("x-session", ""))
        if session is None:
            raise _Refused(401, "no such session; open one by a signed call")
        try:
            length, head_bytes = int(given["content-length"]), int(given["x-head"])
            envelope = _Envelope(
                session=session,
                counter=int(given["x-counter"]),
                head_bytes=head_bytes,
                body_bytes=length - head_bytes,
                body_sha256=bytes.fromhex(given["x-body-sha256"]),
                tag=given["x-tag"],
            )
        except (KeyError, ValueError) as exc:
            self._note(session, "unreadable headers")
            raise _Refused(400, "a header is missing or cannot be read") from exc
        if not (
            0 <= envelope.counter < 1 << 63
            and 0 <= head_bytes <= min(length, wire.MAX_HEADER_BYTES)
            and length <= wire.MAX_MESSAGE_BYTES
        ):
            self._note(session, "too large")
            raise _Refused(413, f"a message has at most {wire.MAX_MESSAGE_BYTES} bytes")
        return envelope

    def _patience_s(self, envelope: _Envelope) -> float:
        return _GRACE_S + (envelope.head_bytes + envelope.body_bytes) / _SLOWEST_BYTES_S

    async def _receive(self, request: Request, envelope: _Envelope) -> bytes:
        """Give the message, when it is the session's own, new and whole.

        Raises:
            _Refused: The tag is not the message's, or the site does not have the body.
            SecurityError: The counter was there before, or the body is not the one announced.
        """
        session, head_bytes = envelope.session, envelope.head_bytes
        received = bytearray()
        chunks = request.stream()
        while len(received) < head_bytes:
            chunk = await anext(chunks, None)
            if chunk is None:
                self._note(session, "cut short")
                raise _Refused(400, "the request ends before its head does")
            received += chunk
        head = bytes(received[:head_bytes])
        self._require_own(envelope, head)
        if not session.take(envelope.counter):
            self._note(session, "replayed counter")
            raise SecurityError(f"{self._site_id}: the counter {envelope.counter} was used before")
        if envelope.body_bytes == 0:
            return head + self._known_body(envelope)
        sha256 = hashlib.sha256(memoryview(received)[head_bytes:])
        async for chunk in chunks:
            sha256.update(chunk)
            received += chunk
            if len(received) > head_bytes + envelope.body_bytes:
                self._note(session, "longer than announced")
                raise _Refused(413, "the request is longer than it says")
        if sha256.digest() != envelope.body_sha256:
            self._note(session, "wrong hash")
            raise SecurityError(f"{self._site_id}: the body is not the one that its hash names")
        blob = bytes(received)
        session.body = (envelope.body_sha256, blob[head_bytes:])
        return blob

    def _require_own(self, envelope: _Envelope, head: bytes) -> None:
        if not is_tag(
            envelope.tag,
            envelope.session.keys.request,
            counter=envelope.counter,
            head=head,
            body_sha256=envelope.body_sha256,
        ):
            self._note(envelope.session, "wrong tag")
            raise _Refused(401, "no such session; open one by a signed call")

    def _known_body(self, envelope: _Envelope) -> bytes:
        sha256, body = envelope.session.body
        if sha256 == envelope.body_sha256:
            return body
        if envelope.body_sha256 == hashlib.sha256().digest():
            return b""
        raise _Refused(409, "the site does not have this body; send it")

    def _answered(self, session: Session, blob: bytes) -> bytes:
        caller = self._caller_of(session.caller_key)
        if caller is None:
            self._sessions.end(session.session_id)
            self._note(session, "disabled account")
            refusal = SecurityError(
                f"{self._site_id}: the account {session.email} is unknown or disabled; ask the "
                "operator"
            )
            return wire.encode(as_failure(refusal, site_id=self._site_id))
        return self._handle(blob, caller)

    def _sealed(self, envelope: _Envelope, reply: bytes) -> Response:
        head_bytes = _head_bytes(reply)
        view = memoryview(reply)
        body_sha256 = hashlib.sha256(view[head_bytes:]).digest()
        sealed = tag(
            envelope.session.keys.reply,
            counter=envelope.counter,
            head=bytes(view[:head_bytes]),
            body_sha256=body_sha256,
        )
        headers = {
            "X-Head": str(head_bytes),
            "X-Body-SHA256": body_sha256.hex(),
            "X-Tag": sealed,
        }
        return Response(reply, media_type=_BINARY, headers=headers)

    def _note(self, session: Session, what: str) -> None:
        session.refusals += 1
        try:
            self._on_refused(session.email, f"session: {what}")
        except FederatedLearningError as exc:  # a full disk: it is refused all the same
            logger.bind(site_id=self._site_id).error("no audit row: {}", exc)


def _head_bytes(reply: bytes) -> int:
    """Give the length of the reply's head; what is no message has no body."""
    try:
        return wire.head_bytes(reply)
    except ProtocolError:
        return len(reply)
