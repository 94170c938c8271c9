"""What differential privacy asks of a site beside its rounds: a mechanism, an account, payment."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from core import wire
from core.accounting import epsilon
from core.exceptions import DataSiteError, SecurityError
from core.privacy_messages import BudgetState, PrivacyAccount, PrivacyRequest
from core.wire import Parcel
from datasite.mechanism import Mechanism, privately

if TYPE_CHECKING:
    from core.messages import PlanProposal
    from core.schema import DataSchema
    from datasite.budgets import Budgets
    from datasite.consent import Grant, WorkRequest
    from datasite.statements import Executes

Count = Callable[[Parcel], Parcel]
"""Has the trainer count a plan's units."""


class PrivateRounds:
    """Keeps the plans with differential privacy of one site to their budgets.

    Args:
        budgets: The site's.
        site_id: Named in errors.
    """

    def __init__(self, budgets: Budgets, *, site_id: str) -> None:
        self._budgets = budgets
        self._site_id = site_id

    def mechanism(self, grant: Grant, count: Count) -> Mechanism | None:
        """Give the plan's mechanism, fixed at its first use; None where the plan needs none.

        Raises:
            SecurityError: Sums over rows are asked for, or the dataset has no budget.
        """
        settings, request = privately(grant.plan.proposal), grant.request
        if settings is None or request["kind"] == "evaluate":
            return None
        require_no_sums(request, site_id=self._site_id)
        self._budgets.require_budget(grant.plan.proposal["dataset"], settings["unit"])
        fixed = self._budgets.mechanism(grant.plan)
        if fixed is None:
            fixed = self._budgets.fix(grant.plan, settings, self._counted(grant, count))
        return fixed

    def require_room(self, grant: Grant, mechanism: Mechanism | None) -> None:
        """Do nothing when the round can be paid for, or costs nothing.

        Raises:
            PrivacyBudgetError: It cannot.
        """
        settings = privately(grant.plan.proposal)
        if settings is None:
            return
        assert mechanism is not None  # noqa: S101 - `mechanism` gave it
        self._budgets.require_room(grant.plan, settings, mechanism)

    def pay(
        self, connection: Executes, grant: Grant, mechanism: Mechanism | None, round_num: int
    ) -> None:
        """Pay for the round in the transaction that keeps it, and have the audit log say so.

        Raises:
            PrivacyBudgetError: It cannot be paid for any more.
        """
        settings = privately(grant.plan.proposal)
        if settings is None:
            return
        assert mechanism is not None  # noqa: S101 - `mechanism` gave it
        cost = self._budgets.pay(connection, grant.plan, settings, mechanism, round_num)
        grant.facts["privacy"] = cost

    def account(self, grant: Grant, mechanism: Mechanism | None) -> PrivacyAccount:
        """Answer what the plan costs and what is left.

        Raises:
            SecurityError: The plan is of another level.
        """
        plan, settings = grant.plan, privately(grant.plan.proposal)
        if settings is None or mechanism is None:
            raise not_private(self._site_id, plan.plan_id)
        dataset = plan.proposal["dataset"]
        budget = self._budgets.require_budget(dataset, settings["unit"])
        trained, left = self._budgets.rounds(plan, settings, mechanism)
        events = [each.event for each in self._budgets.spent(dataset)]
        account = account_of(
            plan.proposal,
            mechanism,
            grant.dataset.schema,
            site_id=self._site_id,
            trained=trained,
            left=left,
        )
        account["budget"] = BudgetState(
            epsilon=budget.epsilon, delta=budget.delta, spent=epsilon(events, budget.delta)
        )
        return account

    def _counted(self, grant: Grant, count: Count) -> int:
        request = PrivacyRequest(kind="privacy_account", plan_id=grant.plan.plan_id, deadline_s=1.0)
        return units_told(count(wire.encode(request)))


def account_of(
    proposal: PlanProposal,
    mechanism: Mechanism,
    schema: DataSchema,
    *,
    site_id: str,
    trained: int,
    left: int,
) -> PrivacyAccount:
    """Give what a plan costs at a site, without what its budget has to say.

    Args:
        proposal: The plan's.
        mechanism: The plan's at this site.
        schema: Of its data.
        site_id: The site.
        trained: How many rounds were paid for.
        left: How many more can be.

    Raises:
        SecurityError: The plan is of another level.
    """
    settings = privately(proposal)
    if settings is None:
        raise not_private(site_id, proposal["run_id"])
    return PrivacyAccount(
        kind="privacy_spent",
        datasite_id=site_id,
        unit=settings["unit"],
        windows_per_reading=schema.window_steps,
        epsilon=settings["epsilon"],
        delta=settings["delta"],
        rounds_trained=trained,
        rounds_left=left,
        units=mechanism["units"],
        sample_rate=mechanism["sample_rate"],
        steps=mechanism["steps"],
        noise_multiplier=mechanism["noise_multiplier"],
    )


def require_no_sums(request: WorkRequest, *, site_id: str) -> None:
    """Do nothing unless sums over rows are asked for, which no ε would hold for.

    Raises:
        SecurityError: They are.
    """
    if request["kind"] == "statistics":
        raise SecurityError(
            f"{site_id}: under differential_privacy sums over rows are not told; the preprocessing "
            "comes from the schema's ranges",
            site_id=site_id,
        )


def units_told(reply: Parcel) -> int:
    """Read what the trainer counted.

    Raises:
        DataSiteError: It could not.
    """
    told = wire.decode(reply)
    if told["kind"] == "failure":
        raise DataSiteError(told["message"], site_id=told["datasite_id"])
    if told["kind"] != "privacy_units" or not told["units"]:
        raise DataSiteError("the trainer counted no units", outside="the trainer counted no units")
    return told["units"]


def not_private(site_id: str, plan_id: str) -> SecurityError:
    """Give the error of who asks for the account of a plan that has none."""
    return SecurityError(
        f"{site_id}: plan {plan_id[:12]} is not one with differential_privacy: it has no account",
        site_id=site_id,
    )
