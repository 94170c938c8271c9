"""FedAvgM: the server moves with momentum; sites train as under FedAvg.

    Δ = w − Σ_k p_k w_k,   v ← β v + Δ,   w ← w − η v

Hsu et al., 2019, https://arxiv.org/abs/1909.06335, section 4.3. With β = 0 and η = 1 it is FedAvg.
"""

from collections.abc import Mapping
from typing import Literal, cast

from pydantic import Field

from core.messages import Parameters
from core.parameters import add, difference, scale, zeros_like
from orchestrator.algorithms.base import Algorithm, AlgorithmSettings, Gathered, Step


class FedAvgMSettings(AlgorithmSettings):
    """The server's momentum and learning rate."""

    name: Literal["fedavgm"] = "fedavgm"
    beta: float = Field(default=0.9, ge=0, lt=1, description="β, the server's momentum")
    server_learning_rate: float = Field(default=0.1, gt=0, description="η, the server's rate")


class FedAvgM(Algorithm):
    """Federated averaging with server momentum; the state is `v`."""

    Settings = FedAvgMSettings

    def initial_state(self, parameters: Parameters) -> Mapping[str, Parameters]:
        """Give v = 0."""
        return {"v": zeros_like(parameters)}

    def _step(self, gathered: Gathered) -> Step:
        settings = cast("FedAvgMSettings", self.settings)
        combined = gathered.combined()
        change = difference(self.parameters, combined.parameters)
        v = add(scale(self.state["v"], settings.beta), change)
        moved = add(self.parameters, scale(v, -settings.server_learning_rate))
        parameters = self.as_global({**combined.parameters, **moved})
        return Step(parameters=parameters, state={"v": v}, sites=combined.sites)
