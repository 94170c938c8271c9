"""Norm clipping: no site moves the model further than a bound, whatever it sends.

    w_k <- w + Δ_k / max(1, ‖Δ_k‖ / C),  Δ_k = w_k − w,  w received, C the bound

Sun et al., 2019, https://arxiv.org/abs/1911.07963, section "norm thresholding of updates".
It bounds how far a liar pulls a mean; it does not tell a liar from an honest site.
"""

from core.messages import Parameters
from core.parameters import difference


def clip_factor(norm: float, bound: float | None) -> float:
    """Give what a delta of length `norm` is multiplied by; 1.0 within the bound or without one."""
    return 1.0 if bound is None or norm <= bound else bound / norm


def shorten(parameters: Parameters, received: Parameters, factor: float) -> Parameters:
    """Give `received` + `factor` · (`parameters` − `received`) in float64.

    Integer tensors stay those of `parameters`. With a factor of 1 all of it stays, bit by bit.
    """
    if factor == 1.0:
        return parameters
    delta = difference(parameters, received)
    return {
        name: received[name] + factor * delta[name] if name in delta else tensor
        for name, tensor in parameters.items()
    }
