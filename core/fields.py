"""What the fields of messages are made of: numbers and texts with their bounds."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import ConfigDict, Field

STRICT: Final = ConfigDict(arbitrary_types_allowed=True, extra="forbid", strict=True)

Count = Annotated[int, Field(ge=0, le=2**53)]
"""Beyond 2^53 a float is no longer exact, and sums over sites would leave 64 bits."""

Text = Annotated[str, Field(max_length=256)]
"""A name or an id: what is kept in ledgers and shown on screens has a bound."""

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
