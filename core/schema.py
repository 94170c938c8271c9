"""The data contract of one dataset: columns, units, ranges, label, machine, time and window.

An operator writes it as YAML beside the data; the site checks every row against it; the researcher
sees it (and a mock made from it), so it must say nothing that is derived from the rows.

    name: press-line
    label: {column: failure}
    machine: {column: press_id}
    time: {column: minute}
    window_steps: 12
    columns:
      - {name: vibration, unit: mm/s, range: [0, 45]}
      - {name: oil, type: category, values: [mineral, synthetic]}
    derived:
      - {name: heat, of: [load, speed], formula: product, factor: 0.1, range: [0, 900]}
"""

import math
from enum import Enum
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ColumnType(Enum):
    """What a column holds; a category becomes one feature for each of its values."""

    FLOAT = "float"
    INTEGER = "integer"
    CATEGORY = "category"


class Formula(Enum):
    """How a derived column is computed, row by row, from the columns it names."""

    SUM = "sum"
    DIFFERENCE = "difference"
    PRODUCT = "product"
    RATIO = "ratio"


def _ascending(bounds: tuple[float, float]) -> tuple[float, float]:
    low, high = bounds
    if not (math.isfinite(low) and math.isfinite(high)):
        message = f"the bounds {low:g} and {high:g} must both be finite"
        raise ValueError(message)
    if not low < high:
        message = f"the lower bound {low:g} is not below the upper bound {high:g}"
        raise ValueError(message)
    return bounds


Range = Annotated[tuple[float, float], AfterValidator(_ascending)]
"""Smallest and largest value allowed, both included, in the column's unit."""


def _require_within(usual: Range | None, bounds: Range, name: str) -> None:
    if usual is not None and not bounds[0] <= usual[0] < usual[1] <= bounds[1]:
        message = f"column {name!r}: `usual` {list(usual)} is not within its `range` {list(bounds)}"
        raise ValueError(message)


class Column(_Strict):
    """One column of the file that the model sees.

    Attributes:
        name: As in the file's header.
        type: `float`, `integer` or `category`.
        unit: For people; free text such as `K` or `mm/s`.
        range: Required for numbers.
        usual: Where about 95 in 100 values of a number lie, from what is known of such machines and
            never from these rows: two deviations to either side of the middle. By it models scale
            a sensor where nothing of the rows may be told.
        values: Required for categories: every value that may occur.
        missing: Largest fraction of rows, in [0, 1), that may be empty. A model sees the middle of
            the range in their place, or no value at all of a category.
    """

    name: str = Field(min_length=1)
    type: ColumnType = ColumnType.FLOAT
    unit: str = ""
    range: Range | None = None
    usual: Range | None = None
    values: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    missing: float = Field(default=0.0, ge=0.0, lt=1.0)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.type is ColumnType.CATEGORY:
            if len(set(self.values)) < 2 or len(set(self.values)) != len(self.values):  # noqa: PLR2004
                message = (
                    f"column {self.name!r} is a category: give at least two different `values`"
                )
                raise ValueError(message)
            if self.range is not None or self.usual is not None:
                message = f"column {self.name!r} is a category: it has `values`, not a `range`"
                raise ValueError(message)
        elif self.range is None:
            message = f"column {self.name!r} is a number: give its `range` as [lowest, highest]"
            raise ValueError(message)
        elif self.type is ColumnType.INTEGER and math.ceil(self.range[0]) > self.range[1]:
            message = f"column {self.name!r} is an integer: its `range` holds no whole number"
            raise ValueError(message)
        elif self.values:
            message = f"column {self.name!r} is a number: it has a `range`, not `values`"
            raise ValueError(message)
        else:
            _require_within(self.usual, self.range, self.name)
        return self


class DerivedColumn(_Strict):
    """A feature computed from number columns: `factor` times the `formula` of the columns `of`.

    A ratio by zero counts as the nearer end of `range`, zero by zero as its middle.
    """

    name: str = Field(min_length=1)
    of: tuple[str, ...] = Field(min_length=2)
    formula: Formula
    factor: float = Field(default=1.0, allow_inf_nan=False)
    unit: str = ""
    range: Range
    usual: Range | None = None

    @model_validator(mode="after")
    def _two_for_a_difference(self) -> Self:
        if self.formula in {Formula.DIFFERENCE, Formula.RATIO} and len(self.of) != 2:  # noqa: PLR2004
            message = (
                f"derived column {self.name!r}: a {self.formula.value} takes exactly two columns"
            )
            raise ValueError(message)
        _require_within(self.usual, self.range, self.name)
        return self


class Label(_Strict):
    """The column to predict: 0 (no failure) or 1 (failure).

    Attributes:
        column: Its name in the file.
        horizon_steps: For people: how far ahead the label looks, in time steps. The rows are not
            relabelled: a 1 already says that the failure comes within so many steps.
        rate: Expected fraction of failures, for the mock data: a round number from experience,
            never computed from rows.
    """

    column: str = Field(min_length=1)
    horizon_steps: int = Field(default=0, ge=0)
    rate: float = Field(default=0.05, gt=0.0, lt=1.0)


class ColumnName(_Strict):
    """Names one column."""

    column: str = Field(min_length=1)


class DataSchema(_Strict):
    """Everything both sides know of a dataset without looking at a row.

    Attributes:
        machine: The column that tells machines apart; without it, all rows are one machine's.
        time: The column that orders the rows of a machine; without it, the order of the file.
        window_steps: Consecutive rows of one machine that the model sees at once; the label is that
            of the last. 1 means that rows are independent.
    """

    name: str = Field(min_length=1)
    description: str = ""
    label: Label
    machine: ColumnName | None = None
    time: ColumnName | None = None
    window_steps: int = Field(default=1, ge=1)
    columns: tuple[Column, ...] = Field(min_length=1)
    derived: tuple[DerivedColumn, ...] = ()

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        names = [column.name for column in self.columns] + [column.name for column in self.derived]
        special = [self.label.column] + [c.column for c in (self.machine, self.time) if c]
        repeated = sorted({name for name in names + special if (names + special).count(name) > 1})
        if repeated:
            message = f"named more than once: {', '.join(map(repr, repeated))}"
            raise ValueError(message)
        repeated = sorted({name for name in self.features if self.features.count(name) > 1})
        if repeated:
            message = f"two features have the same name: {', '.join(map(repr, repeated))}"
            raise ValueError(message)
        numbers = {column.name for column in self.columns if column.type is not ColumnType.CATEGORY}
        for derived in self.derived:
            unknown = [name for name in derived.of if name not in numbers]
            if unknown:
                message = (
                    f"derived column {derived.name!r} uses {', '.join(map(repr, unknown))}, "
                    "which is no number column of this schema"
                )
                raise ValueError(message)
        return self

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the model's inputs, in order; a category gives one (`Type=L`) for each value."""
        names: list[str] = []
        for column in self.columns:
            if column.type is ColumnType.CATEGORY:
                names.extend(f"{column.name}={value}" for value in column.values)
            else:
                names.append(column.name)
        return (*names, *(column.name for column in self.derived))

    @property
    def ranges(self) -> tuple[tuple[float, float], ...]:
        """Lowest and highest value of each feature, in the order of `features`."""
        bounds: list[tuple[float, float]] = []
        for column in self.columns:
            if column.range is None:
                bounds.extend((0.0, 1.0) for _ in column.values)
            else:
                bounds.append(column.range)
        return (*bounds, *(column.range for column in self.derived))

    @property
    def usual(self) -> tuple[tuple[float, float] | None, ...]:
        """Where most values of each feature lie, in the order of `features`; None where unsaid."""
        of_columns: list[tuple[float, float] | None] = []
        for column in self.columns:
            of_columns.extend([column.usual] * max(1, len(column.values)))
        return (*of_columns, *(column.usual for column in self.derived))
