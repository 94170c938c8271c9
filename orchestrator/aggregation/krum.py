"""Krum: trust the sites that lie closest to their neighbours.

    s(i) = Σ_{i→j} ‖w_i − w_j‖²,  i→j: w_j is one of the n − f − 2 closest to w_i

f sites may lie in any way, together, as long as n >= 2f + 3. Samples do not count: a weight would
be one more thing to lie about. Honest sites whose data differ much look like liars too.

Blanchard et al., NeurIPS 2017, https://arxiv.org/abs/1703.02757, section 4.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field

from core.messages import Parameters
from core.parameters import weighted_sum
from orchestrator.aggregation.base import ComparingAggregator


class _LowestScores(ComparingAggregator):
    """The mean of the sites with the lowest scores; on a tie the earlier site id is taken.

    The counters, too, come only from the sites that are kept.
    """

    byzantine: int = Field(
        default=1, ge=1, description="How many sites may lie (f); a round needs 2f + 3 sites."
    )

    def fewest_sites(self) -> int:
        """Give 2f + 3."""
        return 2 * self.byzantine + 3

    @abstractmethod
    def _kept(self, sites: int) -> int:
        """Give how many of `sites` are kept."""

    def compare(
        self, points: Sequence[Parameters], weights: Sequence[float]
    ) -> tuple[Parameters, list[float]]:
        """See `ComparingAggregator.compare`."""
        scores = _scores(points, neighbours=len(points) - self.byzantine - 2)
        ranked = sorted(range(len(points)), key=scores.__getitem__)
        kept = sorted(ranked[: self._kept(len(points))])
        shares = [1 / len(kept) if site in kept else 0.0 for site in range(len(weights))]
        mean = weighted_sum([points[site] for site in kept], [shares[site] for site in kept])
        return mean, shares


class Krum(_LowestScores):
    """The parameters of the one site with the lowest score, as they are."""

    method: ClassVar[str] = "krum"
    remedy: ClassVar[str] = "lower byzantine if it is above 1"

    def _kept(self, sites: int) -> int:  # noqa: ARG002 - always one
        return 1


class MultiKrum(_LowestScores):
    """The mean of the `keep` sites with the lowest scores.

    Beyond n − f a liar would have to be among them: such rounds are refused.
    """

    method: ClassVar[str] = "multi_krum"
    remedy: ClassVar[str] = "lower keep, or byzantine if it is above 1"

    keep: int | None = Field(
        default=None, ge=1, description="How many sites to average (m); by default n - f."
    )

    def fewest_sites(self) -> int:
        """Give 2f + 3, or `keep` + f where that is more."""
        return max(super().fewest_sites(), (self.keep or 0) + self.byzantine)

    def _kept(self, sites: int) -> int:
        return sites - self.byzantine if self.keep is None else self.keep


def _scores(points: Sequence[Parameters], *, neighbours: int) -> list[float]:
    """Give each site's sum of squared distances to its closest `neighbours`."""
    ascending = _squared_distances(points).sort(dim=1).values
    # The first of each row is the site itself, at distance 0.
    scores: list[float] = ascending[:, 1 : 1 + neighbours].sum(dim=1).tolist()
    return scores


def _squared_distances(points: Sequence[Parameters]) -> torch.Tensor:
    """Give ‖w_i − w_j‖² over all floating tensors, `(sites, sites)`.

    Tensor by tensor, to hold no matrix of all parameters; from differences and not from the
    products w_i · w_j, where a liar's large numbers would cancel the honest ones away.
    """
    upper = torch.triu_indices(len(points), len(points), offset=1)
    pairs = torch.zeros(upper.shape[1], dtype=torch.float64)
    for name, first in points[0].items():
        if first.is_floating_point():
            stack = torch.stack([point[name].reshape(-1) for point in points])
            pairs += torch.pdist(stack).square()
    squared = torch.zeros(len(points), len(points), dtype=torch.float64)
    squared[upper[0], upper[1]] = pairs
    return squared + squared.T
