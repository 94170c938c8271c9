"""Live PySyft sites as local processes for benchmarks, and rounds over them.

The functions that measure are to be called in a process of their own (see `apart`): what one
orchestrator has in memory, or has connected, is then nobody else's.
"""

import gc
import itertools
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from apart import forget_peak, peak_bytes, resident_bytes
from measuring import spread

from core.configuration import parse, read_yaml
from core.enums import DataDistribution
from core.models import build_model
from core.models.cnn import CNN
from core.parameters import count
from core.schema import DataSchema
from datasite.training.loop import NAME as TRAINER
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
from orchestrator.global_model import GlobalModel
from orchestrator.metrics import MetricsCollector
from orchestrator.privacy import SecureAggregation, secure_settings
from orchestrator.round import evaluate_at_sites, run_round
from orchestrator.round_context import RoundContext, SecureSum
from orchestrator.schedule import Constant, LocalTraining
from orchestrator.testbed.presets import AI4I_EXPERIMENT, AI4I_SCHEMA
from orchestrator.testbed.processes import Testbed, run_datasite
from orchestrator.testbed.samples import load_table, write_samples
from orchestrator.waiting import Waiting

WARM_UP: Final = 5
"""Rounds before counting: connections open, data prepared, libraries loaded."""


class Null(FedAvg):
    """FedAvg over sites that add a constant at once and look at no data."""

    objective = "probe"


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A CNN of a certain size: options without bins, and the parameters that it really has."""

    channels: int
    blocks: int
    parameters: int

    @property
    def options(self) -> dict[str, int]:
        """The model's options."""
        return {"channels": self.channels, "blocks": self.blocks, "bins": 0}


def size_near(parameters: int) -> Size:
    """Give the CNN on AI4I rows with about as many parameters.

    It is the one with the fewest blocks, from the usual number on, that comes within 1 %; where
    none does, the nearest.
    """
    blocks = CNN.OPTIONS["blocks"]
    nearest = None
    for number in range(blocks.default, blocks.maximum + 1):
        size = _nearest_width(parameters, number)
        if nearest is None or _distance(size, parameters) < _distance(nearest, parameters):
            nearest = size
        if _distance(nearest, parameters) <= parameters / 100:
            break
    if nearest is None:
        raise RuntimeError("a CNN has no number of blocks")
    return nearest


def _distance(size: Size, parameters: int) -> int:
    return abs(size.parameters - parameters)


def _nearest_width(parameters: int, blocks: int) -> Size:
    channels = CNN.OPTIONS["channels"]
    low, high = channels.minimum, channels.maximum
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (
            (middle, high) if _size(middle, blocks).parameters <= parameters else (low, middle)
        )
    return min(_size(low, blocks), _size(high, blocks), key=lambda s: _distance(s, parameters))


def _smallest_size() -> Size:
    return _size(CNN.OPTIONS["channels"].minimum, CNN.OPTIONS["blocks"].minimum)


def _size(channels: int, blocks: int) -> Size:
    schema = DataSchema.model_validate(read_yaml(AI4I_SCHEMA))
    with torch.device("meta"):  # shapes without memory
        model = CNN(
            sensors=len(schema.features),
            window_steps=schema.window_steps,
            classes=2,
            channels=channels,
            blocks=blocks,
            reach=CNN.OPTIONS["reach"].default,
            bins=0,
            centred=0,
        )
    return Size(channels=channels, blocks=blocks, parameters=count(model.parameters()))


@contextmanager
def live_sites(number: int, source: Path | None) -> Iterator[Testbed]:
    """Give live sites with AI4I data registered, and take them away afterwards.

    Args:
        number: How many.
        source: The AI4I 2020 CSV; None for data like it.
    """
    with (
        tempfile.TemporaryDirectory(prefix="benchmark-") as folder,
        running(Testbed(Path(folder) / "testbed"), number) as testbed,
    ):
        paths = write_samples(
            load_table(source, rows=10_000, seed=0),
            Path(folder) / "samples",
            sites=number,
            distribution=DataDistribution.IID,
            seed=0,
        )
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # the commands are processes
            list(pool.map(partial(_register, testbed), paths))
        yield testbed


def _register(testbed: Testbed, path: Path) -> None:
    contract = ("--schema", str(AI4I_SCHEMA), "--name", "ai4i")
    config = ("--config", str(testbed.config_file(path.stem)))
    run_datasite("data", "register", str(path), *contract, *config)


@contextmanager
def running(testbed: Testbed, number: int) -> Iterator[Testbed]:
    """Have the testbed up meanwhile; if it does not come up, it stops what it started."""
    testbed.up(number)
    try:
        yield testbed
    finally:
        testbed.down()


def measure_null(testbed: Testbed, size: Size, rounds: int, **changes: object) -> dict[str, Any]:
    """Time rounds whose sites answer at once with changed parameters; all of it is overhead.

    `changes` are made to the example experiment, as it is in YAML.

    Returns:
        `round_ms` and `of_it_at_sites_ms`; `sent_bytes` and `received_bytes` of a round, over all
        sites, or None where the rounds' records have no bytes; `orchestrator` (its memory, see
        `_orchestrator_memory`); `server_peak_bytes` and `trainer_peak_bytes` of the largest site.
    """
    config = _null_experiment(testbed, size, rounds, **changes)
    with _connected(config, testbed) as fleet:
        smallest = _null_experiment(testbed, _smallest_size(), 0, **changes)
        prepare(fleet, smallest, Null).run(WARM_UP, is_evaluated=False)
        gc.collect()
        before_model = resident_bytes()
        prepared = prepare(fleet, config, Null)
        before_rounds = resident_bytes()
        sites = site_processes(testbed)
        forget_peak()
        for pid in itertools.chain(*sites.values()):
            forget_peak(pid)
        records = prepared.run(config.rounds, is_evaluated=False)[WARM_UP:]
        memory = _orchestrator_memory(before_model, before_rounds, size)
        peaks = {f"{role}_peak_bytes": max(map(peak_bytes, pids)) for role, pids in sites.items()}
    return {
        **asdict(size),
        "rounds": rounds,
        "round_ms": spread([1000 * record["seconds"]["round"] for record in records]),
        "of_it_at_sites_ms": spread([1000 * record["seconds"]["train"] for record in records]),
        "sent_bytes": _bytes(records, "sent"),
        "received_bytes": _bytes(records, "received"),
        "orchestrator": memory,
        **peaks,
    }


def measure_training(testbed: Testbed, rounds: int) -> dict[str, Any]:
    """Time rounds of the example experiment: its CNN and its epochs, evaluated in every round.

    Returns:
        Seconds of a round, of its slowest fit and of the evaluation at all sites; and the share of
        a round that is not the slowest fit, without the evaluation and with it.
    """
    config = experiment(testbed, rounds=WARM_UP + rounds)
    with _connected(config, testbed) as fleet:
        prepared = prepare(fleet, config, FedAvg)
        records = prepared.run(config.rounds, is_evaluated=True)[WARM_UP:]
    return {
        "local_epochs": config.training.local_epochs,
        "rounds": rounds,
        "round_s": spread([record["seconds"]["round"] for record in records]),
        "slowest_fit_s": spread([record["training"]["slowest_fit_s"] for record in records]),
        "evaluate_s": spread([record["seconds"]["evaluate"] for record in records]),
        "overhead_share": spread([_overhead(record, "evaluate") for record in records]),
        "overhead_with_evaluation_share": spread([_overhead(record) for record in records]),
    }


def _overhead(record: dict[str, Any], *without: str) -> float:
    seconds = record["seconds"]
    whole = seconds["round"] - sum(seconds[phase] for phase in without)
    return float(1 - record["training"]["slowest_fit_s"] / whole)


def measure_logins(testbed: Testbed, repeats: int) -> list[float]:
    """Give the seconds of log-ins to all sites at once; the first also imports PySyft."""
    config = experiment(testbed, rounds=1)
    taken = []
    for _ in range(1 + repeats):
        begin = time.perf_counter()
        with _connected(config, testbed):
            taken.append(time.perf_counter() - begin)
    return taken


def experiment(testbed: Testbed, *, rounds: int, **changes: object) -> ExperimentConfig:
    """Give the example experiment over the sites of `testbed`."""
    settings = {
        **read_yaml(AI4I_EXPERIMENT),
        "sites": str(testbed.sites_file),
        "rounds": rounds,
        **changes,
    }
    return parse(settings, ExperimentConfig, source=str(AI4I_EXPERIMENT))


def _null_experiment(
    testbed: Testbed, size: Size, rounds: int, **changes: object
) -> ExperimentConfig:
    model = {"type": "cnn", "options": size.options}
    return experiment(testbed, rounds=WARM_UP + rounds, model=model, **changes)


@contextmanager
def _connected(config: ExperimentConfig, testbed: Testbed) -> Iterator[Fleet]:
    fleet = Fleet(over_pysyft(config), load_federation(testbed.sites_file).sites, attempts=1)
    try:
        fleet.connect().require(len(fleet.site_ids), what="log-in")
        yield fleet
    finally:
        fleet.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A run before its first round."""

    context: RoundContext
    algorithm: Algorithm
    model: GlobalModel

    def run(self, rounds: int, *, is_evaluated: bool) -> list[dict[str, Any]]:
        """Run the rounds and give their records."""
        collector = MetricsCollector(
            (lambda r, _: evaluate_at_sites(r, self.algorithm.broadcast(), self.context).ok)
            if is_evaluated
            else None
        )
        return [
            run_round(
                round_num,
                context=self.context,
                algorithm=self.algorithm,
                model=self.model,
                collector=collector,
            )
            for round_num in range(rounds)
        ]


def prepare(
    fleet: Fleet, config: ExperimentConfig, kind: type[Algorithm], *, min_sites: int | None = None
) -> Prepared:
    """Agree on everything with the sites, which train as `kind` has it."""
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
    held = GlobalModel(model, algorithm.broadcast())
    spec = kind.spec(config.algorithm)
    run_id, secure = new_run_id("benchmark"), None
    if isinstance(config.privacy, SecureAggregation):
        secure = secure_settings(
            config.privacy,
            roster={site_id: site["identity_key"] for site_id, site in sites.items()},
            drawn=len(sites),
            weighting=kind.weighting(config.algorithm),
        )
    plans = propose(fleet, sites, config, spec, run_id=run_id, secure=secure)
    plans.require(len(fleet.site_ids), what="proposal")
    plan_ids = {site_id: plan["plan_id"] for site_id, plan in plans.ok.items()}
    statistics = collect_statistics(fleet, plan_ids, fleet.site_ids)
    context = RoundContext(
        fleet=fleet,
        plan_ids=plan_ids,
        participants=tuple(fleet.site_ids),
        participation=config.participation,
        rows={s: find_dataset(sites[s], config.dataset)["rows"] for s in sites},
        min_sites=min_sites or len(fleet.site_ids),
        seed=config.seed,
        model=model_spec(config),
        preprocessing=agree_on_preprocessing(
            list(statistics.ok.values()), config.training.positive_weight
        ),
        deadline_s=config.limits.call_s,
        waiting=Waiting(fleet=fleet, limit_s=0.0, tell=lambda _away, _limit_s: None),
        secure=secure and SecureSum(run_id=run_id, settings=secure),
    )
    return Prepared(context=context, algorithm=algorithm, model=held)


def site_processes(testbed: Testbed) -> dict[str, list[int]]:
    """Give the pids of the sites' servers, and of their trainers."""
    servers = [process for site in testbed.sites() if (process := site.process()) is not None]
    return {
        "server": [server.pid for server in servers],
        "trainer": [
            child.pid
            for server in servers
            for child in server.children()
            if child.name() == TRAINER
        ],
    }


def _orchestrator_memory(before_model: int, before_rounds: int, size: Size) -> dict[str, float]:
    """Say what this process had at most, in bytes and as multiples of the float32 parameters.

    `over_start` is over what it had after rounds of the smallest model there is, when all libraries
    are loaded: the global model, the one it is evaluated as, and all that a round needs.
    `over_rounds` is over what it had just before the first round, when those two were there.
    """
    peak, model_bytes = peak_bytes(), 4 * size.parameters
    return {
        "peak_bytes": peak,
        "model_bytes": model_bytes,
        "over_start_bytes": peak - before_model,
        "over_start": (peak - before_model) / model_bytes,
        "over_rounds": (peak - before_rounds) / model_bytes,
    }


def _bytes(records: Sequence[dict[str, Any]], direction: str) -> dict[str, float] | None:
    if any("bytes" not in record for record in records):
        return None
    return spread([record["bytes"][direction] for record in records])
