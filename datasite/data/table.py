"""A table of sensor readings that keeps its schema: the report on a file, and the loaded table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from core.exceptions import DataError
from datasite.data.checks import check_rows
from datasite.data.reading import file_columns, read_file
from datasite.data.windows import MINIMUM_WINDOWS, count_windows

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from core.schema import DataSchema
    from datasite.data.findings import Findings, Violation
    from datasite.data.reading import RawTable

ONLY_MACHINE = "all"
"""What the rows' machine is called in a report when the schema has no machine column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableReport:
    """What an operator should know of a file before registering it. It never leaves the site.

    Attributes:
        source: The file.
        place: What violations count: `line` of a CSV file, `row` of a Parquet file.
        rows: How many there are, blank lines not counted.
        windows: How many windows they make.
        machines: How many there are; 1 when the schema has no machine column.
        span: First and last time as text; None without a readable time column.
        label_rate: Fraction of rows with label 1; None without a readable label.
        balance: Rows with label 0 and with label 1, for each machine.
        missing: Empty cells, for each sensor column.
        out_of_range: Numbers outside the range or unknown category values, for each sensor column.
        ignored: The file's columns that the schema does not name.
        violations: The first of them, a few of each kind.
        violation_count: How many there are in all.
    """

    source: str
    place: str
    rows: int
    windows: int
    machines: int
    span: tuple[str, str] | None
    label_rate: float | None
    balance: Mapping[str, tuple[int, int]]
    missing: Mapping[str, int]
    out_of_range: Mapping[str, int]
    ignored: tuple[str, ...]
    violations: tuple[Violation, ...]
    violation_count: int


def check_table(path: Path, schema: DataSchema) -> TableReport:
    """Hold the file at `path` against `schema` and report all that is found, good or bad.

    Raises:
        DataError: The file cannot be read at all (see `read_file`).
    """
    return _report(path, schema, _examine(path, schema))


def load_table(path: Path, schema: DataSchema) -> pd.DataFrame:
    """Read the file at `path`, which must keep `schema`.

    Returns:
        One row each reading, in the file's order, index from 0: machine (text), time (float64 or
        UTC timestamp), sensors (float64, or text for a category; empty cells are NaN), label
        (int64). Other columns of the file are left out. Written as Parquet and loaded again, it is
        the same table.

    Raises:
        DataError: The file cannot be read, or it breaks the schema; the message lists the first
            violations, one a line, and how many there are.
    """
    found = _examine(path, schema)
    if found.findings.total:
        raise DataError(_refusal(path, schema, found))
    return found.typed.astype({schema.label.column: "int64"}).reset_index(drop=True)


class _Examined(NamedTuple):
    """A file's rows as they are, with one type a column, their windows, and what is wrong."""

    raw: RawTable
    typed: pd.DataFrame
    windows: int
    findings: Findings


def _examine(path: Path, schema: DataSchema) -> _Examined:
    raw = read_file(path, schema)
    typed, findings = check_rows(raw, schema)
    sizes = _machine_names(typed, schema).value_counts()
    windows = count_windows(sizes.to_numpy().astype(np.int64), schema.window_steps)
    if windows < MINIMUM_WINDOWS:
        findings.add(
            f"{len(typed)} rows make {windows} windows of {schema.window_steps} step(s); "
            f"at least {MINIMUM_WINDOWS} are needed"
        )
    return _Examined(raw, typed, windows, findings)


def _refusal(path: Path, schema: DataSchema, found: _Examined) -> str:
    total = found.findings.total
    shown = [f"  {violation.describe(found.raw.place)}" for violation in found.findings.first()]
    hidden = total - len(shown)
    more = [f"  and {hidden} more"] if hidden else []
    head = f"{path}: breaks schema {schema.name!r} in {total} place(s):"
    advice = "Correct the file, or the schema if it is the schema that is wrong."
    return "\n".join([head, *shown, *more, advice])


def _report(path: Path, schema: DataSchema, found: _Examined) -> TableReport:
    raw, typed, findings = found.raw, found.typed, found.findings
    balance = _balance(typed, schema)
    negatives, positives = (sum(pair[label] for pair in balance.values()) for label in (0, 1))
    labelled = negatives + positives
    sensors = [column for column in schema.columns if column.name in typed]
    known = set(file_columns(schema))
    return TableReport(
        source=str(path),
        place=raw.place,
        rows=len(typed),
        windows=found.windows,
        machines=_machine_names(typed, schema).nunique(),
        span=_span(typed, schema),
        label_rate=positives / labelled if labelled else None,
        balance=balance,
        missing={column.name: int(raw.rows[column.name].isna().sum()) for column in sensors},
        out_of_range={c.name: _outside(typed[c.name], c.range, c.values) for c in sensors},
        ignored=tuple(name for name in raw.header if name not in known),
        violations=findings.first(),
        violation_count=findings.total,
    )


def _machine_names(typed: pd.DataFrame, schema: DataSchema) -> pd.Series:
    if schema.machine is not None and schema.machine.column in typed:
        return typed[schema.machine.column].dropna()
    return pd.Series(ONLY_MACHINE, index=typed.index)


def _balance(typed: pd.DataFrame, schema: DataSchema) -> dict[str, tuple[int, int]]:
    if schema.label.column not in typed:
        return {}
    label = typed[schema.label.column]
    machines = _machine_names(typed, schema)
    counts = pd.crosstab(machines, label[machines.index]).reindex(columns=[0.0, 1.0], fill_value=0)
    rows = zip(counts.index, counts.to_numpy(), strict=True)
    return {str(machine): (int(zeros), int(ones)) for machine, (zeros, ones) in rows}


def _span(typed: pd.DataFrame, schema: DataSchema) -> tuple[str, str] | None:
    if schema.time is None or schema.time.column not in typed:
        return None
    times = typed[schema.time.column].dropna()
    if times.empty:
        return None
    first, last = times.min(), times.max()
    if isinstance(first, pd.Timestamp):
        return first.isoformat(), last.isoformat()
    return f"{first:.15g}", f"{last:.15g}"


def _outside(
    values: pd.Series, bounds: tuple[float, float] | None, allowed: tuple[str, ...]
) -> int:
    present = values.dropna()
    inside = present.isin(allowed) if bounds is None else present.between(*bounds)
    return int(np.count_nonzero(~inside))
