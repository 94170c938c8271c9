"""A `TableReport` as text that a person reads at a glance, within `WIDTH` columns."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from core.schema import Column
    from datasite.data.table import TableReport

WIDTH = 100

_MAX_MACHINES = 8


def render(report: TableReport) -> str:
    """Give the verdict, then what was found, then what is wrong; no line break at the end."""
    verdict = "good"
    if report.violation_count:
        verdict = f"{report.violation_count:,} violation(s); it cannot be registered"
    sections = [
        [f"{report.source}: {verdict}"],
        list(_summary(report)),
        list(_columns(report)),
        list(_machines(report)),
        list(_violations(report)),
    ]
    return "\n\n".join("\n".join(section) for section in sections if section)


def _summary(report: TableReport) -> Iterable[str]:
    yield f"rows        {report.rows:,} in {report.windows:,} windows"
    yield f"machines    {len(report.balance):,}"
    if report.span is not None:
        yield f"time        {report.span[0]} to {report.span[1]}"
        yield f"duplicates  {report.duplicates:,}"
    if report.label_rate is not None:
        failures = sum(ones for _, ones in report.balance.values())
        ahead = f", within {report.horizon_steps:,} steps" if report.horizon_steps else ""
        yield f"failures    {failures:,} ({report.label_rate:.2%}){ahead}"
    if report.ignored:
        yield from _wrapped(f"ignored     {', '.join(report.ignored)}", indent=12)


def _columns(report: TableReport) -> Iterable[str]:
    rows = [
        (
            column.name,
            _expected(column),
            _counted(report.missing[column.name], report.rows),
            f"{column.missing:.1%}",
            _counted(report.out_of_range[column.name], report.rows),
        )
        for column in report.sensors
    ]
    return _aligned([("column", "expected", "missing", "allowed", "out of range"), *rows])


def _expected(column: Column) -> str:
    if column.range is None:
        return textwrap.shorten(", ".join(column.values), 30, placeholder=" ...")
    low, high = column.range
    return f"{low:g} to {high:g} {column.unit}".rstrip()


def _counted(count: int, rows: int) -> str:
    return f"{count:,} ({count / rows:.1%})" if count else "0"


def _machines(report: TableReport) -> Iterable[str]:
    """List the machines, those with the fewest failures first: they are the hard ones to split."""
    if len(report.balance) <= 1:
        return
    hardest = sorted(report.balance.items(), key=lambda item: (item[1][1], item[0]))
    rows = [
        (_short(name), f"{zeros:,}", f"{ones:,}") for name, (zeros, ones) in hardest[:_MAX_MACHINES]
    ]
    yield from _aligned([("machine", "no failure", "failure"), *rows])
    if len(hardest) > _MAX_MACHINES:
        counts = np.array([pair for _, pair in hardest])
        sizes = counts.sum(axis=1)
        without = int((counts[:, 1] == 0).sum())
        yield f"and {len(hardest) - _MAX_MACHINES:,} more machines"
        yield (
            f"{without:,} of {len(hardest):,} machines have no failure; a machine has "
            f"{sizes.min():,} to {sizes.max():,} rows, {np.median(sizes):,.0f} at the median"
        )


def _violations(report: TableReport) -> Iterable[str]:
    for violation in report.violations:
        yield from _wrapped(violation.describe(report.place), indent=4)
    hidden = report.violation_count - len(report.violations)
    if hidden:
        yield f"and {hidden:,} more"


def _wrapped(text: str, *, indent: int) -> Iterable[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent=" " * indent, break_on_hyphens=False)


def _short(name: str) -> str:
    return textwrap.shorten(name, WIDTH // 2, placeholder="...") if len(name) > WIDTH // 2 else name


def _aligned(rows: Sequence[tuple[str, ...]]) -> Iterable[str]:
    """Align the first column to the left and the others to the right."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    for first, *rest in rows:
        numbers = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *numbers])
