"""FedDyn: sites bend their objectives by duals g_k, and the server keeps h, the mean of these.

    h ← h − (α/m) Σ_{k∈P} (θ_k − θ),   θ ← (1/|P|) Σ_{k∈P} θ_k − h/α

Acar et al., ICLR 2021, https://arxiv.org/abs/2111.04263, algorithm 1; m counts all sites and P
those of the round. As each site does g_k ← g_k − α (θ_k − θ), h is (1/m) Σ_k g_k after every round.
The bracket of the published algorithm, (Σ θ_k) − θ, diverges when it is read literally; the sum is
over differences, as in the proof and in the authors' code.
"""

from collections.abc import Mapping
from typing import Literal, cast

from pydantic import Field

from core.enums import AggregationMethod
from core.messages import Parameters, TrainingSettings
from core.parameters import add, difference, scale, zeros_like
from orchestrator.algorithms.base import Algorithm, AlgorithmSettings, Gathered, Step


class FedDynSettings(AlgorithmSettings):
    """The strength of the dynamic regulariser."""

    name: Literal["feddyn"] = "feddyn"
    alpha: float = Field(
        default=0.01, gt=0, description="α, pull to the received model and step of the duals"
    )


class FedDyn(Algorithm):
    """Dynamic regularisation; the state is `h`."""

    Settings = FedDynSettings
    objective = "feddyn"
    site_hyperparameters = ("alpha",)
    default_aggregation = AggregationMethod.SIMPLE_AVERAGE.value
    only_aggregation = (
        "its state h is the plain mean of the sites' duals, and any other combination breaks that; "
        "choose simple_average (its default) or another algorithm"
    )
    proven_under_dp = False
    keeps_site_state = True

    @classmethod
    def refusals(cls, settings: AlgorithmSettings, training: TrainingSettings) -> list[str]:
        """See `Algorithm.refusals`."""
        refused = super().refusals(settings, training)
        if training["optimizer"] == "adam" and training["weight_decay"]:
            refused.append(
                "training.weight_decay: feddyn counts it as part of each site's objective, which "
                "it is under sgd and not under adam; choose sgd, or weight_decay 0"
            )
        return refused

    def initial_state(self, parameters: Parameters) -> Mapping[str, Parameters]:
        """Give h = 0."""
        return {"h": zeros_like(parameters)}

    def _step(self, gathered: Gathered) -> Step:
        alpha = cast("FedDynSettings", self.settings).alpha
        combined = gathered.combined()
        # The mean is over |P| sites: times |P| it is the sum that h asks for.
        change = difference(combined.parameters, self.parameters)
        h = add(self.state["h"], scale(change, -alpha * len(gathered.counted) / self.num_sites))
        bent = add(combined.parameters, scale(h, -1 / alpha))
        parameters = self.as_global({**combined.parameters, **bent})
        return Step(parameters=parameters, state={"h": h}, sites=combined.sites)
