"""What each privacy level costs in learning, and what attacks find in spite of it.

    python benchmarks/privacy.py [--source ai4i2020.csv] [--quick] [--jobs 2] [--again FILE]
        [--json FILE] [--markdown FILE] [--pictures FOLDER]

Utility: `ai4i-fedavg.yaml` without privacy and with `basic`, and `ai4i-private.yaml` at each ε;
three in-memory sites, IID. Membership (see `membership.py`): is a row of the table among those that
the final model was trained on? All runs of a level are each other's shadows, for a row is in the
training parts of some and not of others. That is asked of overfitted models as well: few rows, half
of them failures, many epochs. Inversion (see `inversion.py`): the rows behind one update.

The final model of secure aggregation is that of `none`; what is inverted there is the mean of three
sites' updates, which is all that the orchestrator learns; the protocol itself is not run.
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
import pandas as pd
import torch
from inmemory import SampleFederation, merged
from inversion_trials import CASES, try_inversions
from loguru import logger
from measuring import machine, markdown_table, write_json
from membership import Attacked, Bools, Floats, by_likelihood_ratio, by_loss, success
from privacy_picture import draw
from scipy.stats import t

from core.configuration import load_yaml, read_yaml
from core.enums import DataDistribution
from core.models import load_model
from core.schema import DataSchema
from datasite.data.features import FeatureRows, make_features
from datasite.training.tensors import standardise
from orchestrator.agreement import model_spec
from orchestrator.configuration import ExperimentConfig
from orchestrator.runs import Checkpoint
from orchestrator.testbed.ai4i import LABEL, read_ai4i
from orchestrator.testbed.presets import AI4I_SCHEMA
from orchestrator.testbed.samples import load_table

SITES: Final = 3
TARGETS: Final = 5
"""Seeds 0 to 4: those of the figures for utility, whose models are attacked."""

SHADOWS: Final[Mapping[str, int]] = {"ordinary": 0, "overfitted": 4}
"""Seeds after these: models that attacks alone learn from, beside the other targets."""

QUICK: Final[Mapping[str, Any]] = {"rounds": 2}

_PRIVATE: Final = Path(__file__).parents[1] / "deploy" / "experiments" / "ai4i-private.yaml"


def _private(epsilon: float) -> dict[str, Any]:
    """Give the changes that make the example experiment the private one."""
    settings = read_yaml(_PRIVATE)
    training = {"gradient_clip": None, "weight_decay": 0.0, **settings["training"]}
    return {
        "rounds": settings["rounds"],
        "model": settings["model"],
        "training": training,
        "privacy": {**settings["privacy"], "epsilon": epsilon},
    }


LEVELS: Final[Mapping[str, tuple[str, Mapping[str, Any]]]] = {
    "none": ("none (ε = ∞)", {}),
    "basic": ("basic, change ≤ 1", {"privacy": {"level": "basic", "clip_norm": 1.0}}),
    "8": ("DP, ε = 8", _private(8.0)),
    "3": ("DP, ε = 3", _private(3.0)),
    "1": ("DP, ε = 1", _private(1.0)),
}
"""The title of each level, and what it changes in the example experiment."""

CHANGES: Final = {level: changes for level, (_, changes) in LEVELS.items()}

SECURE: Final = "secure"

TRIALS: Final = 5
"""Of the inversion, each with other rows."""

ATTACKS: Final = {"loss": by_loss, "ratio": by_likelihood_ratio}

FEW: Final = 300
HALVES: Final[Mapping[str, Any]] = {"split": {"test": 0.4, "validation": 0.1}}
MANY_EPOCHS: Final[Mapping[str, Any]] = {"training": {"local_epochs": 10, "weight_decay": 0.0}}
"""Of the overfitted models: 600 rows, of which half train, and without DP 200 epochs."""

_TEXT: Final = """# Privacy levels: what they cost, what attacks find

`python benchmarks/privacy.py --source {source}` on {date}, {cores} cores that others used,
{minutes:.0f} minutes beside other work. AI4I, three in-memory sites, IID, FedAvg with the CNN,
{targets} seeds; PR-AUC on all test parts together. DP is (ε, 1e-5) for each training window, with
the settings of `ai4i-private.yaml`; [what was tried](privacy-tuning.json) was tried on other seeds.
To tune on private data costs privacy too, and that is not counted here.

## Utility

{utility}

## What attacks find

Mean ± half the 95 % interval (Student's t over seeds).

{ordinary}

*of none*: the quotient of the mean PR-AUCs. *loss*, *ratio*: membership, where 0.5 and 1 % are
chance. *inversion*: median over {trials} trials of the relative error (1 is guessing the mean),
and the share of rows found. Other rows of the table in place of the attack's have the errors
{guesses}.

Overfitted models, with {shadows} shadows more: few rows, half of them failures, many epochs. With
DP they train as the others do.

{overfitted}

![Utility, membership, inversion](privacy-attacks.png)

Lines in the picture are standard deviations over seeds.

## What the attacks assume

- *Loss* has the final model, the row and its label. *Ratio* has other models besides, trained in
  the same way on rows of the same table, and knows which had the row (Carlini et al. 2022).
- *Inversion* has one update, the parameters before it, the scaler, the settings, how many rows
  there were and their labels. One step on 1 and on 8 rows, and a site's whole first round. The
  better of two attacks counts: by the span of the first layer's gradient, and by matching
  gradients.
- Under secure aggregation the model is that of `none`, and what is inverted is the mean of three
  sites' updates; the protocol itself is not run.

## What they do not show

- An attack that finds nothing proves nothing: that DP protects is proven by its arithmetic
  ([privacy.md](privacy.md)), for every attack. The levels `none`, `basic` and
  `secure_aggregation` have no such proof for what is in the model or in the sum.
- One update after one step on a few rows gives them away, at `basic` as at `none`: shortening
  keeps the direction. Secure aggregation hides whose rows they are, and not what is in a sum of
  tiny batches.
- With so few models the ratio attack is weak: stronger ones have hundreds of shadows. Intervals
  are over targets that are each other's shadows, and so not independent. Where confidences are
  drawn without regard to membership the attack's mean AUC over five targets is 0.50 with a
  deviation of 0.01: a figure nearer to a half than 0.03 is none.
- Sites that deviate, many rounds seen together, poisoning, and properties of whole factories are
  not tried.
"""


class Task(NamedTuple):
    """What one process trains: every level with one seed.

    Attributes:
        setting: `ordinary` or `overfitted`.
        source: The table.
        seed: Decides division, splits, starting values and batches.
        levels: What each level changes in the example experiment.
    """

    setting: str
    source: Path
    seed: int
    levels: Mapping[str, Mapping[str, Any]]


class Cell(NamedTuple):
    """One run.

    Attributes:
        pr_auc: On all test parts together.
        confidence: (rows,) of the final model, for each row of the table; see `Attacked`.
        is_member: (rows,) whether the row is in a site's training part.
    """

    pr_auc: float
    confidence: Floats
    is_member: Bools


def main() -> None:
    """Measure, print, write."""
    arguments = _arguments()
    if arguments.again is None:
        results = measure(arguments.source, jobs=arguments.jobs, is_quick=arguments.quick)
    else:
        results = json.loads(arguments.again.read_text(encoding="utf-8"))
    write_json(arguments.json, results)
    text = report(results)
    print(text)
    if arguments.markdown is not None:
        arguments.markdown.write_text(text, encoding="utf-8")
    if arguments.pictures is not None:
        draw(results, arguments.pictures / "privacy-attacks.png")


def measure(source: Path | None, *, jobs: int, is_quick: bool) -> dict[str, Any]:
    """Train all models and attack them; see `report` for what is found.

    Args:
        source: The AI4I 2020 CSV; None for data like it.
        jobs: Processes, of one thread each.
        is_quick: With two rounds and one trial of the inversion.
    """
    begin = time.perf_counter()
    changed = {
        level: merged(changes, QUICK if is_quick else {}) for level, changes in CHANGES.items()
    }
    trials = 1 if is_quick else TRIALS
    with (
        tempfile.TemporaryDirectory(prefix="benchmark-") as folder,
        ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool,
    ):
        table = load_table(source, rows=10_000, seed=0)
        sources = {
            "ordinary": _write(table, Path(folder) / "all.csv"),
            "overfitted": _write(_few(table), Path(folder) / "few.csv"),
        }
        inversion = pool.submit(
            try_inversions,
            sources["ordinary"],
            CHANGES,
            secure=SECURE,
            trials=trials,
        )
        tasks = [
            Task(name, path, seed, changed)
            for name, path in sources.items()
            for seed in range(TARGETS + SHADOWS[name])
        ]
        trained = []
        for task, cells in zip(tasks, pool.map(_train, tasks), strict=True):
            trained.append((task, cells))
            reached = ", ".join(f"{level} {cell.pr_auc:.3f}" for level, cell in cells.items())
            print(f"{task.setting}, seed {task.seed}: {reached}", flush=True)
        inverted = inversion.result()
    levels: dict[str, dict[str, Any]] = {}
    for level, (title, _) in LEVELS.items():
        levels[level] = {"title": title}
        for name in sources:
            cells = [cells[level] for task, cells in trained if task.setting == name]
            levels[level][name] = {
                "pr_auc": [cell.pr_auc for cell in cells[:TARGETS]],
                **_membership(cells),
            }
    levels[SECURE] = {**levels["none"], "title": "secure aggregation"}
    for level, cases in inverted.items():
        levels[level]["inversion"] = cases
    return {
        "machine": machine(),
        "source": source.name if source else "generated",
        "targets": TARGETS,
        "shadows": SHADOWS["overfitted"],
        "trials": trials,
        "minutes": (time.perf_counter() - begin) / 60,
        "levels": levels,
    }


def _write(table: pd.DataFrame, path: Path) -> Path:
    table.to_csv(path, index=False)
    return path


def _few(table: pd.DataFrame) -> pd.DataFrame:
    """Give `FEW` failures and as many other rows."""
    some = [table[table[LABEL] == label].sample(n=FEW, random_state=0) for label in (0, 1)]
    return pd.concat(some).sort_values("UDI")


def _train(task: Task) -> dict[str, Cell]:
    """Run every level."""
    torch.set_num_threads(1)
    logger.disable("datasite")
    with (
        tempfile.TemporaryDirectory(prefix="benchmark-") as folder,
        SampleFederation(
            Path(folder),
            task.source,
            sites=SITES,
            distribution=DataDistribution.IID,
            seed=task.seed,
        ) as federation,
    ):
        return {level: _run(federation, level, task) for level in task.levels}


def _run(federation: SampleFederation, level: str, task: Task) -> Cell:
    changes = merged(task.levels[level], {"seed": task.seed})
    if task.setting == "overfitted":
        changes = merged(changes, HALVES)
        if level in {"none", "basic"}:
            changes = merged(changes, MANY_EPOCHS)
    config = federation.config(changes)
    record = federation.run(level, config)
    features = make_features(read_ai4i(task.source), load_yaml(AI4I_SCHEMA, DataSchema))
    numbers = np.sort(pd.read_csv(task.source)["UDI"].to_numpy())
    return Cell(
        pr_auc=record["global"]["pr_auc"],
        confidence=_confidence(federation.last(level), config, features),
        is_member=np.isin(numbers, federation.trained_on(config)),
    )


@torch.no_grad()
def _confidence(last: Checkpoint, config: ExperimentConfig, features: FeatureRows) -> Floats:
    """Give the log-odds of each row's true label."""
    x = torch.from_numpy(standardise(features.x, last.preprocessing)).unsqueeze(1)
    model = load_model(
        model_spec(config), last.parameters, sensors=features.x.shape[1], window_steps=1
    )
    logits = model(x).double().numpy()
    odds: Floats = logits[:, 1] - logits[:, 0]
    return np.where(features.y == 1, odds, -odds)


def _membership(cells: Sequence[Cell]) -> dict[str, Any]:
    """Give what both attacks find, by target."""
    attacked = Attacked(
        confidence=np.stack([cell.confidence for cell in cells]),
        is_member=np.stack([cell.is_member for cell in cells]),
    )
    found: dict[str, Any] = {}
    for name, attack in ATTACKS.items():
        scores = [attack(attacked, target) for target in range(TARGETS)]
        members = list(attacked.is_member[:TARGETS])
        each = [success([s], [m]) for s, m in zip(scores, members, strict=True)]
        found[name] = {
            "auc": [one.auc for one in each],
            "tpr": [one.tpr for one in each],
        }
    return found


def report(results: Mapping[str, Any]) -> str:
    """Give the tables as Markdown."""
    there, levels = results["machine"], results["levels"]
    best = np.mean(levels["none"]["ordinary"]["pr_auc"])
    utility = [
        (
            entry["title"],
            _interval(entry["ordinary"]["pr_auc"]),
            f"{np.mean(entry['ordinary']['pr_auc']) / best:.3f}",
            *(
                _interval(entry["ordinary"][attack][of])
                for attack in ATTACKS
                for of in ("auc", "tpr")
            ),
            *(_error(entry["inversion"][case]) for case in CASES),
        )
        for entry in levels.values()
    ]
    overfitted = [
        (
            entry["title"],
            _interval(entry["overfitted"]["pr_auc"]),
            *(
                _interval(entry["overfitted"][attack][of])
                for attack in ATTACKS
                for of in ("auc", "tpr")
            ),
        )
        for entry in levels.values()
    ]
    spread = [
        (
            entry["title"],
            f"{np.mean(found):.3f} ± {np.std(found, ddof=1):.3f}",
            f"{min(found):.3f}",
            f"{max(found):.3f}",
            f"{np.mean(found) / best:.3f}",
        )
        for entry in levels.values()
        for found in (entry["ordinary"]["pr_auc"],)
    ]
    membership = ("loss: AUC", "TPR at 1 %", "ratio: AUC", "TPR at 1 %")
    guess = levels["none"]["inversion"]
    return _TEXT.format(
        **there,
        **{name: results[name] for name in ("source", "targets", "shadows", "trials", "minutes")},
        utility=markdown_table(
            ("level", "PR-AUC, mean ± deviation", "least", "greatest", "of none"), spread
        ),
        ordinary=markdown_table(
            ("level", "PR-AUC", "of none", *membership, *(f"inversion, {case}" for case in CASES)),
            utility,
        ),
        overfitted=markdown_table(("level", "PR-AUC", *membership), overfitted),
        guesses=", ".join(f"{guess[case]['guess']:.2f} ({case})" for case in CASES),
    )


def _error(case: Mapping[str, float]) -> str:
    return f"{case['error']:.2f} ({case['found']:.0%})"


def _interval(values: Sequence[float]) -> str:
    half = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):.3f} ± {half:.3f}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--source", type=Path, help="the AI4I 2020 CSV; by default data like it")
    parser.add_argument("--quick", action="store_true", help="fewer models and trials")
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--again", type=Path, metavar="FILE", help="write up what --json has kept")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything here")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables here")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="draw here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
