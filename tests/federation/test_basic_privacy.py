"""The level `basic` over whole runs: no update is longer than agreed, no small group is told of."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from federations import APPROVE_ALL, Federation

from core import wire
from core.messages import Parameters
from core.parameters import distance
from core.wire import Parcel
from orchestrator.algorithms import ALGORITHMS
from orchestrator.communication.memory import Handler

MODEL = {"type": "cnn", "options": {"channels": 4, "blocks": 1}}
CLIP = 0.05
ROUNDING = 1e-6


class Plant:
    """Three factories, and what passed between them and the orchestrator."""

    def __init__(self, federation: Federation) -> None:
        self.federation = federation
        self.updates: list[tuple[Parameters, dict[str, Any]]] = []

    def run(self, run_id: str, **changes: Any) -> dict[str, Any]:
        """Run two rounds; its results."""
        self.updates.clear()
        doors = {name: self._listening(door) for name, door in self.federation.handlers().items()}
        orchestrator = self.federation.orchestrator(handlers=doors)
        settings = self.federation.settings(rounds=2, model=MODEL, **changes)
        orchestrator.setup_experiment({**settings, "experiment_id": run_id})
        return orchestrator.run_experiment(run_id)

    def parameters(self, run_id: str) -> Parameters:
        """Give the run's final parameters."""
        return safetensors.torch.load_file(
            self.federation.store.folder(run_id) / "model.safetensors"
        )

    def _listening(self, door: Handler) -> Handler:
        def handle(request: Parcel, email: str) -> Parcel:
            reply = door(request, email)
            asked, answered = wire.decode(request), wire.decode(reply)
            if asked["kind"] == "train" and answered["kind"] == "update":
                self.updates.append((asked["parameters"], dict(answered)))
            return reply

        return handle


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory, samples: list[Path]) -> Iterator[Plant]:
    """Three sites with 420 rows each to train on."""
    federation = Federation(tmp_path_factory.mktemp("basic"), policy=APPROVE_ALL)
    federation.open_samples(samples)
    yield Plant(federation)
    federation.close()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_no_site_sends_a_longer_change_than_agreed(plant: Plant, algorithm: str) -> None:
    """Training goes further than the bound, and what is sent ends at it."""
    plant.run(
        f"short-{algorithm}",
        algorithm={"name": algorithm},
        privacy={"level": "basic", "clip_norm": CLIP, "minimum_count": 1},
    )
    lengths = [distance(update["parameters"], sent) for sent, update in plant.updates]
    assert len(lengths) == 6
    assert max(lengths) <= CLIP * (1 + ROUNDING)
    assert sum(length > CLIP * 0.999 for length in lengths) >= 3


def test_a_wide_bound_changes_nothing(plant: Plant) -> None:
    """What is within it is sent as it was trained, bit by bit."""
    wide = {"level": "basic", "clip_norm": 1e6, "minimum_count": 1}
    plain = plant.run("plain")
    assert plant.run("wide", privacy=wide)["parameters_sha256"] == plain["parameters_sha256"]


def test_groups_below_the_plans_number_are_not_told_of(plant: Plant) -> None:
    """The site tells of single rows otherwise; the plan's number is what counts then."""
    most = {"level": "basic", "clip_norm": 1.0, "minimum_count": 50}
    assert "withheld" not in plant.run("told")["rounds"][-1]
    last = plant.run("not-told", privacy=most)["rounds"][-1]
    assert set(last["withheld"]) == set(plant.federation.sites)
