"""What a site keeps from round to round for an algorithm, such as FedDyn's dual.

A request names the round whose state it builds on: the last one that the orchestrator counted. So a
state whose update was lost on its way is never built on, and a run that goes on from an older
checkpoint finds the state of that time.
"""

from collections.abc import Mapping

from sqlalchemy import bindparam, delete, insert, select

from core.exceptions import DataSiteError
from datasite.ledger import Ledger, StateRow, Table, all_but_newest
from datasite.statements import Executes

_STATES_KEPT = 4
"""A run can go back to the oldest of its three checkpoints, and no further."""

_PLANS_KEPT = 16
"""Whose states are kept: of the plans that trained last."""

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
            raise no_such_state(self._site_id, plan_id, round_num)
        return bytes(found[0].state)

    @staticmethod
    def keep(
        connection: Executes, plan_id: str, round_num: int, state: bytes, *, follows: int
    ) -> None:
        """Store a state within the caller's transaction; what no run can go back to is dropped.

        With a plan's first, so are those of the plans that trained the longest ago.
        """
        values = {"plan_id": plan_id, "round_num": round_num, "state": state, "follows": follows}
        connection.execute(_REPLACE, values)
        before = {row.round_num: row.follows for row in connection.execute(_ALL, {"of": plan_id})}
        for number in before.keys() - rounds_to_keep(before, round_num):
            connection.execute(_FORGET, {"of": plan_id, "number": number})
        if len(before) == 1:
            connection.execute(_FORGET_PLANS)


def rounds_to_keep(follows: Mapping[int, int], round_num: int) -> set[int]:
    """Give the rounds whose states a run can go back to from `round_num`.

    They are the last rounds, counted or not, and the last few that the orchestrator counted: the
    state that the round's own follows, the one that that follows, and so on.

    Args:
        follows: For each round with a state, `round_num` among them, the round it builds on.
        round_num: The newest.
    """
    kept = {number for number in follows if number > round_num - _STATES_KEPT}
    counted = round_num
    for _ in range(_STATES_KEPT):
        kept.add(counted)
        counted = follows.get(counted, NOTHING)
    return kept


def no_such_state(site_id: str, plan_id: str, round_num: int) -> DataSiteError:
    """Give the error of a site that is asked to build on a state it has not."""
    return DataSiteError(
        f"{site_id}: has no state of plan {plan_id[:12]} after round {round_num}: it "
        "was not trained then, or more than a few rounds ago; start a new run",
        site_id=site_id,
    )


_TABLE = Table.metadata.tables[StateRow.__tablename__]
_ONE = select(_TABLE.c.state).where(
    _TABLE.c.plan_id == bindparam("plan_id"), _TABLE.c.round_num == bindparam("round_num")
)
_ALL = select(_TABLE.c.round_num, _TABLE.c.follows).where(_TABLE.c.plan_id == bindparam("of"))
_REPLACE = insert(_TABLE).prefix_with("OR REPLACE")
_FORGET = delete(_TABLE).where(
    _TABLE.c.plan_id == bindparam("of"), _TABLE.c.round_num == bindparam("number")
)
_FORGET_PLANS = all_but_newest(_TABLE, _PLANS_KEPT)
