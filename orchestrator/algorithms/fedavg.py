"""FedAvg: the mean of the sites' models, weighted by how many samples each trained on.

    w ← Σ_k p_k w_k,  p_k = n_k / Σ n

McMahan et al., AISTATS 2017, https://arxiv.org/abs/1602.05629, algorithm 1.
"""

from typing import ClassVar, Literal

from orchestrator.algorithms.base import Algorithm, AlgorithmSettings, Gathered, Step


class FedAvgSettings(AlgorithmSettings):
    """FedAvg has no hyper-parameters."""

    name: Literal["fedavg"] = "fedavg"


class FedAvg(Algorithm):
    """Federated averaging; see the module for the equation."""

    Settings: ClassVar[type[AlgorithmSettings]] = FedAvgSettings

    def _step(self, gathered: Gathered) -> Step:
        combined = gathered.combined()
        return Step(parameters=self.as_global(combined.parameters), sites=combined.sites)
