"""What differentially private training costs: the accounting of a Poisson-sampled Gaussian.

In one step each unit is taken with probability q, what the units taken give is shortened to a norm
C and added up, and Gaussian noise of standard deviation σ C is added. The Rényi divergence of a
step at the orders α is a list of numbers; the lists of steps add up, whatever their sequence, plan
or researcher; and ε at a δ follows from their sum. That it adds up exactly is why it is enforced.

The numbers are Opacus': Mironov, Talwar & Zhang, 2019, https://arxiv.org/abs/1908.10530 for a step,
and Balle et al., AISTATS 2020, https://arxiv.org/abs/1905.09982, theorem 21, for ε. Opacus takes
seconds to import, so that this is done where a number is asked for.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections import defaultdict
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from core.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

WHOLE_ORDERS: Final = (
    *map(float, range(2, 64)),
    64.0,
    80.0,
    96.0,
    128.0,
    192.0,
    256.0,
    512.0,
    1024.0,
)
"""Rényi orders α. The large ones are for a small ε; for more, Opacus' binomials overflow."""

_TENTHS: Final = tuple(1 + tenths / 10 for tenths in range(1, 100))
"""Orders for a large ε. Beside the whole ones they take long, so those far off are left out."""

_LARGEST_NOISE: Final = 1e6
_PRECISION: Final = 1e-3
"""Of a noise multiplier, relative; it is found from above."""

_SLACK: Final = 1.001
_GROUP_ITERATIONS: Final = 200


class Event(NamedTuple):
    """Steps of one mechanism.

    Attributes:
        noise_multiplier: σ, in units of the clipping norm.
        sample_rate: q in (0, 1], the probability with which a unit is taken in a step.
        steps: How many.
    """

    noise_multiplier: float
    sample_rate: float
    steps: int


def epsilon(events: Iterable[Event], delta: float) -> float:
    """Give ε at `delta` of all events together; 0 of none, inf where there is no noise.

    The least over the whole orders, and over the tenths about the best of these. Every order gives
    an upper bound, so that what is left out can only make ε larger.
    """
    together = _together(events)
    if not together:
        return 0.0
    _, best = _least(together, delta, WHOLE_ORDERS)
    near = (best, *(order for order in _TENTHS if abs(order - best) < 1))
    return max(0.0, _least(together, delta, near)[0])


def epsilon_at(events: Iterable[Event], delta: float, orders: Sequence[float]) -> float:
    """Give the least ε at `delta` that follows from the divergence at any one of `orders`."""
    return _least(_together(events), delta, orders)[0]


def epsilon_by_prv(events: Iterable[Event], delta: float) -> float:
    """Give ε at `delta` by Opacus' accountant of privacy loss random variables: tighter, and slow.

    An upper bound that is at most 0.01 above the true value, told beside what is enforced.

    Source: Gopi, Lee & Wutschitz, NeurIPS 2021, https://arxiv.org/abs/2106.02848.
    """
    together = _together(events)
    if not together:
        return 0.0
    from opacus.accountants import PRVAccountant  # noqa: PLC0415 - takes seconds

    accountant = PRVAccountant()
    accountant.history = [tuple(event) for event in together]
    with np.errstate(divide="ignore"):  # it takes the logarithm of 1 − q where q is 1
        return float(accountant.get_epsilon(delta))


def noise_multiplier(*, most: float, delta: float, sample_rate: float, steps: int) -> float:
    """Give the smallest noise, to a thousandth, with which `steps` steps cost at most ε = `most`.

    Raises:
        ConfigurationError: No noise that leaves anything to learn is enough.
    """
    low, high = 0.0, 1.0
    while epsilon([Event(high, sample_rate, steps)], delta) > most:
        low, high = high, 2 * high
        if high > _LARGEST_NOISE:
            raise ConfigurationError(
                f"no noise up to {_LARGEST_NOISE:g} times the clipping norm keeps {steps} steps "
                f"within ε = {most:g} at δ = {delta:g}; allow more, or train less"
            )
    while high - low > _PRECISION * high:
        middle = (low + high) / 2
        if epsilon([Event(middle, sample_rate, steps)], delta) > most:
            low = middle
        else:
            high = middle
    return high


def affordable(
    spent: Sequence[Event], event: Event, *, most: float, delta: float, wanted: int
) -> int:
    """Give how many more events like `event` keep all within ε = `most`; at most `wanted`."""
    low, high = 0, wanted
    while low < high:
        middle = (low + high + 1) // 2
        more = event._replace(steps=event.steps * middle)
        if epsilon([*spent, more], delta) <= most:
            low = middle
        else:
            high = middle - 1
    return low


def epsilon_of_group(events: Sequence[Event], delta: float, size: int) -> float:
    """Give ε at the same `delta` for `size` units together, such as the windows of one reading.

    What is (ε', δ')-private for one unit is (k ε', k e^((k-1) ε') δ')-private for k units. Here δ'
    is so small that the second is `delta`; inf when no such number can be told from 0.

    Source: Dwork & Roth, The Algorithmic Foundations of Differential Privacy, 2014, theorem 2.2,
    in its form for δ > 0 (Vadhan, The Complexity of Differential Privacy, 2017, lemma 2.2).
    """
    if size == 1:
        return epsilon(events, delta)
    supposed = 0.0
    for _ in range(_GROUP_ITERATIONS):
        log_delta = math.log(delta / size) - (size - 1) * supposed
        if log_delta < math.log(sys.float_info.min):
            return math.inf
        found = epsilon(events, math.exp(log_delta))
        if found <= supposed:
            return size * supposed
        supposed = _SLACK * found
    return math.inf


def _together(events: Iterable[Event]) -> list[Event]:
    """Add up the steps of equal mechanisms, in an order of their own; none are left out."""
    steps: dict[tuple[float, float], int] = defaultdict(int)
    for event in events:
        steps[event.noise_multiplier, event.sample_rate] += event.steps
    return sorted(Event(sigma, rate, count) for (sigma, rate), count in steps.items() if count)


def _least(events: Sequence[Event], delta: float, orders: Sequence[float]) -> tuple[float, float]:
    """Give the least ε that follows from one of the orders, and that order."""
    from opacus.accountants.analysis.rdp import get_privacy_spent  # noqa: PLC0415 - takes seconds

    divergences = [
        sum(
            event.steps * _divergence(event.noise_multiplier, event.sample_rate, order)
            for event in events
        )
        for order in orders
    ]
    with warnings.catch_warnings():
        # That the first or last order is the best: a bound all the same.
        warnings.filterwarnings("ignore", message="Optimal order is")
        found, best = get_privacy_spent(orders=orders, rdp=divergences, delta=delta)
    return float(found), float(best)


@lru_cache(maxsize=1 << 16)
def _divergence(sigma: float, rate: float, order: float) -> float:
    """Give the Rényi divergence of one step."""
    from opacus.accountants.analysis.rdp import compute_rdp  # noqa: PLC0415 - as above

    try:
        found = float(compute_rdp(q=rate, noise_multiplier=sigma, steps=1, orders=order))
    except (ValueError, OverflowError):  # its series did not come to a sum at this order
        return math.inf
    return math.inf if math.isnan(found) else max(0.0, found)
