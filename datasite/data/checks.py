"""Hold a raw table against its schema: give every column its type, and find all that is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from core.schema import ColumnType
from datasite.data.findings import Findings
from datasite.data.reading import file_columns, suggest, text_columns

if TYPE_CHECKING:
    from collections.abc import Callable

    from core.schema import Column, DataSchema
    from datasite.data.reading import RawTable

_LABEL = "must be 0 (no failure) or 1 (failure)"


def check_rows(raw: RawTable, schema: DataSchema) -> tuple[pd.DataFrame, Findings]:
    """Give the rows with one type a column, and what is wrong with them.

    Numbers and the label become float64, names become text, times become float64 or UTC
    timestamps. A cell of the wrong type is reported once and empty in the result.
    """
    findings = Findings()
    _check_header(raw, schema, findings)
    typed = pd.DataFrame(index=raw.rows.index)
    for name in raw.rows.columns:
        typed[name] = _convert(raw.rows[name], schema, findings)
    _check_missing(raw.rows, schema, findings)
    _check_values(typed, schema, findings)
    _check_repeats(typed, schema, findings, raw.place)
    _check_classes(typed, schema, findings)
    return typed, findings


def _check_header(raw: RawTable, schema: DataSchema, findings: Findings) -> None:
    for name in file_columns(schema):
        if name not in raw.header:
            found = ", ".join(map(repr, raw.header))
            hint = suggest(name, raw.header)
            findings.add(f"the column is missing{hint} (the file has {found})", column=name)


def _convert(values: pd.Series, schema: DataSchema, findings: Findings) -> pd.Series:
    name = str(values.name)
    if name in text_columns(schema):
        return values.where(values.isna(), values.astype(str)).astype(object)
    if schema.time is not None and name == schema.time.column:
        converted, expected = _to_times(values), "is neither a number nor an ISO 8601 time"
    elif name == schema.label.column:
        converted, expected = _to_label(values), _LABEL
    else:
        converted, expected = _to_numbers(values), "is not a number"
    wrong = values[converted.isna() & values.notna()]
    findings.add_rows(wrong, lambda value: f"{value!r} {expected}", column=name)
    return converted


def _to_numbers(values: pd.Series) -> pd.Series:
    if pd.api.types.is_bool_dtype(values) or pd.api.types.is_datetime64_any_dtype(values):
        values = values.astype(str)  # pandas would count True as 1 and a date as nanoseconds
    return pd.to_numeric(values, errors="coerce").astype("float64")


def _to_label(values: pd.Series) -> pd.Series:
    if pd.api.types.is_bool_dtype(values):
        return values.astype("float64")
    return _to_numbers(values)


def _to_times(values: pd.Series) -> pd.Series:
    if pd.api.types.is_datetime64_any_dtype(values):
        return pd.to_datetime(values, utc=True)
    numbers = _to_numbers(values).replace([np.inf, -np.inf], np.nan)
    if numbers.isna().sum() == values.isna().sum():
        return numbers
    times = pd.to_datetime(values.astype(str), errors="coerce", format="ISO8601", utc=True)
    return numbers if numbers.notna().sum() > times.notna().sum() else times


def _check_missing(rows: pd.DataFrame, schema: DataSchema, findings: Findings) -> None:
    allowed = {column.name: column.missing for column in schema.columns}
    for name in rows.columns:
        empty = rows[name].isna()
        limit = allowed.get(str(name), 0.0)
        if limit == 0.0:
            findings.add_rows(rows.loc[empty, name], lambda _: "is empty", column=str(name))
        elif empty.mean() > limit:
            share = f"{empty.sum()} of {len(rows)} rows ({empty.mean():.1%}) are empty"
            findings.add(f"{share}; the schema allows {limit:.1%}", column=str(name))


def _check_values(typed: pd.DataFrame, schema: DataSchema, findings: Findings) -> None:
    """Let pandera hold every value against its column's rule, all at once."""
    import pandera.errors  # noqa: PLC0415 - takes 0.2 s, which only a check needs
    import pandera.pandas as pa  # noqa: PLC0415

    checks = {c.name: _check_of(c) for c in schema.columns if c.name in typed}
    if schema.label.column in typed:
        checks[schema.label.column] = pa.Check.isin([0.0, 1.0])
    rules = pa.DataFrameSchema(
        {name: pa.Column(None, check, nullable=True) for name, check in checks.items()}
    )
    try:
        rules.validate(typed, lazy=True)
    except pandera.errors.SchemaErrors as exc:
        for name, cases in exc.failure_cases.groupby("column", sort=False):
            values = pd.Series(cases["failure_case"].to_numpy(), index=cases["index"]).sort_index()
            findings.add_rows(values, _wording(str(name), schema), column=str(name))
    for column in schema.columns:
        if column.type is ColumnType.INTEGER and column.name in typed:
            numbers = typed[column.name]
            broken = numbers[np.isfinite(numbers) & (numbers % 1 != 0)]
            findings.add_rows(
                broken, lambda value: f"{value:g} is not a whole number", column=column.name
            )


def _check_of(column: Column) -> object:
    import pandera.pandas as pa  # noqa: PLC0415 - see `_check_values`

    if column.range is None:
        return pa.Check.isin(list(column.values))
    return pa.Check.in_range(*column.range)


def _wording(name: str, schema: DataSchema) -> Callable[[object], str]:
    column = next((c for c in schema.columns if c.name == name), None)
    if column is None:
        return lambda value: f"{value:g} {_LABEL}"
    if column.range is None:
        return lambda value: (
            f"{value!r} is not one of {', '.join(column.values)}"
            f"{suggest(str(value), column.values)}"
        )
    low, high = column.range
    unit = f" {column.unit}" if column.unit else ""
    return lambda value: f"{value:g} is outside {low:g} to {high:g}{unit}"


def _check_repeats(typed: pd.DataFrame, schema: DataSchema, findings: Findings, place: str) -> None:
    """Find rows of the same machine and time: the order of a window would be arbitrary."""
    if schema.time is None or schema.time.column not in typed:
        return
    special = [schema.machine, schema.time]
    key = [named.column for named in special if named is not None and named.column in typed]
    keyed = typed[key].dropna()
    again = keyed.duplicated()
    if not again.any():
        return
    lines = pd.Series(keyed.index, index=keyed.index)
    first = lines.groupby([keyed[name] for name in key]).transform("first")
    what = "machine and time" if len(key) > 1 else "time"
    findings.add_rows(
        first[again], lambda line: f"has the same {what} as {place} {line}", column=key[-1]
    )


def _check_classes(typed: pd.DataFrame, schema: DataSchema, findings: Findings) -> None:
    if schema.label.column not in typed:
        return
    classes = set(typed[schema.label.column].unique()) & {0.0, 1.0}
    if len(classes) == 1:
        found = f"every label is {classes.pop():g}"
        findings.add(
            f"{found}; training needs rows with 0 and rows with 1", column=schema.label.column
        )
