"""FedNova: a site's change is divided by what its local steps amount to, so that none counts twice.

    w ← w − τ_eff Σ_k p_k d_k,   d_k = (w − w_k) / ‖a_k‖₁,   τ_eff = Σ_k p_k ‖a_k‖₁

Wang et al., NeurIPS 2020, https://arxiv.org/abs/2007.07481. a_k holds the weight of each local
gradient in the site's change, in units of the learning rate, which is constant within a round.

    τ steps of gradient descent     ‖a‖₁ = τ
    with momentum ρ                 ‖a‖₁ = (τ − ρ (1 − ρ^τ) / (1 − ρ)) / (1 − ρ)
    with a proximal term            ‖a‖₁ = (1 − (1 − ημ)^τ) / (ημ)

With both it is what the two recursions give together. The authors' code takes τ_eff = Σ p_k τ_k
when μ > 0; here it is the same sum for all μ, so that equal steps always give FedProx. The steps
are those really done. Adam has no such vector.
"""

import math
from collections.abc import Sequence
from typing import Literal, cast

from pydantic import Field

from core.messages import ClientUpdate, TrainingSettings
from core.parameters import add, difference, scale
from orchestrator.aggregation import Contribution
from orchestrator.algorithms.base import Algorithm, AlgorithmSettings, Step


class FedNovaSettings(AlgorithmSettings):
    """The strength of the proximal term that sites may train with."""

    name: Literal["fednova"] = "fednova"
    mu: float = Field(default=0.0, ge=0, description="μ, pull to the received model; 0 for none")


class FedNova(Algorithm):
    """Normalised averaging; see the module for the equations."""

    Settings = FedNovaSettings
    objective = "fednova"
    site_hyperparameters = ("mu",)
    only_aggregation = (
        "its normalised mean is weighted by construction; choose weighted_average (its default) or "
        "another algorithm"
    )
    needs = "sgd"
    proven_under_dp = False

    @classmethod
    def refusals(cls, settings: AlgorithmSettings, training: TrainingSettings) -> list[str]:
        """See `Algorithm.refusals`."""
        refused = super().refusals(settings, training)
        if training["optimizer"] != "sgd":
            refused.append(
                f"training.optimizer: fednova with {training['optimizer']}: its steps cannot be "
                "normalised; choose sgd, with or without momentum, or another algorithm"
            )
        return refused

    def _step(self, updates: Sequence[ClientUpdate]) -> Step:
        mu = cast("FedNovaSettings", self.settings).mu
        settings = self.training.at(updates[0]["round_num"])
        amounts = [
            normaliser(
                update["num_steps"],
                momentum=settings["momentum"],
                eta_mu=settings["learning_rate"] * mu,
            )
            for update in updates
        ]
        total = math.fsum(update["num_samples"] for update in updates)
        effective = math.fsum(
            update["num_samples"] / total * amount
            for update, amount in zip(updates, amounts, strict=True)
        )
        # The weighted mean of the changes scaled by τ_eff / ‖a_k‖₁; to hand the product of both
        # weights to a mean that divides by their sum is the usual mistake.
        combined = self.combine(
            [
                self._normalised(update, effective / amount)
                for update, amount in zip(updates, amounts, strict=True)
            ]
        )
        return Step(parameters=self.as_global(combined.parameters), sites=combined.sites)

    def _normalised(self, update: ClientUpdate, factor: float) -> Contribution:
        change = difference(update["parameters"], self.parameters)
        counters = {n: t for n, t in update["parameters"].items() if not t.is_floating_point()}
        moved = add(self.parameters, scale(change, factor))
        return Contribution(
            site_id=update["datasite_id"],
            parameters={**moved, **counters},
            weight=update["num_samples"],
        )


def normaliser(steps: int, *, momentum: float, eta_mu: float) -> float:
    """Give ‖a‖₁ of `steps` local steps: how much change a gradient of 1 at each step makes, over η.

    Args:
        steps: τ, at least 1.
        momentum: ρ in [0, 1), with no dampening, the buffer empty at first.
        eta_mu: Learning rate times the strength of the proximal term.
    """
    change, velocity, total = 0.0, 1.0, 0.0
    for _ in range(steps):  # follows one unit gradient, which weighs `change` after so many steps
        change += velocity
        total += abs(change)
        velocity = momentum * velocity - eta_mu * change
    return total
