"""What a start from a generated model gives under differential privacy.

    python benchmarks/pretraining.py [--source ai4i2020.csv] [--jobs 2] [--again FILE]
        [--json FILE] [--markdown FILE]

For each seed a model is trained on rows that the published process generates (`ai4i-generated.yaml`
with other rows for each seed), and scored on the test parts of three in-memory sites that have the
real rows (IID), before anything was trained there. From it `ai4i-private-pretrained.yaml` is run at
each ε, and with the settings of `ai4i-fedavg.yaml` without privacy. Beside these stands
`ai4i-fedavg.yaml` as it is. All of that once more with a generator that knows less of the machine:
its tools are never overstrained.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from inmemory import SampleFederation, merged
from loguru import logger
from measuring import machine, markdown_table, write_json

from core.configuration import read_yaml
from core.enums import DataDistribution
from orchestrator.start import keep_start, kept_start
from orchestrator.testbed.ai4i import LABEL, MODES, generate_ai4i
from orchestrator.testbed.samples import load_table

SEEDS: Final = range(5)
SITES: Final = 3
ROWS: Final = 40_000
FIRST_GENERATED: Final = 1000
"""The seed of the rows that are generated for seed 0."""

EPSILONS: Final = (8.0, 3.0, 1.0)

GENERATORS: Final[Mapping[str, tuple[str, ...]]] = {
    "as published": tuple(mode for mode in MODES if mode != "RNF"),
    "without overstrain": tuple(mode for mode in MODES if mode not in {"RNF", "OSF"}),
}
"""The failure modes that the label of generated rows stands for."""

REFERENCE: Final = "no start, ε = ∞"
ALONE: Final = "start alone"

_EXPERIMENTS: Final = Path(__file__).parents[1] / "deploy" / "experiments"

_TEXT: Final = """# A start that costs no privacy

`python benchmarks/pretraining.py --source {source}` on {date}, {cores} cores that others used,
{minutes:.0f} minutes beside other work. AI4I, three in-memory sites, IID, seeds 0 to 4; PR-AUC on
all test parts together, mean ± deviation over seeds. DP is (ε, 1e-5) for each training window.

{table}

*start alone*: trained on {rows} generated rows and on no real one, where *as published* follows the
published process, and *without overstrain* is by a generator that has no failures of that mode,
which is that of 98 among the 339 failures of the real table. *of none*: the quotient of the mean to
that of `ai4i-fedavg.yaml`, the first row, which starts from its seed. *added*: a run's PR-AUC less
that of its start, mean ± deviation.

What it assumes and what it does not show is in [privacy.md](privacy.md).
"""


class Task(NamedTuple):
    """What one process does: all runs of one seed."""

    source: Path | None
    seed: int


def main() -> None:
    """Measure, print, write."""
    arguments = _arguments()
    if arguments.again is None:
        results = measure(arguments.source, jobs=arguments.jobs)
    else:
        results = json.loads(arguments.again.read_text(encoding="utf-8"))
    write_json(arguments.json, results)
    text = report(results)
    print(text)
    if arguments.markdown is not None:
        arguments.markdown.write_text(text, encoding="utf-8")


def measure(source: Path | None, *, jobs: int) -> dict[str, Any]:
    """Run everything; see `report` for what is found.

    Args:
        source: The AI4I 2020 CSV; None for data like it.
        jobs: Processes, of one thread each.
    """
    begin = time.perf_counter()
    found = []
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for seed, one in zip(
            SEEDS, pool.map(_run_seed, [Task(source, seed) for seed in SEEDS]), strict=True
        ):
            found.append(one)
            print(f"seed {seed}: " + ", ".join(f"{n} {v:.3f}" for n, v in one.items()), flush=True)
    return {
        "machine": machine(),
        "source": source.name if source else "generated",
        "rows": ROWS,
        "minutes": (time.perf_counter() - begin) / 60,
        "pr_auc": {name: [one[name] for one in found] for name in found[0]},
    }


def _run_seed(task: Task) -> dict[str, float]:
    """Give the PR-AUC of every run, by its name."""
    torch.set_num_threads(1)
    logger.disable("datasite")
    logger.disable("orchestrator")
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        starts = {
            generator: _pretrain(folder / f"generated-{number}", modes, task.seed)
            for number, (generator, modes) in enumerate(GENERATORS.items())
        }
        real = folder / "real.csv"
        load_table(task.source, rows=10_000, seed=0).to_csv(real, index=False)
        with _federation(folder / "sites", real, sites=SITES, seed=task.seed) as federation:

            def run(name: str, changes: Mapping[str, Any]) -> float:
                config = federation.config(merged(changes, {"seed": task.seed}))
                pr_auc: float = federation.run(f"run-{len(found)}", config)["global"]["pr_auc"]
                found[name] = pr_auc
                return pr_auc

            run(REFERENCE, {})
            for generator, start in starts.items():
                private = _settings("ai4i-private-pretrained", start)
                config = federation.config(merged(private, {"seed": task.seed}))
                keep_start(start, folder)
                kept = kept_start(folder, start)
                found[f"{generator}, {ALONE}"] = federation.score(kept, config)["pr_auc"]
                run(f"{generator}, ε = ∞", {"model": private["model"]})
                for epsilon in EPSILONS:
                    privacy = {**private["privacy"], "epsilon": epsilon}
                    run(f"{generator}, ε = {epsilon:g}", {**private, "privacy": privacy})
    return found


def _pretrain(folder: Path, modes: Sequence[str], seed: int) -> Path:
    """Train a model on generated rows, and give the file with it."""
    table = generate_ai4i(rows=ROWS, seed=FIRST_GENERATED + seed)
    table[LABEL] = table[list(modes)].max(axis=1)
    folder.mkdir()
    rows = folder / "rows.csv"
    table.to_csv(rows, index=False)
    with _federation(folder / "site", rows, sites=1, seed=seed) as federation:
        config = federation.config(merged(_settings("ai4i-generated"), {"seed": seed}))
        federation.run("generated", config)
        return federation.model_file("generated")


def _federation(folder: Path, source: Path, *, sites: int, seed: int) -> SampleFederation:
    return SampleFederation(
        folder, source, sites=sites, distribution=DataDistribution.IID, seed=seed
    )


def _settings(name: str, start: Path | None = None) -> dict[str, Any]:
    """Give what an example experiment says of rounds, model, training and privacy."""
    settings = read_yaml(_EXPERIMENTS / f"{name}.yaml")
    chosen = {
        key: settings[key] for key in ("rounds", "model", "training", "privacy") if key in settings
    }
    if "privacy" in chosen:
        chosen["training"] = {"gradient_clip": None, "weight_decay": 0.0, **chosen["training"]}
    if start is not None:
        chosen["model"] = {**chosen["model"], "start": str(start)}
    return chosen


def report(results: Mapping[str, Any]) -> str:
    """Give the table as Markdown."""
    found = {name: np.array(values) for name, values in results["pr_auc"].items()}
    best = found[REFERENCE].mean()
    rows = []
    for name, values in found.items():
        generator = name.rpartition(", ")[0]
        start = found.get(f"{generator}, {ALONE}")
        added = "-" if start is None or name.endswith(ALONE) else _spread(values - start, "+.3f")
        rows.append(
            (
                name,
                _spread(values, ".3f"),
                f"{values.min():.3f}",
                f"{values.max():.3f}",
                f"{values.mean() / best:.3f}",
                added,
            )
        )
    return _TEXT.format(
        **results["machine"],
        source=results["source"],
        minutes=results["minutes"],
        rows=f"{results['rows']:,}",
        table=markdown_table(("run", "PR-AUC", "least", "greatest", "of none", "added"), rows),
    )


def _spread(values: Any, form: str) -> str:  # noqa: ANN401 - an array of numpy
    return f"{values.mean():{form}} ± {values.std(ddof=1):.3f}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--source", type=Path, help="the AI4I 2020 CSV; by default data like it")
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--again", type=Path, metavar="FILE", help="write up what --json has kept")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything here")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
