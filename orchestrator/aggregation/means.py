"""The two means. One liar moves either as far as it likes; `clip_norm` bounds how far."""

from collections.abc import Sequence
from typing import ClassVar

from core.messages import Parameters
from core.parameters import weighted_sum
from orchestrator.aggregation.base import Aggregator


class WeightedAverage(Aggregator):
    """The mean, weighted by samples: Σ_k p_k w_k with p_k = n_k / Σ n.

    Source: McMahan et al., AISTATS 2017, https://arxiv.org/abs/1602.05629, algorithm 1.
    """

    method: ClassVar[str] = "weighted_average"

    def _combine(
        self, points: Sequence[Parameters], weights: Sequence[float]
    ) -> tuple[Parameters, list[float]]:
        total = sum(weights)
        shares = [weight / total for weight in weights]
        return weighted_sum(points, shares), shares


class SimpleAverage(Aggregator):
    """The mean in which every site counts the same: (1/n) Σ_k w_k.

    No site gains by claiming more samples than it has.

    Source: Li et al., MLSys 2020, https://arxiv.org/abs/1812.06127, algorithm 2 (where sites are
    drawn in proportion to their samples instead of being weighted by them).
    """

    method: ClassVar[str] = "simple_average"

    def _combine(
        self, points: Sequence[Parameters], weights: Sequence[float]
    ) -> tuple[Parameters, list[float]]:
        shares = [1 / len(weights)] * len(weights)
        return weighted_sum(points, shares), shares
