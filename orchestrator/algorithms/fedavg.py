"""FedAvg: the mean of the sites' models, weighted by how many samples each trained on.

    w <- Σ_k p_k w_k,  p_k = n_k / Σ n

McMahan et al., AISTATS 2017, https://arxiv.org/abs/1602.05629, algorithm 1.
"""

from collections.abc import Sequence

from core.enums import FederatedAlgorithm
from core.messages import AlgorithmSpec, ClientUpdate, Parameters
from core.parameters import weighted_sum
from orchestrator.algorithms.base import Algorithm


class FedAvg(Algorithm):
    """Federated averaging; see the module for the equation."""

    def spec(self) -> AlgorithmSpec:
        """See `Algorithm.spec`."""
        return AlgorithmSpec(name=FederatedAlgorithm.FEDAVG.value, hyperparameters={})

    def _combine(self, updates: Sequence[ClientUpdate]) -> Parameters:
        total = sum(update["num_samples"] for update in updates)
        return weighted_sum(
            [update["parameters"] for update in updates],
            [update["num_samples"] / total for update in updates],
        )
