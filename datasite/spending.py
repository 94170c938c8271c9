"""What was spent of a dataset's privacy budget: by plan, by researcher, over time."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, select

from core.accounting import epsilon, epsilon_by_prv, epsilon_of_group
from core.exceptions import ConfigurationError, DataError
from datasite.ledger import AuditRow, Table
from datasite.mechanism import privately

if TYPE_CHECKING:  # at run time they would bring PyTorch with them
    from collections.abc import Sequence

    from datasite.budgets import Spent
    from datasite.configuration import Budget
    from datasite.plans import Plan
    from datasite.records import Records

_DELTA = 1e-5
"""At which ε is told of a dataset that has no budget any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSpending:
    """What one plan spent.

    Attributes:
        trained: Rounds that were paid for.
        rounds: Rounds that the plan has.
        epsilon: Of them alone, at the budget's δ.
        last: When the last of them was.
    """

    plan_id: str
    researcher: str
    unit: str
    trained: int
    rounds: int
    noise_multiplier: float
    sample_rate: float
    steps: int
    epsilon: float
    last: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A moment when something was spent: what all plans together, and this one, had then."""

    at: str
    plan_id: str
    epsilon: float
    of_plan: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """What was spent of one dataset's budget.

    Attributes:
        epsilon: ε of all of it at the budget's δ, by Rényi accounting, which is enforced.
        epsilon_prv: The same by a tighter accountant.
        epsilon_of_reading: For one reading, which may lie in several windows.
        uncovered: Rounds that were answered under other privacy levels.
        plans: What each plan spent, in the order of their first rounds.
        steps: How it grew.
    """

    dataset: str
    budget: Budget | None
    windows_per_reading: int
    epsilon: float
    epsilon_prv: float
    epsilon_of_reading: float
    uncovered: int
    plans: Sequence[PlanSpending]
    steps: Sequence[Step]


def look_up(records: Records, dataset: str = "") -> list[Spending]:
    """Give what was spent on one dataset, or on each.

    Raises:
        DataError: There is no such dataset, and never was one with a budget.
    """
    windows = {each.name: each.schema.window_steps for each in records.registry.current()}
    plans = {plan.plan_id: plan for plan in records.plans.all()}
    named = {plan.proposal["dataset"] for plan in plans.values()} | windows.keys()
    if dataset and dataset not in named:
        known = ", ".join(sorted(named)) or "none"
        raise DataError(f"{records.config.site_id}: has no dataset {dataset!r}; it has: {known}")
    names = [dataset] if dataset else sorted(named)
    return [_spending(records, name, windows.get(name, 1), plans) for name in names]


def require_one(found: Sequence[Spending]) -> Spending:
    """Give the one dataset's spending, for a picture.

    Raises:
        ConfigurationError: There are several, or none.
    """
    if len(found) != 1:
        raise ConfigurationError(
            f"--picture shows one dataset, and there are {len(found)}; name it, as in "
            "'datasite budget show DATASET --picture FILE.png'"
        )
    return found[0]


def as_json(found: Spending) -> dict[str, Any]:
    """Give it for machines."""
    budget = found.budget
    return {**asdict(found), "budget": None if budget is None else budget.model_dump()}


def _spending(
    records: Records, dataset: str, windows_per_reading: int, plans: dict[str, Plan]
) -> Spending:
    budget, spent = records.budgets.of(dataset), records.budgets.spent(dataset)
    delta = _DELTA if budget is None else budget.delta
    events = [each.event for each in spent]
    return Spending(
        dataset=dataset,
        budget=budget,
        windows_per_reading=windows_per_reading,
        epsilon=epsilon(events, delta),
        epsilon_prv=epsilon_by_prv(events, delta),
        epsilon_of_reading=epsilon_of_group(events, delta, windows_per_reading),
        uncovered=_uncovered(records, dataset, plans),
        plans=[
            _of_plan(rounds, plans[plan_id], delta) for plan_id, rounds in _by_plan(spent).items()
        ],
        steps=_steps(spent, delta),
    )


def _by_plan(spent: Sequence[Spent]) -> dict[str, list[Spent]]:
    rounds: dict[str, list[Spent]] = {}
    for each in spent:
        rounds.setdefault(each.plan_id, []).append(each)
    return rounds


def _of_plan(rounds: Sequence[Spent], plan: Plan, delta: float) -> PlanSpending:
    event = rounds[0].event
    return PlanSpending(
        plan_id=plan.plan_id,
        researcher=plan.researcher,
        unit=rounds[0].unit,
        trained=len(rounds),
        rounds=plan.proposal["rounds"],
        noise_multiplier=event.noise_multiplier,
        sample_rate=event.sample_rate,
        steps=event.steps,
        epsilon=epsilon([each.event for each in rounds], delta),
        last=rounds[-1].at,
    )


def _steps(spent: Sequence[Spent], delta: float) -> list[Step]:
    """Give ε after each stretch of rounds of one plan and one minute: as fine as can be seen."""
    steps, before, of_plan = [], [], _by_plan(())
    for (plan_id, _), stretch in groupby(spent, key=lambda each: (each.plan_id, each.at[:16])):
        rounds = list(stretch)
        before += [each.event for each in rounds]
        own = of_plan.setdefault(plan_id, [])
        own += rounds
        steps.append(
            Step(
                at=rounds[-1].at,
                plan_id=plan_id,
                epsilon=epsilon(before, delta),
                of_plan=epsilon([each.event for each in own], delta),
            )
        )
    return steps


def _uncovered(records: Records, dataset: str, plans: dict[str, Plan]) -> int:
    """Count the trainings that were answered under plans without differential privacy."""
    others = {
        plan.plan_id
        for plan in plans.values()
        if plan.proposal["dataset"] == dataset and privately(plan.proposal) is None
    }
    return sum(row.plan_id in others for row in records.ledger.rows(_TRAINED, done="ok"))


_AUDIT = Table.metadata.tables[AuditRow.__tablename__]
_TRAINED = select(_AUDIT.c.plan_id).where(
    _AUDIT.c.action == "train", _AUDIT.c.outcome == bindparam("done")
)
