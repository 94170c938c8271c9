"""`datasite audit`: what was done, by whom, and that nobody changed the record of it."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import click
import typer

from core.commands import echo_json, echo_table
from datasite.cli.foreign import plain
from datasite.cli.options import AsJson, ConfigFile, open_records

if TYPE_CHECKING:
    from datetime import datetime

    from datasite.audit import Written

app = typer.Typer(help="Read and check the audit log.", no_args_is_help=True)

_COLUMNS = ("seq", "at (UTC)", "who", "action", "plan", "data", "code", "bytes", "outcome", "more")
_OWN_COLUMN = frozenset({"dataset", "data_version", "code_hash", "bytes_out"})
_HASH_DIGITS = 64
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


@app.command()
def show(
    config: ConfigFile,
    since: Annotated[
        str, typer.Option("--since", help="From this time (UTC) on, or so long back: 30m, 2h, 7d.")
    ] = "",
    plan: Annotated[str, typer.Option("--plan", help="Of the plans whose id starts so.")] = "",
    who: Annotated[str, typer.Option("--who", help="Of this account only.")] = "",
    limit: Annotated[
        int, typer.Option("--limit", "--last", min=1, help="Only the newest so many.")
    ] = 50,
    as_json: AsJson = False,
) -> None:
    """Show the newest entries, oldest of them first.

    Example: datasite audit show --since 2h --plan 3f2a -c site.yaml
    """
    from datasite import audit

    begin = _time(since) if since else None
    with open_records(config).ledger.read() as session:
        rows = audit.find(session, limit=limit, since=begin, plan_id=plan or None, who=who or None)
    if as_json:
        echo_json(rows)
    else:
        echo_table(_COLUMNS, [_cells(row) for row in rows], empty="there is no such entry")


@app.command()
def export(
    config: ConfigFile,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write this file; by default standard output.")
    ] = None,
) -> None:
    """Write the whole log as JSON lines, which 'verify --file' checks anywhere.

    Example: datasite audit export --out audit.jsonl -c site.yaml
    """
    from datasite import audit

    with open_records(config).ledger.read() as session, _written_to(out) as lines:
        for row in audit.written(session):
            lines.write(json.dumps(row) + "\n")


@app.command()
def verify(
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", envvar="DATASITE_CONFIG", help="The site's site.yaml."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="Check this export instead, without a site.")
    ] = None,
    anchor: Annotated[
        str, typer.Option("--anchor", help="What 'head' printed at some time, or its hash.")
    ] = "",
) -> None:
    """Check that no entry was changed, removed, moved or put in; exit code 1 when one was.

    With an anchor also that none of the entries up to it was cut off the end, or written anew.

    Example: datasite audit verify --anchor 12:9c1b... -c site.yaml
    """
    from datasite import audit

    noted = audit.Anchor.parse(anchor) if anchor else None
    if file is not None:
        found = audit.verify(audit.exported(file), noted)
    elif config is not None:
        with open_records(config).ledger.read() as session:
            found = audit.verify(audit.written(session), noted)
    else:
        raise click.MissingParameter(param_hint="'--config' / '-c'", param_type="option")
    reached = ", and the anchor is among them" if noted else ""
    typer.echo(
        f"{found.count} entries, all as they were written{reached}; newest hash {found.sha256}"
    )


@app.command()
def head(config: ConfigFile) -> None:
    """Print the anchor of the log: keep it where nobody who can write the site's files can.

    Example: datasite audit head -c site.yaml
    """
    from datasite import audit

    with open_records(config).ledger.read() as session:
        typer.echo(str(audit.head(session)))


def _time(text: str) -> "datetime":
    """Read a time, or how long ago it was."""
    from datetime import UTC, datetime, timedelta

    number, unit = text[:-1], text[-1:]
    if number.isascii() and number.isdigit() and unit in _UNITS_S:
        try:
            return datetime.now(UTC) - timedelta(seconds=int(number) * _UNITS_S[unit])
        except OverflowError:
            return datetime.min.replace(tzinfo=UTC)
    try:
        time = datetime.fromisoformat(text)
    except ValueError as exc:
        message = f"{text!r} is no time; expected one as 2026-11-24T08:00, or 30m, 2h, 7d"
        raise click.BadParameter(message, param_hint="'--since'") from exc
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _cells(row: "Written") -> tuple[object, ...]:
    detail: dict[str, Any] = row["detail"]
    data = f"{detail['dataset']} v{detail['data_version']}" if "data_version" in detail else ""
    more = [f"{name}={_value(detail[name])}" for name in detail if name not in _OWN_COLUMN]
    return (
        row["seq"],
        row["at"][:19],
        plain(row["who"]),
        plain(row["action"]),
        plain((row["plan_id"] or "")[:12]),
        plain(data),
        plain(str(detail.get("code_hash", ""))[:12]),
        detail.get("bytes_out", ""),
        plain(row["outcome"]),
        plain(", ".join(more)),
    )


def _value(value: object) -> str:
    if isinstance(value, str):
        is_hash = len(value) == _HASH_DIGITS and " " not in value
        return value[:12] if is_hash else value
    return json.dumps(value)


@contextmanager
def _written_to(out: Path | None) -> Iterator[TextIO]:
    from core.exceptions import ConfigurationError

    if out is None:
        yield sys.stdout
        return
    try:
        with out.open("w", encoding="utf-8") as lines:
            yield lines
    except OSError as exc:
        raise ConfigurationError(f"--out: {out}: {exc.strerror}") from exc
