"""The geometric median: the point with the smallest weighted sum of distances to the sites.

    minimise g(z) = Σ_k p_k ‖z − w_k‖,  p_k = n_k / Σ n

by the smoothed Weiszfeld algorithm, from the weighted mean:

    β_k = p_k / max(nu, ‖z − w_k‖),  z <- Σ_k β_k w_k / Σ_k β_k

A site pulls with the same force p_k however far away it is, so liars with less than half of all
samples move the result by no more than a multiple of how far the honest sites are apart.

Pillutla et al., IEEE Transactions on Signal Processing 2022, https://arxiv.org/abs/1912.13445,
algorithm 2.
"""

from collections.abc import Sequence
from typing import ClassVar

from loguru import logger
from pydantic import Field

from core.messages import Parameters
from core.parameters import difference, l2_norm, weighted_sum
from orchestrator.aggregation.base import ComparingAggregator


class GeometricMedian(ComparingAggregator):
    """Weiszfeld's iteration until the pulls of the sites balance.

    Their imbalance is the length of the gradient, ‖Σ_k β_k (w_k − z)‖: from 0 to 1, whatever the
    units and however far away a liar, so that one tolerance fits all. The (smoothed) sum of
    distances never rises from one step to the next. A far liar's part in z shrinks each step to
    about its samples per honest sample, so steps are many only when liars have nearly half. At the
    limit of `iterations` the last point is taken, with a warning in the log.
    """

    method: ClassVar[str] = "geometric_median"

    nu: float = Field(
        default=1e-6,
        gt=0,
        description="Smoothing: closer to a site than this (in units of the parameters), its pull "
        "fades to 0, so that nothing is divided by 0.",
    )
    tolerance: float = Field(
        default=1e-6,
        gt=0,
        lt=1,
        description="Largest imbalance of the sites' pulls, as a part of all of them, that counts "
        "as balanced.",
    )
    iterations: int = Field(
        default=200, ge=1, description="Most steps; each passes once over all parameters."
    )

    def compare(
        self, points: Sequence[Parameters], weights: Sequence[float]
    ) -> tuple[Parameters, list[float]]:
        """See `ComparingAggregator.compare`."""
        total = sum(weights)
        shares = [weight / total for weight in weights]
        centre = weighted_sum(points, shares)
        for _ in range(self.iterations):
            pulls = [
                weight / total / max(self.nu, l2_norm(difference(point, centre)))
                for point, weight in zip(points, weights, strict=True)
            ]
            shares = [pull / sum(pulls) for pull in pulls]
            previous, centre = centre, weighted_sum(points, shares)
            imbalance = sum(pulls) * l2_norm(difference(centre, previous))
            if imbalance <= self.tolerance:
                return centre, shares
        logger.warning(
            "geometric_median: imbalance {:.1e} after {} iterations, tolerance {:.1e}",
            imbalance,
            self.iterations,
            self.tolerance,
        )
        return centre, shares
