"""The privacy budgets of a site's datasets: what may be told of a unit, and what was told.

A budget belongs to a dataset's name: its versions share it, and so do all plans of all researchers.
What a round costs is written in the transaction that keeps its reply, so that nothing leaves the
site unpaid; and a reply that is given again is not paid again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, cast

from sqlalchemy import bindparam, insert, select

from core.accounting import Event, affordable, epsilon
from core.exceptions import PrivacyBudgetError
from datasite import audit
from datasite.configuration import Budget
from datasite.ledger import Table, now
from datasite.mechanism import Mechanism, event_of, mechanism_of
from datasite.privacy_rows import BudgetRow, EventRow, MechanismRow

if TYPE_CHECKING:  # at run time it would bring PyTorch with it, which a command can do without
    from collections.abc import Sequence

    from sqlalchemy import Select

    from core.privacy import DifferentialPrivacy
    from datasite.ledger import Ledger
    from datasite.plans import Plan
    from datasite.statements import Executes


class Spent(NamedTuple):
    """One round that was paid for."""

    at: str
    data_version: int
    plan_id: str
    round_num: int
    unit: str
    event: Event


class Budgets:
    """The budgets of one site's datasets.

    Args:
        ledger: Where they are kept.
        default: Of a dataset for which the operator set none.
        site_id: Named in errors.
    """

    def __init__(self, ledger: Ledger, *, default: Budget | None, site_id: str) -> None:
        self._ledger = ledger
        self._default = default
        self._site_id = site_id

    def of(self, dataset: str, connection: Executes | None = None) -> Budget | None:
        """Give the dataset's budget, if it has one."""
        row = next(iter(self._rows(_BUDGET, connection, of_dataset=dataset)), None)
        if row is None:
            return self._default
        return Budget(epsilon=row.epsilon, delta=row.delta, unit=row.unit)

    def set(self, dataset: str, budget: Budget, *, who: str) -> None:
        """Give the dataset another budget; what was spent stays spent.

        Raises:
            PrivacyBudgetError: Rounds for another unit were paid for, which it could not count.
        """
        with self._ledger.transaction() as connection:
            units = {spent.unit for spent in self.spent(dataset, connection)}
            if units - {budget.unit}:
                raise PrivacyBudgetError(
                    f"{self._site_id}: rounds were paid for by the {units.pop()} from the budget "
                    f"of {dataset!r}, and a budget for each {budget.unit} could not count them; "
                    "keep the unit, or register the data under another name",
                    site_id=self._site_id,
                )
            values = {"dataset": dataset, **budget.model_dump()}
            connection.execute(_SET, values)
            entry = audit.Entry(who=who, action="privacy budget set", detail=values)
            audit.append(connection, entry)

    def spent(self, dataset: str, connection: Executes | None = None) -> list[Spent]:
        """Give every round that was paid for with the dataset's budget, oldest first."""
        return [
            Spent(
                at=row.at,
                data_version=row.data_version,
                plan_id=row.plan_id,
                round_num=row.round_num,
                unit=row.unit,
                event=Event(row.noise_multiplier, row.sample_rate, row.steps),
            )
            for row in self._rows(_SPENT, connection, of_dataset=dataset)
        ]

    def mechanism(self, plan: Plan) -> Mechanism | None:
        """Give the plan's mechanism, if it was fixed."""
        row = next(iter(self._rows(_MECHANISM, None, of_plan=plan.plan_id)), None)
        if row is None:
            return None
        return Mechanism(
            units=row.units,
            sample_rate=row.sample_rate,
            steps=row.steps,
            noise_multiplier=row.noise_multiplier,
        )

    def fix(self, plan: Plan, settings: DifferentialPrivacy, units: int) -> Mechanism:
        """Fix the plan's mechanism for so many units; give it.

        Raises:
            ConfigurationError: No noise keeps the plan's (ε, δ).
        """
        mechanism = mechanism_of(plan.proposal, settings, units)
        with self._ledger.transaction() as connection:
            connection.execute(_FIX, {"plan_id": plan.plan_id, **mechanism})
        return mechanism

    def require_budget(self, dataset: str, unit: str, connection: Executes | None = None) -> Budget:
        """Give the dataset's budget, which must be for this unit.

        Raises:
            PrivacyBudgetError: There is none, or it counts others.
        """
        budget = self.of(dataset, connection)
        if budget is None:
            raise PrivacyBudgetError(
                f"{self._site_id}: {dataset!r} has no privacy budget; its operator sets one with "
                f"'datasite budget set {dataset} --epsilon E --delta D --unit {unit}'",
                site_id=self._site_id,
            )
        if budget.unit != unit:
            raise PrivacyBudgetError(
                f"{self._site_id}: the privacy budget of {dataset!r} protects each {budget.unit}, "
                f"and the plan each {unit}: propose a plan for the unit {budget.unit!r}, or ask "
                "the operator for another budget",
                site_id=self._site_id,
            )
        return budget

    def require_room(
        self,
        plan: Plan,
        settings: DifferentialPrivacy,
        mechanism: Mechanism,
        connection: Executes | None = None,
    ) -> None:
        """Do nothing when one more round of the plan can be paid for.

        Raises:
            PrivacyBudgetError: It would go beyond the plan's own (ε, δ), or the dataset's budget.
        """
        dataset = plan.proposal["dataset"]
        budget = self.require_budget(dataset, settings["unit"], connection)
        spent = self.spent(dataset, connection)
        trained, rounds = _count(spent, plan), plan.proposal["rounds"]
        if trained >= rounds:
            raise PrivacyBudgetError(
                f"{self._site_id}: plan {plan.plan_id[:12]} has spent its own (ε = "
                f"{settings['epsilon']:g}, δ = {settings['delta']:g}) per {settings['unit']} on "
                f"{trained} trainings; start a new run to propose a new plan",
                site_id=self._site_id,
            )
        events = [each.event for each in spent]
        would_be = epsilon([*events, event_of(mechanism)], budget.delta)
        if would_be > budget.epsilon:
            raise PrivacyBudgetError(
                f"{self._site_id}: the privacy budget of {dataset!r} is exhausted: of ε = "
                f"{budget.epsilon:g} per {budget.unit} (δ = {budget.delta:g}) "
                f"{epsilon(events, budget.delta):.3f} are spent, and with this round it would be "
                f"{would_be:.3f}; its operator decides on more by 'datasite budget set {dataset}'",
                site_id=self._site_id,
            )

    def rounds(
        self, plan: Plan, settings: DifferentialPrivacy, mechanism: Mechanism
    ) -> tuple[int, int]:
        """Give how many rounds of the plan were paid for, and how many more can be.

        Raises:
            PrivacyBudgetError: The dataset has no budget for the plan's unit.
        """
        dataset = plan.proposal["dataset"]
        budget = self.require_budget(dataset, settings["unit"])
        spent = self.spent(dataset)
        trained = _count(spent, plan)
        left = affordable(
            [each.event for each in spent],
            event_of(mechanism),
            most=budget.epsilon,
            delta=budget.delta,
            wanted=max(0, plan.proposal["rounds"] - trained),
        )
        return trained, left

    def pay(
        self,
        connection: Executes,
        plan: Plan,
        settings: DifferentialPrivacy,
        mechanism: Mechanism,
        round_num: int,
    ) -> dict[str, Any]:
        """Write what a round costs, in the transaction that keeps its reply.

        Returns:
            What an auditor needs to compute the same ε.

        Raises:
            PrivacyBudgetError: As `require_room`: the budget was lowered meanwhile.
        """
        self.require_room(plan, settings, mechanism, connection)
        cost = {
            "unit": settings["unit"],
            "noise_multiplier": mechanism["noise_multiplier"],
            "sample_rate": mechanism["sample_rate"],
            "steps": mechanism["steps"],
        }
        connection.execute(
            _PAY,
            {
                "seq": None,  # the next
                "at": now(),
                "dataset": plan.proposal["dataset"],
                "data_version": plan.proposal["dataset_version"],
                "plan_id": plan.plan_id,
                "round_num": round_num,
                **cost,
            },
        )
        return cost

    def _rows(
        self, statement: Select[Any], connection: Executes | None, **values: object
    ) -> Sequence[Any]:
        if connection is None:
            return self._ledger.rows(statement, **values)
        return cast("Sequence[Any]", connection.execute(statement, values).all())


def _count(spent: Sequence[Spent], plan: Plan) -> int:
    return sum(each.plan_id == plan.plan_id for each in spent)


_BUDGETS = Table.metadata.tables[BudgetRow.__tablename__]
_MECHANISMS = Table.metadata.tables[MechanismRow.__tablename__]
_EVENTS = Table.metadata.tables[EventRow.__tablename__]
_BUDGET = select(*_BUDGETS.columns).where(_BUDGETS.c.dataset == bindparam("of_dataset"))
_SET = insert(_BUDGETS).prefix_with("OR REPLACE")
_MECHANISM = select(*_MECHANISMS.columns).where(_MECHANISMS.c.plan_id == bindparam("of_plan"))
_FIX = insert(_MECHANISMS)
_SPENT = (
    select(*_EVENTS.columns)
    .where(_EVENTS.c.dataset == bindparam("of_dataset"))
    .order_by(_EVENTS.c.seq)
)
_PAY = _EVENTS.insert()
