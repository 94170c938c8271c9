"""`orchestrator`: what a researcher does from a shell. Imports are late: `--help` is instant."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from core.commands import Debug, configure_logging, echo_json, echo_line, echo_table
from core.commands import run as run_app
from orchestrator.cli import certificates, testbed
from orchestrator.cli.audit import audit
from orchestrator.cli.results import ORPHANED, echo_results, first_line

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from orchestrator.experiment import CommunicationFactory
    from orchestrator.runs import RunStore

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(testbed.app, name="testbed")
app.add_typer(certificates.app, name="certificates")
app.command()(audit)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
RunsFolder = Annotated[
    Path, typer.Option("--runs", envvar="ORCHESTRATOR_RUNS", help="The folder of the runs.")
]
RunId = Annotated[str, typer.Argument(help="The run's id.", show_default=False)]
_RUNS = Path("runs")


@app.callback()
def prepare(debug: Debug = False) -> None:
    """Run federated experiments against live datasites."""
    configure_logging(debug=debug)


@app.command()
def run(
    experiment: Annotated[
        Path, typer.Argument(help="The experiment, as YAML.", show_default=False)
    ],
    run_id: Annotated[str, typer.Option("--run-id", help="By default name and time.")] = "",
    resumes: Annotated[
        bool,
        typer.Option("--resume-if-exists", help="Go on with the run of that id, if there is one."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run an experiment to its end; Ctrl-C stops it after the round, twice at once.

    Example: orchestrator run deploy/experiments/ai4i-fedavg.yaml
    """
    from core.exceptions import ConfigurationError
    from orchestrator.configuration import load_experiment
    from orchestrator.experiment import new_run_id
    from orchestrator.runs import RunStore

    if resumes and not run_id:
        message = "--resume-if-exists needs the --run-id of the run to go on with"
        raise ConfigurationError(message)
    config = load_experiment(experiment)
    store = RunStore(config.runs)
    name = run_id or new_run_id(config.name)
    if not (resumes and store.has(name)):
        store.create(name, config)
    elif store.config(name) != config:
        raise ConfigurationError(
            f"run {name!r} was begun with other settings than {experiment}; go on with what it was "
            f"begun with by 'orchestrator resume {name}', or choose another --run-id"
        )
    _run(store, name, as_json=as_json)


@app.command()
def resume(
    run_id: RunId,
    runs: RunsFolder = _RUNS,
    as_json: AsJson = False,
) -> None:
    """Go on with a run that stopped, from its last checkpoint.

    Example: orchestrator resume ai4i-fedavg-20260101-120000-3f2a
    """
    _run(_store(runs), run_id, as_json=as_json)


@app.command()
def cancel(run_id: RunId, runs: RunsFolder = _RUNS) -> None:
    """Stop a run at once, from another terminal; it can be resumed.

    The sites stop training for it within a second.

    Example: orchestrator cancel ai4i-fedavg-20260101-120000-3f2a
    """
    from orchestrator.cancelling import cancel as cancel_run

    store = _store(runs)
    cancel_run(store, run_id)
    row = store.find(run_id)
    typer.echo(f"run {run_id}: {row.status} {row.message}".rstrip())


@app.command(name="list")
def list_(runs: RunsFolder = _RUNS, as_json: AsJson = False) -> None:
    """List the runs, newest first.

    Example: orchestrator list
    """
    store = _store(runs)
    rows = store.all()
    orphaned = {row.run_id for row in rows if store.is_orphaned(row)}
    if as_json:
        echo_json(
            [
                {
                    "run": row.run_id,
                    "name": row.name,
                    "status": row.status,
                    "orphaned": row.run_id in orphaned,
                    "rounds_done": row.rounds_done,
                    "rounds": row.rounds,
                    "created_at": row.created_at,
                    "updated_at": row.updated_at,
                    "message": row.message,
                }
                for row in rows
            ]
        )
        return
    echo_table(
        ("run", "status", "rounds", "updated", "message"),
        [
            (
                row.run_id,
                row.status,
                f"{row.rounds_done}/{row.rounds}",
                row.updated_at[:19],
                ORPHANED if row.run_id in orphaned else first_line(row.message)[:60],
            )
            for row in rows
        ],
        empty=f"no runs in {runs}; start one with 'orchestrator run EXPERIMENT'",
    )


@app.command()
def show(
    run_id: RunId,
    runs: RunsFolder = _RUNS,
    export: Annotated[
        Path | None,
        typer.Option("--export", help="Write the rounds to this .json, .csv or .parquet file."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show where a run stands and what it found.

    Example: orchestrator show ai4i-fedavg-20260101-120000-3f2a --export rounds.csv
    """
    results = _store(runs).results(run_id)
    if export is not None:
        from orchestrator.metrics import export_rounds

        export_rounds(results["rounds"], export)
    if as_json:
        echo_json(results)
    else:
        echo_results(results)


@app.command()
def sites(
    file: Annotated[Path, typer.Argument(help="The sites file.", show_default=False)],
    as_json: AsJson = False,
    keep_watching: Annotated[
        bool, typer.Option("--watch", help="Log who answers, and each change, until stopped.")
    ] = False,
    every_s: Annotated[
        float, typer.Option("--every", min=1, help="With --watch: seconds between two looks.")
    ] = 15.0,
) -> None:
    """Log in to every site of a sites file and say what each offers; exit code 2 if one fails.

    Example: orchestrator sites .testbed/sites.yaml
    """
    from core.exceptions import CommunicationError
    from orchestrator.survey import survey, watch

    if keep_watching:
        watch(file, every_s=every_s)
    found = survey(file)
    if as_json:
        echo_json(found)
    else:
        echo_table(
            ("site", "status", "url", "datasets", "version", "message"),
            [
                (s["site_id"], s["status"], s["url"], s["datasets"], s["version"], s["message"])
                for s in found
            ],
            empty="",
        )
    if any(site["message"] for site in found):
        raise typer.Exit(CommunicationError.exit_code)


@app.command()
def doctor(
    file: Annotated[
        Path | None, typer.Argument(help="The sites file, to visit its sites.", show_default=False)
    ] = None,
    runs: RunsFolder = _RUNS,
    as_json: AsJson = False,
) -> None:
    """Check this machine and every site, and say what to do about each failure; exit code 0 or 1.

    A site is reached, asked for its health and its clock, logged in to, and asked what it offers.

    Example: orchestrator doctor .testbed/sites.yaml
    """
    from core.checkup import as_rows
    from core.commands import echo_findings
    from orchestrator.doctor import examine

    echo_findings(as_rows(examine(file, runs)), as_json=as_json)


@app.command()
def algorithms(
    name: Annotated[str, typer.Argument(help="Tell all of this one.", show_default=False)] = "",
    as_json: AsJson = False,
) -> None:
    """List the algorithms and the ways to combine updates, or tell one with its equations.

    Example: orchestrator algorithms feddyn
    """
    from orchestrator.catalogue import (
        describe_aggregations,
        describe_algorithm,
        describe_algorithms,
    )

    if name:
        found = describe_algorithm(name)
        if as_json:
            echo_json(found)
            return
        typer.echo(found["text"] + "\n")
        header = ("hyper-parameter", "default", "range", "meaning")
        rows = [
            (h["name"], h["default"], h["range"], h["description"])
            for h in found["hyperparameters"]
        ]
        echo_table(header, rows, empty="no hyper-parameters")
        typer.echo(f"aggregation: {found['aggregation']}; training: {found['needs'] or 'any'}")
        return
    known, ways = describe_algorithms(), describe_aggregations()
    if as_json:
        echo_json({"algorithms": known, "aggregations": ways})
        return
    echo_table(
        ("algorithm", "hyper-parameters", "aggregation", "training", "what it does"),
        [
            (
                a["name"],
                _named(a["hyperparameters"]),
                a["aggregation"],
                a["needs"] or "any",
                a["summary"],
            )
            for a in known
        ],
        empty="",
    )
    typer.echo("")
    echo_table(
        ("aggregation", "options", "what it does"),
        [(way["name"], _named(way["options"]), way["summary"]) for way in ways],
        empty="",
    )
    typer.echo("one of them with equations, ranges and source: orchestrator algorithms NAME")


@app.command()
def models(as_json: AsJson = False) -> None:
    """List the models and their options, those that other packages add among them.

    Example: orchestrator models
    """
    from dataclasses import asdict

    from core.models import broken_models, describe_models

    known = describe_models()
    if as_json:
        echo_json([asdict(model) for model in known])
        return
    rows = [
        (
            model.name,
            ", ".join(f"{name}={option.default}" for name, option in model.options.items()),
            model.source,
            model.summary,
        )
        for model in known
    ]
    echo_table(("model", "options", "from", "what it is"), rows, empty="")
    for name, why in broken_models().items():
        typer.echo(f"{name} is registered and cannot be used: {why}")


def _named(options: list[dict[str, Any]]) -> str:
    return ", ".join(f"{o['name']}={o['default']}" for o in options if o["default"] is not None)


def _run(store: "RunStore", run_id: str, *, as_json: bool) -> None:
    from orchestrator.experiment import ExperimentOrchestrator
    from orchestrator.halting import Halt, stopped_by_signals
    from orchestrator.progress import best_observer

    halt = Halt()
    observer = best_observer(as_json=as_json)
    with (
        _transport(store, run_id) as communicate,
        stopped_by_signals(halt, lambda words: typer.echo(words, err=True)),
    ):
        orchestrator = ExperimentOrchestrator(communicate, store, observer, halt)
        results = orchestrator.run_experiment(run_id)
    if as_json:
        echo_line({"event": "results", **results})
    else:
        echo_results(results)


def _transport(store: "RunStore", run_id: str) -> "AbstractContextManager[CommunicationFactory]":
    """Give the way to the sites of a run, which ends with the context."""
    from orchestrator.simulation import Transport

    if store.config(run_id).transport is Transport.MEMORY:
        from orchestrator.communication.simulated import over_memory

        return over_memory(store.folder(run_id))
    from orchestrator.communication.live import over_pysyft

    return nullcontext(over_pysyft)


def _store(runs: Path) -> "RunStore":
    from orchestrator.runs import RunStore

    return RunStore(runs)


def main() -> NoReturn:
    """Run the command and end the process with its exit code."""
    run_app(app)
