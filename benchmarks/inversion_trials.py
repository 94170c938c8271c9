"""Updates of known rows under each privacy level, and how near gradient inversion comes to them."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from inmemory import SampleFederation
from inversion import Seen, by_matching, by_span, match
from loguru import logger

from core.clipping import clip_factor, shorten
from core.configuration import load_yaml
from core.enums import DataDistribution
from core.messages import Parameters, PlanProposal, Preprocessing, TrainingSettings
from core.models import build_model
from core.models.cnn import CNN
from core.parameters import difference, distance, scale, weighted_sum
from core.privacy import DifferentialPrivacy, PrivacySettings, is_private
from core.schema import DataSchema
from datasite.data.windows import Part, Parts
from datasite.mechanism import Mechanism, mechanism_of
from datasite.training.fit import fit
from datasite.training.objectives import Objective, Task
from datasite.training.private_fit import fit_privately
from datasite.training.tensors import Tensors, standardise
from orchestrator.agreement import model_spec
from orchestrator.configuration import ExperimentConfig
from orchestrator.privacy import plan_settings
from orchestrator.testbed.presets import AI4I_SCHEMA

CASES: Final[Mapping[str, int | None]] = {"1 row": 1, "8 rows": 8, "a round": None}
"""How many rows the one step of an update is over; None for a whole round on all training rows."""

_SOUGHT: Final = 8
"""Rows that are looked for in the update of a whole round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Victims:
    """The sites under one level, and the round that is looked into: the first.

    Attributes:
        config: The experiment.
        parts: Of each site.
        preprocessing: As agreed for the run.
        schema: Of the data.
    """

    config: ExperimentConfig
    parts: Sequence[Parts]
    preprocessing: Preprocessing
    schema: DataSchema

    def attack(self, rows: int | None, *, is_mean: bool, seed: int) -> dict[str, float]:
        """Make an update and invert it.

        Args:
            rows: As in `CASES`.
            is_mean: Whether the mean of all sites' updates is seen, or the first site's.
            seed: Decides rows, starting parameters and starts.

        Returns:
            Of the better attack: `error` and `found` (see `match`); of as many rows of the test
            part in place of the attack's, `guess` and `guess_found`.
        """
        model = build_model(
            model_spec(self.config),
            sensors=len(self.schema.features),
            window_steps=1,
            seed=seed,
        )
        assert isinstance(model, CNN)  # noqa: S101 - both experiments have it
        received = model.get_parameters()
        whose = self.parts if is_mean else self.parts[:1]
        taken = [self._taken(parts.train, rows, seed) for parts in whose]
        changes = [self._change(received, data, rows) for data in taken]
        truth = torch.cat([data.windows(data.starts) for data in taken])
        labels = torch.cat([data.labels for data in taken])
        if rows is None:
            labels = torch.zeros(_SOUGHT, dtype=torch.int64)
        low, high = self._limits()
        privacy = self._privacy()
        seen = Seen(
            model=model,
            parameters=received,
            change=weighted_sum(changes, [1 / len(changes)] * len(changes)),
            labels=labels,
            class_weights=torch.tensor([1.0, self.preprocessing["positive_weight"]]),
            low=low,
            high=high,
            clip_norm=privacy["clip_norm"] if is_private(privacy) else None,
        )
        every = torch.from_numpy(standardise(self.parts[0].train.rows, self.preprocessing))
        judge = partial(match, truth=truth, mean=every.mean(dim=0), deviation=every.std(dim=0))
        tried = [judge(attack(seen, seed=seed)) for attack in (by_span, by_matching)]
        error, found = min(tried)
        others = self._taken(self.parts[0].test, len(labels), seed)
        guess, guess_found = judge(others.windows(others.starts))
        return {"error": error, "found": found, "guess": guess, "guess_found": guess_found}

    def _taken(self, part: Part, rows: int | None, seed: int) -> Tensors:
        """Give so many rows of a part, at random, or all."""
        chosen = np.arange(len(part.y))
        if rows is not None:
            chosen = np.random.default_rng(seed).choice(chosen, rows, replace=False)
        x = torch.from_numpy(standardise(part.x[chosen], self.preprocessing))
        return Tensors.of(x, torch.from_numpy(part.y[chosen]))

    def _limits(self) -> tuple[torch.Tensor, torch.Tensor]:
        limits = np.array(self.schema.ranges, dtype=np.float32).T
        low, high = torch.from_numpy(standardise(limits, self.preprocessing))
        return low, high

    def _change(self, received: Parameters, data: Tensors, rows: int | None) -> Parameters:
        """Give what the update tells of the gradient: received minus sent, without the decay."""
        settings = self.config.local_training().at(0)
        if rows is not None:
            settings = TrainingSettings(**{**settings, "local_epochs": 1, "batch_size": rows})
        change = difference(received, self._sent(received, data, settings, rows))
        if rows is None:
            return change
        change = scale(change, 1 / settings["learning_rate"])
        return weighted_sum([change, received], [1.0, -settings["weight_decay"]])

    def _sent(
        self, received: Parameters, data: Tensors, settings: TrainingSettings, rows: int | None
    ) -> Parameters:
        """Train as a site does, and give what it sends."""
        model = build_model(
            model_spec(self.config), sensors=data.sensors, window_steps=1, seed=self.config.seed
        )
        model.set_parameters(received)
        training: dict[str, Any] = {
            "settings": settings,
            "positive_weight": self.preprocessing["positive_weight"],
            "objective": Objective(Task(hyperparameters={}, received={}, learning_rate=0.0)),
        }
        privacy = self._privacy()
        if is_private(privacy):
            mechanism = self._mechanism(privacy, rows)
            fit_privately(model, data, **training, privacy=privacy, mechanism=mechanism)
            return model.get_parameters()
        fit(model, data, **training, seed=0)
        sent = model.get_parameters()
        bound = privacy["clip_norm"] if privacy and privacy["level"] == "basic" else None
        return shorten(sent, received, clip_factor(distance(sent, received), bound))

    def _privacy(self) -> PrivacySettings | None:
        return plan_settings(self.config.privacy).get("privacy")

    def _mechanism(self, privacy: DifferentialPrivacy, rows: int | None) -> Mechanism:
        """Give the plan's; a step on few rows has the plan's noise as well."""
        proposal = PlanProposal(  # type: ignore[typeddict-item]  # nothing else of it is asked for
            training=self.config.training_settings(), rounds=self.config.rounds
        )
        mechanism = mechanism_of(proposal, privacy, len(self.parts[0].train.y))
        if rows is None:
            return mechanism
        return Mechanism(**{**mechanism, "units": rows, "sample_rate": 1.0, "steps": 1})


def try_inversions(
    source: Path, levels: Mapping[str, Mapping[str, Any]], *, secure: str, trials: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Give, by level and case, the medians of the errors and the means of the shares found.

    Args:
        source: The AI4I table.
        levels: What each changes in the example experiment.
        secure: The name of the level at which the mean of all sites' updates is seen, made with the
            settings of the first of `levels`.
        trials: Each with other rows, starting parameters and starts.
    """
    torch.set_num_threads(1)
    logger.disable("datasite")
    first = next(iter(levels))
    with (
        tempfile.TemporaryDirectory(prefix="benchmark-") as folder,
        SampleFederation(
            Path(folder), source, sites=3, distribution=DataDistribution.IID, seed=0
        ) as federation,
    ):
        victims = {name: _victims(federation, name, changes) for name, changes in levels.items()}
        return {
            name: {
                case: _summary(
                    [
                        victims[first if name == secure else name].attack(
                            rows, is_mean=name == secure, seed=trial
                        )
                        for trial in range(trials)
                    ]
                )
                for case, rows in CASES.items()
            }
            for name in (*levels, secure)
        }


def _victims(federation: SampleFederation, name: str, changes: Mapping[str, Any]) -> Victims:
    """Begin the run, for what is agreed in it before the first round."""
    federation.run(f"agreed-{name}", federation.config({**changes, "rounds": 1}))
    config = federation.config(changes)
    return Victims(
        config=config,
        parts=federation.parts(config),
        preprocessing=federation.last(f"agreed-{name}").preprocessing,
        schema=load_yaml(AI4I_SCHEMA, DataSchema),
    )


def _summary(trials: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {
        name: float((np.mean if "found" in name else np.median)([trial[name] for trial in trials]))
        for name in trials[0]
    }
