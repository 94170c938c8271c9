"""Stored replies: a request that was answered is answered the same way, without the work."""

from typing import TypedDict

from sqlalchemy import Connection, bindparam, delete, insert, select

from datasite.ledger import Ledger, ReplyRow, Table

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
        key = {"plan_id": plan_id, "round_num": round_num, "kind": kind}
        found = self._ledger.rows(_ANSWER, **key, request_sha256=request_sha256)
        return bytes(found[0].reply) if found else None

    @staticmethod
    def keep(connection: Connection, reply: StoredReply) -> None:
        """Store a reply within the caller's transaction, instead of one to another request."""
        connection.execute(_REPLACE, dict(reply))
        oldest = reply["round_num"] - _ROUNDS_KEPT
        connection.execute(
            _FORGET, {"of_plan": reply["plan_id"], "of_kind": reply["kind"], "oldest": oldest}
        )


_TABLE = Table.metadata.tables[ReplyRow.__tablename__]
_ANSWER = select(_TABLE.c.reply).where(
    *(_TABLE.c[name] == bindparam(name) for name in ("plan_id", "round_num", "kind")),
    _TABLE.c.request_sha256 == bindparam("request_sha256"),
)
_REPLACE = insert(_TABLE).prefix_with("OR REPLACE")
_FORGET = delete(_TABLE).where(
    _TABLE.c.plan_id == bindparam("of_plan"),
    _TABLE.c.kind == bindparam("of_kind"),
    _TABLE.c.round_num <= bindparam("oldest"),
)
