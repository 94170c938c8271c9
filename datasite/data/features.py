"""From a table to the numbers a model sees, in the order of `schema.features`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from core.schema import Formula

if TYPE_CHECKING:
    from collections.abc import Callable

    from core.schema import ColumnName, DataSchema

Floats32 = npt.NDArray[np.float32]
Floats64 = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_FORMULAS: dict[Formula, Callable[[Floats64, Floats64], Floats64]] = {
    Formula.SUM: np.add,
    Formula.DIFFERENCE: np.subtract,
    Formula.PRODUCT: np.multiply,
    Formula.RATIO: np.divide,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureRows:
    """A table's rows as arrays, machine by machine and in time order within each.

    Attributes:
        x: (rows, features) float32, every value within the schema's ranges.
        y: (rows,) int64, 0 or 1.
        machine: (rows,) int64, not decreasing: rows of one machine stand together. Codes count the
            machines' names in sorted order.
        position: (rows,) int64, where in the table the row was.
    """

    x: Floats32
    y: Integers
    machine: Integers
    position: Integers


def make_features(table: pd.DataFrame, schema: DataSchema) -> FeatureRows:
    """Compute the features of every row of a table that `load_table` gave.

    A category is one-hot. Derived columns are computed in float64. Every number is clamped to its
    range; a missing one, and a derived one that needs it, is the middle of its range; of a missing
    category all features are 0. Rows without a machine column are one machine's; rows of equal
    time, or without a time column, keep the table's order.
    """
    x = np.column_stack([*_sensors(table, schema), *_derived(table, schema)])
    low, high = np.array(schema.ranges, dtype=np.float64).T
    x = np.clip(np.where(np.isnan(x), (low + high) / 2, x), low, high)
    machine = _order(table, schema.machine)
    time = _order(table, schema.time)
    position = np.lexsort((time, machine)).astype(np.int64)  # stable; the last key sorts first
    return FeatureRows(
        x=x[position].astype(np.float32),
        y=table[schema.label.column].to_numpy(dtype=np.int64)[position],
        machine=machine[position],
        position=position,
    )


def _order(table: pd.DataFrame, named: ColumnName | None) -> Integers:
    """Number the values of a column in sorted order, from 0; all 0 when there is no such column."""
    if named is None:
        return np.zeros(len(table), dtype=np.int64)
    return pd.factorize(table[named.column], sort=True)[0].astype(np.int64)


def _sensors(table: pd.DataFrame, schema: DataSchema) -> list[Floats64]:
    arrays: list[Floats64] = []
    for column in schema.columns:
        values = table[column.name]
        if column.range is None:
            names = column.values  # noqa: PD011 - a schema's column, not a pandas one
            arrays.extend((values == name).to_numpy(dtype=np.float64) for name in names)
        else:
            arrays.append(values.to_numpy(dtype=np.float64))
    return arrays


def _derived(table: pd.DataFrame, schema: DataSchema) -> list[Floats64]:
    arrays: list[Floats64] = []
    for derived in schema.derived:
        parts = [table[name].to_numpy(dtype=np.float64) for name in derived.of]
        with np.errstate(divide="ignore", invalid="ignore"):  # see DerivedColumn: ratio by zero
            arrays.append(derived.factor * reduce(_FORMULAS[derived.formula], parts))
    return arrays
