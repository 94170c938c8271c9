"""Server halves of the federated algorithms, one paper a file."""

from core.enums import FederatedAlgorithm
from core.messages import Parameters
from orchestrator.algorithms.base import Algorithm
from orchestrator.algorithms.fedavg import FedAvg

ALGORITHMS: dict[FederatedAlgorithm, type[Algorithm]] = {FederatedAlgorithm.FEDAVG: FedAvg}


def build_algorithm(name: FederatedAlgorithm, parameters: Parameters) -> Algorithm:
    """Give the algorithm, starting from `parameters`; configuration has checked that it exists."""
    return ALGORITHMS[name](parameters)


__all__ = ["ALGORITHMS", "Algorithm", "FedAvg", "build_algorithm"]
