"""What is asked and answered about the price of a plan with differential privacy."""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired

from pydantic import Field, with_config
from typing_extensions import TypedDict

from core.fields import STRICT, Count, Positive, Text
from core.privacy import Unit  # noqa: TC001 - pydantic reads it off the class


@with_config(STRICT)
class PrivacyRequest(TypedDict):
    """What does the plan's differential privacy cost at your site, and what is left of the budget?

    The noise follows from how many units the site has, which it counts at the first such request,
    within `deadline_s` seconds; from then on it stays the same for the plan.
    """

    kind: Literal["privacy_account"]
    plan_id: Text
    deadline_s: Positive


@with_config(STRICT)
class PrivacyUnits(TypedDict):
    """What the trainer counts for the site, which computes the noise; it never leaves the site."""

    kind: Literal["privacy_units"]
    datasite_id: str
    units: Count


@with_config(STRICT)
class BudgetState(TypedDict):
    """What may be told of a dataset's units all in all, and what was: ε at `delta`."""

    epsilon: Positive
    delta: Positive
    spent: Annotated[float, Field(ge=0.0)]


@with_config(STRICT)
class PrivacyAccount(TypedDict):
    """Answer to `PrivacyRequest`: the plan's mechanism at this site, and what can be paid for.

    The plan costs (`epsilon`, `delta`) for each of `units` units, when all its rounds are trained:
    `steps` a round, in each of which a unit is taken with probability `sample_rate`, and noise of
    `noise_multiplier` times the clipping norm is added. `rounds_trained` rounds were paid for under
    the plan so far, and `rounds_left` more can be, by the plan and by the dataset's `budget`; a
    simulated site has none. One reading lies in up to `windows_per_reading` windows.
    """

    kind: Literal["privacy_spent"]
    datasite_id: str
    unit: Unit
    units: Count
    windows_per_reading: Annotated[int, Field(ge=1)]
    noise_multiplier: Positive
    sample_rate: Annotated[float, Field(gt=0.0, le=1.0)]
    steps: Annotated[int, Field(ge=1)]
    epsilon: Positive
    delta: Positive
    rounds_trained: Count
    rounds_left: Count
    budget: NotRequired[BudgetState]
