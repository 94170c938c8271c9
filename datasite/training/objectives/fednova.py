"""FedNova: a site trains as under FedProx; what is new is how the server weighs its steps.

    min_w F_k(w) + (μ/2) ‖w − w^t‖²

Wang et al., NeurIPS 2020, https://arxiv.org/abs/2007.07481. The server divides each site's change
by what its steps amount to, which it can work out for gradient descent with or without momentum
and not for Adam.
"""

from datasite.training.objectives.fedprox import FedProx


class FedNova(FedProx):
    """Local training whose steps can be counted; hyper-parameter `mu` ≥ 0, 0 for none."""

    optimizers = frozenset({"sgd"})
