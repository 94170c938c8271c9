"""What a plan asks that is not what was approved last, field by field."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from core.plans import PlanStatus
from datasite.ledger import now

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from datasite.plans import Plan

_NOT_COMPARED: Final = frozenset({"kind", "run_id"})
"""Of every plan they are the same, or never."""


class Change(NamedTuple):
    """One field that differs; None where a plan does not have it.

    Attributes:
        field: Its place in the proposal: `training.learning_rate`.
        before: In the plan that was approved last.
        after: In this one.
    """

    field: str
    before: object
    after: object


def last_approved_before(plan: Plan, plans: Iterable[Plan]) -> Plan | None:
    """Give what had been approved last, when `plan` was decided, of the same person and dataset.

    A plan that was revoked since does not count: it is no measure of what is agreed to.
    """
    decided = plan.decided_at or now()
    earlier = [
        other
        for other in plans
        if other.status is PlanStatus.APPROVED
        and other.plan_id != plan.plan_id
        and other.researcher == plan.researcher
        and other.proposal["dataset"] == plan.proposal["dataset"]
        and (other.decided_at or "") <= decided
    ]
    return max(earlier, key=lambda other: other.decided_at or "", default=None)


def changes_between(before: Plan, after: Plan) -> list[Change]:
    """Give the fields in which two plans differ, but for the runs that they are for."""
    old, new = _flat(before.proposal), _flat(after.proposal)
    return [
        Change(name, old.get(name), new.get(name))
        for name in dict.fromkeys([*new, *old])
        if old.get(name) != new.get(name)
    ]


def _flat(proposal: Mapping[str, Any], within: str = "") -> dict[str, object]:
    fields: dict[str, object] = {}
    for name, value in proposal.items():
        if isinstance(value, dict):
            fields |= _flat(value, f"{within}{name}.")
        elif within or name not in _NOT_COMPARED:
            fields[f"{within}{name}"] = value
    return fields
