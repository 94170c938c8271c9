"""Requests to a site in a session: an HMAC and a counter in place of a signed call for each.

The session is opened by a signed call of the carrier beneath, and anew when the site knows it no
longer: it restarted, or the session's time was over. See `core.sessions` for the keys.
"""

import itertools
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Final, Protocol

from blake3 import blake3

from core.arena import Buffer, scratch
from core.exceptions import ProtocolError
from core.sessions import SessionKeys, is_tag, tag
from core.wire import Parcel
from orchestrator.communication.channel import Channel
from orchestrator.communication.connections import Answer, Deadline, Receiver

_PATH: Final = "session"
_NO_SESSION: Final = HTTPStatus.UNAUTHORIZED
_NO_BODY: Final = HTTPStatus.CONFLICT
_LARGE_BYTES: Final = 1 << 20
"""From here on fresh memory costs more than what it is for."""


class Session:
    """An open session, as the side that opened it holds it.

    Attributes:
        session_id: Its name at the site.
        keys: Of the messages in both directions.
        known_body: The hash of the body that the site has from the request before.
    """

    def __init__(self, session_id: str, keys: SessionKeys) -> None:
        self.session_id = session_id
        self.keys = keys
        self.known_body = b""
        self._counters = itertools.count(1)

    def next_counter(self) -> int:
        """Give a number that no other request of the session has."""
        return next(self._counters)


class SignedCarrier(Protocol):
    """What a session is opened over."""

    url: str
    site_id: str
    channel: Channel

    def open_session(self, deadline: Deadline) -> Session:
        """Open a session by a signed call."""

    def look(self, *, deadline_s: float) -> None:
        """Find out whether the site is there."""

    def close(self) -> None:
        """Let go of the connection."""


class SessionCarrier:
    """An open way to one site, in sessions; any number of threads may use it at once.

    Args:
        signed: Logged in to the site.
        admit: Called with the size of an answer, in bytes, before it is read; returns when there is
            room for it.
    """

    def __init__(
        self, signed: SignedCarrier, admit: Callable[[int], None] = lambda _size_bytes: None
    ) -> None:
        self.url = signed.url
        self.site_id = signed.site_id
        self._signed = signed
        self._admit = admit
        self._session: Session | None = None
        self._opening = threading.Lock()

    def exchange(self, request: Parcel, *, deadline_s: float) -> Parcel:
        """Give the site's answer to `request`.

        Raises:
            DeadlineError: No answer within `deadline_s`; the site may still be at work on it.
            CommunicationError: The site was not reached, or the connection broke.
            ProtocolError: The answer cannot be read, is not the site's, or the site refuses every
                session.
            SecurityError: The site refuses this account.
        """
        deadline = Deadline(deadline_s)
        for _ in range(2):
            session = self._opened(deadline)
            reply = self._sent(session, request, deadline)
            if reply is not None:
                return reply
            self._forget(session)
        raise self._problem("the site opens sessions and does not know them; is it one site?")

    def look(self, *, deadline_s: float) -> None:
        """See `Carrier.look`."""
        self._signed.look(deadline_s=deadline_s)

    def close(self) -> None:
        """Close the connections; closing again does nothing."""
        self._signed.close()

    def _opened(self, deadline: Deadline) -> Session:
        with self._opening:
            if self._session is None:
                self._session = self._signed.open_session(deadline)
            return self._session

    def _forget(self, session: Session) -> None:
        with self._opening:
            if self._session is session:
                self._session = None

    def _sent(self, session: Session, request: Parcel, deadline: Deadline) -> Parcel | None:
        """Give the answer, or None when the site does not know the session."""
        sealed = _Sealed(session, request)
        hashing = _Hashing(self._admit)
        answer = self._signed.channel.post(_PATH, sealed.whole, deadline, receiver=hashing)
        if answer.status == _NO_BODY:
            sealed.leaves_out_body = False
            answer = self._signed.channel.post(_PATH, sealed.whole, deadline, receiver=hashing)
        if answer.status == _NO_SESSION:
            return None
        if answer.status != HTTPStatus.OK:
            said = bytes(answer.content[:200]).decode(errors="replace")
            raise self._problem(f"HTTP {answer.status} in a session: {said}")
        reply = self._own(sealed, answer, hashing.digest())
        session.known_body = request.body_hash
        return reply

    def _own(self, sealed: "_Sealed", answer: Answer, body_hash: bytes) -> Parcel:
        """Give the reply, which must be the site's own, to the request that was sent last.

        Raises:
            ProtocolError: It is not.
        """
        try:
            head_bytes, given = int(answer.headers["x-head"]), answer.headers["x-tag"]
        except (KeyError, ValueError, TypeError) as exc:
            raise self._problem("the answer cannot be read") from exc
        content = answer.content
        reply = Parcel(bytes(content[:head_bytes]), content[head_bytes:], body_hash)
        if not is_tag(
            given,
            sealed.session.keys.reply,
            counter=sealed.counter,
            head=reply.head,
            body_hash=reply.body_hash,
        ):
            raise self._problem(
                "the answer is not the site's, or not to this request; find out who answers in "
                "its place"
            )
        return reply

    def _problem(self, what: str) -> ProtocolError:
        return ProtocolError(f"{self.site_id} ({self.url}): {what}", site_id=self.site_id)


class _Hashing(Receiver):
    """Takes a reply in where there is room, into memory that was used before; hashes its body."""

    def __init__(self, admit: Callable[[int], None]) -> None:
        self._admit = admit
        self._hasher = blake3()
        self._head_bytes = 0

    def begin(self, headers: Mapping[str, str], size_bytes: int) -> memoryview:
        """See `Receiver.begin`."""
        self._admit(size_bytes)
        self._hasher = blake3()
        said = headers.get("x-head", "")
        self._head_bytes = int(said) if said.isdecimal() else 0
        if size_bytes < _LARGE_BYTES:
            return memoryview(bytearray(size_bytes))
        return scratch().allocate(size_bytes)

    def came(self, part: memoryview) -> None:
        """See `Receiver.came`."""
        of_body = part[self._head_bytes :]
        self._head_bytes -= len(part) - len(of_body)
        self._hasher.update(of_body)

    def digest(self) -> bytes:
        """Give the hash of the body that came."""
        return self._hasher.digest()


class _Sealed:
    """A request, to be sent any number of times, each with a counter of its own."""

    def __init__(self, session: Session, request: Parcel) -> None:
        self.session = session
        self.counter = 0
        self.leaves_out_body = session.known_body == request.body_hash
        self._request = request

    def whole(self) -> tuple[dict[str, str], tuple[Buffer, ...]]:
        """Give headers and content under the next counter."""
        request = self._request
        self.counter = self.session.next_counter()
        headers = {
            "X-Session": self.session.session_id,
            "X-Counter": str(self.counter),
            "X-Head": str(len(request.head)),
            "X-Body-Hash": request.body_hash.hex(),
            "X-Tag": tag(
                self.session.keys.request,
                counter=self.counter,
                head=request.head,
                body_hash=request.body_hash,
            ),
        }
        leaves_out = self.leaves_out_body or not len(request.body)
        return headers, (request.head,) if leaves_out else (request.head, request.body)
