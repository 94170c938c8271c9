"""Server halves of the federated algorithms, one paper a file."""

from typing import Annotated

from pydantic import BeforeValidator, SerializeAsAny

from core.enums import FederatedAlgorithm
from core.messages import Parameters
from orchestrator.algorithms.base import Algorithm, AlgorithmSettings, Gathered, Gathering
from orchestrator.algorithms.fedadam import FedAdam
from orchestrator.algorithms.fedavg import FedAvg
from orchestrator.algorithms.fedavgm import FedAvgM
from orchestrator.algorithms.feddyn import FedDyn
from orchestrator.algorithms.fednova import FedNova
from orchestrator.algorithms.fedprox import FedProx
from orchestrator.algorithms.scaffold import Scaffold
from orchestrator.algorithms.summed import Summed
from orchestrator.choices import parse_choice
from orchestrator.schedule import LocalTraining

ALGORITHMS: dict[str, type[Algorithm]] = {
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "feddyn": FedDyn,
    "fednova": FedNova,
    "fedavgm": FedAvgM,
    "fedadam": FedAdam,
    "scaffold": Scaffold,
}
"""The values of `FederatedAlgorithm`, and what goes beyond it."""


def _settings(value: object) -> AlgorithmSettings:
    kinds = {name: kind.Settings for name, kind in ALGORITHMS.items()}
    if isinstance(value, dict):
        value = {"name": FederatedAlgorithm.FEDAVG.value, **value}
    return parse_choice(value, kinds, tag="name", noun="algorithm")


AlgorithmChoice = Annotated[SerializeAsAny[AlgorithmSettings], BeforeValidator(_settings)]
"""The section `algorithm` of an experiment: a name, and the settings that go with it."""


def build_algorithm(
    settings: AlgorithmSettings,
    parameters: Parameters,
    *,
    training: LocalTraining,
    num_sites: int,
) -> Algorithm:
    """Give the algorithm that `settings` name, starting from `parameters`; see `Algorithm`."""
    kind = ALGORITHMS[settings.name]
    return kind(parameters, settings, training=training, num_sites=num_sites)


__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "AlgorithmChoice",
    "AlgorithmSettings",
    "FedAvg",
    "Gathered",
    "Gathering",
    "Summed",
    "build_algorithm",
]
