"""What an auditor asks of a site, and what it answers: its audit log and its plans."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, with_config
from typing_extensions import TypedDict

from core.fields import STRICT, Count, Facts


@with_config(STRICT)
class AuditRequest(TypedDict):
    """The audit log's rows after row `after`, for an auditor; 0 for those from the first on."""

    kind: Literal["audit"]
    after: Count


@with_config(STRICT)
class AuditEntry(TypedDict):
    """One row of a site's audit log; `core.auditchain` says how `sha256` binds it to the others."""

    seq: Count
    at: str
    who: str
    action: str
    plan_id: str | None
    outcome: str
    detail: Facts
    previous_sha256: str
    sha256: str


@with_config(STRICT)
class AuditPage(TypedDict):
    """Answer to `AuditRequest`: the next rows, and the number of the newest row that there is."""

    kind: Literal["audit_page"]
    datasite_id: str
    rows: Annotated[list[AuditEntry], Field(max_length=500)]
    newest: Count


@with_config(STRICT)
class PlansRequest(TypedDict):
    """The plans of every researcher, for an auditor: oldest first, without the first `after`."""

    kind: Literal["plans"]
    after: Count


@with_config(STRICT)
class PlanRecord(TypedDict):
    """A plan as the site keeps it; `proposal` is the JSON form of `PlanProposal`."""

    plan_id: str
    researcher: str
    status: str
    reason: str
    decided_by: str
    proposed_at: str
    decided_at: str | None
    expires_at: str
    proposal: Facts


@with_config(STRICT)
class PlansPage(TypedDict):
    """Answer to `PlansRequest`: the next plans, and how many there are."""

    kind: Literal["plans_page"]
    datasite_id: str
    plans: Annotated[list[PlanRecord], Field(max_length=50)]
    total: Count
