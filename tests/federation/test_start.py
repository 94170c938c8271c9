"""Runs that start from the parameters of a file, over whole federations, real and simulated."""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from federations import Federation
from simulations import Simulation

from core.exceptions import CommunicationError, ConfigurationError
from core.messages import Parameters, Preprocessing
from core.models import build_model
from core.parameters import digest
from datasite.configuration import Budget
from datasite.ledger import AuditRow
from orchestrator.observer import Observer
from orchestrator.runs import Checkpoint, RunStore
from orchestrator.start import model_file

MODEL = {"type": "cnn", "options": {"channels": 4, "blocks": 1}}
FEATURES = 11
SCALER = Preprocessing(mean=[3.0] * FEATURES, scale=[2.0] * FEATURES, positive_weight=9.0)


class Watch(Observer):
    """Notes the checkpoint that each run begins with, and interrupts after a round.

    Args:
        store: Of the runs.
        stop_after: The round; None for never.
    """

    def __init__(self, store: RunStore, stop_after: int | None = None) -> None:
        self.store = store
        self.stop_after = stop_after
        self.begun: dict[str, Checkpoint] = {}

    def started(self, run_id: str, next_round: int, rounds: int) -> None:
        """Note what is there before the first round."""
        checkpoint = self.store.load_checkpoint(run_id)
        assert checkpoint is not None
        self.begun[run_id] = checkpoint

    def round_done(self, run_id: str, record: Mapping[str, Any]) -> None:
        """Interrupt after the chosen round."""
        if record["round_num"] == self.stop_after:
            raise KeyboardInterrupt


def parameters(seed: int = 5) -> Parameters:
    """Give parameters of `MODEL` that no run of these tests draws."""
    return build_model(MODEL, sensors=FEATURES, window_steps=1, seed=seed).get_parameters()


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """Give a file with `parameters`, which says nothing of a scaler."""
    path = tmp_path / "start.safetensors"
    path.write_bytes(safetensors.torch.save(parameters()))
    return path


def starting_from(path: Path, **options: int) -> dict[str, Any]:
    """Give `MODEL`, with other options where some are given, starting from a file."""
    return {**MODEL, "options": {**MODEL["options"], **options}, "start": str(path)}  # type: ignore[dict-item]


def actions(federation: Federation) -> set[str]:
    """Give what the sites were asked for, by their audit logs."""
    found: set[str] = set()
    for site in federation.sites.values():
        with site.ledger.read() as session:
            found |= {row.action for row in session.query(AuditRow)}
    return found


def test_round_0_starts_from_the_parameters_of_the_file(
    federation: Federation, start: Path
) -> None:
    """Bit by bit; without a file they are those of the seed; and the run tells what it was."""
    watch = Watch(federation.store)
    results = federation.run("from-file", watch, rounds=1, model=starting_from(start))
    other = federation.run("from-seed", watch, rounds=1, model=MODEL)
    assert digest(watch.begun["from-file"].parameters) == digest(parameters())
    assert digest(watch.begun["from-seed"].parameters) == digest(parameters(seed=0))
    sha256 = hashlib.sha256(start.read_bytes()).hexdigest()
    assert results["start"] == {"file": str(start), "sha256": sha256}
    assert other["start"] is None


def test_a_file_with_the_parameters_of_the_seed_changes_nothing(
    federation: Federation, tmp_path: Path
) -> None:
    """A start decides the parameters before round 0 and nothing else."""
    path = tmp_path / "seed.safetensors"
    path.write_bytes(safetensors.torch.save(parameters(seed=0)))
    named = federation.run("named", model=starting_from(path))
    drawn = federation.run("drawn", model=MODEL)
    assert named["parameters_sha256"] == drawn["parameters_sha256"]


def test_a_final_model_is_a_start_with_its_scaler(federation: Federation) -> None:
    """The second run goes on with the first one's parameters, in the scale that they know."""
    watch = Watch(federation.store)
    first = federation.run("first", watch, rounds=1, model=MODEL)
    for site_id in federation.sites:
        federation.heat(site_id, 4.0)
    path = federation.store.folder("first") / "model.safetensors"
    federation.run("second", watch, rounds=1, model=starting_from(path))
    federation.run("alone", watch, rounds=1, model=MODEL)
    begun = watch.begun["second"]
    assert digest(begun.parameters) == first["parameters_sha256"]
    assert begun.preprocessing == watch.begun["first"].preprocessing
    assert begun.preprocessing != watch.begun["alone"].preprocessing


def test_under_differential_privacy_the_scaler_comes_with_the_start(
    federation: Federation, tmp_path: Path
) -> None:
    """And the class weight from the schema still; no sums over rows are asked for."""
    for site in federation.sites.values():
        budget = Budget.model_validate({"epsilon": 10.0, "delta": 1e-5, "unit": "window"})
        site.budgets.set("ai4i", budget, who="operator")
    path, watch = tmp_path / "scaled.safetensors", Watch(federation.store)
    path.write_bytes(model_file(parameters(), SCALER))
    privacy = {"level": "differential_privacy", "epsilon": 4.0, "delta": 1e-5}
    federation.run("one", watch, rounds=1, model=starting_from(path), privacy=privacy)
    preprocessing = watch.begun["one"].preprocessing
    assert (preprocessing["mean"], preprocessing["scale"]) == (SCALER["mean"], SCALER["scale"])
    assert preprocessing["positive_weight"] == 1.0
    assert "statistics" not in actions(federation)


def test_simulated_sites_start_from_the_same_parameters(
    federation: Federation, samples: list[Path], start: Path, tmp_path: Path
) -> None:
    """The same YAML and the same file end with the same bits on another transport."""
    data = tmp_path / "data"
    data.mkdir()
    for path in samples:
        shutil.copy(path, data)
    real = federation.run("real", model=starting_from(start))
    played = Simulation(tmp_path / "simulation", data).run("played", model=starting_from(start))
    assert played["parameters_sha256"] == real["parameters_sha256"]


def test_a_run_that_goes_on_does_not_need_the_file(federation: Federation, start: Path) -> None:
    """It was stopped after round 0, and its start is gone by then."""
    undisturbed = federation.run("undisturbed", model=starting_from(start))
    with pytest.raises(KeyboardInterrupt):
        federation.run("stopped", Watch(federation.store, 0), model=starting_from(start))
    start.unlink()
    resumed = federation.orchestrator().run_experiment("stopped")
    assert resumed["parameters_sha256"] == undisturbed["parameters_sha256"]
    assert resumed["start"] == undisturbed["start"]


def test_a_run_that_failed_before_round_0_starts_from_what_was_there(
    federation: Federation, start: Path
) -> None:
    """It had no checkpoint yet, and the file holds another model by the time it goes on."""
    undisturbed = federation.run("undisturbed", model=starting_from(start))
    doors = federation.handlers()
    away = {name: door for name, door in doors.items() if name != "factory-2"}
    orchestrator = federation.orchestrator(handlers=away)
    settings = federation.settings(model=starting_from(start))
    orchestrator.setup_experiment({**settings, "experiment_id": "late"})
    with pytest.raises(CommunicationError, match="factory-2"):
        orchestrator.run_experiment("late")
    start.write_bytes(safetensors.torch.save(parameters(seed=6)))
    late = federation.orchestrator().run_experiment("late")
    assert late["parameters_sha256"] == undisturbed["parameters_sha256"]


def test_a_start_of_another_model_is_refused_before_any_plan(
    federation: Federation, start: Path
) -> None:
    """The file and the tensor are named, and no operator is bothered."""
    with pytest.raises(ConfigurationError) as caught:
        federation.run("one", model=starting_from(start, channels=8))
    message = str(caught.value)
    assert message.startswith(f"model.start: {start}: 'blocks.0.")
    assert "give model.type and model.options as they were when it was trained" in message
    assert federation.store.find("one").status == "FAILED"
    assert "propose" not in actions(federation)


def test_a_start_with_other_names_is_refused(federation: Federation, tmp_path: Path) -> None:
    """A checkpoint is no model, though it has one."""
    path = tmp_path / "checkpoint.safetensors"
    named = {f"parameters/{name}": tensor for name, tensor in parameters().items()}
    path.write_bytes(safetensors.torch.save(named))
    with pytest.raises(ConfigurationError, match=r"do not fit: missing .*unknown .*parameters/"):
        federation.run("one", model=starting_from(path))


def test_a_start_of_another_precision_is_refused(federation: Federation, tmp_path: Path) -> None:
    """Nothing is rounded or widened on the way."""
    path = tmp_path / "double.safetensors"
    wide = {name: tensor.to(torch.float64) for name, tensor in parameters().items()}
    path.write_bytes(safetensors.torch.save(wide))
    with pytest.raises(ConfigurationError, match=r"is torch.float64 .*, expected torch.float32"):
        federation.run("one", model=starting_from(path))


def test_a_scaler_for_other_features_is_refused(federation: Federation, tmp_path: Path) -> None:
    """The parameters fit and the scaler does not: the file was put together by hand."""
    path = tmp_path / "short.safetensors"
    scaler = Preprocessing(mean=[0.0] * 3, scale=[1.0] * 3, positive_weight=1.0)
    path.write_bytes(model_file(parameters(), scaler))
    with pytest.raises(ConfigurationError, match="scales 3 features, the data have 11"):
        federation.run("one", model=starting_from(path))
