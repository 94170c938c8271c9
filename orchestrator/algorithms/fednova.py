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

from fractions import Fraction
from typing import Literal, cast

from pydantic import Field

from core.messages import ClientUpdate, TrainingSettings
from core.parameters import add, difference, scale
from orchestrator.algorithms.base import Algorithm, AlgorithmSettings, Gathering, Step


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
    keeps_partial_work = True

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

    def weight(self, update: ClientUpdate) -> float:
        """Give n_k / ‖a_k‖₁: in a mean so weighted, no site's steps count twice."""
        return update["num_samples"] / self._amount(update["round_num"], update["num_steps"])

    def _step(self, gathered: Gathering) -> Step:
        """Give w + τ_eff Σ_k p_k (w_k − w) / ‖a_k‖₁.

        The mean weighted by n_k / ‖a_k‖₁ is that sum over Σ_k p_k / ‖a_k‖₁, so its change is
        multiplied by τ_eff and by that, as fractions: where all ‖a_k‖₁ are equal, exactly by 1.
        """
        total = sum(told.num_samples for told in gathered.told)
        effective, normalised = Fraction(0), Fraction(0)
        for told in gathered.told:
            amount = Fraction(self._amount(told.round_num, told.num_steps))
            effective += told.num_samples * amount
            normalised += told.num_samples / amount
        combined = gathered.combined()
        change = difference(combined.parameters, self.parameters)
        moved = add(self.parameters, scale(change, float(effective * normalised / total**2)))
        parameters = self.as_global({**combined.parameters, **moved})
        return Step(parameters=parameters, sites=combined.sites)

    def _amount(self, round_num: int, steps: int) -> float:
        settings = self.training.at(round_num)
        mu = cast("FedNovaSettings", self.settings).mu
        return normaliser(
            steps, momentum=settings["momentum"], eta_mu=settings["learning_rate"] * mu
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
