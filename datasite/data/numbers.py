"""Read a column of numbers, and say of a cell that is none what it may have been meant for."""

from __future__ import annotations

import re

import pandas as pd

_DECIMAL_COMMA = re.compile(r"\s*[+-]?\d+,\d+\s*")
_THOUSANDS = re.compile(r"\s*[+-]?\d{1,3}(?:,\d{3})+(?:\.\d*)?\s*")


def to_numbers(values: pd.Series) -> pd.Series:
    """Give float64; what is no number is NaN."""
    if pd.api.types.is_bool_dtype(values) or pd.api.types.is_datetime64_any_dtype(values):
        values = values.astype(str)  # pandas would count True as 1 and a date as nanoseconds
    return pd.to_numeric(values, errors="coerce").astype("float64")


def no_number(value: object) -> str:
    """Say that `value` is not a number, and how it may have come about."""
    text = str(value)
    if _THOUSANDS.fullmatch(text):
        hint = "; write it without separators of thousands, decimals with a point"
    elif _DECIMAL_COMMA.fullmatch(text):
        hint = "; write decimals with a point"
    else:
        hint = ""
    shown = repr(value) if isinstance(value, (str, bool)) else text
    return f"{shown} is not a number{hint}"
