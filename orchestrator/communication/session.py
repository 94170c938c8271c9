"""Requests to a site in a session: an HMAC and a counter in place of a signed call for each.

The session is opened by a signed call of the carrier beneath, and anew when the site knows it no
longer: it restarted, or the session's time was over. See `core.sessions` for the keys.
"""

import hashlib
import itertools
import threading
from http import HTTPStatus
from typing import Final, Protocol

from core import wire
from core.exceptions import ProtocolError
from core.sessions import SessionKeys, is_tag, tag
from orchestrator.communication.channel import Answer, Channel, Deadline

_PATH: Final = "session"
_NO_SESSION: Final = HTTPStatus.UNAUTHORIZED
_NO_BODY: Final = HTTPStatus.CONFLICT


class Session:
    """An open session, as the side that opened it holds it.

    Attributes:
        session_id: Its name at the site.
        keys: Of the messages in both directions.
        known_body: SHA-256 of the body that the site has from the request before.
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

    def close(self) -> None:
        """Let go of the connection."""


class SessionCarrier:
    """An open way to one site, in sessions; any number of threads may use it at once.

    Args:
        signed: Logged in to the site.
    """

    def __init__(self, signed: SignedCarrier) -> None:
        self.url = signed.url
        self.site_id = signed.site_id
        self._signed = signed
        self._session: Session | None = None
        self._opening = threading.Lock()

    def exchange(self, request: bytes, *, deadline_s: float) -> bytes:
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

    def _sent(self, session: Session, request: bytes, deadline: Deadline) -> bytes | None:
        """Give the answer, or None when the site does not know the session."""
        parcel = _Parcel(session, request)
        parcel.leaves_out_body = session.known_body == parcel.body_sha256
        answer = self._signed.channel.post(_PATH, parcel.sealed, deadline)
        if answer.status == _NO_BODY:
            parcel.leaves_out_body = False
            answer = self._signed.channel.post(_PATH, parcel.sealed, deadline)
        if answer.status == _NO_SESSION:
            return None
        if answer.status != HTTPStatus.OK:
            said = answer.content[:200].decode(errors="replace")
            raise self._problem(f"HTTP {answer.status} in a session: {said}")
        self._require_own(parcel, answer)
        session.known_body = parcel.body_sha256
        return answer.content

    def _require_own(self, parcel: "_Parcel", answer: Answer) -> None:
        """Do nothing when the answer is the site's own, to the request that was sent last.

        Raises:
            ProtocolError: It is not.
        """
        try:
            head, body_sha256 = _parted(answer.content, int(answer.headers["x-head"]))
            given = answer.headers["x-tag"]
        except (KeyError, ValueError) as exc:
            raise self._problem("the answer cannot be read") from exc
        key = parcel.session.keys.reply
        if not is_tag(given, key, counter=parcel.counter, head=head, body_sha256=body_sha256):
            raise self._problem(
                "the answer is not the site's, or not to this request; find out who answers in "
                "its place"
            )

    def _problem(self, what: str) -> ProtocolError:
        return ProtocolError(f"{self.site_id} ({self.url}): {what}", site_id=self.site_id)


class _Parcel:
    """A request, to be sent any number of times, each with a counter of its own."""

    def __init__(self, session: Session, request: bytes) -> None:
        self.session = session
        self.counter = 0
        self.leaves_out_body = False
        self._request = request
        self._head, self.body_sha256 = _parted(request, wire.head_bytes(request))

    def sealed(self) -> tuple[dict[str, str], bytes]:
        """Give headers and content under the next counter."""
        self.counter = self.session.next_counter()
        headers = {
            "X-Session": self.session.session_id,
            "X-Counter": str(self.counter),
            "X-Head": str(len(self._head)),
            "X-Body-SHA256": self.body_sha256.hex(),
            "X-Tag": tag(
                self.session.keys.request,
                counter=self.counter,
                head=self._head,
                body_sha256=self.body_sha256,
            ),
        }
        return headers, self._head if self.leaves_out_body else self._request


def _parted(blob: bytes, head_bytes: int) -> tuple[bytes, bytes]:
    """Give a message's head, and the SHA-256 of its body."""
    return blob[:head_bytes], hashlib.sha256(memoryview(blob)[head_bytes:]).digest()
