"""The sessions that accounts have opened with the site, and what may be said in one.

A session knows whose it is, its two keys, and which counters it has seen. Sessions live in memory
alone: a site that restarts has none, and who had one opens another by a signed call.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from cryptography.hazmat.primitives import serialization

from core.arena import Buffer
from core.exceptions import SecurityError
from core.sessions import PUBLIC_BYTES, Parties, SessionKeys, derive_keys, new_half, new_session_id

LIFETIME_S: Final = 3600.0
"""How long a session lasts; a longer run opens another."""

_MOST: Final = 256
_MOST_OF_ACCOUNT: Final = 16
_MOST_REFUSALS: Final = 16
"""A session in which so much was refused ends: what is refused is written down each time."""

_MOST_BODIES_BYTES: Final = 1 << 29
"""Of all sessions together; beyond it those unused the longest let go of theirs."""

_NO_BODY: Final = (b"", b"")

_WINDOW: Final = 1024
"""How far behind the highest counter one may come in, as requests of several threads do."""


class Session:
    """One session.

    Attributes:
        session_id: Its name.
        caller_key: The PySyft verify key of the account that opened it, as text.
        email: That account's, for the audit log.
        keys: Of the messages in both directions.
        body: The hash of the last request's body, and that body; sent again, it need not travel.
    """

    def __init__(
        self, session_id: str, *, caller_key: str, email: str, keys: SessionKeys, ends_at: float
    ) -> None:
        self.session_id = session_id
        self.caller_key = caller_key
        self.email = email
        self.keys = keys
        self.body: tuple[bytes, Buffer] = _NO_BODY
        self.refusals = 0
        self._ends_at = ends_at
        self._highest = 0
        self._seen: set[int] = set()
        self._counting = threading.Lock()

    def has_ended(self, now: float) -> bool:
        """Tell whether its time is over, or too much was refused in it."""
        return self.is_over(now) or self.refusals >= _MOST_REFUSALS

    def is_over(self, now: float) -> bool:
        """Tell whether its time is over."""
        return now >= self._ends_at

    def take(self, counter: int) -> bool:
        """Count a message; False when one with this counter was there before, or may have been."""
        with self._counting:
            if counter in self._seen or counter <= self._highest - _WINDOW:
                return False
            self._seen.add(counter)
            if counter > self._highest:
                self._highest = counter
                if len(self._seen) > 2 * _WINDOW:
                    self._seen = {seen for seen in self._seen if seen > counter - _WINDOW}
            return True


class Sessions:
    """The open sessions of one site.

    Args:
        site_key: The site's PySyft verify key, as text.
        lifetime_s: How long each lasts.
        clock: Gives seconds that only go forward.
    """

    def __init__(
        self,
        site_key: str,
        *,
        lifetime_s: float = LIFETIME_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._site_key = site_key
        self._lifetime_s = lifetime_s
        self._clock = clock
        self._open: OrderedDict[str, Session] = OrderedDict()
        self._with_bodies: OrderedDict[str, Session] = OrderedDict()
        self._changing = threading.Lock()

    def open(self, caller_public: bytes, *, caller_key: str, email: str) -> dict[str, str | float]:
        """Open a session with the account behind `caller_key`.

        Of too many sessions, of the account or at all, the oldest ends.

        Returns:
            `session`, its name; `public`, the site's half of the exchange in hexadecimal digits;
            `lifetime_s`.

        Raises:
            SecurityError: `caller_public` is no half of an exchange.
        """
        half, session_id = new_half(), new_session_id()
        public = half.public_key().public_bytes(
            serialization.Encoding.Raw, serialization.PublicFormat.Raw
        )
        parties = Parties(
            session_id=session_id,
            caller_key=caller_key,
            site_key=self._site_key,
            caller_public=caller_public,
            site_public=public,
        )
        try:
            keys = derive_keys(half, caller_public, parties)
        except ValueError as exc:
            raise SecurityError(
                f"no session was opened: its key exchange takes {PUBLIC_BYTES} bytes of X25519"
            ) from exc
        session = Session(
            session_id,
            caller_key=caller_key,
            email=email,
            keys=keys,
            ends_at=self._clock() + self._lifetime_s,
        )
        with self._changing:
            self._make_room(caller_key)
            self._open[session_id] = session
        return {"session": session_id, "public": public.hex(), "lifetime_s": self._lifetime_s}

    def find(self, session_id: str) -> Session | None:
        """Give the open session of this name, if there is one."""
        session = self._open.get(session_id)
        if session is None:
            return None
        if session.has_ended(self._clock()):
            self.end(session_id)
            return None
        return session

    def end_if_over(self, session_id: str) -> Session | None:
        """End the session of this name if its time is over; that session, or None."""
        session = self._open.get(session_id)
        if session is None or not session.is_over(self._clock()):
            return None
        self.end(session_id)
        return session

    def end(self, session_id: str) -> None:
        """End a session; nothing happens without one."""
        with self._changing:
            self._forget(session_id)

    def end_of(self, caller_key: str) -> None:
        """End every session that the account behind this key has opened."""
        with self._changing:
            own = [s.session_id for s in self._open.values() if s.caller_key == caller_key]
            for session_id in own:
                self._forget(session_id)

    def keep_body(self, session: Session, body_hash: bytes, body: Buffer) -> None:
        """Keep the body of the session's last request, in place of the one before."""
        with self._changing:
            if session.session_id not in self._open:
                return
            session.body = (body_hash, body)
            self._with_bodies[session.session_id] = session
            self._with_bodies.move_to_end(session.session_id)
            held = sum(len(other.body[1]) for other in self._with_bodies.values())
            while held > _MOST_BODIES_BYTES and len(self._with_bodies) > 1:
                _, oldest = self._with_bodies.popitem(last=False)
                held -= len(oldest.body[1])
                oldest.body = _NO_BODY

    def _forget(self, session_id: str) -> None:
        self._open.pop(session_id, None)
        self._with_bodies.pop(session_id, None)

    def _make_room(self, caller_key: str) -> None:
        now = self._clock()
        own = [s.session_id for s in self._open.values() if s.caller_key == caller_key]
        over = [s.session_id for s in self._open.values() if s.has_ended(now)]
        over += own[: max(0, len(own) + 1 - _MOST_OF_ACCOUNT)]
        for session_id in over:
            self._forget(session_id)
        while len(self._open) >= _MOST:
            self._forget(next(iter(self._open)))
