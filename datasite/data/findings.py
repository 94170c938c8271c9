"""What is wrong with a file, collected so that a person can act on it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

    from datasite.data.places import Places

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
    """Collects violations; messages are written only for those that will be shown.

    Args:
        places: Where a row stands in the file.
    """

    def __init__(self, places: Places) -> None:
        self.total = 0
        self.places = places
        self._kept: list[Violation] = []
        self._shown: Counter[tuple[str, str]] = Counter()

    def add(self, message: str, *, column: str | None = None) -> None:
        """Report something about the whole file or a whole column."""
        self.total += 1
        self._kept.append(Violation(None, column, message))

    def add_rows(
        self, values: pd.Series, message: Callable[[object], str], *, column: str, rule: str
    ) -> None:
        """Report every entry of `values`, indexed by row; `message` words one value.

        Of a column and rule the first `MAX_PER_RULE` are kept, over all calls.
        """
        self.total += len(values)
        room = MAX_PER_RULE - self._shown[column, rule]
        for row, value in values.iloc[:room].items():
            line = self.places.of(int(str(row)))
            self._kept.append(Violation(line, column, message(value)))
            self._shown[column, rule] += 1

    def first(self) -> tuple[Violation, ...]:
        """Give at most `MAX_SHOWN` violations: the file's own, then by line."""
        ordered = sorted(self._kept, key=lambda found: found.line or 0)
        return tuple(ordered[:MAX_SHOWN])
