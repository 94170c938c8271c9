"""How a site keeps a plan's (ε, δ): which share of its units a step takes, and how much noise.

It follows from the plan and from how many units the training part has, which everybody may know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from core.accounting import Event, noise_multiplier
from core.privacy import is_private

if TYPE_CHECKING:
    from core.messages import PlanProposal
    from core.privacy import DifferentialPrivacy


class Mechanism(TypedDict):
    """What is done in each round of a plan at one site.

    `units` are n training windows, or machines; in each of `steps` steps a unit is taken with
    probability `sample_rate`, and the noise is `noise_multiplier` times the clipping norm.
    """

    units: int
    sample_rate: float
    steps: int
    noise_multiplier: float


def privately(proposal: PlanProposal) -> DifferentialPrivacy | None:
    """Give what a plan says of differential privacy; None where it is of another level."""
    settings = proposal.get("privacy")
    return settings if is_private(settings) else None


def mechanism_of(proposal: PlanProposal, settings: DifferentialPrivacy, units: int) -> Mechanism:
    """Give the mechanism by which all rounds of a plan cost no more than it says.

    A batch has `batch_size` units on average, q = min(1, batch_size / n), and an epoch ⌊1/q⌉ steps.

    Raises:
        ConfigurationError: No noise is enough.
    """
    training = proposal["training"]
    rate = min(1.0, training["batch_size"] / units)
    steps = training["local_epochs"] * max(1, round(1 / rate))
    sigma = noise_multiplier(
        most=settings["epsilon"],
        delta=settings["delta"],
        sample_rate=rate,
        steps=steps * proposal["rounds"],
    )
    return Mechanism(units=units, sample_rate=rate, steps=steps, noise_multiplier=sigma)


def event_of(mechanism: Mechanism) -> Event:
    """Give what one round costs."""
    return Event(mechanism["noise_multiplier"], mechanism["sample_rate"], mechanism["steps"])
