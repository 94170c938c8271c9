"""`orchestrator audit`: what an auditor reads of a site."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from core.commands import echo_line, echo_table
from core.jsontext import as_json

if TYPE_CHECKING:
    from core.oversight_messages import AuditEntry, PlanRecord

T = TypeVar("T")


def audit(
    file: Annotated[Path, typer.Argument(help="The sites file.", show_default=False)],
    site: Annotated[str, typer.Option("--site", help="Which site of it.", show_default=False)],
    since: Annotated[
        datetime | None,
        typer.Option("--since", help="Show no rows from before this time, in UTC."),
    ] = None,
    plans: Annotated[bool, typer.Option("--plans", help="Show the plans instead.")] = False,
    as_lines: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
) -> None:
    """Read a site's audit log and check all of it here; exit code 1 when it was tampered with.

    The sites file must name the account of an auditor. Note the printed hash: with it you can
    later prove that no row was cut off the end.

    Example: orchestrator audit sites.yaml --site factory-1 --since 2026-01-31
    """
    from orchestrator.auditing import logged_in, read_log, read_plans

    with logged_in(file, site) as communication:
        if plans:
            _show_plans(read_plans(communication, site), as_lines=as_lines)
            return
        rows, (count, newest) = read_log(communication, site)
    shown = [row for row in rows if since is None or _at(row) >= since.replace(tzinfo=UTC)]
    _show_rows(shown, as_lines=as_lines)
    if not as_lines:
        typer.echo(f"{count} rows, all as they were written; newest hash {newest}")


def _at(row: "AuditEntry") -> datetime:
    return datetime.fromisoformat(row["at"])


def _show_rows(rows: "list[AuditEntry]", *, as_lines: bool) -> None:
    _show(
        rows,
        {
            "seq": lambda row: row["seq"],
            "at": lambda row: row["at"][:19],
            "who": lambda row: _plain(row["who"]),
            "action": lambda row: _plain(row["action"]),
            "plan": lambda row: _plain(row["plan_id"] or "")[:12],
            "outcome": lambda row: _plain(row["outcome"]),
            "detail": lambda row: as_json(row["detail"]) if row["detail"] else "",
        },
        as_lines=as_lines,
        empty="nothing has happened in that time",
    )


def _show_plans(plans: "list[PlanRecord]", *, as_lines: bool) -> None:
    _show(
        plans,
        {
            "plan": lambda plan: _plain(plan["plan_id"])[:12],
            "proposed": lambda plan: plan["proposed_at"][:19],
            "researcher": lambda plan: _plain(plan["researcher"]),
            "status": lambda plan: _plain(plan["status"]),
            "decided by": lambda plan: _plain(plan["decided_by"]),
            "reason": lambda plan: _plain(plan["reason"]),
            "what": lambda plan: as_json(plan["proposal"]),
        },
        as_lines=as_lines,
        empty="no plan was proposed",
    )


def _show(
    found: Sequence[T], columns: Mapping[str, Callable[[T], object]], *, as_lines: bool, empty: str
) -> None:
    if as_lines:
        for each in found:
            echo_line(each)
    else:
        rows = [[cell(each) for cell in columns.values()] for each in found]
        echo_table(tuple(columns), rows, empty=empty)


def _plain(text: str) -> str:
    """Give what others wrote so that it can neither move the cursor nor forge a line."""
    return as_json(text)[1:-1]
