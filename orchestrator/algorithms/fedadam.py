"""FedAdam: the server treats the mean change of the sites as a gradient for Adam.

    Δ = Σ_k p_k w_k − w,   m ← β₁ m + (1 − β₁) Δ,   v ← β₂ v + (1 − β₂) Δ²,   w ← w + η m / (√v + τ)

Reddi et al., ICLR 2021, https://arxiv.org/abs/2003.00295, algorithm 2, without bias correction and
with v = τ² at first, as there.
"""

from collections.abc import Mapping
from typing import Literal, cast

import torch
from pydantic import Field

from core.messages import Parameters
from core.parameters import add, difference, scale, zeros_like
from orchestrator.algorithms.base import Algorithm, AlgorithmSettings, Gathered, Step


class FedAdamSettings(AlgorithmSettings):
    """The server's Adam."""

    name: Literal["fedadam"] = "fedadam"
    beta1: float = Field(default=0.9, ge=0, lt=1, description="β₁, memory of the change")
    beta2: float = Field(default=0.99, ge=0, lt=1, description="β₂, memory of its square")
    server_learning_rate: float = Field(default=0.01, gt=0, description="η, the server's rate")
    tau: float = Field(default=0.001, gt=0, description="τ, how adaptive: smaller is more so")


class FedAdam(Algorithm):
    """Adaptive federated optimisation; the state is `m` and `v`."""

    Settings = FedAdamSettings

    def initial_state(self, parameters: Parameters) -> Mapping[str, Parameters]:
        """Give m = 0 and v = τ²."""
        tau = cast("FedAdamSettings", self.settings).tau
        zeros = zeros_like(parameters)
        return {"m": zeros, "v": {name: torch.full_like(t, tau**2) for name, t in zeros.items()}}

    def _step(self, gathered: Gathered) -> Step:
        s = cast("FedAdamSettings", self.settings)
        combined = gathered.combined()
        change = difference(combined.parameters, self.parameters)
        squares = {name: d.square() for name, d in change.items()}
        m = add(scale(self.state["m"], s.beta1), scale(change, 1 - s.beta1))
        v = add(scale(self.state["v"], s.beta2), scale(squares, 1 - s.beta2))
        way = {n: s.server_learning_rate * m[n] / (v[n].sqrt() + s.tau) for n in m}
        parameters = self.as_global({**combined.parameters, **add(self.parameters, way)})
        return Step(parameters=parameters, state={"m": m, "v": v}, sites=combined.sites)
