"""The floor under a simulated site: its fit alone, on one core, without a federation around it."""

import os
import time
from collections.abc import Mapping
from typing import Final

import torch
from measuring import spread

from core.models import build_model
from core.seeds import derive_seed
from datasite.training.fit import fit
from datasite.training.objectives import Objective, Task
from datasite.training.tensors import Tensors
from orchestrator.agreement import model_spec
from orchestrator.configuration import ExperimentConfig

SENSORS: Final = 11
"""Features of a row of AI4I; what is in them does not change how long a fit takes."""

_WARM_UP: Final = 20


def measure_fits(config: ExperimentConfig, *, windows: int, repeats: int) -> Mapping[str, float]:
    """Give the milliseconds of a site's fit: parameters set, trained from, and read again.

    Model and training are those of `config`; the windows are drawn from a normal distribution.
    """
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    model = build_model(model_spec(config), sensors=SENSORS, window_steps=1)
    start = model.get_parameters()
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(windows, 1, SENSORS, generator=generator)
    data = Tensors.of(inputs, torch.arange(windows) % 2)
    taken = []
    for number in range(_WARM_UP + repeats):
        begin = time.perf_counter()
        model.set_parameters(start)
        fit(
            model,
            data,
            settings=config.training_settings(),
            positive_weight=1.0,
            objective=Objective(Task(hyperparameters={}, received={}, learning_rate=0.0)),
            seed=derive_seed(0, number, "bare"),
        )
        model.get_parameters()
        taken.append(1000 * (time.perf_counter() - begin))
    return spread(taken[_WARM_UP:])
