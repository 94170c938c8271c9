"""Time and memory of registering a large table, and of training on it.

    python benchmarks/registration.py [--rows 1000000] [--sensors 30] [--json FILE]

Each figure is from a process of its own, which first does the same with a small table, so that what
is loaded once is not counted; then it notes by how much its peak of resident memory exceeds what it
had. Registering may take `ALLOWED` times the table as float32; more ends with exit code 1.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from apart import apart, forget_peak, peak_bytes, resident_bytes
from measuring import machine, print_table, write_json

from core import wire
from core.messages import StatisticsRequest, TrainRequest
from core.models import initial_parameters
from core.schema import DataSchema
from datasite.data.table import check_table
from datasite.ledger import Ledger
from datasite.registry import Registry
from datasite.training.work import Assignment, Job, Worker

ALLOWED: Final = 6.0
"""Times the table as float32."""

WINDOW_STEPS: Final = 30

_SMALL_ROWS: Final = 20_000
_MACHINES: Final = 10
_FAILURES: Final = 0.05
_SITE: Final = "factory-1"
_MODEL: Final[Any] = {"type": "lstm", "options": {"hidden": 4}}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--sensors", type=int, default=30)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    given = parser.parse_args()
    table_bytes = 4 * given.rows * given.sensors
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        apart(write_tables, folder, given.rows, given.sensors)
        file_bytes = {
            kind: (folder / f"large.{kind}").stat().st_size for kind in ("csv", "parquet")
        }
        taken = {
            "check CSV": apart(measure_check, folder, given.sensors),
            "register CSV": apart(measure_registration, folder, "csv", given.sensors),
            "register Parquet": apart(measure_registration, folder, "parquet", given.sensors),
            **apart(measure_training, folder, given.sensors),
        }
    print_table(
        f"{given.rows:,} rows x {given.sensors} sensors ({table_bytes / 1e6:.0f} MB as float32; "
        f"CSV {file_bytes['csv'] / 1e6:.0f} MB, Parquet {file_bytes['parquet'] / 1e6:.0f} MB), "
        f"windows of {WINDOW_STEPS}",
        ("what", "seconds", "peak MB", "times the table"),
        [
            (
                what,
                figures["seconds"],
                figures["peak_bytes"] / 1e6,
                figures["peak_bytes"] / table_bytes,
            )
            for what, figures in taken.items()
        ],
    )
    write_json(
        given.json,
        {
            "machine": machine(),
            "rows": given.rows,
            "sensors": given.sensors,
            "table_bytes": table_bytes,
            "file_bytes": file_bytes,
            "taken": taken,
        },
    )
    over = [
        what
        for what, taking in taken.items()
        if what.startswith("register") and taking["peak_bytes"] > ALLOWED * table_bytes
    ]
    if over:
        sys.exit(f"more than {ALLOWED:g} times the table: {', '.join(over)}")


def schema_of(sensors: int) -> DataSchema:
    """Give machines with a clock each, and sensors from 0 to 1."""
    return DataSchema.model_validate(
        {
            "name": "plant",
            "label": {"column": "failure"},
            "machine": {"column": "machine"},
            "time": {"column": "minute"},
            "window_steps": WINDOW_STEPS,
            "columns": [{"name": f"sensor_{i}", "range": [0, 1]} for i in range(sensors)],
        }
    )


def write_tables(folder: Path, rows: int, sensors: int) -> None:
    """Write a small and a large table, each as CSV and as Parquet."""
    for name, count in (("small", _SMALL_ROWS), ("large", rows)):
        random = np.random.default_rng(0)
        per_machine = -(-count // _MACHINES)
        machine_number, minute = np.divmod(np.arange(count), per_machine)
        table = pd.DataFrame(
            {
                "machine": [f"machine-{number:02}" for number in machine_number],
                "minute": minute,
                **{f"sensor_{i}": random.random(count).round(6) for i in range(sensors)},
                "failure": (random.random(count) < _FAILURES).astype(np.int64),
            }
        )
        table.to_parquet(folder / f"{name}.parquet", index=False)
        table.to_csv(folder / f"{name}.csv", index=False)


def measure_check(folder: Path, sensors: int) -> dict[str, float]:
    """Measure `datasite data check`."""
    schema = schema_of(sensors)
    check_table(folder / "small.csv", schema)
    return _measured(lambda: check_table(folder / "large.csv", schema))


def measure_registration(folder: Path, kind: str, sensors: int) -> dict[str, float]:
    """Measure `datasite data register`; the copy of a Parquet file is left for training."""
    schema = schema_of(sensors)
    registry = _registry(folder / f"from-{kind}")
    registry.register(folder / f"small.{kind}", schema, name="small", who="operator")
    return _measured(
        lambda: registry.register(folder / f"large.{kind}", schema, name="large", who="operator")
    )


def measure_training(folder: Path, sensors: int) -> dict[str, dict[str, float]]:
    """Measure the sums over all rows, and an epoch on a fiftieth of the windows.

    All windows are prepared for it; how many of them are trained on decides time and not memory.
    """
    torch.set_num_threads(1)
    registry, worker = _registry(folder / "from-parquet"), Worker()
    requests = _requests(sensors)
    taken: dict[str, dict[str, float]] = {}
    for name in ("small", "large"):
        dataset = registry.find(name)
        job = Job(
            site_id=_SITE,
            file=str(dataset.file),
            sha256=dataset.sha256,
            schema=dataset.schema.model_dump(mode="json"),
            split={"test": 0.49, "validation": 0.49, "seed": 0},
            drift={},
            privacy=None,
        )
        for what, request in requests.items():
            assignment = Assignment(job, wire.encode(request))
            taken[what] = _measured(lambda assignment=assignment: worker.perform(assignment))
    return taken


def _registry(folder: Path) -> Registry:
    folder.mkdir(exist_ok=True)
    return Registry(Ledger(folder / "ledger.db", site_id=_SITE), folder / "data", site_id=_SITE)


def _requests(sensors: int) -> dict[str, StatisticsRequest | TrainRequest]:
    parameters = initial_parameters(_MODEL, sensors=sensors, window_steps=WINDOW_STEPS, seed=0)
    training: Any = {
        "local_epochs": 1,
        "batch_size": 512,
        "learning_rate": 0.01,
        "optimizer": "sgd",
        "momentum": 0.0,
        "weight_decay": 0.0,
        "gradient_clip": None,
        "focal_gamma": 0.0,
    }
    return {
        "statistics": StatisticsRequest(kind="statistics", plan_id=""),
        "train": TrainRequest(
            kind="train",
            seed=0,
            algorithm={"name": "fedavg", "hyperparameters": {}},
            training=training,
            plan_id="",
            round_num=0,
            model=_MODEL,
            preprocessing={
                "mean": [0.5] * sensors,
                "scale": [0.3] * sensors,
                "positive_weight": 1.0,
            },
            deadline_s=3600.0,
            parameters=parameters,
        ),
    }


def _measured(work: Callable[[], object]) -> dict[str, float]:
    before = resident_bytes()
    forget_peak()
    begin = time.perf_counter()
    work()
    return {"seconds": time.perf_counter() - begin, "peak_bytes": peak_bytes() - before}


if __name__ == "__main__":
    main()
