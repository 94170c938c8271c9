"""Coordinate by coordinate: sort the sites' numbers, cut k at each end, take the mean of the rest.

    trmean_k{x_1 ... x_n} = 1/(n − 2k) Σ_{i=k+1..n−k} x_(i),  x_(1) <= ... <= x_(n)

The median cuts all but the one middle number, or the two. While at most k sites lie, each number
of the result lies between the smallest and the largest of the honest sites. Samples do not count.

Yin et al., ICML 2018, https://arxiv.org/abs/1803.01498, definitions 1 and 2.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import ClassVar

import torch
from pydantic import Field

from core.messages import Parameters
from orchestrator.aggregation.base import ComparingAggregator


class Median(ComparingAggregator):
    """The median of each number; with an even count the mean of the two in the middle.

    Outvotes any minority of liars: one of three sites, two of five. With one site or two there is
    no minority, and it is their mean.
    """

    method: ClassVar[str] = "median"

    def compare(
        self, points: Sequence[Parameters], weights: Sequence[float]
    ) -> tuple[Parameters, list[float]]:
        """See `ComparingAggregator.compare`."""
        return _mean_of_the_middle(points, cut=(len(weights) - 1) // 2)


class TrimmedMean(ComparingAggregator):
    """The mean of each number without the k = floor(trim · n) smallest and largest.

    A round of fewer than 1 / trim sites would have k = 0, a plain mean: it is refused.
    """

    method: ClassVar[str] = "trimmed_mean"
    remedy: ClassVar[str] = "raise trim (0.34 is enough for 3)"

    # Below 0.5 something is always left: n − 2 floor(trim · n) >= 1.
    trim: float = Field(
        default=0.2,
        gt=0,
        lt=0.5,
        description="Part of the sites cut at each end, rounded down to whole sites; choose it at "
        "least as large as the part that may lie.",
    )

    def fewest_sites(self) -> int:
        """Give the smallest n of which at least one is cut at each end."""
        return math.ceil(1 / self._exact_trim())

    def compare(
        self, points: Sequence[Parameters], weights: Sequence[float]
    ) -> tuple[Parameters, list[float]]:
        """See `ComparingAggregator.compare`."""
        return _mean_of_the_middle(points, cut=math.floor(self._exact_trim() * len(weights)))

    def _exact_trim(self) -> Fraction:
        # As it is written: the float 0.29 * 100 is a little less than 29.
        return Fraction(str(self.trim))


def _mean_of_the_middle(
    points: Sequence[Parameters], *, cut: int
) -> tuple[Parameters, list[float]]:
    """Give the trimmed mean, and of each site the mean of its shares over all coordinates.

    In a coordinate the numbers that are kept share equally; sites that tie for a place divide it.
    """
    result: Parameters = {}
    shares = torch.zeros(len(points), dtype=torch.float64)
    count = 0
    for name, first in points[0].items():
        stack = torch.stack([point[name].reshape(-1) for point in points])
        if first.is_floating_point():
            kept = stack.sort(dim=0).values[cut : len(points) - cut]
            result[name] = _mean(kept).reshape(first.shape)
            shares += _shares(stack, kept).sum(dim=1)
            count += first.numel()
        else:
            result[name] = stack.amax(dim=0).reshape(first.shape)
    if count == 0:
        return result, [1 / len(points)] * len(points)
    return result, (shares / count).tolist()


def _mean(kept: torch.Tensor) -> torch.Tensor:
    """Give the mean of sorted rows; rounding never takes it outside of them."""
    total = kept[0].clone()  # and not 0, which would lose a -0.0
    for row in kept[1:]:
        total.add_(row)
    return total.div_(len(kept)).clamp_(min=kept[0], max=kept[-1])


def _shares(stack: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Give each site's part in each coordinate's mean, `(sites, coordinates)`."""
    low, high = kept[0], kept[-1]
    places = ((stack > low) & (stack < high)).to(torch.float64)
    for end in (low, high):
        tied = stack == end
        places += tied * ((kept == end).sum(dim=0) / tied.sum(dim=0))
    # The sum is the number of places, or twice that where both ends are the same number.
    return places / places.sum(dim=0)
