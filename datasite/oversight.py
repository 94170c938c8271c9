"""What an auditor reads of a site: its audit log and its plans, page by page."""

import json
from typing import Any, Final, cast

from sqlalchemy import bindparam, func, select

from core.oversight_messages import AuditEntry, AuditPage, PlanRecord, PlansPage
from datasite.ledger import AuditRow, Ledger
from datasite.plans import Plan, Plans

_ROWS: Final = 500
_PLANS: Final = 50
_PAGE_BYTES: Final = 1 << 20
"""A page has no more than this, but one row at least."""

_TABLE = AuditRow.__table__
_AFTER = (
    select(*_TABLE.columns).where(_TABLE.c.seq > bindparam("after")).order_by("seq").limit(_ROWS)
)
_NEWEST = select(func.max(_TABLE.c.seq))


def audit_page(ledger: Ledger, *, after: int, site_id: str) -> AuditPage:
    """Give the rows after row `after`, as many as a page holds."""
    newest = ledger.rows(_NEWEST)[0][0] or 0
    rows = [cast("AuditEntry", row._asdict()) for row in ledger.rows(_AFTER, after=after)]
    kept = _that_fit(cast("list[dict[str, Any]]", rows))
    return AuditPage(kind="audit_page", datasite_id=site_id, rows=rows[:kept], newest=newest)


def plans_page(plans: Plans, *, after: int, site_id: str) -> PlansPage:
    """Give the plans after the first `after`, as many as a page holds."""
    known = plans.all()
    page = [_record(plan) for plan in known[after : after + _PLANS]]
    kept = _that_fit(cast("list[dict[str, Any]]", page))
    return PlansPage(kind="plans_page", datasite_id=site_id, plans=page[:kept], total=len(known))


def _that_fit(records: list[dict[str, Any]]) -> int:
    size_bytes = 0
    for number, record in enumerate(records):
        size_bytes += len(json.dumps(record))
        if size_bytes > _PAGE_BYTES:
            return max(1, number)
    return len(records)


def _record(plan: Plan) -> PlanRecord:
    return PlanRecord(
        plan_id=plan.plan_id,
        researcher=plan.researcher,
        status=plan.status.name,
        reason=plan.reason,
        decided_by=plan.decided_by,
        proposed_at=plan.proposed_at,
        decided_at=plan.decided_at,
        expires_at=plan.expires_at,
        proposal=cast("dict[str, object]", plan.proposal),
    )
