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

from typing import Literal, cast

from pydantic import Field

from core.messages import ClientUpdate, TrainingSettings
from core.normalising import normaliser
from core.parameters import add, difference, scale
from core.privacy import Weighting
from orchestrator.algorithms.base import Algorithm, AlgorithmSettings, Gathered, Step


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

    @classmethod
    def weighting(cls, settings: AlgorithmSettings) -> Weighting:
        """See `Algorithm.weighting`."""
        del settings
        return "normalised"

    def amount(self, update: ClientUpdate) -> float:
        """Give ‖a_k‖₁: in a mean weighted by n_k / ‖a_k‖₁, no site's steps count twice."""
        settings = self.training.at(update["round_num"])
        mu = cast("FedNovaSettings", self.settings).mu
        eta_mu = settings["learning_rate"] * mu
        return normaliser(update["num_steps"], momentum=settings["momentum"], eta_mu=eta_mu)

    def _step(self, gathered: Gathered) -> Step:
        """Give w + τ_eff Σ_k p_k (w_k − w) / ‖a_k‖₁.

        The mean weighted by n_k / ‖a_k‖₁ is that sum over Σ_k p_k / ‖a_k‖₁, so its change is
        multiplied by τ_eff and by that, as fractions: where all ‖a_k‖₁ are equal, exactly by 1.
        """
        combined = gathered.combined()
        factor = gathered.effective * gathered.normalised / gathered.samples**2
        change = difference(combined.parameters, self.parameters)
        moved = add(self.parameters, scale(change, float(factor)))
        parameters = self.as_global({**combined.parameters, **moved})
        return Step(parameters=parameters, sites=combined.sites)
