"""The site's own copy of a registered table: Parquet, written and read a chunk at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from datasite.data.reading import BUFFER_BYTES, CHUNK_ROWS, file_columns, text_columns

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from core.schema import DataSchema


class CopyWriter:
    """Writes the chunks of `stream_table`; leave the context for the file to be whole.

    Args:
        path: Where the copy is written.
        schema: Of the table.
    """

    def __init__(self, path: Path, schema: DataSchema) -> None:
        self._schema = schema
        self._stream = path.open("wb")
        self._writer: pq.ParquetWriter | None = None

    def add(self, rows: pd.DataFrame) -> None:
        """Write a chunk.

        Raises:
            OSError: It cannot be written.
        """
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._stream, self._types(rows))
        table = pa.Table.from_pandas(rows, schema=self._writer.schema, preserve_index=False)
        self._writer.write_table(table)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if self._writer is not None:
                self._writer.close()
        finally:
            self._stream.close()

    def _types(self, rows: pd.DataFrame) -> pa.Schema:
        """Give one type a column, the same for every chunk, an empty column among them."""
        text = set(text_columns(self._schema))
        types = []
        for name in file_columns(self._schema):
            values = rows[name]
            if name in text:
                types.append((name, pa.string()))
            elif pd.api.types.is_datetime64_any_dtype(values):
                types.append((name, pa.timestamp(values.dt.unit, tz="UTC")))
            else:
                types.append((name, pa.from_numpy_dtype(values.dtype)))
        return pa.schema(types)


def read_copy(path: Path) -> Iterator[pd.DataFrame]:
    """Give the rows of a copy as `load_table` gave them, a chunk at a time."""
    with pq.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False) as file:
        for batch in file.iter_batches(CHUNK_ROWS, use_threads=False):
            yield batch.to_pandas(ignore_metadata=True)


def count_copy(path: Path) -> int:
    """Give how many rows a copy has."""
    count: int = pq.read_metadata(path).num_rows
    return count


def is_same_copy(one: Path, other: Path) -> bool:
    """Tell whether two copies hold the same rows, in whatever way they were written."""
    with pq.ParquetFile(one) as first, pq.ParquetFile(other) as second:
        names = first.schema_arrow.names
        return names == second.schema_arrow.names and all(
            first.read([name]).column(0).equals(second.read([name]).column(0)) for name in names
        )
