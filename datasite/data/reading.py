"""Read a CSV or Parquet file chunk by chunk, the columns that the schema names, unjudged.

What makes a file unreadable as a whole is refused here; what is wrong with its values is the
business of `datasite.data.checks`. What a file is taken for, though it is something else, is said
by `datasite.data.mistaken`.
"""

from __future__ import annotations

import csv
import difflib
import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pandas as pd

from core.exceptions import DataError
from core.schema import ColumnType
from datasite.data.mistaken import require_csv, require_parquet
from datasite.data.places import Places

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import pyarrow as pa

    from core.schema import DataSchema

CHUNK_ROWS: Final = 2**16
"""Rows in memory at a time: of 30 sensors 16 MB, and several times that while they are judged."""

BUFFER_BYTES: Final = 2**20
"""Of each Parquet column that is being read; without it all of a row group's would be in memory."""

_SHOWN: Final = 12
"""Columns of a file that a message names."""

_FIELDS: Final = re.compile(r"Expected (\d+) fields in line (\d+), saw (\d+)")
_QUOTE: Final = re.compile(r"EOF inside string starting at row (\d+)")

_EMPTY = ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "None"]
"""What stands for no number. In text columns only the empty field does: `NA` may be a name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RawTable:
    """A file's content before any check.

    Attributes:
        header: All columns of the file.
        chunks: Its rows, at most `CHUNK_ROWS` at a time, in the file's order: the schema's columns
            that the file has, in the schema's order. The index counts rows from 1. Rows that are
            empty throughout are left out. To be gone through once; raises as `read_file`.
        places: Where in the file a row stands.
    """

    header: tuple[str, ...]
    chunks: Iterator[pd.DataFrame]
    places: Places


def read_file(path: Path, schema: DataSchema) -> RawTable:
    """Read the columns of `schema` from `path`, whose suffix says what it is.

    CSV is UTF-8, with or without a byte-order mark, comma-separated, any line ends, the first line
    naming the columns. A quoted field may hold a line break.

    Raises:
        DataError: The file is missing, a directory, unreadable, empty, neither CSV nor Parquet, or
            has none of the schema's columns.
    """
    readers = {".csv": _read_csv, ".parquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    try:
        if path.is_dir():
            raise DataError(f"{path}: is a directory; name the file in it")
        if reader is None:
            raise DataError(
                f"{path}: the suffix says neither .csv nor .parquet; rename or convert it"
            )
        if path.stat().st_size == 0:
            raise DataError(f"{path}: the file is empty (0 bytes)")
        raw = reader(path, schema)
    except FileNotFoundError as exc:
        raise DataError(f"{path}: no such file") from exc
    except OSError as exc:
        raise DataError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
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
    found = require_csv(path)
    header = _csv_header(path)
    wanted = _require_columns(path, header, schema)
    return RawTable(
        header=header,
        chunks=_csv_chunks(path, schema, header, wanted),
        places=Places.of_csv(path, has_quotes=found.has_quotes),
    )


def _csv_chunks(
    path: Path, schema: DataSchema, header: tuple[str, ...], wanted: list[str]
) -> Iterator[pd.DataFrame]:
    text = [name for name in text_columns(schema) if name in wanted]
    before = 0
    try:
        with pd.read_csv(
            path,
            encoding="utf-8",
            chunksize=CHUNK_ROWS,
            dtype=dict.fromkeys(text, str),
            index_col=False,
            keep_default_na=False,
            low_memory=False,
            na_values={name: [""] if name in text else _EMPTY for name in header},
            skip_blank_lines=False,  # so that a row's number gives its line
        ) as reader:
            while (rows := _next_chunk(reader)) is not None:
                rows = rows[wanted]
                rows.index = pd.RangeIndex(before + 1, before + len(rows) + 1)
                before += len(rows)
                yield rows.dropna(how="all")
    except pd.errors.ParserWarning as exc:
        raise DataError(
            f"{path}: its lines have more fields than the {len(header)} of the header; "
            "are the decimals written with commas?"
        ) from exc
    except pd.errors.ParserError as exc:
        raise DataError(f"{path}: {_said_of(str(exc))}") from exc
    except OSError as exc:
        raise DataError(f"{path}: cannot be read: {exc.strerror or exc}") from exc


def _said_of(reason: str) -> str:
    """Say in our words what pandas says of a malformed file."""
    if fields := _FIELDS.search(reason):
        named, line, found = fields.groups()
        return (
            f"line {line} has {found} fields, the header names {named}; is a decimal written with "
            "a comma, or a comma in a text without quotes?"
        )
    if quote := _QUOTE.search(reason):
        return f"the quote that is opened in line {int(quote[1]) + 1} is never closed"
    return f"is not a well-formed CSV file: {reason.rpartition('error: ')[2].strip()}"


def _next_chunk(reader: Iterator[pd.DataFrame]) -> pd.DataFrame | None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)  # fields beyond the header
        return next(reader, None)


def _csv_header(path: Path) -> tuple[str, ...]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = tuple(next(csv.reader(file), ()))
    except csv.Error as exc:
        raise DataError(f"{path}: is not a CSV file: {exc}") from exc
    if not any(name.strip() for name in header):
        raise DataError(f"{path}: the first line is blank; it must name the columns")
    return header


def _read_parquet(path: Path, schema: DataSchema) -> RawTable:
    import pyarrow as pa  # noqa: PLC0415 - a site that reads CSV need not wait for it
    import pyarrow.parquet as pq  # noqa: PLC0415

    require_parquet(path)
    try:
        with pq.ParquetFile(path) as file:
            found: pa.Schema = file.schema_arrow
    except (pa.ArrowException, OSError) as exc:
        raise _broken_parquet(path, exc) from exc
    header = tuple(str(name) for name in found.names)
    wanted = _require_columns(path, header, schema)
    for name in wanted:
        _require_plain(path, name, found.field(name).type)
    return RawTable(
        header=header,
        chunks=_parquet_chunks(path, schema, wanted),
        places=Places.of_parquet(),
    )


def _parquet_chunks(path: Path, schema: DataSchema, wanted: list[str]) -> Iterator[pd.DataFrame]:
    import pyarrow as pa  # noqa: PLC0415 - see `_read_parquet`
    import pyarrow.parquet as pq  # noqa: PLC0415

    text = set(text_columns(schema))
    before = 0
    try:
        with pq.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False) as file:
            for batch in file.iter_batches(CHUNK_ROWS, columns=wanted, use_threads=False):
                columns = [
                    # As text at once: with an empty cell pandas would make 7 a 7.0 first.
                    column.cast(pa.string())
                    if name in text and pa.types.is_integer(column.type)
                    else column
                    for name, column in zip(batch.schema.names, batch.columns, strict=True)
                ]
                plain = pa.table(columns, names=batch.schema.names)
                rows: pd.DataFrame = plain.to_pandas(ignore_metadata=True)[wanted]
                rows.index = pd.RangeIndex(before + 1, before + len(rows) + 1)
                before += len(rows)
                yield rows.dropna(how="all")
    except (pa.ArrowException, OSError) as exc:
        raise _broken_parquet(path, exc) from exc


def _require_plain(path: Path, name: str, kind: pa.DataType) -> None:
    """Refuse a column whose cells are not single numbers, texts, truth values or times."""
    import pyarrow as pa  # noqa: PLC0415 - see `_read_parquet`

    types = pa.types
    value = kind.value_type if types.is_dictionary(kind) else kind
    plain = (
        types.is_integer, types.is_floating, types.is_decimal, types.is_boolean, types.is_string,
        types.is_large_string, types.is_timestamp, types.is_date, types.is_null,
    )  # fmt: skip
    if not any(is_kind(value) for is_kind in plain):
        raise DataError(
            f"{path}: the column {name!r} holds {kind} values; each cell must be one number, text "
            "or time: spread them over columns of their own"
        )


def _broken_parquet(path: Path, error: Exception) -> DataError:
    reason = str(error).splitlines()[0].rstrip(".")
    return DataError(f"{path}: is a damaged Parquet file ({reason}); write or copy it again")


def _require_columns(path: Path, header: tuple[str, ...], schema: DataSchema) -> list[str]:
    """Give the schema's columns that `header` has, each once."""
    wanted = [name for name in file_columns(schema) if name in header]
    twice = [name for name in wanted if header.count(name) > 1]
    if twice:
        raise DataError(f"{path}: the header names {twice[0]!r} more than once; keep one of them")
    if not wanted:
        if len(header) == 1:
            _require_commas(path, header[0])
        hint = "; does its first line name the columns?" if any(map(_is_number, header)) else ""
        raise DataError(
            f"{path}: has none of the columns of schema {schema.name!r}; "
            f"its columns are {_listed(header)}{hint}"
        )
    return wanted


def _require_commas(path: Path, line: str) -> None:
    for mark, called in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if mark in line:
            raise DataError(
                f"{path}: its columns are separated by {called}; save it with commas between "
                "columns and points in decimals"
            )


def _is_number(name: str) -> bool:
    return name.strip().lstrip("+-").replace(".", "", 1).isdigit()


def _listed(header: Sequence[str]) -> str:
    shown = ", ".join(map(repr, header[:_SHOWN]))
    return shown if len(header) <= _SHOWN else f"{shown} and {len(header) - _SHOWN} more"
