"""`orchestrator audit`: what an auditor reads of a site."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from core.commands import echo_line, echo_table
from core.jsontext import as_json

if TYPE_CHECKING:
    from core.messages import AuditEntry, PlanRecord


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
    if as_lines:
        for row in rows:
            echo_line(row)
        return
    echo_table(
        ("seq", "at", "who", "action", "plan", "outcome", "detail"),
        [
            (
                row["seq"],
                row["at"][:19],
                _plain(row["who"]),
                _plain(row["action"]),
                _plain(row["plan_id"] or "")[:12],
                _plain(row["outcome"]),
                as_json(row["detail"]) if row["detail"] else "",
            )
            for row in rows
        ],
        empty="nothing has happened in that time",
    )


def _show_plans(plans: "list[PlanRecord]", *, as_lines: bool) -> None:
    if as_lines:
        for plan in plans:
            echo_line(plan)
        return
    echo_table(
        ("plan", "proposed", "researcher", "status", "decided by", "reason", "what"),
        [
            (
                _plain(plan["plan_id"])[:12],
                plan["proposed_at"][:19],
                _plain(plan["researcher"]),
                _plain(plan["status"]),
                _plain(plan["decided_by"]),
                _plain(plan["reason"]),
                as_json(plan["proposal"]),
            )
            for plan in plans
        ],
        empty="no plan was proposed",
    )


def _plain(text: str) -> str:
    """Give what others wrote so that it can neither move the cursor nor forge a line."""
    return as_json(text)[1:-1]
