"""One site without PySyft, what is asked of it, and data small enough to count on fingers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pandas as pd
import psutil

from core import wire
from core.codehash import installed_code_hash
from core.messages import Message, Parameters
from core.models import initial_parameters
from core.wire import Parcel
from datasite.caller import Caller, Role
from datasite.configuration import SiteConfig
from datasite.site import FactoryDataSite
from datasite.trainer import InlineTrainer, Trainer, TrainerProcess

RESEARCHER = Caller(email="researcher@lab.example.com", role=Role.RESEARCHER)
RIVAL = Caller(email="rival@lab.example.com", role=Role.RESEARCHER)

APPROVE = [{"name": "lab", "decision": "approve", "researcher": RESEARCHER.email}]

SCHEMA: dict[str, Any] = {
    "name": "press",
    "label": {"column": "failure"},
    "columns": [{"name": "load", "range": [0, 10]}, {"name": "heat", "range": [0, 100]}],
}

ROWS = 100
"""Every fourth row fails. With SPLIT, 60 rows train: 45 without a failure and 15 with one."""

TRAIN_ROWS = 60

MODEL = {"type": "cnn", "options": {"channels": 2, "blocks": 1}}
SPLIT = {"test": 0.2, "validation": 0.2, "seed": 1}
PREPROCESSING = {"mean": [5.0, 50.0], "scale": [3.0, 30.0], "positive_weight": 3.0}
TRAINING = {
    "local_epochs": 1,
    "batch_size": 16,
    "learning_rate": 0.1,
    "optimizer": "sgd",
    "momentum": 0.0,
    "weight_decay": 0.0,
    "gradient_clip": None,
    "focal_gamma": 0.0,
}
FEDAVG = {"name": "fedavg", "hyperparameters": {}}
PROBE = {"name": "probe", "hyperparameters": {}}

BUDGET = {"epsilon": 9.0, "delta": 1e-5, "unit": "window"}
"""Enough for three plans like `PRIVATE`, and for no whole fourth."""

PRIVATE: dict[str, Any] = {
    "privacy_level": "differential_privacy",
    "privacy": {
        "level": "differential_privacy",
        "epsilon": 5.0,
        "delta": 1e-5,
        "clip_norm": 1.0,
        "unit": "window",
    },
}
"""What a proposal with differential privacy has."""


def inline(_config: SiteConfig) -> Trainer:
    """Give a trainer in the calling thread."""
    return InlineTrainer()


def in_a_process(config: SiteConfig) -> Trainer:
    """Give a trainer in a child process."""
    return TrainerProcess(site_id=config.site_id, threads=1)


def trainer_process(site: FactoryDataSite) -> psutil.Process:
    """Give the process that trains for a site that was opened with `in_a_process`."""
    assert site._workshop is not None
    assert isinstance(site._workshop._trainer, TrainerProcess)
    return psutil.Process(site._workshop._trainer._child.process.pid)


def site_settings(folder: Path, **changes: object) -> dict[str, Any]:
    """Give what a `site.yaml` would hold; the state is under `folder`."""
    return {
        "site_id": "factory-1",
        "state": str(folder / "state"),
        "operator": {"email": "op@factory.example.com", "password": "not used in memory"},
        "policy": APPROVE,
        **changes,
    }


def write_table(path: Path, rows: int = ROWS, **columns: object) -> Path:
    """Write `rows` readings as CSV; `columns` replace those that there are."""
    numbers = pd.Series(range(rows))
    pd.DataFrame(
        {
            "load": numbers * 7 % 11 * 0.9,
            "heat": numbers * 13 % 17 * 5.0,
            "failure": (numbers % 4 == 3).astype(int),
            **columns,
        }
    ).to_csv(path, index=False)
    return path


def register(site: FactoryDataSite, folder: Path, rows: int = ROWS, **columns: object) -> None:
    """Register `write_table`'s readings as `press`."""
    file = write_table(folder / "press.csv", rows, **columns)
    site.register_data({"name": "press", "file": file, "schema": SCHEMA})


def parameters(seed: int = 0, model: Mapping[str, Any] = MODEL, sensors: int = 2) -> Parameters:
    """Give the parameters that a run starts from."""
    return initial_parameters(cast("Any", model), sensors=sensors, window_steps=1, seed=seed)


def proposal(**changes: object) -> dict[str, Any]:
    """Give the proposal of a plan of three rounds."""
    return {
        "kind": "propose",
        "run_id": "run-1",
        "dataset": "press",
        "dataset_version": 1,
        "model": MODEL,
        "algorithm": FEDAVG,
        "training": TRAINING,
        "split": SPLIT,
        "privacy_level": "none",
        "rounds": 3,
        "code_hash": installed_code_hash(),
        **changes,
    }


def train_request(plan_id: str, **changes: object) -> dict[str, Any]:
    """Give a request for round 0 of `proposal`'s plan."""
    return {
        "kind": "train",
        "plan_id": plan_id,
        "round_num": 0,
        "seed": 0,
        "model": MODEL,
        "algorithm": FEDAVG,
        "training": TRAINING,
        "preprocessing": PREPROCESSING,
        "deadline_s": 60.0,
        "parameters": parameters(),
        **changes,
    }


def evaluate_request(plan_id: str, **changes: object) -> dict[str, Any]:
    """Give a request to evaluate in round 0 of `proposal`'s plan."""
    request = train_request(plan_id, **changes)
    for field in ("seed", "algorithm", "training"):
        del request[field]
    return {**request, "kind": "evaluate"}


def encoded(message: Mapping[str, Any]) -> Parcel:
    """Give a message as it travels."""
    return wire.encode(cast("Message", message))


def ask(
    site: FactoryDataSite, message: Mapping[str, Any], caller: Caller = RESEARCHER
) -> dict[str, Any]:
    """Ask the site through its bytes; what it answered."""
    return cast("dict[str, Any]", wire.decode(site.handle(encoded(message), caller)))


def planned(site: FactoryDataSite, **changes: object) -> str:
    """Propose a plan as the researcher; its id."""
    return str(ask(site, proposal(**changes))["plan_id"])
