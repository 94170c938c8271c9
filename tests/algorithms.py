"""Server halves on small parameters, and the updates that they are given."""

from typing import Any, cast

import torch
from sites import TRAINING

from core.messages import Parameters, TrainingSettings
from orchestrator.algorithms import ALGORITHMS, Algorithm, AlgorithmSettings, build_algorithm
from orchestrator.schedule import Constant, LocalTraining


def settings_of(name: str, **settings: object) -> AlgorithmSettings:
    """Give the section `algorithm` of an experiment."""
    return ALGORITHMS[name].Settings.model_validate({"name": name, **settings})


def build(
    name: str,
    parameters: Parameters,
    *,
    num_sites: int = 3,
    training: dict[str, Any] | None = None,
    **settings: object,
) -> Algorithm:
    """Give an algorithm at its start, over sites that train as `TRAINING` says."""
    return build_algorithm(
        settings_of(name, **settings),
        parameters,
        training=LocalTraining(
            settings=cast("TrainingSettings", {**TRAINING, **(training or {})}),
            schedule=Constant(),
            rounds=100,
        ),
        num_sites=num_sites,
    )


def update(site_id: str, *values: float, samples: int = 1, **changes: Any) -> dict[str, Any]:
    """Give a site's update with these numbers in `w`, and a control variate that stays as it is."""
    return {
        "datasite_id": site_id,
        "round_num": 0,
        "num_samples": samples,
        "num_steps": 1,
        "metrics": {"train_loss": 0.5, "fit_s": 0.1},
        "parameters": {"w": torch.tensor(values), "steps": torch.tensor(3)},
        "control": {"w": torch.zeros(2)},
        **changes,
    }
