"""What the fields of messages are made of: numbers and texts with their bounds."""

from __future__ import annotations

import json
from typing import Annotated, Final

from pydantic import AfterValidator, ConfigDict, Field

STRICT: Final = ConfigDict(
    allow_inf_nan=False, arbitrary_types_allowed=True, extra="forbid", strict=True
)
"""Numbers are finite: JSON has no word for others, but `1e999` is one."""


def _can_be_told(facts: dict[str, object]) -> dict[str, object]:
    json.dumps(facts, allow_nan=False)
    return facts


Count = Annotated[int, Field(ge=0, le=2**53)]
"""Beyond 2^53 a float is no longer exact, and sums over sites would leave 64 bits."""

Text = Annotated[str, Field(max_length=256)]
"""A name or an id: what is kept in ledgers and shown on screens has a bound."""

Facts = Annotated[dict[str, object], AfterValidator(_can_be_told)]
"""What JSON has words for: texts, finite numbers, true, false, null; lists and objects of them."""

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
