"""What is wrong with a file, collected so that a person can act on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

MAX_SHOWN = 20
"""Violations that are shown; their count is always complete."""

MAX_PER_RULE = 5
"""Shown of one column and rule, so that one broken sensor does not hide everything else."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that is wrong, for the operator's own terminal: the message may quote a value.

    Attributes:
        line: Line of a CSV file, row of a Parquet file; None when it is about the whole file.
        column: The column at fault; None when it is about whole rows.
        message: What was found and what was expected.
    """

    line: int | None
    column: str | None
    message: str

    def describe(self, place: str) -> str:
        """Give one line of text; `place` is `line` or `row`."""
        where = [f"{place} {self.line}"] if self.line is not None else []
        where += [repr(self.column)] if self.column is not None else []
        return ": ".join([*filter(None, [", ".join(where)]), self.message])


class Findings:
    """Collects violations; messages are written only for those that will be shown."""

    def __init__(self) -> None:
        self.total = 0
        self._kept: list[Violation] = []

    def add(self, message: str, *, column: str | None = None) -> None:
        """Report something about the whole file or a whole column."""
        self.total += 1
        self._kept.append(Violation(None, column, message))

    def add_rows(
        self, values: pd.Series, message: Callable[[object], str], *, column: str | None
    ) -> None:
        """Report every entry of `values`, indexed by line; `message` words one value."""
        self.total += len(values)
        for line, value in values.iloc[:MAX_PER_RULE].items():
            self._kept.append(Violation(int(str(line)), column, message(value)))

    def first(self) -> tuple[Violation, ...]:
        """Give at most `MAX_SHOWN` violations: the file's own, then by line."""
        ordered = sorted(self._kept, key=lambda found: found.line or 0)
        return tuple(ordered[:MAX_SHOWN])
