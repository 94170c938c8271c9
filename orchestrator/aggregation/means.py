"""The two means. One liar moves either as far as it likes; `clip_norm` bounds how far.

Either is a running sum: each contribution is added as it comes and is let go of, so a round takes
the memory of two models in float64 however many sites there are.
"""

from abc import abstractmethod
from typing import ClassVar

import torch

from core.messages import Parameters
from core.parameters import add_scaled, as_float64, runs
from orchestrator.aggregation.base import Accumulator, Aggregator


class Mean(Aggregator):
    """A mean with weights."""

    def start(self, received: Parameters) -> Accumulator:
        """See `Aggregator.start`."""
        return RunningMean(self, received)

    @abstractmethod
    def weight_of(self, weight: float) -> float:
        """Give how much a contribution of this weight counts."""


class WeightedAverage(Mean):
    """The mean, weighted by samples: Σ_k p_k w_k with p_k = n_k / Σ n.

    Source: McMahan et al., AISTATS 2017, https://arxiv.org/abs/1602.05629, algorithm 1.
    """

    method: ClassVar[str] = "weighted_average"

    def weight_of(self, weight: float) -> float:
        """See `Mean.weight_of`."""
        return weight


class SimpleAverage(Mean):
    """The mean in which every site counts the same: (1/n) Σ_k w_k.

    No site gains by claiming more samples than it has.

    Source: Li et al., MLSys 2020, https://arxiv.org/abs/1812.06127, algorithm 2 (where sites are
    drawn in proportion to their samples instead of being weighted by them).
    """

    method: ClassVar[str] = "simple_average"

    def weight_of(self, weight: float) -> float:
        """See `Mean.weight_of`."""
        del weight
        return 1.0


class RunningMean(Accumulator):
    """Σ_k r_k w_k / Σ_k r_k in float64, r_k being each weight over the first one.

    So one site alone is that site, bit by bit. Integer tensors give their maximum.
    """

    def __init__(self, mean: Mean, received: Parameters) -> None:
        super().__init__(mean, received)
        self._weight_of = mean.weight_of
        self._sums: Parameters | None = None
        self._weights: list[float] = []

    def _add(self, point: Parameters, weight: float) -> None:
        self._weights.append(self._weight_of(weight))
        if self._sums is None:
            self._sums = as_float64(point)
            return
        ratio = self._weights[-1] / self._weights[0]
        for total, tensor in runs(self._sums, point):
            if total.is_floating_point():
                add_scaled(total, tensor, ratio)
            else:
                torch.maximum(total, tensor, out=total)

    def _combined(self) -> tuple[Parameters, list[float]]:
        assert self._sums is not None  # noqa: S101 - nobody combines nothing
        ratios = [weight / self._weights[0] for weight in self._weights]
        whole = sum(ratios)
        for total, _ in runs(self._sums, self._sums):
            if total.is_floating_point():
                total.div_(whole)
        return self._sums, [ratio / whole for ratio in ratios]
