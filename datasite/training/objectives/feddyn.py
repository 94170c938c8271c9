"""FedDyn: each site's objective is bent until all sites agree on a stationary point.

    min_θ F_k(θ) − ⟨g_k, θ⟩ + (α/2) ‖θ − θ^{t−1}‖²,  so the gradient is
    ∇F_k(θ) − g_k + α (θ − θ^{t−1});  then  g_k ← g_k − α (θ_k − θ^{t−1}),  g_k = 0 at first

Acar et al., ICLR 2021, https://arxiv.org/abs/2111.04263, algorithm 1. The dual g_k is as large as
the model and never leaves the site: a mean of the site's gradients, it would tell much of its rows.
"""

import torch
from torch import nn

from core.messages import Parameters
from core.parameters import difference
from datasite.training.objectives.base import Objective, Task, gradients


class FedDyn(Objective):
    """Dynamic regularisation; hyper-parameter `alpha` > 0; the state is g_k in float64."""

    hyperparameters = frozenset({"alpha"})

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._dual = {name: g.to(task.received[name].dtype) for name, g in task.state.items()}

    @torch.no_grad()
    def correct_gradients(self, model: nn.Module) -> None:
        """Add α (θ − θ^{t−1}) − g_k."""
        alpha = self.task.hyperparameters["alpha"]
        current = model.state_dict()
        for name, gradient in gradients(model).items():
            gradient.add_(current[name] - self.task.received[name], alpha=alpha)
            if name in self._dual:
                gradient.sub_(self._dual[name])

    def state(self, arrived: Parameters, control: Parameters) -> Parameters:
        """Keep g_k − α (θ_k − θ^{t−1}), with the θ_k from which the orchestrator makes its h."""
        del control
        alpha = self.task.hyperparameters["alpha"]
        change = difference(arrived, self.task.received)
        before = self.task.state
        return {n: before.get(n, torch.zeros_like(d)) - alpha * d for n, d in change.items()}
