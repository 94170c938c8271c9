"""What a site keeps from round to round for an algorithm, such as FedDyn's dual.

A request names the round whose state it builds on: the last one that the orchestrator counted. So a
state whose update was lost on its way is never built on, and a run that goes on from an older
checkpoint finds the state of that time.
"""

from sqlalchemy import Connection, bindparam, delete, insert, select

from core.exceptions import DataSiteError
from datasite.ledger import Ledger, StateRow, Table

_STATES_KEPT = 4
"""A run can go back to the oldest of its three checkpoints, and no further."""

NOTHING = -1
"""The round that a first state follows."""


class States:
    """The kept states of one site.

    Args:
        ledger: Where they are kept.
        site_id: Named in errors.
    """

    def __init__(self, ledger: Ledger, *, site_id: str) -> None:
        self._ledger = ledger
        self._site_id = site_id

    def find(self, plan_id: str, round_num: int) -> bytes:
        """Give the plan's state as it was after round `round_num`.

        Raises:
            DataSiteError: The site has none of that round, or has none any more.
        """
        found = self._ledger.rows(_ONE, plan_id=plan_id, round_num=round_num)
        if not found:
            raise DataSiteError(
                f"{self._site_id}: has no state of plan {plan_id[:12]} after round {round_num}: it "
                "was not trained then, or more than a few rounds ago; start a new run",
                site_id=self._site_id,
            )
        return bytes(found[0].state)

    @staticmethod
    def keep(
        connection: Connection, plan_id: str, round_num: int, state: bytes, *, follows: int
    ) -> None:
        """Store a state within the caller's transaction; what no run can go back to is dropped.

        Kept are the last rounds, counted or not, and the last few that the orchestrator counted:
        the state that this one follows, the one that that follows, and so on.
        """
        values = {"plan_id": plan_id, "round_num": round_num, "state": state, "follows": follows}
        connection.execute(_REPLACE, values)
        before = {row.round_num: row.follows for row in connection.execute(_ALL, {"of": plan_id})}
        kept = {number for number in before if number > round_num - _STATES_KEPT}
        for _ in range(_STATES_KEPT - 1):  # and this one
            kept.add(follows)
            follows = before.get(follows, NOTHING)
        for number in before.keys() - kept:
            connection.execute(_FORGET, {"of": plan_id, "number": number})


_TABLE = Table.metadata.tables[StateRow.__tablename__]
_ONE = select(_TABLE.c.state).where(
    _TABLE.c.plan_id == bindparam("plan_id"), _TABLE.c.round_num == bindparam("round_num")
)
_ALL = select(_TABLE.c.round_num, _TABLE.c.follows).where(_TABLE.c.plan_id == bindparam("of"))
_REPLACE = insert(_TABLE).prefix_with("OR REPLACE")
_FORGET = delete(_TABLE).where(
    _TABLE.c.plan_id == bindparam("of"), _TABLE.c.round_num == bindparam("number")
)
