"""SCAFFOLD: control variates cancel the drift of each site from all.

    y ← y − η (∇F_k(y) − c_k + c);  after K steps  c_k⁺ = c_k − c + (x − y) / (K η)

Karimireddy et al., ICML 2020, https://arxiv.org/abs/1910.06378, algorithm 1, option II, where c_k⁺
is the mean of the gradients met on the way; that holds for plain gradient descent alone. The site
keeps c_k (0 at first) and sends c_k⁺ − c_k beside its parameters.
"""

import torch
from torch import nn

from core.messages import Parameters
from core.parameters import difference
from datasite.training.objectives.base import Objective, Task, gradients


class Scaffold(Objective):
    """Controlled averaging; the state is c_k in float64, the control is c, then c_k⁺ − c_k."""

    optimizers = frozenset({"sgd"})

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._shift = {
            name: (c.double() - task.state.get(name, 0.0)).to(task.received[name].dtype)
            for name, c in task.control.items()
        }

    @torch.no_grad()
    def correct_gradients(self, model: nn.Module) -> None:
        """Add c − c_k."""
        for name, gradient in gradients(model).items():
            if name in self._shift:
                gradient.add_(self._shift[name])

    def control(self, fitted: Parameters, num_steps: int) -> Parameters:
        """Send (x − y) / (K η) − c."""
        way = 1.0 / (num_steps * self.task.learning_rate)
        return {
            name: (way * d - self.task.control.get(name, 0.0)).to(self.task.received[name].dtype)
            for name, d in difference(self.task.received, fitted).items()
        }

    def state(self, arrived: Parameters, control: Parameters) -> Parameters:
        """Keep c_k with just that added which the orchestrator adds to c."""
        del arrived
        state = self.task.state
        return {name: state.get(name, 0.0) + d.double() for name, d in control.items()}
