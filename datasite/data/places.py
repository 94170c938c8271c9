"""Where in a file a row stands, as whoever opens the file would count."""

from __future__ import annotations

import csv
from array import array
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class Places:
    """Turns the number of a row into its place in the file.

    Args:
        word: What the places count: `line` of a CSV file, `row` of a Parquet file.
        offset: Places before the first row.
        uneven: A CSV file whose rows may be longer than a line, since it has quoted fields; its
            lines are counted when the first place is asked for, which a good file never needs.
    """

    def __init__(self, word: str, *, offset: int = 0, uneven: Path | None = None) -> None:
        self.word = word
        self._offset = offset
        self._uneven = uneven

    @classmethod
    def of_csv(cls, path: Path, *, has_quotes: bool) -> Places:
        """Count lines; the header's is 1."""
        return cls("line", offset=1, uneven=path if has_quotes else None)

    @classmethod
    def of_parquet(cls) -> Places:
        """Count rows from 1."""
        return cls("row")

    def of(self, row: int) -> int:
        """Give the place where a row begins; rows count from 1."""
        return row + self._offset if self._uneven is None else self._starts[row]

    @cached_property
    def _starts(self) -> Sequence[int]:
        """The first line of each record, the header being record 0."""
        starts = array("Q", [1])
        assert self._uneven is not None  # noqa: S101 - `of` saw to it
        with self._uneven.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            starts.extend(reader.line_num + 1 for _ in reader)
        return starts
