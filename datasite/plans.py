"""Plans: what a researcher asks, what the operator or a rule decides, and what that covers.

    WAITING -> APPROVED -> REVOKED
           `-> DENIED

Every request names its plan; the plan's researcher, code, dataset and settings must match, and it
must be approved and not expired at that moment, and until what was asked for is done and kept.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import bindparam, select

from core.exceptions import PlanError
from core.plans import PlanStatus
from datasite import audit
from datasite.bounds import excess_of, plan_refusal, require_installed_code
from datasite.configuration import Decision
from datasite.fresh import Fresh
from datasite.ledger import ApprovalRow, PlanRow, now
from datasite.policy import Asked, deciding_rule

if TYPE_CHECKING:  # at run time they would bring PyTorch with them, which a command can do without
    from collections.abc import Collection, Sequence

    from sqlalchemy import Row
    from sqlalchemy.orm import Session

    from core.messages import EvaluateRequest, PlanDecision, PlanProposal, TrainRequest
    from datasite.caller import Caller
    from datasite.configuration import Rule
    from datasite.ledger import Ledger, Mark
    from datasite.statements import Driven

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
        return _is_past(self.expires_at)

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
        approvals: How many persons must approve a plan that no rule decides.
        approvers: Whose approvals count; empty for anybody's.
        site_id: Named in errors.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        policy: Sequence[Rule],
        plan_days: int,
        approvals: int = 1,
        approvers: Collection[str] = (),
        site_id: str,
    ) -> None:
        self._ledger = ledger
        self._known: Fresh[Plan | None] = Fresh(ledger)
        self._policy = policy
        self._approvals = approvals
        self._approvers = approvers
        self._lifetime = timedelta(days=plan_days)
        self._site_id = site_id

    def propose(self, proposal: PlanProposal, caller: Caller, *, rows: int) -> Plan:
        """Record the proposal and let the rules decide; the same proposal again is the same plan.

        Args:
            proposal: What is asked.
            caller: Who asks.
            rows: How many rows the dataset has that the proposal names.

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
                self._apply_policy(session, row, Asked(proposal, caller.email, rows))
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

        Where several persons must approve, an approval is counted, and the last one moves the plan.
        To deny or to revoke takes one: to stop must be easy.

        Raises:
            PlanError: Unknown plan, no such move from where it stands, or the same person approves
                it again.
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
            persons = self._persons(session, row, by) if status is PlanStatus.APPROVED else [by]
            missing = self._approvals - len(persons)
            if status is PlanStatus.APPROVED and missing > 0:
                row.reason = (
                    f"approved by {', '.join(persons)}; waits for {missing} more to approve"
                )
                self._audit(session, row, who=by, action="plan approval counted")
            else:
                decided_by = ", ".join(persons)
                self._move(session, row, status, reason=reason, by=decided_by, who=by)
            return _as_plan(row)

    def query(self, plan_id: str, caller: Caller, mark: Mark | None = None) -> Plan:
        """Give the caller's own plan, as it is now or was at a mark of the ledger.

        Raises:
            PlanError: Unknown, or somebody else's (the same text for both).
        """
        plan = self.own(plan_id, caller, mark)
        if plan is None:
            raise PlanError(
                f"{self._site_id}: {caller.email} has proposed no plan {plan_id[:12]!r} here",
                site_id=self._site_id,
            )
        return plan

    def own(self, plan_id: str, caller: Caller, mark: Mark | None = None) -> Plan | None:
        """Give the caller's own plan, if there is one of this id."""
        plan = self._current(plan_id, mark)
        return None if plan is None or plan.researcher != caller.email else plan

    def require_approved(self, plan_id: str, caller: Caller, mark: Mark | None = None) -> Plan:
        """Give the caller's plan when it may be acted on now, or might at a mark of the ledger.

        Raises:
            PlanError: It is not the caller's, not approved, expired, or bound to other code.
        """
        plan = self.query(plan_id, caller, mark)
        self._require_standing(plan)
        require_installed_code(plan.proposal["code_hash"], site_id=self._site_id)
        return plan

    def require_standing(self, plan_id: str, connection: Driven | None = None) -> None:
        """Do nothing while a plan is approved and its time not over.

        Args:
            plan_id: Whole.
            connection: The transaction that depends on it; nobody decides otherwise until its end.

        Raises:
            PlanError: It was revoked, or it expired.
        """
        plan = self._current(plan_id, None if connection is None else connection.mark)
        if plan is None:
            raise plan_refusal(self._site_id, plan_id, "is not here")
        self._require_standing(plan)

    def _current(self, plan_id: str, mark: Mark | None = None) -> Plan | None:
        """Give the plan as it is now, or was at a mark; None when there is none."""

        def read() -> Plan | None:
            row = next(iter(self._ledger.rows(_BY_ID, plan_id=plan_id)), None)
            return None if row is None else _as_plan(row)

        return self._known.get(plan_id, read, mark)

    def _require_standing(self, plan: Plan) -> None:
        if plan.status is not PlanStatus.APPROVED:
            why = f"is {plan.status.name} ({plan.reason})"
            raise plan_refusal(self._site_id, plan.plan_id, why)
        if plan.is_expired:
            raise plan_refusal(self._site_id, plan.plan_id, f"expired at {plan.expires_at}")

    def require_covers(self, plan: Plan, request: TrainRequest | EvaluateRequest) -> None:
        """Do nothing when `request` stays within what was approved; see `excess_of`.

        Raises:
            PlanError: Another model, algorithm or setting, or a round too many.
        """
        if excess := excess_of(request, plan.proposal):
            raise plan_refusal(self._site_id, plan.plan_id, excess)

    def _apply_policy(self, session: Session, row: PlanRow, asked: Asked) -> None:
        rule = deciding_rule(self._policy, asked)
        if rule is None:
            return
        reason, by = f"by the site's rule {rule.name!r}", f"rule {rule.name!r}"
        if rule.decision is Decision.ASK:
            row.reason = f"waits for the operator, {reason}"
            self._audit(session, row, who="policy", action="plan left to the operator", rule=rule)
            return
        approved = rule.decision is Decision.APPROVE
        status = PlanStatus.APPROVED if approved else PlanStatus.DENIED
        self._move(session, row, status, reason=reason, by=by, who="policy", rule=rule)

    def _persons(self, session: Session, row: PlanRow, by: str) -> list[str]:
        """Count `by`'s approval, once; everybody whose approval is counted, in order."""
        if self._approvers and by not in self._approvers:
            raise PlanError(f"{self._site_id}: {by} is no approver", site_id=self._site_id)
        query = select(ApprovalRow.who).where(ApprovalRow.plan_id == row.plan_id)
        counted = session.scalars(query.order_by(ApprovalRow.at))
        persons = [who for who in counted if not self._approvers or who in self._approvers]
        if by not in persons:
            session.add(ApprovalRow(plan_id=row.plan_id, who=by, at=now()))
            return [*persons, by]
        if len(persons) < self._approvals:
            raise PlanError(
                f"{self._site_id}: {by} approved plan {row.plan_id[:12]} already; "
                f"{self._approvals} different persons must",
                site_id=self._site_id,
            )
        return persons

    def _move(
        self,
        session: Session,
        row: PlanRow,
        status: PlanStatus,
        *,
        reason: str,
        by: str,
        who: str,
        rule: Rule | None = None,
    ) -> None:
        row.status, row.reason, row.decided_by, row.decided_at = status.name, reason, by, now()
        if status is PlanStatus.APPROVED:
            row.expires_at = (datetime.now(UTC) + self._lifetime).isoformat()
        self._audit(session, row, who=who, action=f"plan {status.name.lower()}", rule=rule)

    def _audit(
        self, session: Session, row: PlanRow, *, who: str, action: str, rule: Rule | None = None
    ) -> None:
        detail = {
            "run_id": row.proposal["run_id"],
            "dataset": row.proposal["dataset"],
            "data_version": row.proposal["dataset_version"],
            "code_hash": row.proposal["code_hash"],
            "reason": row.reason,
            **({} if rule is None else {"rule": rule.name}),
        }
        entry = audit.Entry(who=who, action=action, plan_id=row.plan_id, detail=detail)
        audit.append(session.connection(), entry)


def plan_id_of(proposal: PlanProposal, researcher: str) -> str:
    """Give the plan's id: the SHA-256 of what is proposed and by whom."""
    text = json.dumps([researcher, proposal], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _is_past(time: str) -> bool:
    return datetime.fromisoformat(time) <= datetime.now(UTC)


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
