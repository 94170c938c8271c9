"""How much a site's local steps amount to, which FedNova divides its change by.

Wang et al., NeurIPS 2020, https://arxiv.org/abs/2007.07481; see `orchestrator.algorithms.fednova`.
"""


def normaliser(steps: int, *, momentum: float, eta_mu: float) -> float:
    """Give ‖a‖₁ of `steps` local steps: how much change a gradient of 1 at each step makes, over η.

    Args:
        steps: τ, at least 1.
        momentum: ρ in [0, 1), with no dampening, the buffer empty at first.
        eta_mu: Learning rate times the strength of the proximal term.
    """
    change, velocity, total = 0.0, 1.0, 0.0
    for _ in range(steps):  # follows one unit gradient, which weighs `change` after so many steps
        change += velocity
        total += abs(change)
        velocity = momentum * velocity - eta_mu * change
    return total
