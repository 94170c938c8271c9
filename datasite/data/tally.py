"""What is counted of a file while its chunks go by; small, however many rows there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections import Counter

    import numpy.typing as npt

    from datasite.data.findings import Findings


class Machines:
    """How many rows each machine has, and how many of each label; machines are numbered as met."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._counts = np.zeros((0, 3), dtype=np.int64)

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Rows of each machine, whatever their label."""
        sizes: npt.NDArray[np.int64] = self._counts.sum(axis=1)
        return sizes

    def balance(self) -> dict[str, tuple[int, int]]:
        """Give the rows with label 0 and with label 1 of each machine, by name."""
        counts = self._counts[:, :2].tolist()
        return {
            name: (counts[number][0], counts[number][1])
            for name, number in sorted(self._numbers.items())
        }

    def add(self, names: pd.Series, label: pd.Series | None) -> npt.NDArray[np.int32]:
        """Count rows; the number of each row's machine, -1 where its name is empty."""
        codes, found = pd.factorize(names)
        known = np.array(
            [self._numbers.setdefault(name, len(self._numbers)) for name in found] + [-1],
            dtype=np.int32,
        )
        numbers: npt.NDArray[np.int32] = known[codes]
        new = len(self._numbers) - len(self._counts)
        self._counts = np.concatenate([self._counts, np.zeros((new, 3), dtype=np.int64)])
        kind = np.full(len(names), 2)
        if label is not None:
            kind[label == 0.0] = 0
            kind[label == 1.0] = 1
        present = numbers >= 0
        cells = 3 * numbers[present].astype(np.int64) + kind[present]
        self._counts += np.bincount(cells, minlength=self._counts.size).reshape(-1, 3)
        return numbers


class Repeats:
    """Finds rows of the same machine and time: the order of a window would be arbitrary.

    Of each row 20 bytes are kept until the end.
    """

    def __init__(self) -> None:
        self._machines: list[npt.NDArray[np.int32]] = []
        self._times: list[npt.NDArray[np.generic]] = []
        self._rows: list[npt.NDArray[np.int64]] = []

    def add(self, machines: npt.NDArray[np.int32], times: pd.Series) -> None:
        """Remember rows that have a machine (a number of `Machines`) and a time."""
        known = times.notna().to_numpy() & (machines >= 0)
        values = times[known]
        is_number = pd.api.types.is_float_dtype(values)
        self._machines.append(machines[known])
        self._times.append(values.to_numpy() if is_number else values.astype("int64").to_numpy())
        self._rows.append(values.index.to_numpy())

    def report(self, findings: Findings, *, column: str, what: str) -> int:
        """Report each row after the first of its machine and time; how many there are."""
        again, first = self._find()
        findings.add_rows(
            pd.Series(first, index=again),
            lambda row: (
                f"has the same {what} as {findings.places.word} {findings.places.of(int(str(row)))}"
            ),
            column=column,
            rule="repeats",
        )
        return len(again)

    def _find(self) -> _Repeated:
        none = np.empty(0, dtype=np.int64)
        if not self._rows:
            return _Repeated(none, none)
        machine = np.concatenate(self._machines)
        time = np.concatenate(self._times)
        row = np.concatenate(self._rows)
        order = np.lexsort((time, machine))  # stable: equal rows stay in the file's order
        machine, time, row = machine[order], time[order], row[order]
        is_same = (machine[1:] == machine[:-1]) & (time[1:] == time[:-1])
        if not is_same.any():
            return _Repeated(none, none)
        begins = np.concatenate([[True], ~is_same])
        first = row[begins][np.cumsum(begins) - 1]
        again, first = row[~begins], first[~begins]
        by_row = np.argsort(again)
        return _Repeated(again[by_row], first[by_row])


class _Repeated(NamedTuple):
    """Rows that repeat another, in the file's order, and the first of their kind."""

    again: npt.NDArray[np.int64]
    first: npt.NDArray[np.int64]


class Span:
    """The first and the last time."""

    def __init__(self) -> None:
        self._ends: list[object] = []

    def add(self, times: pd.Series) -> None:
        """Take a chunk's times into account."""
        present = times.dropna()
        if len(present):
            self._ends += [present.min(), present.max()]

    def text(self) -> tuple[str, str] | None:
        """Give both as text; None where there was no time."""
        if not self._ends:
            return None
        ends = pd.Series(self._ends)
        first, last = ends.min(), ends.max()
        if isinstance(first, pd.Timestamp):
            return first.isoformat(), last.isoformat()
        return f"{first:.15g}", f"{last:.15g}"


def count_empty(counts: Counter[str], rows: pd.DataFrame) -> None:
    """Add the empty cells of each column."""
    counts.update({str(name): int(empty) for name, empty in rows.isna().sum().items()})
