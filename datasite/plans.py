"""Plans: what a researcher asks, what the operator or a rule decides, and what that covers.

    WAITING -> APPROVED -> REVOKED
           `-> DENIED

Every request names its plan; the plan's researcher, code, dataset and settings must match, and it
must be approved and not expired at that moment.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import bindparam, select

from core.codehash import installed_code_hash
from core.exceptions import PlanError
from core.plans import PlanStatus
from datasite import audit
from datasite.configuration import Decision
from datasite.ledger import PlanRow, now

if TYPE_CHECKING:  # at run time they would bring PyTorch with them, which a command can do without
    from collections.abc import Sequence

    from sqlalchemy import Row
    from sqlalchemy.orm import Session

    from core.messages import EvaluateRequest, PlanDecision, PlanProposal, TrainRequest
    from datasite.caller import Caller
    from datasite.configuration import Rule
    from datasite.ledger import Ledger

_MOVES = {
    PlanStatus.APPROVED: PlanStatus.WAITING,
    PlanStatus.DENIED: PlanStatus.WAITING,
    PlanStatus.REVOKED: PlanStatus.APPROVED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A proposal and where it stands."""

    plan_id: str
    researcher: str
    proposal: PlanProposal
    status: PlanStatus
    reason: str
    decided_by: str
    proposed_at: str
    decided_at: str | None
    expires_at: str

    @property
    def is_expired(self) -> bool:
        """Whether its time is over."""
        return datetime.fromisoformat(self.expires_at) <= datetime.now(UTC)

    def decision(self) -> PlanDecision:
        """Give what the researcher is told."""
        return {
            "kind": "plan",
            "plan_id": self.plan_id,
            "status": self.status.name,
            "reason": self.reason,
        }


class Plans:
    """The plans of one site.

    Args:
        ledger: Where they are kept.
        policy: Rules that decide new plans, in order.
        plan_days: Days until a plan expires.
        site_id: Named in errors.
    """

    def __init__(
        self, ledger: Ledger, *, policy: Sequence[Rule], plan_days: int, site_id: str
    ) -> None:
        self._ledger = ledger
        self._policy = policy
        self._lifetime = timedelta(days=plan_days)
        self._site_id = site_id

    def propose(self, proposal: PlanProposal, caller: Caller) -> Plan:
        """Record the proposal and let the rules decide; the same proposal again is the same plan.

        Raises:
            PlanError: It is bound to other code than is installed here.
        """
        require_installed_code(proposal["code_hash"], site_id=self._site_id)
        plan_id = plan_id_of(proposal, caller.email)
        with self._ledger.write() as session:
            row = session.get(PlanRow, plan_id)
            if row is None:
                row = PlanRow(
                    plan_id=plan_id,
                    researcher=caller.email,
                    proposal=dict(proposal),
                    status=PlanStatus.WAITING.name,
                    reason="waits for the operator",
                    decided_by="",
                    proposed_at=now(),
                    expires_at=(datetime.now(UTC) + self._lifetime).isoformat(),
                )
                session.add(row)
                session.flush()
                self._audit(session, row, who=caller.email, action="plan proposed")
                self._apply_policy(session, row)
            return _as_plan(row)

    def find(self, plan_id: str) -> Plan:
        """Give the one plan whose id starts with `plan_id`.

        Raises:
            PlanError: None or several do, or `plan_id` is empty.
        """
        if not plan_id:
            raise PlanError(
                f"{self._site_id}: the plan's id is empty; see 'datasite plans list'",
                site_id=self._site_id,
            )
        query = select(PlanRow).where(PlanRow.plan_id.startswith(plan_id, autoescape=True)).limit(2)
        with self._ledger.read() as session:
            rows = list(session.scalars(query))
        if len(rows) != 1:
            how_many = "no plan" if not rows else "more than one plan"
            raise PlanError(
                f"{self._site_id}: {how_many} has an id that starts with {plan_id!r}; "
                "see 'datasite plans list'",
                site_id=self._site_id,
            )
        return _as_plan(rows[0])

    def all(self) -> list[Plan]:
        """Give every plan, oldest first."""
        with self._ledger.read() as session:
            query = select(PlanRow).order_by(PlanRow.proposed_at)
            return [_as_plan(row) for row in session.scalars(query)]

    def decide(self, plan_id: str, status: PlanStatus, *, reason: str, by: str) -> Plan:
        """Move a plan to `status`; what is not a move of the drawing above is refused.

        Raises:
            PlanError: Unknown plan, or no such move from where it stands.
        """
        found = self.find(plan_id)
        with self._ledger.write() as session:
            row = session.get_one(PlanRow, found.plan_id)
            required = _MOVES.get(status)
            if required is None or row.status != required.name:
                only = f"only a plan that is {required.name} can" if required else "no plan can"
                raise PlanError(
                    f"{self._site_id}: plan {row.plan_id[:12]} is {row.status} and cannot become "
                    f"{status.name}; {only}",
                    site_id=self._site_id,
                )
            self._move(session, row, status, reason=reason, by=by)
            return _as_plan(row)

    def query(self, plan_id: str, caller: Caller) -> Plan:
        """Give the caller's own plan.

        Raises:
            PlanError: Unknown, or somebody else's (the same text for both).
        """
        row = next(iter(self._ledger.rows(_BY_ID, plan_id=plan_id)), None)
        if row is None or row.researcher != caller.email:
            raise PlanError(
                f"{self._site_id}: {caller.email} has proposed no plan {plan_id[:12]!r} here",
                site_id=self._site_id,
            )
        return _as_plan(row)

    def require_approved(self, plan_id: str, caller: Caller) -> Plan:
        """Give the caller's plan when it may be acted on now.

        Raises:
            PlanError: It is not the caller's, not approved, expired, or bound to other code.
        """
        plan = self.query(plan_id, caller)
        if plan.status is not PlanStatus.APPROVED:
            raise self._refusal(plan, f"is {plan.status.name} ({plan.reason})")
        if plan.is_expired:
            raise self._refusal(plan, f"expired at {plan.expires_at}")
        require_installed_code(plan.proposal["code_hash"], site_id=self._site_id)
        return plan

    def require_covers(self, plan: Plan, request: TrainRequest | EvaluateRequest) -> None:
        """Do nothing when `request` stays within what was approved; see `excess_of`.

        Raises:
            PlanError: Another model, algorithm or setting, or a round too many.
        """
        if excess := excess_of(request, plan.proposal):
            raise self._refusal(plan, excess)

    def _apply_policy(self, session: Session, row: PlanRow) -> None:
        proposal = _as_plan(row).proposal
        for rule in self._policy:
            if _fits(rule, proposal, row.researcher):
                approved = rule.decision is Decision.APPROVE
                status = PlanStatus.APPROVED if approved else PlanStatus.DENIED
                self._move(
                    session, row, status, reason=f"by the site's rule {rule.name!r}", by="policy"
                )
                return

    def _move(
        self, session: Session, row: PlanRow, status: PlanStatus, *, reason: str, by: str
    ) -> None:
        row.status, row.reason, row.decided_by, row.decided_at = status.name, reason, by, now()
        if status is PlanStatus.APPROVED:
            row.expires_at = (datetime.now(UTC) + self._lifetime).isoformat()
        self._audit(session, row, who=by, action=f"plan {status.name.lower()}")

    def _audit(self, session: Session, row: PlanRow, *, who: str, action: str) -> None:
        detail = {"run_id": row.proposal["run_id"], "reason": row.reason}
        entry = audit.Entry(who=who, action=action, plan_id=row.plan_id, detail=detail)
        audit.append(session.connection(), entry)

    def _refusal(self, plan: Plan, why: str) -> PlanError:
        return plan_refusal(self._site_id, plan.plan_id, why)


def excess_of(request: TrainRequest | EvaluateRequest, agreed: PlanProposal) -> str:
    """Say in what `request` goes beyond what was agreed; nothing when it stays within.

    The learning rate may be lower than in the plan, for a schedule; all else must be equal.
    """
    if request["round_num"] >= agreed["rounds"]:
        return f"covers rounds 0 to {agreed['rounds'] - 1}, not {request['round_num']}"
    if request["model"] != agreed["model"]:
        return "was approved for another model"
    if request.get("compression") != agreed.get("compression"):
        return (
            f"was approved for compression {agreed.get('compression', 'none')!r}, "
            f"not {request.get('compression', 'none')!r}"
        )
    return "" if request["kind"] == "evaluate" else _excess_of_training(request, agreed)


def _excess_of_training(request: TrainRequest, agreed: PlanProposal) -> str:
    if request["algorithm"] != agreed["algorithm"]:
        return "was approved for another algorithm"
    asked, allowed = request["training"], agreed["training"]
    highest = allowed["learning_rate"]
    if asked["learning_rate"] > highest or {**asked, "learning_rate": highest} != allowed:
        return "was approved for other training settings"
    return ""


def plan_refusal(site_id: str, plan_id: str, why: str) -> PlanError:
    """Give the error of a request that the plan does not allow; `why` goes on after its name."""
    return PlanError(f"{site_id}: plan {plan_id[:12]} {why}", site_id=site_id)


def require_installed_code(code_hash: str, *, site_id: str) -> None:
    """Do nothing when a plan is bound to the training code that is installed here.

    Raises:
        PlanError: It is bound to other code.
    """
    if code_hash != installed_code_hash():
        raise PlanError(
            f"{site_id}: the plan is bound to training code {code_hash[:12]}, installed "
            f"is {installed_code_hash()[:12]}; start a new run to propose a new plan",
            site_id=site_id,
        )


def plan_id_of(proposal: PlanProposal, researcher: str) -> str:
    """Give the plan's id: the SHA-256 of what is proposed and by whom."""
    text = json.dumps([researcher, proposal], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _fits(rule: Rule, proposal: PlanProposal, researcher: str) -> bool:
    return (
        rule.researcher in {None, researcher}
        and rule.dataset in {None, proposal["dataset"]}
        and (rule.max_rounds is None or proposal["rounds"] <= rule.max_rounds)
    )


_BY_ID = select(*PlanRow.__table__.columns).where(PlanRow.plan_id == bindparam("plan_id"))


def _as_plan(row: PlanRow | Row[Any]) -> Plan:
    return Plan(
        plan_id=row.plan_id,
        researcher=row.researcher,
        proposal=cast("PlanProposal", row.proposal),
        status=PlanStatus[row.status],
        reason=row.reason,
        decided_by=row.decided_by,
        proposed_at=row.proposed_at,
        decided_at=row.decided_at,
        expires_at=row.expires_at,
    )
