"""Hold a file's rows against its schema: give every column its type, and find all that is wrong."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from core.schema import ColumnType
from datasite.data.findings import Findings
from datasite.data.numbers import no_number, to_numbers
from datasite.data.reading import file_columns, suggest, text_columns
from datasite.data.tally import Machines, Repeats, Span, count_empty
from datasite.data.times import Times

if TYPE_CHECKING:
    from core.schema import Column, DataSchema
    from datasite.data.reading import RawTable

ONLY_MACHINE = "all"
"""What the rows' machine is called in a report when the schema has no machine column."""

_LABEL = "must be 0 (no failure) or 1 (failure)"
_WORDS_FOR_LABELS = {"yes", "no", "y", "n", "ok", "nok", "fail", "failure", "good", "bad"}


class RowCheck:
    """Judges a file chunk by chunk.

    Args:
        raw: The file.
        schema: What it must keep.
    """

    def __init__(self, raw: RawTable, schema: DataSchema) -> None:
        self._schema = schema
        self._header = raw.header
        self._times = Times(schema.time.column) if schema.time else None
        self._repeats = Repeats()
        self.findings = Findings(raw.places)
        self.rows = 0
        self.empty: Counter[str] = Counter()
        self.outside: Counter[str] = Counter()
        self.repeated = 0
        self.machines = Machines()
        self.span = Span()
        self._check_header()

    def add(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Judge a chunk, and give it with one type a column.

        Numbers and the label become float64, names become text, times become float64 or UTC
        timestamps. A cell of the wrong type is reported once and empty in the result.
        """
        typed = pd.DataFrame(
            {name: self._convert(rows[name]) for name in rows.columns}, index=rows.index
        )
        self.rows += len(rows)
        count_empty(self.empty, rows)
        self._check_missing(rows)
        self._check_values(typed)
        self._count(typed)
        return typed

    def finish(self) -> None:
        """Judge what only all rows together show."""
        self._check_shares()
        self._check_repeats()
        self._check_classes()

    def _check_header(self) -> None:
        for name in file_columns(self._schema):
            if name not in self._header:
                found = ", ".join(map(repr, self._header))
                hint = suggest(name, self._header)
                self.findings.add(
                    f"the column is missing{hint} (the file has {found})", column=name
                )

    def _convert(self, values: pd.Series) -> pd.Series:
        name = str(values.name)
        if name in text_columns(self._schema):
            return values.where(values.isna(), values.astype(str)).astype(object)
        if self._times is not None and self._schema.time and name == self._schema.time.column:
            return self._times.convert(values, self.findings)
        is_label = name == self._schema.label.column
        converted = _to_label(values) if is_label else to_numbers(values)
        wrong = values[converted.isna() & values.notna()]
        word = _no_label if is_label else no_number
        self.findings.add_rows(wrong, word, column=name, rule="type")
        return converted

    def _check_missing(self, rows: pd.DataFrame) -> None:
        tolerant = {column.name for column in self._schema.columns if column.missing > 0.0}
        for name in rows.columns:
            if name not in tolerant:
                empty = rows.loc[rows[name].isna(), name]
                self.findings.add_rows(empty, lambda _: "is empty", column=str(name), rule="empty")

    def _check_shares(self) -> None:
        for column in self._schema.columns:
            share = self.empty[column.name] / max(self.rows, 1)
            if column.missing > 0.0 and share > column.missing:
                found = f"{self.empty[column.name]} of {self.rows} rows ({share:.1%}) are empty"
                self.findings.add(
                    f"{found}; the schema allows {column.missing:.1%}", column=column.name
                )

    def _check_values(self, typed: pd.DataFrame) -> None:
        for column in self._schema.columns:
            if column.name in typed:
                broken = _outside(typed[column.name], column)
                self.outside[column.name] += len(broken)
                word = partial(_outside_of, column)
                self.findings.add_rows(broken, word, column=column.name, rule="range")
        label = self._schema.label.column
        if label in typed:
            present = typed[label].dropna()
            broken = present[~present.isin([0.0, 1.0])]
            self.findings.add_rows(broken, _wrong_label, column=label, rule="range")
        for column in self._schema.columns:
            if column.type is ColumnType.INTEGER and column.name in typed:
                numbers = typed[column.name]
                broken = numbers[np.isfinite(numbers) & (numbers % 1 != 0)]
                self.findings.add_rows(broken, _no_whole, column=column.name, rule="whole")

    def _count(self, typed: pd.DataFrame) -> None:
        schema = self._schema
        if schema.machine is not None and schema.machine.column in typed:
            names = typed[schema.machine.column]
        else:
            names = pd.Series(ONLY_MACHINE, index=typed.index)
        numbers = self.machines.add(names, typed.get(schema.label.column))
        if schema.time is not None and schema.time.column in typed:
            times = typed[schema.time.column]
            self.span.add(times)
            self._repeats.add(numbers, times)

    def _check_repeats(self) -> None:
        if self._schema.time is None:
            return
        has_machines = self._schema.machine and self._schema.machine.column in self._header
        what = "machine and time" if has_machines else "time"
        self.repeated = self._repeats.report(
            self.findings, column=self._schema.time.column, what=what
        )

    def _check_classes(self) -> None:
        counts = np.array(list(self.machines.balance().values())).sum(axis=0)
        present = np.flatnonzero(counts)
        if len(present) == 1:
            self.findings.add(
                f"every label is {present[0]}; training needs rows with 0 and rows with 1",
                column=self._schema.label.column,
            )


def _to_label(values: pd.Series) -> pd.Series:
    if pd.api.types.is_bool_dtype(values):
        return values.astype("float64")
    return to_numbers(values)


def _no_label(value: object) -> str:
    hint = ""
    if str(value).strip().lower() in _WORDS_FOR_LABELS:
        hint = "; write the label as 0 and 1"
    return f"{value!r} {_LABEL}{hint}"


def _wrong_label(value: object) -> str:
    return f"{value:g} {_LABEL}"


def _no_whole(value: object) -> str:
    return f"{value:g} is not a whole number"


def _outside(values: pd.Series, column: Column) -> pd.Series:
    present = values.dropna()
    if column.range is None:
        return present[~present.isin(column.values)]
    return present[~present.between(*column.range)]


def _outside_of(column: Column, value: object) -> str:
    if column.range is None:
        names = ", ".join(column.values)
        return f"{value!r} is not one of {names}{suggest(str(value), column.values)}"
    low, high = column.range
    unit = f" {column.unit}" if column.unit else ""
    return f"{value:g} is outside {low:g} to {high:g}{unit}"
