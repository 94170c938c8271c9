"""`datasite audit`: what was done, by whom, and that nobody changed the record of it."""

import json
from typing import Annotated

import typer

from core.commands import echo_json, echo_table
from datasite.cli.foreign import plain
from datasite.cli.options import AsJson, ConfigFile, open_records

app = typer.Typer(help="Read and check the audit log.", no_args_is_help=True)


@app.command()
def show(
    config: ConfigFile,
    last: Annotated[int, typer.Option("--last", min=1, help="Only the newest so many.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Show the newest entries, oldest of them first.

    Example: datasite audit show --last 20 -c site.yaml
    """
    from sqlalchemy import select

    from datasite import audit
    from datasite.ledger import AuditRow

    with open_records(config).ledger.read() as session:
        newest = session.scalars(select(AuditRow).order_by(AuditRow.seq.desc()).limit(last))
        rows = [audit.as_json(row) for row in newest][::-1]
    if as_json:
        echo_json(rows)
        return
    echo_table(
        ("seq", "at", "who", "action", "plan", "outcome", "detail"),
        [
            (
                row["seq"],
                row["at"][:19],
                plain(row["who"]),
                row["action"],
                plain((row["plan_id"] or "")[:12]),
                row["outcome"],
                json.dumps(row["detail"]) if row["detail"] else "",
            )
            for row in rows
        ],
        empty="nothing has happened yet",
    )


@app.command()
def verify(config: ConfigFile) -> None:
    """Check that no entry was changed, removed or moved; exit code 1 when one was.

    Note the printed hash elsewhere: with it you can later prove that no entry was cut off the end.

    Example: datasite audit verify -c site.yaml
    """
    from datasite import audit

    with open_records(config).ledger.read() as session:
        count, head = audit.verify(session)
    typer.echo(f"{count} entries, all as they were written; newest hash {head}")
