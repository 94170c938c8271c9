"""A table of sensor readings that keeps its schema: the report on a file, and the good rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from core.exceptions import DataError
from datasite.data.checks import RowCheck
from datasite.data.reading import file_columns, read_file
from datasite.data.windows import MINIMUM_WINDOWS, count_windows

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from core.schema import Column, DataSchema
    from datasite.data.findings import Violation
    from datasite.data.reading import RawTable


@dataclass(frozen=True, slots=True, kw_only=True)
class TableReport:
    """What an operator should know of a file before registering it. It never leaves the site.

    Attributes:
        source: The file.
        place: What violations count: `line` of a CSV file, `row` of a Parquet file.
        rows: How many there are, blank lines not counted.
        windows: How many windows they make.
        span: First and last time as text; None without a readable time column.
        label_rate: Fraction of rows with label 1; None without a readable label.
        horizon_steps: How far ahead the label looks.
        balance: Rows with label 0 and with label 1, for each machine; one machine when the schema
            has no machine column.
        sensors: The schema's columns that the file has.
        missing: Empty cells, for each sensor column.
        out_of_range: Numbers outside the range or unknown category values, for each sensor column.
        duplicates: Rows of a machine and time that another row before them has.
        ignored: The file's columns that the schema does not name.
        violations: The first of them, a few of each kind.
        violation_count: How many there are in all.
    """

    source: str
    place: str
    rows: int
    windows: int
    span: tuple[str, str] | None
    label_rate: float | None
    horizon_steps: int
    balance: Mapping[str, tuple[int, int]]
    sensors: tuple[Column, ...]
    missing: Mapping[str, int]
    out_of_range: Mapping[str, int]
    duplicates: int
    ignored: tuple[str, ...]
    violations: tuple[Violation, ...]
    violation_count: int


def check_table(path: Path, schema: DataSchema) -> TableReport:
    """Hold the file at `path` against `schema` and report all that is found, good or bad.

    Raises:
        DataError: The file cannot be read at all (see `read_file`).
    """
    return _examine(path, schema, lambda _: None)


def load_table(path: Path, schema: DataSchema) -> pd.DataFrame:
    """Read the file at `path`, which must keep `schema`.

    Returns:
        One row each reading, in the file's order, index from 0: machine (text), time (float64 or
        UTC timestamp), sensors (float64, or text for a category; empty cells are NaN), label
        (int64). Other columns of the file are left out. Written as Parquet and loaded again, it is
        the same table.

    Raises:
        DataError: As `stream_table`.
    """
    chunks: list[pd.DataFrame] = []
    stream_table(path, schema, chunks.append)
    return pd.concat(chunks, ignore_index=True)


def stream_table(path: Path, schema: DataSchema, take: Callable[[pd.DataFrame], object]) -> int:
    """Give the rows of a file that must keep `schema` to `take`, a chunk at a time.

    The chunks are as those of `load_table`. They come before the whole file is judged: what `take`
    did with them is to be undone on an error.

    Returns:
        How many rows there are.

    Raises:
        DataError: The file cannot be read, or it breaks the schema; the message lists the first
            violations, one a line, and how many there are.
    """
    report = _examine(path, schema, take)
    if report.violation_count:
        raise DataError(_refusal(report, schema))
    return report.rows


def _examine(path: Path, schema: DataSchema, take: Callable[[pd.DataFrame], object]) -> TableReport:
    raw = read_file(path, schema)
    check = RowCheck(raw, schema)
    for rows in raw.chunks:
        typed = check.add(rows)
        if not check.findings.total and len(typed):
            take(typed.astype({schema.label.column: "int64"}))
    if not check.rows:
        raise DataError(f"{path}: names its columns but has no rows")
    check.finish()
    windows = count_windows(check.machines.sizes, schema.window_steps)
    if windows < MINIMUM_WINDOWS:
        check.findings.add(
            f"{check.rows} rows make {windows} windows of {schema.window_steps} step(s); "
            f"at least {MINIMUM_WINDOWS} are needed"
        )
    return _report(path, schema, raw, check, windows)


def _refusal(report: TableReport, schema: DataSchema) -> str:
    total = report.violation_count
    shown = [f"  {violation.describe(report.place)}" for violation in report.violations]
    hidden = total - len(shown)
    more = [f"  and {hidden} more"] if hidden else []
    head = f"{report.source}: breaks schema {schema.name!r} in {total} place(s):"
    advice = "Correct the file, or the schema if it is the schema that is wrong."
    return "\n".join([head, *shown, *more, advice])


def _report(
    path: Path, schema: DataSchema, raw: RawTable, check: RowCheck, windows: int
) -> TableReport:
    balance = check.machines.balance()
    negatives, positives = (sum(pair[label] for pair in balance.values()) for label in (0, 1))
    labelled = negatives + positives
    sensors = tuple(column for column in schema.columns if column.name in raw.header)
    known = set(file_columns(schema))
    return TableReport(
        source=str(path),
        place=raw.places.word,
        rows=check.rows,
        windows=windows,
        span=check.span.text(),
        label_rate=positives / labelled if labelled else None,
        horizon_steps=schema.label.horizon_steps,
        balance=balance,
        sensors=sensors,
        missing={column.name: check.empty[column.name] for column in sensors},
        out_of_range={column.name: check.outside[column.name] for column in sensors},
        duplicates=check.repeated,
        ignored=tuple(name for name in raw.header if name not in known),
        violations=check.findings.first(),
        violation_count=check.findings.total,
    )
