"""The whole story in one command, by the same doors that everybody uses.

Sites come up as processes; sample data are registered through the operator's command; a federated
run and, for comparison, a run for each site that trains alone go over PySyft; sites go down.
"""

import json
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import typer

from core.commands import echo_table
from core.configuration import parse, read_yaml
from core.enums import DataDistribution
from orchestrator.communication.live import over_pysyft
from orchestrator.configuration import ExperimentConfig
from orchestrator.experiment import ExperimentOrchestrator, new_run_id
from orchestrator.observer import Observer
from orchestrator.participation import Participation
from orchestrator.progress import best_observer
from orchestrator.report import comparison_table
from orchestrator.runs import RunStore
from orchestrator.testbed.presets import AI4I_EXPERIMENT, AI4I_SCHEMA
from orchestrator.testbed.processes import Testbed, run_datasite
from orchestrator.testbed.samples import load_table, write_samples

_DATASET = "ai4i"


def demonstrate(
    *, sites: int, rounds: int, source: Path | None, folder: Path | None, runs: Path, seed: int
) -> None:
    """Run the demonstration; whatever ends it, no process and no temporary folder is left."""
    with _testbed(sites, folder) as testbed:
        _register_samples(testbed, sites=sites, source=source, seed=seed)
        config = _experiment(testbed, rounds=rounds, runs=runs, seed=seed)
        store = RunStore(runs)
        typer.echo(f"\ntraining one global model at {sites} sites, {rounds} rounds of FedAvg:")
        federated = _run(config, store, best_observer(as_json=False))
        typer.echo("\ntraining at each site alone, for comparison ...")
        alone = _run_alone(config, store, testbed)
    models = {**alone, "federated (FedAvg)": federated["metrics"]["final"]}
    typer.echo("\nscores on the test parts of all sites together, then at each site:")
    header, rows = comparison_table(models)
    echo_table(header, rows, empty="")
    typer.echo(
        f"\nthe run lies in {federated['folder']} (orchestrator show {federated['experiment_id']})"
    )


@contextmanager
def _testbed(sites: int, folder: Path | None) -> Iterator[Testbed]:
    """Give a running testbed that is gone afterwards, also when the command is told to stop."""
    place = folder or Path(tempfile.mkdtemp(prefix="testbed-"))
    testbed = Testbed(place)
    with _terminated_like_interrupted():
        try:
            typer.echo(f"starting {sites} sites in {testbed.folder} ...")
            for site in testbed.up(sites):
                typer.echo(f"  {site.site_id} answers at {site.url} (process {site.pid})")
            yield testbed
        finally:
            if (testbed.folder / "testbed.json").exists():
                testbed.down()
                typer.echo("sites are down")
            if folder is None:
                shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, with everything taken down."""

    def interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    kept = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, kept)


def _register_samples(testbed: Testbed, *, sites: int, source: Path | None, seed: int) -> None:
    """Write and register one table a site, where none was registered before."""
    table = load_table(source, rows=10_000, seed=seed)
    folder = testbed.folder / "samples"
    paths = write_samples(table, folder, sites=sites, distribution=DataDistribution.IID, seed=seed)
    for path in paths:
        config = ("--config", str(testbed.config_file(path.stem)))
        registered = json.loads(run_datasite("data", "list", "--json", *config))
        if any(dataset["name"] == _DATASET for dataset in registered):
            continue
        contract = ("--schema", str(AI4I_SCHEMA), "--name", _DATASET)
        said = run_datasite("data", "register", str(path), *contract, *config)
        typer.echo(f"  {path.stem}: {said.strip()}")


def _experiment(testbed: Testbed, *, rounds: int, runs: Path, seed: int) -> ExperimentConfig:
    settings = {
        **read_yaml(AI4I_EXPERIMENT),
        "name": "demo",
        "sites": str(testbed.sites_file),
        "rounds": rounds,
        "runs": str(runs),
        "seed": seed,
    }
    return parse(settings, ExperimentConfig, source=str(AI4I_EXPERIMENT))


def _run_alone(
    config: ExperimentConfig, store: RunStore, testbed: Testbed
) -> Mapping[str, Mapping[str, Any]]:
    """Give the final metrics of each site's own model; the sites train at the same time."""
    configs = {
        site.site_id: config.model_copy(
            update={
                "name": f"demo-{site.site_id}-alone",
                "participation": Participation(sites=(site.site_id,)),
                "evaluation": config.evaluation.model_copy(update={"every": config.rounds}),
            }
        )
        for site in testbed.sites()
    }
    with ThreadPoolExecutor(max_workers=len(configs)) as pool:
        results = list(pool.map(lambda each: _run(each, store, Observer()), configs.values()))
    return {
        f"{site_id} alone": result["metrics"]["final"]
        for site_id, result in zip(configs, results, strict=True)
    }


def _run(config: ExperimentConfig, store: RunStore, observer: Observer) -> dict[str, Any]:
    run_id = new_run_id(config.name)
    store.create(run_id, config)
    return ExperimentOrchestrator(over_pysyft, store, observer).run_experiment(run_id)
