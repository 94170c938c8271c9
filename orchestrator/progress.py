"""Three ways to watch a run: a live display, plain lines, JSON lines."""

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from core.enums import ExperimentStatus
from core.jsontext import as_json
from core.privacy_messages import PrivacyAccount
from orchestrator.drift import DriftWarnings
from orchestrator.naming import listed
from orchestrator.observer import Observer
from orchestrator.private_runs import in_words

_ROUNDS_SHOWN = 8
_MISSING_SHOWN = 4


def best_observer(*, as_json: bool) -> Observer:
    """Give JSON lines when asked for, the live display on a terminal, else plain lines."""
    if as_json:
        return JsonLines(sys.stdout)
    return LiveDisplay() if sys.stdout.isatty() else PlainLines(sys.stdout)


class JsonLines(Observer):
    """One JSON object a line, each with an `event`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def connected(self, run_id: str, site_ids: Sequence[str], missing: Mapping[str, str]) -> None:
        """See `Observer`."""
        self._write("connected", run_id, sites=list(site_ids), missing=dict(missing))

    def waiting(self, run_id: str, site_ids: Sequence[str]) -> None:
        """See `Observer`."""
        self._write("waiting", run_id, sites=list(site_ids))

    def accounted(self, run_id: str, accounts: Mapping[str, PrivacyAccount]) -> None:
        """See `Observer`."""
        self._write("accounted", run_id, sites=dict(accounts))

    def away(self, run_id: str, away: Mapping[str, str], limit_s: float) -> None:
        """See `Observer`."""
        self._write("away", run_id, away=dict(away), limit_s=limit_s)

    def started(self, run_id: str, first_round: int, rounds: int) -> None:
        """See `Observer`."""
        self._write("started", run_id, first_round=first_round, rounds=rounds)

    def round_done(self, run_id: str, record: Mapping[str, Any]) -> None:
        """See `Observer`."""
        self._write("round", run_id, **record)

    def finished(self, run_id: str, status: ExperimentStatus, message: str) -> None:
        """See `Observer`."""
        self._write("finished", run_id, status=status.name, message=message)

    def _write(self, event: str, run_id: str, **facts: object) -> None:
        self._stream.write(as_json({"event": event, "run": run_id, **facts}) + "\n")
        self._stream.flush()


class PlainLines(Observer):
    """One line for each thing that happens; for logs and pipes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._drifts = DriftWarnings()

    def connected(self, run_id: str, site_ids: Sequence[str], missing: Mapping[str, str]) -> None:
        """See `Observer`."""
        self._write(f"run {run_id}: connected to {listed(site_ids, otherwise='no site')}")
        self._write_missing(missing)

    def waiting(self, run_id: str, site_ids: Sequence[str]) -> None:
        """See `Observer`."""
        self._write(f"run {run_id}: {_waiting(site_ids)}")

    def accounted(self, run_id: str, accounts: Mapping[str, PrivacyAccount]) -> None:
        """See `Observer`."""
        self._write(f"run {run_id}: differential privacy:")
        for line in in_words(accounts):
            self._write(f"  {line}")

    def away(self, run_id: str, away: Mapping[str, str], limit_s: float) -> None:
        """See `Observer`."""
        self._write(f"run {run_id}: {_away(away, limit_s)}")
        self._write_missing(away)

    def started(self, run_id: str, first_round: int, rounds: int) -> None:
        """See `Observer`."""
        self._write(f"run {run_id}: rounds {first_round} to {rounds - 1}")

    def round_done(self, run_id: str, record: Mapping[str, Any]) -> None:
        """See `Observer`."""
        del run_id
        cells = _cells(record)
        self._write(
            f"round {cells[0]:>4}  sites {cells[1]}  train loss {cells[2]}  loss {cells[3]}  "
            f"PR-AUC {cells[4]}  {cells[5]} s"
        )
        self._write_missing(record["missing"])
        for line in self._drifts.of(record):
            self._write(f"  {line}")

    def finished(self, run_id: str, status: ExperimentStatus, message: str) -> None:
        """See `Observer`."""
        first_line = message.splitlines()[0] if message else ""
        self._write(f"run {run_id}: {status.name}{': ' + first_line if first_line else ''}")

    def _write_missing(self, missing: Mapping[str, str]) -> None:
        for line in _missing(missing):
            self._write(f"  {line}")

    def _write(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()


class LiveDisplay(Observer):
    """A progress bar and the newest rounds, redrawn in place.

    Args:
        console: Where to draw; by default standard output.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
        )
        self._task = self._bar.add_task("connecting", total=None)
        self._records: list[Mapping[str, Any]] = []
        self._drifts = DriftWarnings()
        self._live = Live(console=self._console, refresh_per_second=8, transient=False)

    def connected(self, run_id: str, site_ids: Sequence[str], missing: Mapping[str, str]) -> None:
        """See `Observer`."""
        names = listed(site_ids, otherwise="no site")
        self._console.print(f"run [bold]{escape(run_id)}[/]: connected to {names}")
        self._print_missing(missing)

    def waiting(self, run_id: str, site_ids: Sequence[str]) -> None:
        """See `Observer`."""
        del run_id
        self._console.print(f"[yellow]{_waiting(site_ids)}[/]")

    def accounted(self, run_id: str, accounts: Mapping[str, PrivacyAccount]) -> None:
        """See `Observer`."""
        del run_id
        self._console.print("differential privacy:")
        for line in in_words(accounts):
            self._console.print(f"  {escape(line)}", highlight=False)

    def away(self, run_id: str, away: Mapping[str, str], limit_s: float) -> None:
        """See `Observer`."""
        del run_id
        self._console.print(f"[yellow]{escape(_away(away, limit_s))}[/]")
        self._print_missing(away)

    def started(self, run_id: str, first_round: int, rounds: int) -> None:
        """See `Observer`."""
        del run_id
        self._bar.update(self._task, description="round", total=rounds, completed=first_round)
        self._live.start()
        self._draw()

    def round_done(self, run_id: str, record: Mapping[str, Any]) -> None:
        """See `Observer`."""
        del run_id
        self._records = [*self._records, record][-_ROUNDS_SHOWN:]
        self._bar.update(self._task, completed=record["round_num"] + 1)
        self._print_missing(record["missing"])
        for line in self._drifts.of(record):
            self._console.print(f"  [yellow]{escape(line)}[/]", highlight=False)
        self._draw()

    def finished(self, run_id: str, status: ExperimentStatus, message: str) -> None:
        """See `Observer`."""
        self._live.stop()
        colour = "green" if status is ExperimentStatus.COMPLETED else "red"
        first_line = message.splitlines()[0] if message else ""
        self._console.print(
            f"run {escape(run_id)}: [{colour}]{status.name}[/] {escape(first_line)}"
        )

    def _print_missing(self, missing: Mapping[str, str]) -> None:
        for line in _missing(missing):
            who, is_missing, why = line.partition(" missing")
            shown = f"  [yellow]{escape(who)}{is_missing}[/]{escape(why)}"
            self._console.print(shown, highlight=False)

    def _draw(self) -> None:
        table = Table("round", "sites", "train loss", "loss", "PR-AUC", "seconds", box=None)
        for column in table.columns:
            column.justify = "right"
        for record in self._records:
            table.add_row(*_cells(record))
        self._live.update(Group(table, self._bar))


def _missing(missing: Mapping[str, str]) -> list[str]:
    """Say of the first few why they are missing, and count the rest, which the record names."""
    lines = [f"{site_id} is missing: {why}" for site_id, why in missing.items()]
    hidden = len(lines) - _MISSING_SHOWN
    if hidden <= 1:
        return lines
    return [*lines[:_MISSING_SHOWN], f"{hidden} more are missing"]


def _waiting(site_ids: Sequence[str]) -> str:
    return (
        f"waiting for the operators of {listed(site_ids)} to approve the plan "
        "('datasite plans list' there)"
    )


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _away(away: Mapping[str, str], limit_s: float) -> str:
    return f"too few sites: waiting for {listed(sorted(away))}, {limit_s:g} s at most"


def _cells(record: Mapping[str, Any]) -> tuple[str, str, str, str, str, str]:
    evaluated = record.get("global", {})
    answered = len(record["sites"])
    return (
        str(record["round_num"]),
        f"{answered}/{answered + len(record['missing'])}",
        _number(record["training"]["loss"]),
        f"{evaluated['loss']:.4f}" if evaluated else "-",
        f"{evaluated['pr_auc']:.4f}" if evaluated else "-",
        f"{record['seconds']['round']:.2f}",
    )
