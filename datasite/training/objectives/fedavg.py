"""FedAvg: each site minimises its own mean loss.

    min_w F_k(w)

McMahan et al., AISTATS 2017, https://arxiv.org/abs/1602.05629, algorithm 1. The same local training
serves every algorithm that is new at the server only (FedAvgM, FedAdam).
"""

from datasite.training.objectives.base import Objective


class FedAvg(Objective):
    """Plain local training."""
