"""Which settings to prefer on AI4I 2020, judged on validation parts only.

    python benchmarks/tuning.py --source ai4i2020.csv [--about settings|algorithms] [--jobs 2]

Each candidate is the example experiment with a change or two, run over three in-memory sites (IID)
with eight seeds. The validation part is a fifth of the rows, and test parts are not looked at.
Seeds start at 10: 0 to 4 are those of `learning.py`, which measures what was chosen here.
Candidates are ranked by PR-AUC, which needs no threshold.
"""

import argparse
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from inmemory import SampleFederation, merged
from loguru import logger
from measuring import machine, print_table, write_json

from core.enums import DataDistribution

SITES = 3
SEEDS = range(10, 18)
METRICS = ("pr_auc", "roc_auc", "loss", "f1")
SPLIT = {"test": 0.2, "validation": 0.2}


def _training(**settings: object) -> dict[str, Any]:
    return {"training": settings}


def _model(**options: int) -> dict[str, Any]:
    return {"model": {"options": options}}


CANDIDATES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "settings": {
        "as it is": {},
        "no encoding": _model(bins=0),
        "no encoding, 4 blocks": _model(bins=0, blocks=4),
        "16 bins": _model(bins=16),
        "64 bins": _model(bins=64),
        "1 block": _model(blocks=1),
        "3 blocks": _model(blocks=3),
        "rate 0.05": _training(learning_rate=0.05),
        "rate 0.2": _training(learning_rate=0.2),
        "constant rate 0.03": _training(learning_rate=0.03, schedule="constant"),
        "clipped at 1": _training(gradient_clip=1.0),
        "no decay of weights": _training(weight_decay=0.0),
        "decay of weights 1e-3": _training(weight_decay=1e-3),
        "batches of 32": _training(batch_size=32),
        "batches of 128": _training(batch_size=128),
        "60 rounds of 1 epoch": {"rounds": 60, **_training(local_epochs=1)},
        "12 rounds of 5 epochs": {"rounds": 12, **_training(local_epochs=5)},
        "30 rounds of 3 epochs": {"rounds": 30},
        "failures weigh sqrt": _training(positive_weight="sqrt"),
        "focal loss": _training(loss="focal"),
        "Adam": _training(optimizer="adam", momentum=0.0, learning_rate=0.002, weight_decay=0.0),
    },
    "algorithms": {
        "fedavg": {},
        **{
            f"fedprox, mu {mu}": {"algorithm": {"name": "fedprox", "mu": mu}}
            for mu in (0.001, 0.01, 0.1, 1.0)
        },
        **{
            f"feddyn, alpha {alpha}": {"algorithm": {"name": "feddyn", "alpha": alpha}}
            for alpha in (0.01, 0.03, 0.1, 0.3, 1.0)
        },
    },
}


def main() -> None:
    """Search and print."""
    arguments = _arguments()
    candidates = CANDIDATES[arguments.about]
    tasks = [
        (merged({"name": "tuning"}, changes), arguments.division, seed, arguments.source)
        for changes in candidates.values()
        for seed in SEEDS
    ]
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(_validate, tasks))
    by_name = {
        name: found[number * len(SEEDS) : (number + 1) * len(SEEDS)]
        for number, name in enumerate(candidates)
    }
    ranked = sorted(by_name, key=lambda name: -_mean(by_name[name], "pr_auc"))
    rows = [
        (
            name,
            *(f"{_mean(by_name[name], metric):.3f}" for metric in METRICS),
            f"{np.std([cell['pr_auc'] for cell in by_name[name]]):.3f}",
        )
        for name in ranked
    ]
    header = ("candidate", *METRICS, "deviation of pr_auc")
    print_table(f"{arguments.about}, {arguments.division.value}; {machine()}", header, rows)
    write_json(arguments.json, {"machine": machine(), "candidates": by_name})


def _validate(task: tuple[dict[str, Any], DataDistribution, int, Path | None]) -> dict[str, float]:
    """Give the validation metrics of one run."""
    changes, distribution, seed, source = task
    torch.set_num_threads(1)
    logger.disable("datasite")
    with (
        tempfile.TemporaryDirectory(prefix="benchmark-") as folder,
        SampleFederation(
            Path(folder), source, sites=SITES, distribution=distribution, seed=seed
        ) as federation,
    ):
        config = federation.config({**changes, "seed": seed, "split": SPLIT})
        record = federation.run("candidate", config)
    return {name: record["validation"][name] for name in METRICS}


def _mean(cells: list[dict[str, float]], metric: str) -> float:
    return float(np.mean([cell[metric] for cell in cells]))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--source", type=Path, help="the AI4I 2020 CSV; by default data like it")
    parser.add_argument("--about", choices=list(CANDIDATES), default="settings")
    parser.add_argument("--division", type=DataDistribution, default=DataDistribution.IID)
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--json", type=Path, help="write the results here too")
    return parser.parse_args()


if __name__ == "__main__":
    main()
