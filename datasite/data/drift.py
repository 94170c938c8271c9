"""How far a version of a dataset has moved from the first: the population stability index.

    PSI = Σ (q_i − p_i) ln(q_i / p_i)

over the cells i of a sensor's histogram, p being the first version's shares and q the others'. The
cells are `BINS` equal parts of the schema's range, or a category's values, and one for the rows
without a value: a sensor that goes silent drifts too. Half a row is added to each cell, so that an
empty one is no infinity.

Without any drift PSI is about (cells − 1) (1/n + 1/m) for n and m rows, which is why few rows are
not compared. Source: Yurdakul, Statistical Properties of Population Stability Index, Western
Michigan University 2018, https://scholarworks.wmich.edu/dissertations/3208.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from typing_extensions import TypedDict

from core.drift import PREFIX

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    import pandas as pd

    from core.schema import Column, DataSchema

BINS: Final = 10

MINIMUM_ROWS: Final = 500
"""Of both versions; without drift PSI is then 0.04 at most on average. Fewer are not compared."""


class TableCounts(TypedDict):
    """What is kept of a version's rows: counts alone, at the site.

    `sensors` has a histogram for each column, whose last cell counts the rows without a value.
    `labels` counts the rows with 0 and with 1.
    """

    rows: int
    labels: list[int]
    sensors: dict[str, list[int]]


class Counting:
    """Counts a table's rows, a chunk at a time.

    Args:
        schema: Of the table.
    """

    def __init__(self, schema: DataSchema) -> None:
        self._schema = schema
        self._rows = 0
        self._labels = np.zeros(2, dtype=np.int64)
        self._sensors = {c.name: np.zeros(_cells(c), dtype=np.int64) for c in schema.columns}

    def add(self, rows: pd.DataFrame) -> None:
        """Count a chunk of rows that keep the schema."""
        self._rows += len(rows)
        self._labels += np.bincount(rows[self._schema.label.column], minlength=2)
        for column in self._schema.columns:
            cells = _cell_of(rows[column.name], column)
            self._sensors[column.name] += np.bincount(cells, minlength=_cells(column))

    def counts(self) -> TableCounts:
        """Give what was counted so far."""
        return TableCounts(
            rows=self._rows,
            labels=self._labels.tolist(),
            sensors={name: counts.tolist() for name, counts in self._sensors.items()},
        )


def drift_metrics(
    schema: DataSchema, counts: TableCounts, first_schema: DataSchema, first: TableCounts
) -> dict[str, float]:
    """Give `psi.<column>` for each sensor and the label, to two decimals.

    Columns that one of the two schemas has not, or has otherwise, are left out.

    Returns:
        Nothing where either has fewer than `MINIMUM_ROWS` rows.
    """
    if min(counts["rows"], first["rows"]) < MINIMUM_ROWS:
        return {}
    before = {_meaning(column) for column in first_schema.columns}
    cells = {
        column.name: (first["sensors"][column.name], counts["sensors"][column.name])
        for column in schema.columns
        if _meaning(column) in before
    }
    if schema.label.column == first_schema.label.column:
        cells[schema.label.column] = (first["labels"], counts["labels"])
    return {f"{PREFIX}{name}": round(psi(*pair), 2) for name, pair in cells.items()}


def psi(before: Sequence[int], now: Sequence[int]) -> float:
    """Give the population stability index between two histograms over the same cells."""
    p, q = _shares(before), _shares(now)
    return float(((q - p) * np.log(q / p)).sum())


def _shares(counts: Sequence[int]) -> npt.NDArray[np.float64]:
    smoothed = np.asarray(counts, dtype=np.float64) + 0.5
    shares: npt.NDArray[np.float64] = smoothed / smoothed.sum()
    return shares


def _cells(column: Column) -> int:
    return (BINS if column.range is not None else len(column.values)) + 1


def _cell_of(values: pd.Series, column: Column) -> npt.NDArray[np.int64]:
    empty = _cells(column) - 1
    if column.range is None:
        codes = values.map({name: code for code, name in enumerate(column.values)})
        return np.asarray(codes.fillna(empty), dtype=np.int64)
    low, high = column.range
    scaled = ((values.to_numpy() - low) * (BINS / (high - low))).clip(0, BINS - 1)
    return np.asarray(np.where(np.isnan(scaled), empty, scaled), dtype=np.int64)


def _meaning(column: Column) -> tuple[object, ...]:
    return (column.name, column.type, column.range, column.values)  # noqa: PD011 - no frame
