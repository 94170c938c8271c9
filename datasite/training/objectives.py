"""Client halves of the federated algorithms: what a site minimises in a round.

The table `OBJECTIVES` is the site's catalogue: a plan can name what stands in it and nothing else.
"""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import nn

from core.exceptions import ConfigurationError
from core.messages import AlgorithmSpec, Parameters


class Objective(Protocol):
    """What an algorithm adds to plain local training, given the received global parameters."""

    hyperparameters: frozenset[str]

    def __init__(self, hyperparameters: Mapping[str, float], received: Parameters) -> None: ...

    def penalty(self, model: nn.Module) -> torch.Tensor | None:
        """Give a scalar to add to each batch's loss, or None."""


class FedAvg:
    """F_k(w), the site's own mean loss, and nothing else.

    Source: McMahan et al., AISTATS 2017, https://arxiv.org/abs/1602.05629, algorithm 1.
    """

    hyperparameters: frozenset[str] = frozenset()

    def __init__(self, hyperparameters: Mapping[str, float], received: Parameters) -> None:
        del hyperparameters, received

    def penalty(self, model: nn.Module) -> torch.Tensor | None:
        """Give None."""
        del model
        return None


OBJECTIVES: dict[str, type[Objective]] = {"fedavg": FedAvg}

PROBE = "probe"
"""No objective: adds `PROBE_STEP` to every floating parameter at once and looks at no data.

It measures what a round costs beside its training; its answers can be worked out by hand.
"""

PROBE_STEP = 0.5


def available_algorithms() -> list[str]:
    """Give the names that a plan may use."""
    return [*OBJECTIVES, PROBE]


def build_objective(spec: AlgorithmSpec, received: Parameters) -> Objective:
    """Give the objective that `spec` names.

    Raises:
        ConfigurationError: Not in the catalogue, or its hyper-parameters are not those it has.
    """
    kind = OBJECTIVES.get(spec["name"])
    if kind is None:
        raise ConfigurationError(
            f"algorithm {spec['name']!r} is not in this site's catalogue: "
            f"{', '.join(available_algorithms())}"
        )
    if spec["hyperparameters"].keys() != kind.hyperparameters:
        raise ConfigurationError(
            f"algorithm {spec['name']!r} takes the hyper-parameters "
            f"{sorted(kind.hyperparameters)}, got {sorted(spec['hyperparameters'])}"
        )
    return kind(spec["hyperparameters"], received)
