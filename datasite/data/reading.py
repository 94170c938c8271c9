"""Bring a CSV or Parquet file into memory, column by column as the schema names them, unjudged.

What makes a file unreadable as a whole is refused here; what is wrong with its values is the
business of `datasite.data.checks`.
"""

from __future__ import annotations

import csv
import difflib
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from core.exceptions import DataError
from core.schema import ColumnType

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from core.schema import DataSchema

_EMPTY = ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "None"]
"""What stands for no number. In text columns only the empty field does: `NA` may be a name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RawTable:
    """A file's content before any check.

    Attributes:
        rows: The schema's columns that the file has, in the schema's order. The index is where a
            row stands: the line of a CSV file (the header is line 1), the row of a Parquet file
            (from 1). Rows that are empty throughout are left out.
        header: All columns of the file.
        place: What the index counts: `line` or `row`.
    """

    rows: pd.DataFrame
    header: tuple[str, ...]
    place: str


def read_file(path: Path, schema: DataSchema) -> RawTable:
    """Read the columns of `schema` from `path`, whose suffix says what it is.

    CSV is UTF-8, with or without a byte-order mark, comma-separated, any line ends, the first line
    naming the columns. A quoted field may hold a line break, but then lines are counted by record.

    Raises:
        DataError: The file is missing, a directory, unreadable, empty, neither CSV nor Parquet, or
            has none of the schema's columns.
    """
    readers = {".csv": _read_csv, ".parquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if path.is_dir():
        raise DataError(f"{path}: is a directory; name the file in it")
    if reader is None:
        raise DataError(f"{path}: the suffix says neither .csv nor .parquet; rename or convert it")
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path}: the file is empty (0 bytes)")
        raw = reader(path, schema)
    except FileNotFoundError as exc:
        raise DataError(f"{path}: no such file") from exc
    except OSError as exc:
        raise DataError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
    if raw.rows.empty:
        raise DataError(f"{path}: names its columns but has no rows")
    return raw


def file_columns(schema: DataSchema) -> list[str]:
    """Give the columns a file of `schema` has: machine, time, sensors, label."""
    special = [named.column for named in (schema.machine, schema.time) if named is not None]
    return [*special, *(column.name for column in schema.columns), schema.label.column]


def text_columns(schema: DataSchema) -> list[str]:
    """Give the columns whose values are names, kept as they are spelt: machine and categories."""
    machine = [schema.machine.column] if schema.machine else []
    categories = [c.name for c in schema.columns if c.type is ColumnType.CATEGORY]
    return machine + categories


def suggest(name: str, header: Sequence[str]) -> str:
    """Give `; did you mean 'x'?` for the column of `header` most like `name`, or nothing."""
    lower = {other.lower(): other for other in reversed(header)}
    close = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.6)
    return f"; did you mean {lower[close[0]]!r}?" if close else ""


def _read_csv(path: Path, schema: DataSchema) -> RawTable:
    header = _csv_header(path)
    wanted = _require_columns(path, header, schema)
    text = [name for name in text_columns(schema) if name in wanted]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # fields beyond the header
            rows = pd.read_csv(
                path,
                encoding="utf-8",
                dtype=dict.fromkeys(text, str),
                index_col=False,
                keep_default_na=False,
                low_memory=False,
                na_values={name: [""] if name in text else _EMPTY for name in header},
                skip_blank_lines=False,  # so that a row's number gives its line
            )
    except UnicodeDecodeError as exc:
        raise _not_text(path) from exc
    except pd.errors.ParserWarning as exc:
        raise DataError(
            f"{path}: its lines have more fields than the {len(header)} of the header; "
            "are the decimals written with commas?"
        ) from exc
    except pd.errors.ParserError as exc:
        reason = str(exc).removeprefix("Error tokenizing data. C error: ").strip()
        raise DataError(f"{path}: is not a well-formed CSV file: {reason}") from exc
    rows = rows[wanted]
    rows.index = pd.RangeIndex(2, len(rows) + 2)
    return RawTable(rows=rows.dropna(how="all"), header=header, place="line")


def _csv_header(path: Path) -> tuple[str, ...]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = tuple(next(csv.reader(file), ()))
    except UnicodeDecodeError as exc:
        raise _not_text(path) from exc
    except csv.Error as exc:
        raise DataError(f"{path}: is not a CSV file: {exc}") from exc
    if not any(name.strip() for name in header):
        raise DataError(f"{path}: the first line is blank; it must name the columns")
    return header


def _not_text(path: Path) -> DataError:
    """Say which line is not UTF-8; read again, because pandas only knows a place in its buffer."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as exc:
                found = f"line {number} has the byte 0x{line[exc.start]:02x}"
                return DataError(f"{path}: is not UTF-8 text: {found}; save it as CSV UTF-8")
    return DataError(f"{path}: is not UTF-8 text; save it as CSV UTF-8")


def _read_parquet(path: Path, schema: DataSchema) -> RawTable:
    import pyarrow as pa  # noqa: PLC0415 - a site that reads CSV need not wait for it
    import pyarrow.parquet as pq  # noqa: PLC0415

    try:
        with pq.ParquetFile(path) as file:
            header = tuple(str(name) for name in file.schema_arrow.names)
            wanted = _require_columns(path, header, schema)
            rows: pd.DataFrame = file.read(columns=wanted).to_pandas(ignore_metadata=True)
    except pa.ArrowException as exc:
        raise DataError(f"{path}: is not a Parquet file: {str(exc).splitlines()[0]}") from exc
    rows = rows[wanted]
    rows.index = pd.RangeIndex(1, len(rows) + 1)
    return RawTable(rows=rows.dropna(how="all"), header=header, place="row")


def _require_columns(path: Path, header: tuple[str, ...], schema: DataSchema) -> list[str]:
    """Give the schema's columns that `header` has, each once."""
    wanted = [name for name in file_columns(schema) if name in header]
    twice = [name for name in wanted if header.count(name) > 1]
    if twice:
        raise DataError(f"{path}: the header names {twice[0]!r} more than once; keep one of them")
    if not wanted:
        hint = "; columns must be separated by commas" if len(header) == 1 else ""
        raise DataError(
            f"{path}: has none of the columns of schema {schema.name!r}; "
            f"its columns are {', '.join(map(repr, header))}{hint}"
        )
    return wanted
