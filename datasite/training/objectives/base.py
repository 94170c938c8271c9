"""What the client halves share: what they are given, and where the fit asks them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from core.messages import Parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One site's share of one round, as an objective sees it.

    Attributes:
        hyperparameters: Of the algorithm, as the plan has them.
        received: The global parameters that the round starts from.
        learning_rate: Of the round.
        control: What the orchestrator sent beside the model.
        state: What this site kept after the last round that counted; empty at its first.
    """

    hyperparameters: Mapping[str, float]
    received: Parameters
    learning_rate: float
    control: Parameters = field(default_factory=dict)
    state: Parameters = field(default_factory=dict)


class Objective:
    """Plain local training: F_k(w), the site's own mean loss, and nothing else.

    An algorithm's client half overrides what differs. It adds to gradients and not to the loss: the
    correction is exact, costs no second pass, and comes after the clipping of the data's gradient,
    so that a bound on what the data can do stays one.

    Args:
        task: The round.

    Attributes:
        hyperparameters: Names of those it takes, each required.
        optimizers: Names of the optimisers for which its equations hold.
    """

    hyperparameters: ClassVar[frozenset[str]] = frozenset()
    optimizers: ClassVar[frozenset[str]] = frozenset({"sgd", "adam"})

    def __init__(self, task: Task) -> None:
        self.task = task

    def correct_gradients(self, model: nn.Module) -> None:
        """Add the algorithm's part to `.grad` of the model's parameters, in place."""

    def control(self, fitted: Parameters, num_steps: int) -> Parameters:
        """Give what is sent beside the parameters when `num_steps` steps led to `fitted`."""
        del fitted, num_steps
        return {}

    def state(self, arrived: Parameters, control: Parameters) -> Parameters:
        """Give what is kept at the site for the next round; empty for nothing.

        Args:
            arrived: The parameters that the orchestrator has of this round. They may be rounded on
                their way (see `core.compression`), and what both sides sum up must be the same.
            control: What it has beside them.
        """
        del arrived, control
        return {}


def gradients(model: nn.Module) -> Mapping[str, torch.Tensor]:
    """Give the gradients by parameter name; parameters that took no part have none."""
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
