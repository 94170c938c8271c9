"""FedProx: the server averages as FedAvg does; sites are held near the model they received.

    w ← Σ_k p_k w_k,  with  w_k ≈ argmin_w F_k(w) + (μ/2) ‖w − w^t‖²

Li et al., MLSys 2020, https://arxiv.org/abs/1812.06127. The authors weigh either the sampling of
sites or their mean by samples, never both: here sites are sampled uniformly, and the mean is
weighted. There is no good μ for all data; they tune it over 0.001, 0.01, 0.1, 0.5, 1.
"""

from typing import Literal

from pydantic import Field

from orchestrator.algorithms.base import AlgorithmSettings
from orchestrator.algorithms.fedavg import FedAvg


class FedProxSettings(AlgorithmSettings):
    """The strength of the proximal term."""

    name: Literal["fedprox"] = "fedprox"
    mu: float = Field(default=0.01, ge=0, description="μ, pull to the received model; 0 is FedAvg")


class FedProx(FedAvg):
    """FedAvg over sites with a proximal term."""

    Settings = FedProxSettings
    objective = "fedprox"
    site_hyperparameters = ("mu",)
    keeps_partial_work = True
