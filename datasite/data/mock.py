"""Rows shaped like the private ones that say nothing of them: drawn from the schema alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from core.schema import ColumnType
from core.seeds import derive_seed
from datasite.data.reading import file_columns

if TYPE_CHECKING:
    import numpy.typing as npt

    from core.schema import Column, DataSchema

MACHINES = 2
"""Machines in a mock table with a machine column."""


def make_mock(schema: DataSchema, rows: int = 100) -> pd.DataFrame:
    """Draw a table with the columns of a file of `schema`.

    Sensors are uniform over their range or values and independent of the label; nothing is missing.
    The fraction of failures is the schema's, with at least one row of each label when there are
    two rows. Time counts 0, 1, 2... within each machine. The same schema gives the same table: the
    seed is its name.

    Args:
        schema: Never derived from rows, hence nor is the table.
        rows: At least 1.
    """
    random = np.random.default_rng(derive_seed("mock", schema.name))
    machine = np.arange(rows) * MACHINES // rows if schema.machine else np.zeros(rows, dtype=int)
    table: dict[str, npt.NDArray[np.generic]] = {}
    if schema.machine is not None:
        table[schema.machine.column] = np.array([f"machine-{code + 1}" for code in machine])
    if schema.time is not None:
        table[schema.time.column] = np.arange(rows) - np.searchsorted(machine, machine)
    for column in schema.columns:
        table[column.name] = _draw(column, rows, random)
    failures = min(max(round(schema.label.rate * rows), 1), max(rows - 1, 1))
    table[schema.label.column] = random.permutation(np.arange(rows) < failures).astype(np.int64)
    return pd.DataFrame(table, columns=file_columns(schema))


def _draw(column: Column, rows: int, random: np.random.Generator) -> npt.NDArray[np.generic]:
    if column.range is None:
        return random.choice(np.array(column.values, dtype=object), size=rows)
    low, high = column.range
    if column.type is ColumnType.INTEGER:
        return random.integers(math.ceil(low), math.floor(high), size=rows, endpoint=True)
    return random.uniform(low, high, size=rows)
