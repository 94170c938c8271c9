"""The four ways to deal a table among sites; `partition` is the door to them.

What is dealt are units: single rows, or machines with all their rows. Each deal gives the number of
every unit's site, from 0, and draws from the generator it is given and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from core.enums import DataDistribution

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Deal = Callable[["Units", int, "Skew", np.random.Generator], "Integers"]
    """From (units, sites, skew, random) to the number of each unit's site."""

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Values = npt.NDArray[np.float64] | npt.NDArray[np.object_]

MINIMUM_ROWS = 50
"""Fewest rows of a site: a datasite refuses a table that makes fewer windows."""

MINIMUM_OF_EACH_CLASS = 10
"""Fewest rows of a site with either label: 7 to train, 1 to validate, 2 to test on."""

ALPHA = 0.5
"""Concentration unless another is asked for, as in both papers cited below."""

DRAWS = 10_000
"""How often shares are drawn before a division counts as impossible."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Skew:
    """In what the sites shall differ, and how much.

    Attributes:
        alpha: For `non_iid_quantity` and `non_iid_label`: the concentration of the Dirichlet
            distribution that shares are drawn from, in [0.01, 1,000,000]. At 0.1 one site has
            nearly all, at 100 all have nearly the same. None is `ALPHA`.
        by: For `non_iid_feature`: the column whose values the sites differ in.
    """

    alpha: float | None = None
    by: str | None = None


DEFAULT_SKEW = Skew()


@dataclass(frozen=True, slots=True, kw_only=True)
class Units:
    """What is dealt whole.

    Attributes:
        rows: (units,) how many rows each has.
        failures: (units,) how many of these have label 1.
        values: (units,) for a deal by feature: numbers, or the names of categories.
    """

    rows: Integers
    failures: Integers
    values: Values | None = None

    @property
    def rate(self) -> Floats:
        """(units,) the fraction of failures; of a single row, its label."""
        return self.failures / self.rows


def deal_iid(units: Units, sites: int, _skew: Skew, random: np.random.Generator) -> Integers:
    """Shuffle the units, order them by failure rate, and deal them round the table.

    Every site gets the same number of units to within one; of single rows, also the same number of
    rows of each class to within one.
    """
    return _deal_round(units.rate, sites, random)


def deal_quantity(units: Units, sites: int, skew: Skew, random: np.random.Generator) -> Integers:
    """Give the sites different numbers of rows, at the same failure rate.

    q ~ Dirichlet(alpha) over the sites, and site j gets q_j of each stratum (see `_strata`).

    Source: Li et al., ICDE 2022, https://arxiv.org/abs/2102.02079, "quantity skew"; there without
    strata.
    """
    shares = _draw_shares(skew, sites, strata=1, random=random)
    return _deal_shares(units, np.repeat(shares, 2, axis=1), random)


def deal_label(units: Units, sites: int, skew: Skew, random: np.random.Generator) -> Integers:
    """Give the sites different failure rates; their numbers of rows come out different too.

    For each stratum k (see `_strata`; of single rows, the class) p_k ~ Dirichlet(alpha) over the
    sites, and site j gets p_kj of it.

    Source: Yurochkin et al., ICML 2019, https://arxiv.org/abs/1905.12022, experiments; likewise Li
    et al., https://arxiv.org/abs/2102.02079. Hsu et al. 2019, https://arxiv.org/abs/1909.06335,
    draw instead each site's mix of classes, around the whole table's and for sites of equal size;
    where failures are few, most sites would then have none.
    """
    return _deal_shares(units, _draw_shares(skew, sites, strata=2, random=random), random)


def deal_feature(units: Units, sites: int, _skew: Skew, random: np.random.Generator) -> Integers:
    """Give each site its own regime of a number, or its own types of a category, unmixed.

    Of a number, site 1 gets the lowest values, the last site the highest, with the same number of
    units to within one; equal values at a cut fall to either side at random. For categories see
    `_deal_types`. Failure rates follow from the rows: how the label depends on the features is the
    same everywhere, where the features lie is not.

    Source: Kairouz et al. 2021, https://arxiv.org/abs/1912.04977, section 3.1, "covariate shift".
    """
    assert units.values is not None  # noqa: S101 - `partition` sees to it
    if units.values.dtype == np.float64:
        order = random.permutation(len(units.rows))
        order = order[np.argsort(units.values[order], kind="stable")]
        site_of_unit = np.empty(len(order), dtype=np.int64)
        site_of_unit[order] = np.arange(len(order)) * sites // len(order)
        return site_of_unit
    return _deal_types(units, sites, random)


def _deal_round(rate: Floats, sites: int, random: np.random.Generator) -> Integers:
    shuffled = random.permutation(len(rate))
    ordered = shuffled[np.argsort(rate[shuffled], kind="stable")]
    site_of_unit = np.empty(len(rate), dtype=np.int64)
    site_of_unit[ordered] = np.arange(len(rate)) % sites
    return site_of_unit


def _strata(units: Units, random: np.random.Generator) -> tuple[Integers, Integers]:
    """Give the units with at most the mean failure rate, and those above it, both shuffled.

    Of single rows these are the two classes.
    """
    shuffled = random.permutation(len(units.rows))
    is_high = units.rate[shuffled] > units.rate.mean()
    return shuffled[~is_high], shuffled[is_high]


def _draw_shares(skew: Skew, sites: int, *, strata: int, random: np.random.Generator) -> Floats:
    """Give (DRAWS, strata, sites); each (draw, stratum) sums to 1."""
    alpha = ALPHA if skew.alpha is None else skew.alpha
    return random.dirichlet(np.full(sites, alpha), size=(DRAWS, strata))


def _deal_shares(units: Units, shares: Floats, random: np.random.Generator) -> Integers:
    """Cut each stratum by the first of the drawn shares that gives every site its minimum.

    Shares are rounded to whole units within each stratum. If no draw serves, the division is by the
    one that comes nearest, for `partition` to refuse.

    Args:
        units: What is dealt.
        shares: (draws, 2, sites), each (draw, stratum) summing to 1.
        random: Of which unit of a stratum goes where.
    """
    strata = _strata(units, random)
    ends = [
        np.rint(share.cumsum(axis=1) * len(stratum)).astype(np.int64)
        for stratum, share in zip(strata, shares.transpose(1, 0, 2), strict=True)
    ]
    rows = sum(_totals(units.rows[s], end) for s, end in zip(strata, ends, strict=True))
    failures = sum(_totals(units.failures[s], end) for s, end in zip(strata, ends, strict=True))
    enough = np.minimum(
        rows / MINIMUM_ROWS, np.minimum(failures, rows - failures) / MINIMUM_OF_EACH_CLASS
    )
    draw = np.minimum(enough.min(axis=1), 1.0).argmax()  # the first of the greatest
    site_of_unit = np.empty(len(units.rows), dtype=np.int64)
    for stratum, end in zip(strata, ends, strict=True):
        site_of_unit[stratum] = np.searchsorted(end[draw], np.arange(len(stratum)), side="right")
    return site_of_unit


def _totals(amounts: Integers, ends: Integers) -> Integers:
    """Give (draws, sites): what the amounts between two neighbouring ends add up to."""
    until = np.concatenate([[0], amounts.cumsum()])
    totals: Integers = np.diff(until[ends], axis=1, prepend=0)
    return totals


def _deal_types(units: Units, sites: int, random: np.random.Generator) -> Integers:
    """Give each site one type; several sites share a large type, or several small types one site.

    With at least as many sites as types, each type has one site and the type with the most units
    a site gets the next, as often as there are sites left; among the sites of a type the deal is
    that of `deal_iid`. With fewer sites, types go by decreasing size to the site that has least.
    Sites are numbered by decreasing size of their types.
    """
    names, type_of_unit, counts = np.unique(
        np.asarray(units.values, dtype=np.str_), return_inverse=True, return_counts=True
    )
    by_size = np.argsort(-counts, kind="stable")
    if len(names) > sites:
        return _join_types(counts, by_size, sites)[type_of_unit]
    seats = np.ones(len(names), dtype=np.int64)
    for _ in range(sites - len(names)):
        seats[np.argmax(counts / seats)] += 1
    site_of_unit = np.empty(len(type_of_unit), dtype=np.int64)
    first = 0
    for kind in by_size:
        members = np.flatnonzero(type_of_unit == kind)
        site_of_unit[members] = first + _deal_round(units.rate[members], int(seats[kind]), random)
        first += int(seats[kind])
    return site_of_unit


def _join_types(counts: Integers, by_size: Integers, sites: int) -> Integers:
    """Give the site of each type, where there are more types than sites."""
    site_of_type = np.empty(len(counts), dtype=np.int64)
    held = np.zeros(sites, dtype=np.int64)
    for kind in by_size:
        site_of_type[kind] = held.argmin()
        held[site_of_type[kind]] += counts[kind]
    return site_of_type


DEALS: Mapping[DataDistribution, Deal] = {
    DataDistribution.IID: deal_iid,
    DataDistribution.NON_IID_QUANTITY: deal_quantity,
    DataDistribution.NON_IID_FEATURE: deal_feature,
    DataDistribution.NON_IID_LABEL: deal_label,
}
