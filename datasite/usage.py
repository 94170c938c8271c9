"""What was done under each plan so far: how many times, and with which preprocessing.

Two bounds that a plan's text cannot hold alone. A round may be asked for again, after a lost reply
or when a run goes on from a checkpoint; without a bound, one round could be asked for with other
parameters for ever, and each answer tells more of the data. And a preprocessing that changed from
request to request could single out rows. What counts is what was released, as the audit log has it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from sqlalchemy import bindparam, or_, select

from datasite.bounds import plan_refusal
from datasite.ledger import AuditRow, Ledger, Table

if TYPE_CHECKING:
    from core.messages import EvaluateRequest, Preprocessing, TrainRequest
    from datasite.plans import Plan

TIMES: Final = 4
"""For each round of a plan, so many trainings, as many evaluations and sessions of secure
aggregation are answered, all in all."""


_COUNTED: Final = ("train", "evaluate", "secure_keys")


@dataclass(slots=True, kw_only=True)
class _Used:
    answered: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTED, 0))
    preprocessing: Preprocessing | None = None
    sha256: str = ""


class Usage:
    """The usage of one site's plans. Only the process that serves the site answers requests.

    Args:
        ledger: Where the audit log is.
        site_id: Named in errors.
    """

    def __init__(self, ledger: Ledger, *, site_id: str) -> None:
        self._ledger = ledger
        self._site_id = site_id
        self._used: dict[str, _Used] = {}

    def require_left(self, plan: Plan, request: TrainRequest | EvaluateRequest) -> str:
        """Give the SHA-256 of the request's preprocessing, when the plan has room for the request.

        Raises:
            PlanError: It was used up, or begun with another preprocessing.
        """
        used = self._of(plan.plan_id)
        self._require_fewer(used.answered[request["kind"]], plan)
        if request["preprocessing"] == used.preprocessing:
            return used.sha256
        sha256 = _digest(request["preprocessing"])
        if used.sha256 not in {"", sha256}:
            raise plan_refusal(
                self._site_id,
                plan.plan_id,
                "was begun with another preprocessing, and a run has one; start a new run",
            )
        return sha256

    def note(self, plan_id: str, request: TrainRequest | EvaluateRequest, sha256: str) -> None:
        """Count a request that was answered and written down with its preprocessing's `sha256`."""
        used = self._of(plan_id)
        used.answered[request["kind"]] += 1
        used.preprocessing, used.sha256 = request["preprocessing"], sha256

    def require_session(self, plan: Plan) -> None:
        """Do nothing when the plan has room for another session of secure aggregation.

        Raises:
            PlanError: It was used up.
        """
        self._require_fewer(self._of(plan.plan_id).answered["secure_keys"], plan)

    def note_session(self, plan_id: str) -> None:
        """Count a session that was begun and written down."""
        self._of(plan_id).answered["secure_keys"] += 1

    def _require_fewer(self, answered: int, plan: Plan) -> None:
        most = TIMES * plan.proposal["rounds"]
        if answered >= most:
            raise plan_refusal(
                self._site_id,
                plan.plan_id,
                f"is used up: a plan of {plan.proposal['rounds']} rounds is answered {most} times, "
                "repeated rounds among them; start a new run to propose a new plan",
            )

    def _of(self, plan_id: str) -> _Used:
        if plan_id not in self._used:
            used = _Used()
            for row in self._ledger.rows(_ANSWERED, of_plan=plan_id):
                used.answered[row.action] += 1
                used.sha256 = row.detail.get("preprocessing", used.sha256)
            self._used[plan_id] = used
        return self._used[plan_id]


def _digest(preprocessing: Preprocessing) -> str:
    return hashlib.sha256(json.dumps(preprocessing, sort_keys=True).encode()).hexdigest()


_AUDIT = Table.metadata.tables[AuditRow.__tablename__]
_ANSWERED = select(_AUDIT.c.action, _AUDIT.c.detail).where(
    _AUDIT.c.plan_id == bindparam("of_plan"),
    _AUDIT.c.outcome == "ok",
    or_(*(_AUDIT.c.action == action for action in _COUNTED)),
)
