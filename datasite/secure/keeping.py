"""What a site keeps of a round under secure aggregation: its addend, and in which sum it is.

The addend lies where stored replies do, and never leaves as it is. Sessions are in memory alone;
that the site has given shares for a list of survivors is written down before they leave, and from
then on it gives none for another list and adds no other update in that round.
"""

import json
from typing import Final, NamedTuple

import numpy as np
from sqlalchemy import bindparam, insert, select, update

from core.exceptions import DataSiteError, SecurityError
from core.secure.masks import Vector
from core.wire import Parcel
from datasite.ledger import Ledger, SecureRoundRow, Table
from datasite.replies import Answers, Replies
from datasite.statements import Executes

_KIND: Final = "addend"


class Held(NamedTuple):
    """What is known of a round that the site has trained in.

    Attributes:
        request: The name of the training request.
        trained_on: See `core.secure.context.trained_on`.
        bound_to: The survivors that the site gave shares for; None when it gave none.
    """

    request: str
    trained_on: str
    bound_to: list[str] | None


class Keeping:
    """The rounds of one site's plans.

    Args:
        ledger: Where they are kept.
        replies: Where addends are kept.
        site_id: Named in errors.
    """

    def __init__(self, ledger: Ledger, replies: Replies, *, site_id: str) -> None:
        self._ledger = ledger
        self._replies = replies
        self._site_id = site_id

    def held(self, plan_id: str, round_num: int) -> Held | None:
        """Give what is known of a round; None when the site has not trained in it."""
        rows = self._ledger.rows(_ONE, of_plan=plan_id, of_round=round_num)
        if not rows:
            return None
        bound_to = json.loads(rows[0].survivors) if rows[0].survivors else None
        return Held(rows[0].request, rows[0].trained_on, bound_to)

    def require_held(self, plan_id: str, round_num: int) -> Held:
        """Give what is known of a round.

        Raises:
            DataSiteError: The site has not trained in it.
        """
        held = self.held(plan_id, round_num)
        if held is None:
            raise DataSiteError(
                f"{self._site_id}: has trained nothing in round {round_num} of plan "
                f"{plan_id[:12]}; send a train request first",
                site_id=self._site_id,
                round_num=round_num,
            )
        return held

    def require_free(self, answers: Answers) -> None:
        """Do nothing when the round may be trained for by this request.

        Raises:
            SecurityError: Another request's update is in a sum of the round already.
        """
        held = self.held(answers["plan_id"], answers["round_num"])
        if held is not None and held.bound_to and held.request != answers["request"]:
            raise SecurityError(
                f"{self._site_id}: an update of round {answers['round_num']} was counted in a sum "
                "already, and this request asks for another one; the difference of two sums could "
                "show it. Start a new run",
                site_id=self._site_id,
                round_num=answers["round_num"],
            )

    def keep(
        self, connection: Executes, answers: Answers, *, trained_on: str, addend: Vector
    ) -> None:
        """Store the addend of a round within the caller's transaction.

        Raises:
            SecurityError: Another one of the round has come into a sum since the work began.
        """
        self.require_free(answers)
        body = addend.astype("<u8", copy=False).view(np.uint8).data
        self._replies.keep(connection, _of(answers), Parcel(b"", body))
        held = self.held(answers["plan_id"], answers["round_num"])
        if held is None or held.bound_to is None:  # else it is the same request, trained anew
            row = {"plan_id": answers["plan_id"], "round_num": answers["round_num"]}
            told = {"request": answers["request"], "trained_on": trained_on, "survivors": ""}
            connection.execute(_INSERT, {**row, **told})

    def addend(self, answers: Answers) -> Vector | None:
        """Give the addend that a training request came to; None when it is not kept any more."""
        found = self._replies.find(_of(answers))
        return None if found is None else np.frombuffer(found.body, dtype="<u8")

    def bind(self, connection: Executes, answers: Answers, survivors: frozenset[str]) -> None:
        """Write down in which sum an update is, within the caller's transaction.

        Raises:
            SecurityError: The round was trained for by another request since.
        """
        values = {"of_plan": answers["plan_id"], "of_round": answers["round_num"]}
        row = connection.execute(_ONE, values).first()
        if row is None or row.request != answers["request"]:
            raise SecurityError(
                f"{self._site_id}: another update of round {answers['round_num']} has taken the "
                "place of the one that was masked; begin a new session",
                site_id=self._site_id,
                round_num=answers["round_num"],
            )
        connection.execute(_BIND, {**values, "names": json.dumps(sorted(survivors))})


def _of(answers: Answers) -> Answers:
    return {**answers, "kind": _KIND}


_TABLE = Table.metadata.tables[SecureRoundRow.__tablename__]
_WHERE = (_TABLE.c.plan_id == bindparam("of_plan"), _TABLE.c.round_num == bindparam("of_round"))
_ONE = select(_TABLE.c.request, _TABLE.c.trained_on, _TABLE.c.survivors).where(*_WHERE)
_INSERT = insert(_TABLE).prefix_with("OR REPLACE")
_BIND = update(_TABLE).where(*_WHERE).values(survivors=bindparam("names"))
