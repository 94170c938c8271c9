"""Stored replies: a request that was answered is answered the same way, without the work."""

from sqlalchemy import delete
from sqlalchemy.orm import Session

from datasite.ledger import Ledger, ReplyRow

_ROUNDS_KEPT = 2
"""A resumed run asks for the round it was in or the one before; older replies are dropped."""


class Replies:
    """The stored replies of one site.

    Args:
        ledger: Where they are kept.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def find(self, plan_id: str, round_num: int, kind: str, request_sha256: str) -> bytes | None:
        """Give the reply to this very request, or None when it was not answered yet."""
        with self._ledger.read() as session:
            row = session.get(ReplyRow, (plan_id, round_num, kind))
            return row.reply if row and row.request_sha256 == request_sha256 else None

    @staticmethod
    def keep(session: Session, row: ReplyRow) -> None:
        """Store a reply within the caller's transaction, instead of one to another request."""
        session.merge(row)
        session.execute(
            delete(ReplyRow).where(
                ReplyRow.plan_id == row.plan_id,
                ReplyRow.kind == row.kind,
                ReplyRow.round_num <= row.round_num - _ROUNDS_KEPT,
            )
        )
