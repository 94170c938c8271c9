"""Stored replies: a request that was answered is answered the same way, without the work."""

from typing import TypedDict

from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session

from datasite.ledger import Ledger, ReplyRow

_ROUNDS_KEPT = 2
"""A resumed run asks for the round it was in or the one before; older replies are dropped."""


class StoredReply(TypedDict):
    """A reply with what it answered; the columns of `ReplyRow`."""

    plan_id: str
    round_num: int
    kind: str
    request_sha256: str
    reply: bytes


class Replies:
    """The stored replies of one site.

    Args:
        ledger: Where they are kept.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def find(self, plan_id: str, round_num: int, kind: str, request_sha256: str) -> bytes | None:
        """Give the reply to this very request, or None when it was not answered yet."""
        found = select(ReplyRow.reply).where(
            ReplyRow.plan_id == plan_id,
            ReplyRow.round_num == round_num,
            ReplyRow.kind == kind,
            ReplyRow.request_sha256 == request_sha256,
        )
        with self._ledger.read() as session:
            return session.scalar(found)

    @staticmethod
    def keep(session: Session, reply: StoredReply) -> None:
        """Store a reply within the caller's transaction, instead of one to another request."""
        session.execute(insert(ReplyRow).prefix_with("OR REPLACE"), dict(reply))
        session.execute(
            delete(ReplyRow).where(
                ReplyRow.plan_id == reply["plan_id"],
                ReplyRow.kind == reply["kind"],
                ReplyRow.round_num <= reply["round_num"] - _ROUNDS_KEPT,
            )
        )
