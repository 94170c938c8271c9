"""Federations in memory for benchmarks: real sites, real codec, real runs, and central training.

Everything is scored as a run is: pooled counts of the sites' parts, the threshold from validation.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from core.configuration import parse, read_yaml
from core.evaluation import best_threshold, count_scores, summarise
from core.models import TorchModel, build_model, load_model
from core.parameters import count
from core.seeds import derive_seed
from datasite.caller import Caller, Role
from datasite.data.windows import Part, Parts, prepare_parts
from datasite.site import FactoryDataSite
from datasite.trainer import InlineTrainer
from datasite.training.fit import fit
from datasite.training.objectives import Objective, Task
from datasite.training.tensors import Tensors
from orchestrator.agreement import model_spec, split_settings
from orchestrator.communication.memory import MemoryCommunication
from orchestrator.configuration import ExperimentConfig
from orchestrator.experiment import ExperimentOrchestrator
from orchestrator.runs import Checkpoint, RunStore
from orchestrator.schedule import LocalTraining
from orchestrator.testbed.presets import AI4I_EXPERIMENT, AI4I_SCHEMA
from orchestrator.testbed.samples import load_table, write_samples

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    import numpy.typing as npt

    from core.enums import DataDistribution
    from core.messages import Preprocessing, ScoreCounts
    from orchestrator.communication.memory import Handler
    from orchestrator.observer import Observer
    from orchestrator.start import Start

RESEARCHER = "researcher@benchmark.example.com"


class SampleFederation:
    """Sites in memory, each with its part of AI4I; to be used as a context.

    Args:
        folder: Where their state lies.
        source: The AI4I 2020 CSV; None for data like it.
        sites: How many.
        distribution: How the rows are divided.
        seed: Of the division.
    """

    def __init__(
        self,
        folder: Path,
        source: Path | None,
        *,
        sites: int,
        distribution: DataDistribution,
        seed: int,
    ) -> None:
        self._folder = folder
        self._opened = ExitStack()
        self._store = RunStore(folder / "runs")
        table = load_table(source, rows=10_000, seed=seed)
        files = write_samples(
            table, folder / "samples", sites=sites, distribution=distribution, seed=seed
        )
        self._sites = {file.stem: self._open(file) for file in files}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._opened.close()

    @property
    def site_ids(self) -> list[str]:
        """Names of the sites."""
        return list(self._sites)

    def config(self, changes: Mapping[str, Any]) -> ExperimentConfig:
        """Give the example experiment with `changes` to its sections, scored at its end only."""
        settings = read_yaml(AI4I_EXPERIMENT)
        rounds = changes.get("rounds", settings["rounds"])
        settings |= {"sites": str(self._sites_file()), "evaluation": {"every": rounds}}
        return parse(merged(settings, changes), ExperimentConfig, source="benchmark")

    def run(
        self,
        name: str,
        config: ExperimentConfig,
        through: Callable[[Handler], Handler] | None = None,
        observer: Observer | None = None,
    ) -> dict[str, Any]:
        """Run an experiment; its last round's record, with test and validation metrics.

        Args:
            name: The run's id.
            config: The experiment.
            through: What every request and answer goes through, where somebody counts them.
            observer: Told of the run's course.
        """
        orchestrator = ExperimentOrchestrator(
            lambda _config: self.communication(through), self._store, observer
        )
        orchestrator.setup(config, name)
        rounds: list[dict[str, Any]] = orchestrator.run_experiment(name)["rounds"]
        return rounds[-1]

    def communication(
        self, through: Callable[[Handler], Handler] | None = None
    ) -> MemoryCommunication:
        """Give a way to the sites; see `run`."""
        handlers = {site_id: _handler(site) for site_id, site in self._sites.items()}
        if through is not None:
            handlers = {site_id: through(handler) for site_id, handler in handlers.items()}
        return MemoryCommunication(handlers)

    def last(self, name: str) -> Checkpoint:
        """Give a run's parameters after its last round, with the preprocessing."""
        checkpoint = self._store.load_checkpoint(name)
        if checkpoint is None:
            raise ValueError(f"{name}: has no checkpoint")
        return checkpoint

    def model_file(self, name: str) -> Path:
        """Give the file that a run has left its final model in."""
        return self._store.folder(name) / "model.safetensors"

    def score(self, start: Start, config: ExperimentConfig) -> dict[str, float]:
        """Give the metrics of a model that was not trained here, on all test parts together.

        Args:
            start: Its parameters and its scaler.
            config: Of the model, the split and the seed.
        """
        preprocessing = start.scaled(_over_all_rows(self.parts(config)))
        parts = [part.test for part in self.parts(config)]
        inputs, labels = _tensors(parts, preprocessing)
        model = load_model(
            model_spec(config),
            start.parameters,
            sensors=inputs.shape[-1],
            window_steps=inputs.shape[1],
        )
        validation = _tensors([part.validation for part in self.parts(config)], preprocessing)
        return summarise(_score(model, inputs, labels), best_threshold(_score(model, *validation)))

    def count_parameters(self, name: str) -> int:
        """Give how many numbers the model of a run has."""
        return count(self.last(name).parameters.values())

    def parts(self, config: ExperimentConfig) -> list[Parts]:
        """Give how each site divides its windows."""
        return [self._parts(site, config) for site in self._sites.values()]

    def trained_on(self, config: ExperimentConfig) -> npt.NDArray[np.int64]:
        """Give the number (`UDI`) of every row that is in a site's training part."""
        numbers = []
        for site, parts in zip(self._sites.values(), self.parts(config), strict=True):
            table = pd.read_parquet(site.registry.find(config.dataset).file)
            numbers.append(np.sort(table["UDI"].to_numpy())[parts.train.starts])
        return np.concatenate(numbers).astype(np.int64)

    def train_centrally(self, config: ExperimentConfig) -> dict[str, dict[str, float]]:
        """Fit one model on all training rows for as many epochs at the same rates; its metrics.

        Returns:
            `global` (on all test parts together) and `validation`, as a round's record has them.
        """
        parts = self.parts(config)
        preprocessing = _over_all_rows(parts)
        data = Tensors.of(*_tensors([part.train for part in parts], preprocessing))
        model = build_model(
            model_spec(config),
            sensors=data.sensors,
            window_steps=data.window_steps,
            seed=config.seed,
        )
        schedule = LocalTraining(
            settings=config.training_settings(),
            schedule=config.training.schedule,
            rounds=config.rounds,
        )
        for round_num in range(config.rounds):
            fit(
                model,
                data,
                settings=schedule.at(round_num),
                positive_weight=preprocessing["positive_weight"],
                objective=Objective(Task(hyperparameters={}, received={}, learning_rate=0.0)),
                seed=derive_seed(config.seed, round_num, "central"),
            )
        validation = _score(model, *_tensors([part.validation for part in parts], preprocessing))
        test = _score(model, *_tensors([part.test for part in parts], preprocessing))
        threshold = best_threshold(validation)
        return {
            "global": summarise(test, threshold),
            "validation": summarise(validation, threshold),
        }

    def _open(self, file: Path) -> FactoryDataSite:
        site = FactoryDataSite(lambda _config: InlineTrainer())
        site.initialize_datasite(
            {
                "site_id": file.stem,
                "state": str(self._folder / file.stem),
                "operator": {"email": "operator@benchmark.example.com", "password": "in memory"},
                "policy": [{"name": "all", "decision": "approve", "researcher": RESEARCHER}],
                "release": {"minimum_count": 1},
                "budget": {"epsilon": 1000.0, "delta": 1e-3},
            }
        )
        self._opened.callback(site.close)
        site.register_data({"name": "ai4i", "file": file, "schema": AI4I_SCHEMA})
        return site

    def _sites_file(self) -> Path:
        path = self._folder / "sites.yaml"
        lines = [
            f"- {{site_id: {name}, url: 'memory://{name}', email: {RESEARCHER}, password: none}}"
            for name in self._sites
        ]
        path.write_text("sites:\n" + "\n".join(lines) + "\n", encoding="utf-8")
        return path

    @staticmethod
    def _parts(site: FactoryDataSite, config: ExperimentConfig) -> Parts:
        dataset = site.registry.find(config.dataset)
        table = pd.read_parquet(dataset.file)
        return prepare_parts(table, dataset.schema, split_settings(config), site.config.site_id)


def merged(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Give `settings` with `changes`, section by section; an algorithm comes whole."""
    result = dict(settings)
    for name, value in changes.items():
        is_section = isinstance(value, dict) and isinstance(result.get(name), dict)
        result[name] = {**result[name], **value} if is_section and name != "algorithm" else value
    return result


def _handler(site: FactoryDataSite) -> Handler:
    return lambda request, email: site.handle(request, Caller(email=email, role=Role.RESEARCHER))


def _over_all_rows(parts: list[Parts]) -> Preprocessing:
    """Mean and deviation over every row, as the sites' statistics are; failures weigh 1."""
    x = np.concatenate(
        [part.x for site in parts for part in (site.train, site.validation, site.test)]
    )
    rows = x.reshape(-1, x.shape[-1]).astype(np.float64)
    scale = rows.std(axis=0)
    return {
        "mean": rows.mean(axis=0).tolist(),
        "scale": np.where(scale > 0, scale, 1.0).tolist(),
        "positive_weight": 1.0,
    }


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
