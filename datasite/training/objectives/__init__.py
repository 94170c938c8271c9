"""Client halves of the federated algorithms: what a site minimises in a round, one paper a file.

The table `OBJECTIVES` is the site's catalogue: a plan can name what stands in it and nothing else.
"""

from core.exceptions import ConfigurationError
from core.messages import AlgorithmSpec, TrainingSettings
from datasite.training.objectives.base import Objective, Task
from datasite.training.objectives.fedavg import FedAvg
from datasite.training.objectives.feddyn import FedDyn
from datasite.training.objectives.fednova import FedNova
from datasite.training.objectives.fedprox import FedProx
from datasite.training.objectives.scaffold import Scaffold

OBJECTIVES: dict[str, type[Objective]] = {
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "feddyn": FedDyn,
    "fednova": FedNova,
    "scaffold": Scaffold,
}

PROBE = "probe"
"""No objective: adds `PROBE_STEP` to every floating parameter at once and looks at no data.

It measures what a round costs beside its training; its answers can be worked out by hand.
"""

PROBE_STEP = 0.5


def available_algorithms() -> list[str]:
    """Give the names that a plan may use."""
    return [*OBJECTIVES, PROBE]


def build_objective(spec: AlgorithmSpec, training: TrainingSettings, task: Task) -> Objective:
    """Give the objective that `spec` names.

    Raises:
        ConfigurationError: Not in the catalogue, its hyper-parameters are not those it has, or its
            equations do not hold for the optimiser.
    """
    name = spec["name"]
    kind = OBJECTIVES.get(name)
    if kind is None:
        raise ConfigurationError(
            f"algorithm {name!r} is not in this site's catalogue: "
            f"{', '.join(available_algorithms())}"
        )
    if spec["hyperparameters"].keys() != kind.hyperparameters:
        raise ConfigurationError(
            f"algorithm {name!r} takes the hyper-parameters {sorted(kind.hyperparameters)}, "
            f"got {sorted(spec['hyperparameters'])}"
        )
    if training["optimizer"] not in kind.optimizers:
        raise ConfigurationError(
            f"algorithm {name!r} works with the optimizer {' or '.join(sorted(kind.optimizers))}, "
            f"not with {training['optimizer']!r}"
        )
    return kind(task)


__all__ = [
    "OBJECTIVES",
    "PROBE",
    "PROBE_STEP",
    "Objective",
    "Task",
    "available_algorithms",
    "build_objective",
]
