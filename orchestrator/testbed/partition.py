"""Divide one table among the factories of a testbed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from core.enums import DataDistribution
from core.exceptions import ConfigurationError, DataError
from core.seeds import derive_seed

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt
    import pandas as pd

    Deal = Callable[[pd.DataFrame, int, str, np.random.Generator], npt.NDArray[np.int64]]
    """From (table, sites, label column, random) to the number of each row's site."""

MINIMUM_ROWS = 50
"""Fewest rows of a site: a datasite refuses a table that makes fewer windows."""


def partition(
    table: pd.DataFrame, *, sites: int, distribution: DataDistribution, seed: int, label: str
) -> list[pd.DataFrame]:
    """Give every row of `table` to exactly one of `sites` sites.

    A site's rows keep the table's order and are numbered from 0. The same arguments give the same
    division.

    Args:
        table: Any columns; `label` is one of them.
        sites: How many, at least 1.
        distribution: How alike the sites' data shall be.
        seed: Of the division alone.
        label: The column of 0 and 1 to predict.

    Raises:
        ConfigurationError: `sites` is below 1, or this version cannot make `distribution`.
        DataError: There is no such label column, or a site would have fewer than `MINIMUM_ROWS`
            rows or one class only.
    """
    if sites < 1:
        raise ConfigurationError(f"sites: {sites} given, at least 1 needed")
    if label not in table.columns:
        raise DataError(f"the table has no label column {label!r}")
    deal = _DEALS.get(distribution)
    if deal is None:
        available = ", ".join(f"`{known.value}`" for known in _DEALS)
        raise ConfigurationError(
            f"distribution: `{distribution.value}` is not available in this version, only "
            f"{available} is"
        )
    random = np.random.default_rng(derive_seed(seed, "partition", distribution.value))
    site_of_row = deal(table, sites, label, random)
    parts = [table[site_of_row == site].reset_index(drop=True) for site in range(sites)]
    for number, part in enumerate(parts, start=1):
        _require_usable(part, f"site {number} of {sites}", label)
    return parts


def _deal_iid(
    table: pd.DataFrame, sites: int, label: str, random: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Shuffle the rows of each class, and deal one class after the other round the table.

    Every site gets the same number of rows, and of rows of each class, to within one row.
    """
    shuffled = random.permutation(len(table))
    by_class = shuffled[np.argsort(table[label].to_numpy()[shuffled], kind="stable")]
    site_of_row = np.empty(len(table), dtype=np.int64)
    site_of_row[by_class] = np.arange(len(table)) % sites
    return site_of_row


def _require_usable(part: pd.DataFrame, site: str, label: str) -> None:
    if len(part) < MINIMUM_ROWS:
        raise DataError(
            f"{site} would get {len(part)} rows, at least {MINIMUM_ROWS} are needed; "
            "use fewer sites or more rows"
        )
    if part[label].nunique() < 2:  # noqa: PLR2004 - both classes
        raise DataError(
            f"{site} would get only rows with {label!r} = {part[label].iloc[0]}; "
            "use fewer sites or more rows"
        )


_DEALS: dict[DataDistribution, Deal] = {
    DataDistribution.IID: _deal_iid,
}
