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
    from collections.abc import Callable, Iterable

    from core.schema import DataSchema

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
    """Compute the features of a table that `load_table` gave; see `gather_features`."""
    return gather_features([table], schema, rows=len(table))


def gather_features(
    chunks: Iterable[pd.DataFrame], schema: DataSchema, *, rows: int
) -> FeatureRows:
    """Compute the features of every row of a table that comes in chunks.

    A category is one-hot. Derived columns are computed in float64. Every number is clamped to its
    range; a missing one, and a derived one that needs it, is the middle of its range; of a missing
    category all features are 0. Rows without a machine column are one machine's; rows of equal
    time, or without a time column, keep the table's order.

    Args:
        chunks: As `load_table` gives rows.
        schema: Of the table.
        rows: How many there are in all chunks.
    """
    x = np.empty((rows, len(schema.features)), dtype=np.float32)
    y = np.empty(rows, dtype=np.int64)
    machine, time = _Names(rows), np.zeros(rows, dtype=np.float64)
    begin = 0
    for chunk in chunks:
        part = slice(begin, begin + len(chunk))
        x[part] = _features(chunk, schema)
        y[part] = chunk[schema.label.column]
        if schema.machine is not None:
            machine.put(part, chunk[schema.machine.column])
        if schema.time is not None:
            times = _comparable(chunk[schema.time.column])
            time = time.astype(times.dtype, copy=False)
            time[part] = times
        begin += len(chunk)
    return _in_order(x, y, machine.codes(), time)


def _features(table: pd.DataFrame, schema: DataSchema) -> Floats64:
    x = np.column_stack([*_sensors(table, schema), *_derived(table, schema)])
    low, high = np.array(schema.ranges, dtype=np.float64).T
    clipped: Floats64 = np.clip(np.where(np.isnan(x), (low + high) / 2, x), low, high)
    return clipped


def _in_order(
    x: Floats32, y: Integers, machine: Integers, time: npt.NDArray[np.generic]
) -> FeatureRows:
    position = np.lexsort((time, machine)).astype(np.int64)  # stable; the last key sorts first
    if np.array_equal(position, np.arange(len(position))):  # nothing to copy
        return FeatureRows(x=x, y=y, machine=machine, position=position)
    return FeatureRows(x=x[position], y=y[position], machine=machine[position], position=position)


class _Names:
    """Numbers the names of machines in sorted order, though they come in chunks."""

    def __init__(self, rows: int) -> None:
        self._met: dict[str, int] = {}
        self._numbers = np.zeros(rows, dtype=np.int64)

    def put(self, part: slice, names: pd.Series) -> None:
        codes, found = pd.factorize(names)
        numbers = [self._met.setdefault(name, len(self._met)) for name in found]
        self._numbers[part] = np.array(numbers, dtype=np.int64)[codes]

    def codes(self) -> Integers:
        if not self._met:
            return self._numbers
        rank = np.empty(len(self._met), dtype=np.int64)
        rank[[self._met[name] for name in sorted(self._met)]] = np.arange(len(self._met))
        codes: Integers = rank[self._numbers]
        return codes


def _comparable(times: pd.Series) -> npt.NDArray[np.generic]:
    is_time = pd.api.types.is_datetime64_any_dtype(times)
    return times.astype("int64").to_numpy() if is_time else times.to_numpy()


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
