"""Read a column of times: numbers, or ISO 8601 texts, of which all or none have a time zone."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from datasite.data.numbers import to_numbers

if TYPE_CHECKING:
    from datasite.data.findings import Findings

_ZONE = re.compile(r"[T ]\d.*(?:[Zz]|[+-]\d{2}(?::?\d{2})?)$")
_WHAT_TO_WRITE = "is neither a number nor an ISO 8601 time such as 2024-05-01T13:30:00"


class Times:
    """Converts a file's times, chunk by chunk.

    What most of the first chunk's times are, numbers or texts, with a time zone or without, is what
    all must be. A text without a zone is taken for UTC.

    Args:
        column: Its name.
    """

    def __init__(self, column: str) -> None:
        self._column = column
        self._are_numbers: bool | None = None
        self._have_zones: bool | None = None

    def convert(self, values: pd.Series, findings: Findings) -> pd.Series:
        """Give float64 or UTC timestamps; what is neither is reported, and empty."""
        if pd.api.types.is_datetime64_any_dtype(values):
            return pd.to_datetime(values, utc=True)
        converted = self._converted(values)
        wrong = values[converted.isna() & values.notna()]
        findings.add_rows(
            wrong,
            lambda value: f"{value!r} {_WHAT_TO_WRITE}",
            column=self._column,
            rule="time",
        )
        if not pd.api.types.is_float_dtype(converted):
            self._require_one_kind_of_zone(values[converted.notna()], findings)
        return converted

    def _converted(self, values: pd.Series) -> pd.Series:
        numbers = to_numbers(values).replace([np.inf, -np.inf], np.nan)
        if self._are_numbers or values.isna().all():
            return numbers
        if self._are_numbers is None and numbers.notna().equals(values.notna()):
            self._are_numbers = True
            return numbers
        times = pd.to_datetime(values.astype(str), errors="coerce", format="ISO8601", utc=True)
        if self._are_numbers is None:
            self._are_numbers = bool(numbers.notna().sum() > times.notna().sum())
        return numbers if self._are_numbers else times

    def _require_one_kind_of_zone(self, texts: pd.Series, findings: Findings) -> None:
        has_zone = texts.map(lambda text: _ZONE.search(str(text)) is not None).astype(bool)
        if self._have_zones is None and len(texts):
            self._have_zones = bool(has_zone.mean() > 0.5)  # noqa: PLR2004 - most of them
        odd = texts[has_zone != self._have_zones]
        found, others = ("no", "one") if self._have_zones else ("a", "none")
        findings.add_rows(
            odd,
            lambda value: f"{value!r} has {found} time zone, the others have {others}",
            column=self._column,
            rule="zone",
        )
