"""What federated training reaches, next to the same model trained centrally.

    python benchmarks/learning.py --source ai4i2020.csv [--seeds 5] [--json FILE]

For each seed: the table is divided among three sites (IID), FedAvg with the CNN runs as the example
experiment says, over in-memory sites; and the same model is trained on the union of the sites'
training rows for as many epochs, with the same settings. Both are scored on the sites' test parts
together. The seed decides division, splits, starting values and batches.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from loguru import logger
from measuring import machine, print_table, spread, write_json

from core.configuration import read_yaml
from core.enums import DataDistribution
from core.evaluation import best_threshold, count_scores, summarise
from core.messages import Preprocessing, ScoreCounts
from core.models import TorchModel, build_model
from core.seeds import derive_seed
from datasite.caller import Caller, Role
from datasite.data.windows import Part, Parts, prepare_parts
from datasite.site import FactoryDataSite
from datasite.trainer import InlineTrainer
from datasite.training.fit import fit
from datasite.training.objectives import Objective, Task
from orchestrator.agreement import split_settings
from orchestrator.communication.memory import MemoryCommunication
from orchestrator.configuration import ExperimentConfig
from orchestrator.experiment import ExperimentOrchestrator
from orchestrator.runs import RunStore
from orchestrator.testbed.presets import AI4I_EXPERIMENT, AI4I_SCHEMA
from orchestrator.testbed.samples import load_table, write_samples

SITES = 3
METRICS = ("pr_auc", "roc_auc", "f1", "mcc")
RESEARCHER = "researcher@benchmark.example.com"


def main() -> None:
    """Measure and print."""
    arguments = _arguments()
    logger.disable("datasite")
    cells = []
    for seed in range(arguments.seeds):
        with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
            cells.append(_measure(Path(folder), arguments.source, seed, arguments.rounds))
        print(
            f"seed {seed}: federated PR-AUC {cells[-1]['federated']['pr_auc']:.4f}, "
            f"central {cells[-1]['central']['pr_auc']:.4f}",
            flush=True,
        )
    results = {"machine": machine(), "source": str(arguments.source or "generated"), "seeds": cells}
    _print(cells)
    write_json(arguments.json, results)


def _measure(folder: Path, source: Path | None, seed: int, rounds: int | None) -> dict[str, Any]:
    table = load_table(source, rows=10_000, seed=seed)
    files = write_samples(
        table, folder / "samples", sites=SITES, distribution=DataDistribution.IID, seed=seed
    )
    sites = {path.stem: _open_site(folder, path) for path in files}
    store = RunStore(folder / "runs")
    orchestrator = ExperimentOrchestrator(lambda _config: _transport(sites), store)
    settings = {
        **read_yaml(AI4I_EXPERIMENT),
        "seed": seed,
        "sites": str(_sites_file(folder, list(sites))),
        "evaluation": {"every": 1000},
        "experiment_id": "federated",
        **({"rounds": rounds} if rounds else {}),
    }
    orchestrator.setup_experiment(settings)
    results = orchestrator.run_experiment("federated")
    checkpoint = store.load_checkpoint("federated")
    assert checkpoint is not None  # noqa: S101 - a completed run has one
    central = _train_centrally(sites, store.config("federated"), checkpoint.preprocessing)
    for site in sites.values():
        site.close()
    return {"federated": results["metrics"]["final"]["global"], "central": central}


def _open_site(folder: Path, file: Path) -> FactoryDataSite:
    site = FactoryDataSite(lambda _config: InlineTrainer())
    site.initialize_datasite(
        {
            "site_id": file.stem,
            "state": str(folder / file.stem),
            "operator": {"email": "operator@benchmark.example.com", "password": "in memory"},
            "policy": [{"name": "all", "decision": "approve", "researcher": RESEARCHER}],
        }
    )
    site.register_data({"name": "ai4i", "file": file, "schema": AI4I_SCHEMA})
    return site


def _transport(sites: dict[str, FactoryDataSite]) -> MemoryCommunication:
    return MemoryCommunication(
        {
            site_id: lambda request, email, site=site: site.handle(  # type: ignore[misc]
                request, Caller(email=email, role=Role.RESEARCHER)
            )
            for site_id, site in sites.items()
        }
    )


def _sites_file(folder: Path, site_ids: list[str]) -> Path:
    path = folder / "sites.yaml"
    lines = [
        f"- {{site_id: {site_id}, url: 'memory://{site_id}', email: {RESEARCHER}, password: none}}"
        for site_id in site_ids
    ]
    path.write_text("sites:\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return path


def _train_centrally(
    sites: dict[str, FactoryDataSite], config: ExperimentConfig, preprocessing: Preprocessing
) -> dict[str, float]:
    """Fit one model on all training rows; its metrics on all test rows."""
    parts = [_parts(site, config) for site in sites.values()]
    settings = config.training_settings()
    settings["local_epochs"] *= config.rounds
    inputs, labels = _tensors([part.train for part in parts], preprocessing)
    model = build_model(
        {"type": config.model.type.value, "options": config.model.options},
        sensors=inputs.shape[2],
        window_steps=inputs.shape[1],
        seed=config.seed,
    )
    fit(
        model,
        inputs,
        labels,
        settings=settings,
        positive_weight=preprocessing["positive_weight"],
        objective=Objective(Task(hyperparameters={}, received={}, learning_rate=0.0)),
        seed=derive_seed(config.seed, "central"),
    )
    validation = _score(model, *_tensors([part.validation for part in parts], preprocessing))
    test = _score(model, *_tensors([part.test for part in parts], preprocessing))
    return summarise(test, best_threshold(validation))


def _parts(site: FactoryDataSite, config: ExperimentConfig) -> Parts:
    dataset = site.registry.find("ai4i")
    table = pd.read_parquet(dataset.file)
    return prepare_parts(table, dataset.schema, split_settings(config), site.config.site_id)


def _tensors(parts: list[Part], preprocessing: Preprocessing) -> tuple[torch.Tensor, torch.Tensor]:
    x = np.concatenate([part.x for part in parts])
    standardised = (x - np.asarray(preprocessing["mean"])) / np.asarray(preprocessing["scale"])
    y = np.concatenate([part.y for part in parts])
    return torch.from_numpy(standardised.astype(np.float32)), torch.from_numpy(y)


@torch.no_grad()
def _score(model: TorchModel, inputs: torch.Tensor, labels: torch.Tensor) -> ScoreCounts:
    logits = model(inputs).double()
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    return count_scores((logits[:, 1] - logits[:, 0]).numpy(), labels.numpy(), losses.numpy())


def _print(cells: list[dict[str, Any]]) -> None:
    rows = []
    for kind in ("federated", "central"):
        for metric in METRICS:
            values = [cell[kind][metric] for cell in cells]
            rows.append((f"{kind} {metric}", float(np.mean(values)), *spread(values).values()))
    federated, central = (
        float(np.mean([cell[kind]["pr_auc"] for cell in cells]))
        for kind in ("federated", "central")
    )
    rows.append(("PR-AUC, federated / central", federated / central, "", "", ""))
    print_table(f"{len(cells)} seeds; {machine()}", ("", "mean", "min", "median", "max"), rows)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--source", type=Path, help="the AI4I 2020 CSV; by default data like it")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, help="by default as in the example experiment")
    parser.add_argument("--json", type=Path, help="write the results here too")
    return parser.parse_args()


if __name__ == "__main__":
    main()
