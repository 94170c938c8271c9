"""FedProx: a site is held near the global model it received.

    min_w F_k(w) + (μ/2) ‖w − w^t‖²,  so the gradient is ∇F_k(w) + μ (w − w^t)

Li et al., MLSys 2020, https://arxiv.org/abs/1812.06127, equation (2). With μ = 0 it is FedAvg, to
the bit. The term covers trained parameters and no buffers.
"""

import torch
from torch import nn

from datasite.training.objectives.base import Objective, gradients


class FedProx(Objective):
    """The proximal term; hyper-parameter `mu` ≥ 0."""

    hyperparameters = frozenset({"mu"})

    @torch.no_grad()
    def correct_gradients(self, model: nn.Module) -> None:
        """Add μ (w − w^t)."""
        mu = self.task.hyperparameters["mu"]
        if mu == 0:
            return
        current = model.state_dict()
        for name, gradient in gradients(model).items():
            gradient.add_(current[name] - self.task.received[name], alpha=mu)
