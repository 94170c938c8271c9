"""How a run's results are shown to a person."""

from typing import Any, Final

import typer

from core.commands import echo_table

ORPHANED: Final = "orphaned: its process is gone; to go on: orchestrator resume"


def echo_results(results: dict[str, Any]) -> None:
    """Print how a run went, its last evaluation, and where its sites stand if not all are well."""
    from orchestrator.drift import DriftWarnings
    from orchestrator.privacy import LEVELS_IN_WORDS
    from orchestrator.private_runs import spent_in_words
    from orchestrator.report import metrics_table

    typer.echo(
        f"run {results['experiment_id']}: {results['status']}, "
        f"{len(results['rounds'])} of {results['rounds_planned']} rounds; in {results['folder']}"
    )
    if results["orphaned"]:
        typer.echo(f"  {ORPHANED} {results['experiment_id']}")
    if results["message"]:
        typer.echo(f"  {results['message']}")
    if results["start"] is not None:
        start = results["start"]
        typer.echo(f"started from {start['file']} (SHA-256 {start['sha256']})")
    if "privacy_level" in results:
        typer.echo(f"privacy level: {LEVELS_IN_WORDS[results['privacy_level']]}")
    drifts = DriftWarnings()
    for record in results["rounds"]:
        for line in drifts.of(record):
            typer.echo(f"  {line}")
    for line in spent_in_words(results["rounds"]):
        typer.echo(line)
    evaluated = [record for record in results["rounds"] if "global" in record]
    if evaluated:
        header, rows = metrics_table(evaluated[-1])
        typer.echo(f"global model after round {evaluated[-1]['round_num']}:")
        echo_table(header, rows, empty="")
    are_well = all(at["status"] == "ONLINE" for at in results["sites"].values())
    if results["sites"] and not (results["status"] == "COMPLETED" and are_well):
        echo_table(
            ("site", "status", "since", "message"),
            [
                (name, at["status"], at["since"][:19], first_line(at["message"]))
                for name, at in results["sites"].items()
            ],
            empty="",
        )


def first_line(text: str) -> str:
    """Give what fits into a table."""
    return (text.splitlines() or [""])[0]
