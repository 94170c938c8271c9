"""What each algorithm reaches with each model on each division of AI4I 2020, over several seeds.

    python benchmarks/learning.py --source ai4i2020.csv [--jobs 2] [--out docs]

A cell is one model trained one way on one division with one seed: by FedAvg, FedProx, FedDyn or
FedNova over three in-memory sites (real sites, real codec), centrally on the union of their
training rows, or at each site alone. All have the settings of the example experiment and as many
epochs; all are scored on the sites' test parts together, at the threshold from validation. The seed
decides division, splits, starting values and batches.

Each cell is kept as it is done, so a study that was stopped goes on where it was. At the end there
are `learning.md` (tables), `learning.png` and `learning.json` (every cell) in the folder `--out`.
"""

import argparse
import itertools
import json
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from inmemory import SampleFederation
from loguru import logger
from measuring import machine, markdown_table, write_json
from scipy.stats import t as student_t

from core.enums import DataDistribution, ModelType

SITES = 3
SEEDS = 5
METRICS = {"pr_auc": "PR-AUC", "roc_auc": "ROC-AUC", "f1": "F1", "mcc": "MCC"}

ALGORITHMS: Mapping[str, Mapping[str, Any]] = {
    "fedavg": {"name": "fedavg"},
    "fedprox": {"name": "fedprox", "mu": 0.01},
    "feddyn": {"name": "feddyn", "alpha": 0.03},
    "fednova": {"name": "fednova"},
}
"""With the hyper-parameters of `tuning.py`, from validation parts of other seeds; FedProx with a
tenth of this μ, or none, ranked as well."""

WAYS = ("central", "alone", *ALGORITHMS)
TITLES = {
    "central": "central",
    "alone": "each site alone",
    "fedavg": "FedAvg",
    "fedprox": "FedProx",
    "feddyn": "FedDyn",
    "fednova": "FedNova",
}
DIVISIONS = {
    DataDistribution.IID: "IID",
    DataDistribution.NON_IID_LABEL: "label, Dirichlet 0.5",
    DataDistribution.NON_IID_QUANTITY: "quantity",
    DataDistribution.NON_IID_FEATURE: "feature",
}


_INTRODUCTION = """# Algorithms, models and divisions

`python benchmarks/learning.py --source {source}` on {date}, {cores} cores, Python {python}, torch
{torch}. Three in-memory sites, {seeds} seeds; the settings of
[`ai4i-fedavg.yaml`](../deploy/experiments/ai4i-fedavg.yaml), the same for all. Mean ± half the 95 %
confidence interval (Student's t over seeds), on the test parts of all sites together.

*vs FedAvg* is the mean difference in PR-AUC, seed by seed: **wins** or **loses** where its 95 %
interval leaves out 0, without correction for the number of comparisons. *of central* is the
quotient of the mean PR-AUCs.

![PR-AUC by division, model and algorithm](learning.png)
"""


class Group(NamedTuple):
    """The cells that share a division: one model, one seed, trained in every way."""

    distribution: DataDistribution
    model: ModelType
    seed: int

    def cell(self, way: str) -> str:
        """Name the cell that is trained this way."""
        return f"{self.distribution.value}-{self.model.value}-{way}-{self.seed}"


def main() -> None:
    """Do what is left of the study, then write it up."""
    arguments = _arguments()
    kept = arguments.cells or arguments.out / "learning-cells"
    kept.mkdir(parents=True, exist_ok=True)
    groups = [
        Group(*choice)
        for choice in itertools.product(arguments.divisions, arguments.models, arguments.seeds)
    ]
    begin = time.perf_counter()
    _train_all(groups, kept, arguments.source, arguments.rounds, arguments.jobs)
    minutes = (time.perf_counter() - begin) / 60
    cells = {
        group.cell(way): json.loads((kept / f"{group.cell(way)}.json").read_text())
        for group in groups
        for way in WAYS
    }
    study = {
        "machine": machine(),
        "source": arguments.source.name if arguments.source else "generated",
        "minutes": minutes,
        "cells": cells,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / "learning.json", study)
    text = report(study, groups)
    (arguments.out / "learning.md").write_text(text, encoding="utf-8")
    draw(cells, groups, arguments.out / "learning.png")
    print(text)


def _train_all(
    groups: Sequence[Group], kept: Path, source: Path | None, rounds: int | None, jobs: int
) -> None:
    left = [g for g in groups if any(not (kept / f"{g.cell(w)}.json").exists() for w in WAYS)]
    context = get_context("spawn")  # a fork would inherit PyTorch's threads in the middle of work
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        tasks = {pool.submit(_train_group, g, kept, source, rounds): g for g in left}
        for number, task in enumerate(as_completed(tasks), start=1):
            group = tasks[task]
            print(
                f"{number}/{len(left)} {group.distribution.value} {group.model.value} "
                f"seed {group.seed}: {task.result():.0f} s",
                flush=True,
            )


def _train_group(group: Group, kept: Path, source: Path | None, rounds: int | None) -> float:
    """Train the cells of one group that are not there yet; how many seconds that took."""
    torch.set_num_threads(1)
    logger.disable("datasite")
    begin = time.perf_counter()
    with (
        tempfile.TemporaryDirectory(prefix="benchmark-") as folder,
        SampleFederation(
            Path(folder), source, sites=SITES, distribution=group.distribution, seed=group.seed
        ) as federation,
    ):
        for way in WAYS:
            path = kept / f"{group.cell(way)}.json"
            if not path.exists():
                started = time.perf_counter()
                cell = _train(federation, group, way, rounds)
                write_json(path, {**cell, "seconds": time.perf_counter() - started})
    return time.perf_counter() - begin


def _train(
    federation: SampleFederation, group: Group, way: str, rounds: int | None
) -> dict[str, Any]:
    """Give the test metrics of one cell; `alone` has the mean over the sites' own models."""
    changes: dict[str, Any] = {"seed": group.seed, "model": {"type": group.model.value}}
    if rounds:
        changes["rounds"] = rounds
    if way in ALGORITHMS:
        config = federation.config({**changes, "algorithm": dict(ALGORITHMS[way])})
        return {"metrics": _scores(federation.run(way, config))}
    if way == "central":
        return {"metrics": _scores(federation.train_centrally(federation.config(changes)))}
    alone = [
        _scores(
            federation.run(
                f"alone-{site_id}",
                federation.config({**changes, "participation": {"sites": [site_id]}}),
            )
        )
        for site_id in federation.site_ids
    ]
    return {
        "metrics": {name: float(np.mean([site[name] for site in alone])) for name in METRICS},
        "sites": dict(zip(federation.site_ids, alone, strict=True)),
    }


def _scores(record: Mapping[str, Any]) -> dict[str, float]:
    return {name: record["global"][name] for name in METRICS}


def report(study: Mapping[str, Any], groups: Sequence[Group]) -> str:
    """Give the tables as Markdown."""
    there = study["machine"]
    seeds = sorted({group.seed for group in groups})
    sections = [_INTRODUCTION.format(source=study["source"], seeds=len(seeds), **there)]
    cells = study["cells"]
    for distribution in dict.fromkeys(group.distribution for group in groups):
        rows: list[Sequence[object]] = []
        for model in dict.fromkeys(group.model for group in groups):
            chosen = [Group(distribution, model, seed) for seed in seeds]
            rows += [_row(cells, chosen, way) for way in WAYS]
        header = ("model", "trained by", *METRICS.values(), "of central", "vs FedAvg")
        sections.append(f"## {DIVISIONS[distribution]}\n")
        sections.append(markdown_table(header, rows) + "\n")
    return "\n".join(sections)


def _row(cells: Mapping[str, Any], groups: Sequence[Group], way: str) -> Sequence[object]:
    values = {name: _values(cells, groups, way, name) for name in METRICS}
    central = np.mean(_values(cells, groups, "central", "pr_auc"))
    quotient = f"{np.mean(values['pr_auc']) / central:.3f}" if way != "central" else ""
    return (
        groups[0].model.value,
        TITLES[way],
        *(_interval(each) for each in values.values()),
        quotient,
        _against(values["pr_auc"], _values(cells, groups, "fedavg", "pr_auc"))
        if way not in {"fedavg", "central", "alone"}
        else "",
    )


def _values(
    cells: Mapping[str, Any], groups: Sequence[Group], way: str, metric: str
) -> list[float]:
    return [cells[group.cell(way)]["metrics"][metric] for group in groups]


def _half_width(values: Sequence[float]) -> float:
    """Give half the 95 % confidence interval of the mean; NaN for a single value."""
    if len(values) < 2:  # noqa: PLR2004 - one value has no spread
        return math.nan
    spread = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(student_t.ppf(0.975, len(values) - 1)) * spread


def _interval(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f} ± {_half_width(values):.3f}"


def _against(values: Sequence[float], others: Sequence[float]) -> str:
    differences = [value - other for value, other in zip(values, others, strict=True)]
    mean, half = float(np.mean(differences)), _half_width(differences)
    word = "" if not abs(mean) > half else " **wins**" if mean > 0 else " **loses**"
    return f"{mean:+.3f} ± {half:.3f}{word}"


def draw(cells: Mapping[str, Any], groups: Sequence[Group], path: Path) -> None:
    """Draw a panel for each division: PR-AUC by model and algorithm, central and alone as lines."""
    import matplotlib as mpl  # noqa: PLC0415 - the spawned processes need none of it

    mpl.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415 - after the backend is chosen

    divisions = list(dict.fromkeys(group.distribution for group in groups))
    models = list(dict.fromkeys(group.model for group in groups))
    seeds = sorted({group.seed for group in groups})
    figure, axes = plt.subplots(
        1, len(divisions), figsize=(3.4 * len(divisions), 3.8), sharey=True, squeeze=False
    )
    colours = dict(zip(ALGORITHMS, ("#4477aa", "#66ccee", "#228833", "#ccbb44"), strict=True))
    width = 0.8 / len(ALGORITHMS)
    for axis, distribution in zip(axes[0], divisions, strict=True):
        for place, model in enumerate(models):
            chosen = [Group(distribution, model, seed) for seed in seeds]
            for number, (way, colour) in enumerate(colours.items()):
                values = _values(cells, chosen, way, "pr_auc")
                axis.bar(
                    place - 0.4 + (number + 0.5) * width,
                    np.mean(values),
                    width * 0.92,
                    yerr=_half_width(values),
                    color=colour,
                    error_kw={"elinewidth": 0.8, "ecolor": "#333333"},
                    label=TITLES[way] if place == 0 else None,
                )
            for way, style in (("central", "-"), ("alone", ":")):
                level = float(np.mean(_values(cells, chosen, way, "pr_auc")))
                axis.plot(
                    [place - 0.42, place + 0.42],
                    [level, level],
                    style,
                    color="#222222",
                    linewidth=1.4,
                    label=TITLES[way] if place == 0 else None,
                )
        axis.set_title(DIVISIONS[distribution], fontsize=10)
        axis.set_xticks(range(len(models)), [model.name for model in models])
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", linewidth=0.3)
        axis.set_axisbelow(True)
    axes[0][0].set_ylabel("PR-AUC on all test parts")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=len(labels), frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--source", type=Path, help="the AI4I 2020 CSV; by default data like it")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(SEEDS)))
    parser.add_argument(
        "--divisions", type=DataDistribution, nargs="+", default=list(DIVISIONS), metavar="NAME"
    )
    parser.add_argument(
        "--models", type=ModelType, nargs="+", default=list(ModelType), metavar="NAME"
    )
    parser.add_argument("--rounds", type=int, help="by default as in the example experiment")
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder for the results")
    parser.add_argument("--cells", type=Path, help="folder of the cells, by default in --out")
    return parser.parse_args()


if __name__ == "__main__":
    main()
