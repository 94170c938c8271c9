"""The route of sessions: requests and replies as they are, each with its counter and its HMAC.

    POST /api/v2/session      X-Session, X-Counter, X-Head, X-Body-Hash, X-Tag;  head, then body
    200                       X-Head, X-Tag;                                     head, then body
    401                       no such session, or not its tag: open one by a signed call
    409                       the body was left out, and the site does not have it (any more)

Head and body are those of `core.wire.Parcel`. What comes in is an `Exchange`'s matter; here is what
all of them share.
"""

from collections.abc import Callable
from typing import Final

from loguru import logger

from core import wire
from core.exceptions import FederatedLearningError, SecurityError
from core.packing import Allocate
from core.wire import Parcel
from datasite.caller import Caller
from datasite.failures import as_failure
from datasite.sessions import Session, Sessions

PATH: Final = "/api/v2/session"


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
        self.site_id = site_id
        self.sessions = sessions
        self.allocate = allocate
        self._caller_of = caller_of
        self._handle = handle
        self._on_refused = on_refused

    def reply_to(self, session: Session, asked: Parcel) -> Parcel:
        """Have the site answer; takes as long as its work."""
        caller = self._caller_of(session.caller_key)
        if caller is None:
            self.sessions.end(session.session_id)
            self.write_down(session, "disabled account")
            return self.failure(
                f"the account {session.email} is unknown or disabled; ask the operator"
            )
        return self._handle(asked, caller)

    def failure(self, why: str) -> Parcel:
        """Give the reply to what is refused for reasons of security."""
        error = SecurityError(f"{self.site_id}: {why}")
        return wire.encode(as_failure(error, site_id=self.site_id))

    def write_down(self, session: Session, what: str) -> None:
        """Have a refusal written down; takes as long as the disk does."""
        try:
            self._on_refused(session.email, f"session: {what}")
        except FederatedLearningError as exc:  # a full disk: it is refused all the same
            logger.bind(site_id=self.site_id).error("no audit row: {}", exc)
