"""What was measured, one quantity a row: its spread, floor and target; and the table of them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from measuring import markdown_table

BEGIN: Final = "<!-- written by benchmarks/speed.py: begin -->"
END: Final = "<!-- written by benchmarks/speed.py: end -->"

FLOOR_NAMES: Final[Mapping[str, str]] = {
    "plain": "pipes, plain",
    "quickest": "pipes, quickest",
    "echo": "HTTP echo",
}
"""What the floors of `floor.py` are called."""

MOST_MODELS: Final = 6.0
"""Of an orchestrator's memory with 16 sites, in models: the target, and a line in the picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """The least that a quantity could be here, measured in the same run."""

    what: str
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is to be reached: the median, or its ratio to the floor, is at most this."""

    of: Literal["median", "ratio"]
    at_most: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """One row of the table.

    Attributes:
        part: The part of the benchmark that measured it.
        what: Its name, with where it was measured.
        unit: Of all its values; a share has none.
        spread: Least, median and greatest.
        floor: Where there is one.
        target: Where there is one.
    """

    part: str
    what: str
    unit: str
    spread: Mapping[str, float]
    floor: Floor | None = None
    target: Target | None = None

    @property
    def ratio(self) -> float | None:
        """The median over the floor."""
        return None if self.floor is None else self.spread["median"] / self.floor.value

    @property
    def is_met(self) -> bool | None:
        """Whether the target is; None without one."""
        if self.target is None:
            return None
        reached = self.spread["median"] if self.target.of == "median" else self.ratio
        if reached is None:
            raise ValueError(f"{self.what}: a target for the ratio needs a floor")
        return reached <= self.target.at_most

    def as_json(self) -> dict[str, Any]:
        """Give it with its ratio and whether the target is met."""
        return {**asdict(self), "ratio": self.ratio, "is_met": self.is_met}


def once(value: float) -> dict[str, float]:
    """Give the spread of what was measured one time."""
    return {"min": value, "median": value, "max": value}


def scaled(values: Mapping[str, float], factor: float) -> dict[str, float]:
    """Give a spread in another unit."""
    return {name: factor * value for name, value in values.items()}


def number_text(value: float) -> str:
    """Write a number with about three digits."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"  # noqa: PLR2004 - digits


def table(quantities: Sequence[Mapping[str, Any]]) -> str:
    """Give the quantities, as JSON has them, as a Markdown table."""
    header = ("", "median", "min – max", "floor", "× floor", "target", "met")
    return markdown_table(header, [_row(quantity) for quantity in quantities])


def write_into(path: Path, text: str, *, marks: tuple[str, str] = (BEGIN, END)) -> None:
    """Put `text` between the two marks in the file, in place of what is there; it may be a new one.

    Raises:
        ValueError: The file does not have both marks, in their order.
    """
    first, last = marks
    there = path.read_text(encoding="utf-8") if path.exists() else f"{first}\n{last}\n"
    before, begin, rest = there.partition(first)
    _, end, after = rest.partition(last)
    if not (begin and end):
        raise ValueError(f"{path} has no place for the table: {first} and, below it, {last}")
    path.write_text(f"{before}{first}\n\n{text}\n\n{last}{after}", encoding="utf-8")


def _row(quantity: Mapping[str, Any]) -> Sequence[str]:
    spread, floor, target, unit = (quantity[name] for name in ("spread", "floor", "target", "unit"))
    is_single = spread["min"] == spread["max"]
    return (
        f"{quantity['what']}{unit and ', ' + unit}",
        number_text(spread["median"]),
        "" if is_single else f"{number_text(spread['min'])} – {number_text(spread['max'])}",
        f"{number_text(floor['value'])} ({floor['what']})" if floor else "",
        f"{quantity['ratio']:.2f}" if floor else "",
        _target(target) if target else "",
        {True: "yes", False: "no", None: ""}[quantity["is_met"]],
    )


def _target(target: Mapping[str, Any]) -> str:
    most = f"≤ {target['at_most']:g}"
    return most if target["of"] == "median" else f"{most} × floor"
