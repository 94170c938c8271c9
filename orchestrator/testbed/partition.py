"""Divide one table among the factories of a testbed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from core.enums import DataDistribution
from core.exceptions import ConfigurationError, DataError
from core.seeds import derive_seed
from orchestrator.testbed.deals import (
    DEALS,
    DEFAULT_SKEW,
    MINIMUM_OF_EACH_CLASS,
    MINIMUM_ROWS,
    Units,
)

if TYPE_CHECKING:
    from orchestrator.testbed.deals import Integers, Skew, Values

_BY_ALPHA = (DataDistribution.NON_IID_QUANTITY, DataDistribution.NON_IID_LABEL)
_ALPHA_RANGE = (0.01, 1e6)
"""Below it NumPy's sampler can take for ever, above it its sums may overflow."""


def partition(
    table: pd.DataFrame,
    *,
    sites: int,
    distribution: DataDistribution,
    seed: int,
    label: str,
    machine: str | None = None,
    skew: Skew = DEFAULT_SKEW,
) -> list[pd.DataFrame]:
    """Give every row of `table` to exactly one of `sites` sites.

    A site's rows keep the table's order and are numbered from 0. The same arguments give the same
    division. `orchestrator.testbed.deals` says what each distribution does.

    Args:
        table: Any columns; `label` is one of them.
        sites: How many, at least 1.
        distribution: In what the sites' data shall differ.
        seed: Of the division alone.
        label: The column of 0 and 1 to predict.
        machine: The column that tells machines apart. All rows of a machine then go to one site,
            so that windows of consecutive rows have no holes: machines are dealt by their failure
            rate, and by the mean, or the most frequent value, of the column `skew.by`.
        skew: How much the sites shall differ, and by which column.

    Raises:
        ConfigurationError: `sites` is below 1, or `skew` does not fit the distribution or the
            table.
        DataError: There is no such label or machine column or it has empty cells, or a site would
            have fewer than `MINIMUM_ROWS` rows or `MINIMUM_OF_EACH_CLASS` rows of a class.
    """
    if sites < 1:
        raise ConfigurationError(f"sites: {sites} given, at least 1 needed")
    _require_fitting(skew, distribution)
    _require_label(table, label)
    unit_of_row = _number_units(table, machine)
    units = _count(table, unit_of_row, label, skew.by)
    if len(units.rows) < sites:
        what = "rows" if machine is None else "machines"
        raise DataError(
            f"{len(units.rows)} {what} cannot be divided among {sites} sites; "
            f"use fewer sites or more {what}"
        )
    random = np.random.default_rng(derive_seed(seed, "partition", distribution.value))
    site_of_row = DEALS[distribution](units, sites, skew, random)[unit_of_row]
    parts = [table[site_of_row == site].reset_index(drop=True) for site in range(sites)]
    for number, part in enumerate(parts, start=1):
        _require_usable(part, f"site {number} of {sites}", label, distribution)
    return parts


def _require_fitting(skew: Skew, distribution: DataDistribution) -> None:
    if skew.alpha is not None:
        if distribution not in _BY_ALPHA:
            takers = " and ".join(f"`{taker.value}`" for taker in _BY_ALPHA)
            raise ConfigurationError(f"alpha: is for {takers}, not for `{distribution.value}`")
        low, high = _ALPHA_RANGE
        if not low <= skew.alpha <= high:  # nor is NaN
            raise ConfigurationError(
                f"alpha: {skew.alpha:g} given, between {low:g} and {high:,.0f} needed"
            )
    if (skew.by is not None) != (distribution is DataDistribution.NON_IID_FEATURE):
        raise ConfigurationError(
            f"by: is for `{DataDistribution.NON_IID_FEATURE.value}`, not for `{distribution.value}`"
            if skew.by is not None
            else f"by: `{distribution.value}` needs the column in which the sites shall differ"
        )


def _require_label(table: pd.DataFrame, label: str) -> None:
    if label not in table.columns:
        raise DataError(f"the table has no label column {label!r}")
    if not table[label].isin([0, 1]).all():
        raise DataError(f"the label column {label!r} must hold 0 and 1 only")


def _number_units(table: pd.DataFrame, machine: str | None) -> Integers:
    """Give (rows,) the unit that each row belongs to: itself, or its machine."""
    if machine is None:
        return np.arange(len(table))
    if machine not in table.columns:
        raise DataError(f"the table has no machine column {machine!r}")
    if table[machine].isna().any():
        raise DataError(f"the machine column {machine!r} has empty cells; name every row's machine")
    return pd.factorize(table[machine])[0].astype(np.int64)


def _count(table: pd.DataFrame, unit_of_row: Integers, label: str, by: str | None) -> Units:
    failures = np.bincount(unit_of_row, weights=table[label].to_numpy(dtype=np.float64))
    return Units(
        rows=np.bincount(unit_of_row),
        failures=failures.astype(np.int64),
        values=None if by is None else _values(table, unit_of_row, by),
    )


def _values(table: pd.DataFrame, unit_of_row: Integers, by: str) -> Values:
    """Give (units,) the mean of a number column, or the most frequent value of another.

    Empty cells of a machine do not count.
    """
    if by not in table.columns:
        known = ", ".join(map(repr, table.columns))
        raise ConfigurationError(f"by: the table has no column {by!r}; it has {known}")
    groups = table[by].groupby(unit_of_row)
    if pd.api.types.is_numeric_dtype(table[by]) and not pd.api.types.is_bool_dtype(table[by]):
        values: Values = groups.mean().to_numpy(dtype=np.float64)
    elif len(groups) == len(table):
        values = table[by].to_numpy(dtype=object)
    else:
        values = groups.agg(_most_frequent).to_numpy(dtype=object)
    if pd.isna(values).any():
        raise ConfigurationError(f"by: the column {by!r} has empty cells; choose another column")
    return values


def _most_frequent(cells: pd.Series) -> object:
    """Give the most frequent value, of several the first in order; None where all are empty."""
    return cells.mode().get(0)


def _require_usable(
    part: pd.DataFrame, site: str, label: str, distribution: DataDistribution
) -> None:
    advice = "use fewer sites or more rows"
    if distribution in _BY_ALPHA:
        advice = "use fewer sites, more rows or a larger alpha"
    elif distribution is DataDistribution.NON_IID_FEATURE:
        advice = "use fewer sites, more rows or another column"
    if len(part) < MINIMUM_ROWS:
        raise DataError(
            f"{site} would get {len(part)} rows, at least {MINIMUM_ROWS} are needed; {advice}"
        )
    for value in (0, 1):
        count = int((part[label] == value).sum())
        if count < MINIMUM_OF_EACH_CLASS:
            raise DataError(
                f"{site} would get {count} rows with {label!r} = {value}, at least "
                f"{MINIMUM_OF_EACH_CLASS} are needed; {advice}"
            )
