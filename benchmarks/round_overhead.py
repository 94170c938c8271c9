"""What a round costs beside its training, over live PySyft sites as local processes.

    python benchmarks/round_overhead.py [--sites 4] [--rounds 50] [--json FILE]

1. Log-in to all sites at once: what a run pays before its first round.
2. The null objective: sites answer at once with changed parameters. A round is then all overhead:
   encoding, signing, carrying, checking, the sites' ledgers, aggregation.
3. Real training of the CNN on AI4I data: (round - slowest site's fit) / round. The round includes
   the evaluation at every site. All sites share this machine's cores.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from measuring import machine, print_table, spread, write_json

from core.configuration import parse, read_yaml
from core.enums import DataDistribution
from core.models import build_model
from core.parameters import count
from orchestrator.agreement import (
    agree_on_preprocessing,
    collect_statistics,
    describe_sites,
    find_dataset,
    model_spec,
    propose,
    require_alike,
)
from orchestrator.algorithms import Algorithm, FedAvg
from orchestrator.communication.live import over_pysyft
from orchestrator.configuration import ExperimentConfig
from orchestrator.experiment import new_run_id
from orchestrator.federation import load_federation
from orchestrator.fleet import Fleet
from orchestrator.metrics import MetricsCollector
from orchestrator.round import RoundContext, evaluate_at_sites, run_round
from orchestrator.schedule import Constant, LocalTraining
from orchestrator.testbed.presets import AI4I_EXPERIMENT, AI4I_SCHEMA
from orchestrator.testbed.processes import Testbed, run_datasite
from orchestrator.testbed.samples import load_table, write_samples

WARM_UP = 5
"""Rounds before counting: connections open, data prepared, libraries loaded."""


class Null(FedAvg):
    """FedAvg over sites that add a constant at once and look at no data."""

    objective = "probe"


def main() -> None:
    """Measure and print."""
    arguments = _arguments()
    with _sites(arguments.sites, arguments.source) as testbed:
        logins = [_log_in(testbed) for _ in range(5)]
        null = [
            _null(testbed, options, arguments.rounds)
            for options in ({"bins": 0}, {"channels": 256, "bins": 0})
        ]
        training = _training(testbed, arguments.training_rounds)
    results = {
        "machine": machine(),
        "sites": arguments.sites,
        "login_s": spread(logins[1:]),
        "first_login_s": logins[0],
        "null": null,
        "training": training,
    }
    _print(results)
    write_json(arguments.json, results)


def _log_in(testbed: Testbed) -> float:
    """Seconds to log in to every site at once."""
    config = _config(testbed, rounds=1)
    fleet = Fleet(over_pysyft(config), load_federation(config.sites).sites, attempts=1)
    begin = time.perf_counter()
    fleet.connect().require(len(fleet.site_ids), what="log-in")
    taken = time.perf_counter() - begin
    fleet.close()
    return taken


def _null(testbed: Testbed, options: dict[str, int], rounds: int) -> dict[str, Any]:
    config = _config(testbed, rounds=WARM_UP + rounds, model={"type": "cnn", "options": options})
    records = _rounds(config, Null, is_evaluated=False)[WARM_UP:]
    return {
        "parameters": records[0]["parameters"],
        "rounds": rounds,
        "round_ms": spread([1000 * record["seconds"]["round"] for record in records]),
        "of_it_at_sites_ms": spread([1000 * record["seconds"]["train"] for record in records]),
    }


def _training(testbed: Testbed, rounds: int) -> dict[str, Any]:
    config = _config(testbed, rounds=WARM_UP + rounds)
    records = _rounds(config, FedAvg, is_evaluated=True)[WARM_UP:]
    shares = [
        1 - record["training"]["slowest_fit_s"] / record["seconds"]["round"] for record in records
    ]
    return {
        "local_epochs": config.training.local_epochs,
        "rounds": rounds,
        "round_s": spread([record["seconds"]["round"] for record in records]),
        "slowest_fit_s": spread([record["training"]["slowest_fit_s"] for record in records]),
        "evaluate_s": spread([record["seconds"]["evaluate"] for record in records]),
        "overhead_share": spread(shares),
    }


def _rounds(
    config: ExperimentConfig, kind: type[Algorithm], *, is_evaluated: bool
) -> list[dict[str, Any]]:
    """Run all rounds of `config` and give their records."""
    fleet = Fleet(over_pysyft(config), load_federation(config.sites).sites, attempts=1)
    try:
        fleet.connect().require(len(fleet.site_ids), what="log-in")
        sites = describe_sites(fleet, fleet.site_ids).ok
        schema = require_alike(sites, config.dataset)
        model = build_model(
            model_spec(config), sensors=len(schema.features), window_steps=schema.window_steps
        )
        algorithm = kind(
            model.get_parameters(),
            config.algorithm,
            training=LocalTraining(
                settings=config.training_settings(), schedule=Constant(), rounds=config.rounds
            ),
            num_sites=len(fleet.site_ids),
        )
        spec = kind.spec(config.algorithm)
        plans = propose(fleet, sites, config, spec, run_id=new_run_id("benchmark"))
        plans.require(len(fleet.site_ids), what="proposal")
        plan_ids = {site_id: plan["plan_id"] for site_id, plan in plans.ok.items()}
        statistics = collect_statistics(fleet, plan_ids, fleet.site_ids)
        context = RoundContext(
            fleet=fleet,
            plan_ids=plan_ids,
            participants=tuple(fleet.site_ids),
            participation=config.participation,
            rows={s: find_dataset(sites[s], config.dataset)["rows"] for s in sites},
            min_sites=len(fleet.site_ids),
            seed=config.seed,
            model=model_spec(config),
            preprocessing=agree_on_preprocessing(
                list(statistics.ok.values()), config.training.positive_weight
            ),
            deadline_s=config.limits.call_s,
        )
        collector = MetricsCollector(
            (lambda r, m: evaluate_at_sites(r, m, context).ok) if is_evaluated else None
        )
        return [
            {
                **run_round(
                    round_num,
                    context=context,
                    algorithm=algorithm,
                    model=model,
                    collector=collector,
                ),
                "parameters": count(model.parameters()),
            }
            for round_num in range(config.rounds)
        ]
    finally:
        fleet.close()


@contextmanager
def _sites(number: int, source: Path | None) -> Iterator[Testbed]:
    """Give live sites with AI4I data registered, and take them away afterwards."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        testbed = Testbed(Path(folder) / "testbed")
        try:
            testbed.up(number)
            paths = write_samples(
                load_table(source, rows=10_000, seed=0),
                Path(folder) / "samples",
                sites=number,
                distribution=DataDistribution.IID,
                seed=0,
            )
            for path in paths:
                contract = ("--schema", str(AI4I_SCHEMA), "--name", "ai4i")
                config = ("--config", str(testbed.config_file(path.stem)))
                run_datasite("data", "register", str(path), *contract, *config)
            yield testbed
        finally:
            testbed.down()


def _config(testbed: Testbed, *, rounds: int, **changes: object) -> ExperimentConfig:
    settings = {
        **read_yaml(AI4I_EXPERIMENT),
        "sites": str(testbed.sites_file),
        "rounds": rounds,
        **changes,
    }
    return parse(settings, ExperimentConfig, source=str(AI4I_EXPERIMENT))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--sites", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=50, help="with the null objective")
    parser.add_argument("--training-rounds", type=int, default=15)
    parser.add_argument("--source", type=Path, help="the AI4I 2020 CSV; by default data like it")
    parser.add_argument("--json", type=Path, help="write the results here too")
    return parser.parse_args()


def _print(results: dict[str, Any]) -> None:
    print(f"{results['sites']} live sites; {results['machine']}")
    rows: list[Sequence[object]] = [
        ("log-in to all sites, s", *_cells(results["login_s"])),
        ("(the first also imports PySyft, s)", results["first_login_s"], "", ""),
    ]
    rows += [
        (f"null round, {null['parameters']:,} parameters, ms", *_cells(null["round_ms"]))
        for null in results["null"]
    ]
    training = results["training"]
    rows += [
        (f"training round ({training['local_epochs']} epochs), s", *_cells(training["round_s"])),
        ("slowest fit, s", *_cells(training["slowest_fit_s"])),
        ("evaluation at all sites, s", *_cells(training["evaluate_s"])),
        ("(round - slowest fit) / round", *_cells(training["overhead_share"])),
    ]
    print_table("What a round costs", ("", "min", "median", "max"), rows)


def _cells(values: dict[str, float]) -> tuple[float, float, float]:
    return values["min"], values["median"], values["max"]


if __name__ == "__main__":
    main()
