"""A `TableReport` as text that a person reads at a glance."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from datasite.data.table import TableReport

_MAX_MACHINES = 20


def render(report: TableReport) -> str:
    """Give the verdict, then what was found, then what is wrong; no line break at the end."""
    verdict = "good"
    if report.violation_count:
        verdict = f"{report.violation_count} violation(s)"
    sections = [
        [f"{report.source}: {verdict}"],
        list(_summary(report)),
        list(_columns(report)),
        list(_machines(report)),
        list(_violations(report)),
    ]
    return "\n\n".join("\n".join(section) for section in sections if section)


def _summary(report: TableReport) -> Iterable[str]:
    yield f"rows      {report.rows:,} in {report.windows:,} windows"
    yield f"machines  {report.machines:,}"
    if report.span is not None:
        yield f"time      {report.span[0]} to {report.span[1]}"
    if report.label_rate is not None:
        failures = sum(ones for _, ones in report.balance.values())
        yield f"failures  {failures:,} ({report.label_rate:.2%})"
    if report.ignored:
        yield f"ignored   {', '.join(report.ignored)}"


def _columns(report: TableReport) -> Iterable[str]:
    rows = [
        (name, f"{empty:,}", f"{report.out_of_range[name]:,}")
        for name, empty in report.missing.items()
    ]
    return _aligned([("column", "missing", "out of range"), *rows])


def _machines(report: TableReport) -> Iterable[str]:
    """List the machines, those with the fewest failures first: they are the hard ones to split."""
    if report.machines <= 1:
        return
    hardest = sorted(report.balance.items(), key=lambda item: (item[1][1], item[0]))
    rows = [(name, f"{zeros:,}", f"{ones:,}") for name, (zeros, ones) in hardest[:_MAX_MACHINES]]
    yield from _aligned([("machine", "no failure", "failure"), *rows])
    if len(hardest) > _MAX_MACHINES:
        yield f"and {len(hardest) - _MAX_MACHINES} more machines"


def _violations(report: TableReport) -> Iterable[str]:
    for violation in report.violations:
        yield violation.describe(report.place)
    hidden = report.violation_count - len(report.violations)
    if hidden:
        yield f"and {hidden:,} more"


def _aligned(rows: Sequence[tuple[str, ...]]) -> Iterable[str]:
    """Align the first column to the left and the numbers to the right."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    for first, *rest in rows:
        numbers = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *numbers])
