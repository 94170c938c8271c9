"""How many simulated sites a core plays, and what they take of memory.

    python benchmarks/simulation.py [--sites 100 1000] [--rounds 6] [--algorithm fedavg]
        [--workers 1] [--json FILE]

Each site has a table of 50 rows, the fewest that a site takes, of which 8 train: one epoch of one
batch through the CNN of the example experiment, about 10^4 parameters. A round is all that a run
does: requests encoded and decoded, plans held, sites trained, updates checked and aggregated, the
record and the checkpoint on disk; only the last one is evaluated, and that is not counted. Nor is
the first, in which the data are prepared. With one worker everything runs on one core.

Each number of sites is measured in a fresh process. Its memory is the greatest that the process had
beyond what it took for a run of ten sites; where it does not grow with the sites, it is flat.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pandas as pd
import torch
from apart import apart, forget_peak, peak_bytes, resident_bytes
from measuring import machine, print_table, spread, write_json

from core.configuration import parse
from orchestrator.communication.simulated import over_memory
from orchestrator.configuration import ExperimentConfig
from orchestrator.experiment import ExperimentOrchestrator
from orchestrator.observer import Observer
from orchestrator.runs import RunStore
from orchestrator.testbed.ai4i import LABEL, generate_ai4i
from orchestrator.testbed.presets import AI4I_SCHEMA

WARMING_SITES: Final = 10
HEALTHY, FAILED = 40, 10
SPLIT: Final = {"test": 0.44, "validation": 0.40}
"""Of 40 rows with label 0, 6 train, and of 10 with label 1, 2."""

MIB: Final = 2**-20


def main() -> None:
    """Measure, print, write."""
    settings = _settings()
    measured = [
        measure(
            sites,
            rounds=settings.rounds,
            algorithm=settings.algorithm,
            workers=settings.workers,
        )
        for sites in settings.sites
    ]
    print_table(
        f"{settings.algorithm}, {settings.workers} worker(s)",
        (
            "sites",
            "parameters",
            "site-rounds/s: min",
            "median",
            "max",
            "a core's second: median",
            "start, s",
            "round 0, s",
            "memory beyond that of ten sites, MiB",
        ),
        [
            (
                found["sites"],
                found["parameters"],
                *(round(found["site_rounds_per_s"][name]) for name in ("min", "median", "max")),
                round(found["site_rounds_per_cpu_s"]["median"]),
                found["start_s"],
                found["first_round_s"],
                round(found["growth_bytes"] * MIB, 1),
            )
            for found in measured
        ],
    )
    write_json(settings.json, {"machine": machine(), "measured": measured})


def measure(
    sites: int, *, rounds: int = 6, algorithm: str = "fedavg", workers: int = 1
) -> dict[str, Any]:
    """Give what `sites` simulated sites cost, measured in a process of its own.

    Returns:
        `sites`, `workers`, `algorithm`, `parameters` (of the model); `site_rounds_per_s` (spread
        over the rounds between first and last), `site_rounds_per_cpu_s` (likewise, by this
        process's time on a core: what it would be if nothing else ran here); `start_s` (until
        round 0: every file is read and judged), `first_round_s`; `growth_bytes` (peak beyond a run
        of ten sites, of the process that aggregates and, with one worker, plays the sites).
    """
    with tempfile.TemporaryDirectory() as folder:
        write_tables(Path(folder), sites)
        return apart(
            _measure, Path(folder), sites, rounds=rounds, algorithm=algorithm, workers=workers
        )


def write_tables(folder: Path, sites: int) -> None:
    """Write a table of 50 rows for each site into `folder`/all, and of the first ten into /few."""
    table = generate_ai4i(rows=20_000, seed=0)
    healthy, failed = table[table[LABEL] == 0], table[table[LABEL] == 1]
    for name, count in (("few", min(sites, WARMING_SITES)), ("all", sites)):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            rows = [
                healthy.sample(HEALTHY, random_state=number),
                failed.sample(FAILED, random_state=number),
            ]
            pd.concat(rows).to_csv(folder / name / f"factory-{number:04}.csv", index=False)


def configure(folder: Path, *, rounds: int, algorithm: str, workers: int) -> ExperimentConfig:
    """Give the experiment over the tables of `folder`."""
    settings = {
        "name": "simulation",
        "rounds": rounds,
        "dataset": "ai4i",
        "transport": "memory",
        "simulation": {"data": str(folder), "schema": str(AI4I_SCHEMA), "workers": workers},
        "algorithm": {"name": algorithm},
        "training": {"local_epochs": 1, "batch_size": 8, "learning_rate": 0.05},
        "model": {"type": "cnn", "options": {"bins": 0}},
        "split": SPLIT,
        "evaluation": {"every": rounds},
    }
    return parse(settings, ExperimentConfig, source="benchmark")


class Clock(Observer):
    """Notes when the run started and when each round was on disk: by the clock, and by the core."""

    def __init__(self) -> None:
        self.wall_s: list[float] = []
        self.core_s: list[float] = []

    def started(self, run_id: str, first_round: int, rounds: int) -> None:
        """Begin."""
        del run_id, first_round, rounds
        self._note()

    def round_done(self, run_id: str, record: Mapping[str, Any]) -> None:
        """Note a round."""
        del run_id, record
        self._note()

    def _note(self) -> None:
        self.wall_s.append(time.perf_counter())
        self.core_s.append(time.process_time())


def run(folder: Path, config: ExperimentConfig, name: str) -> Clock:
    """Run the experiment in this process; when its rounds were done."""
    store, clock = RunStore(folder / "runs"), Clock()
    with over_memory(store.folder(name)) as communicate:
        orchestrator = ExperimentOrchestrator(communicate, store, clock)
        orchestrator.setup(config, name)
        orchestrator.run_experiment(name)
    return clock


def _measure(
    folder: Path, sites: int, *, rounds: int, algorithm: str, workers: int
) -> dict[str, Any]:
    if workers == 1:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    several: dict[str, Any] = {"algorithm": algorithm, "workers": workers}
    run(folder, configure(folder / "few", rounds=2, **several), "few")
    before_bytes = resident_bytes()
    forget_peak()
    config = configure(folder / "all", rounds=rounds, **several)
    begin = time.perf_counter()
    clock = run(folder, config, "all")
    wall_s, core_s = (
        [after - before for before, after in pairwise(times)]
        for times in (clock.wall_s, clock.core_s)
    )
    checkpoint = RunStore(folder / "runs").load_checkpoint("all")
    assert checkpoint is not None  # noqa: S101 - it has just been written
    return {
        "sites": sites,
        "workers": workers,
        "algorithm": algorithm,
        "parameters": sum(tensor.numel() for tensor in checkpoint.parameters.values()),
        "site_rounds_per_s": spread([sites / second for second in wall_s[1:-1]]),
        "site_rounds_per_cpu_s": spread([sites / second for second in core_s[1:-1]]),
        "start_s": clock.wall_s[0] - begin,
        "first_round_s": wall_s[0],
        "growth_bytes": peak_bytes() - before_bytes,
    }


def _settings() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sites", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--rounds", type=int, default=6, help="at least 3")
    parser.add_argument("--algorithm", default="fedavg")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where to write all that was measured")
    return parser.parse_args()


if __name__ == "__main__":
    main()
