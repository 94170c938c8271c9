"""What every `MetricsCollectorInterface` promises."""

import json
from pathlib import Path
from typing import Any

import pytest

from core import ConfigurationError, ExperimentError, MetricsCollectorInterface
from core.models import build_model
from orchestrator.metrics import MetricsCollector

MODEL = build_model({"type": "cnn", "options": {}}, sensors=1, window_steps=1)


@pytest.fixture(params=[MetricsCollector], ids=lambda kind: kind.__name__)
def collector(request: pytest.FixtureRequest) -> MetricsCollectorInterface:
    """One collector after the other, of a run that evaluates nothing."""
    made: MetricsCollectorInterface = request.param()
    return made


def update(site_id: str, loss: float) -> dict[str, Any]:
    """Give a site's update, as far as metrics go."""
    return {
        "datasite_id": site_id,
        "num_samples": 1,
        "num_steps": 1,
        "metrics": {"train_loss": loss, "fit_s": 0.0},
    }


def exported(collector: MetricsCollectorInterface, folder: Path) -> list[dict[str, Any]]:
    """Give the rounds that the collector has recorded."""
    path = folder / "rounds.json"
    collector.export_metrics(str(path))
    rounds: list[dict[str, Any]] = json.loads(path.read_text())
    return rounds


def test_a_round_is_given_and_recorded(
    collector: MetricsCollectorInterface, tmp_path: Path
) -> None:
    """What is exported is what the round gave."""
    given = collector.collect_round_metrics(0, MODEL, [update("factory-1", 0.5)])
    assert given["round_num"] == 0
    assert exported(collector, tmp_path) == [given]


def test_collecting_a_round_again_replaces_it(
    collector: MetricsCollectorInterface, tmp_path: Path
) -> None:
    """A round that was run twice counts once, as it came out the second time."""
    collector.collect_round_metrics(0, MODEL, [update("factory-1", 0.5)])
    again = collector.collect_round_metrics(0, MODEL, [update("factory-1", 0.25)])
    assert exported(collector, tmp_path) == [again]


def test_rounds_are_exported_in_their_order(
    collector: MetricsCollectorInterface, tmp_path: Path
) -> None:
    """Whenever they were collected."""
    for round_num in (2, 0, 1):
        collector.collect_round_metrics(round_num, MODEL, [update("factory-1", 0.5)])
    assert [record["round_num"] for record in exported(collector, tmp_path)] == [0, 1, 2]


def test_the_metrics_of_an_experiment_come_from_its_results(
    collector: MetricsCollectorInterface,
) -> None:
    """A collector that saw no round of it gives the same as one that did."""
    rounds = [
        collector.collect_round_metrics(round_num, MODEL, [update("factory-1", 0.5)])
        for round_num in (0, 1)
    ]
    found = collector.collect_experiment_metrics({"rounds": rounds})
    assert found["rounds"] == 2
    assert type(collector)().collect_experiment_metrics({"rounds": rounds}) == found


def test_an_experiment_without_rounds_has_metrics_too(
    collector: MetricsCollectorInterface,
) -> None:
    """It may have failed before round 0."""
    assert collector.collect_experiment_metrics({})["rounds"] == 0


@pytest.mark.parametrize("name", ["rounds.xlsx", "rounds", "rounds.json.gz"])
def test_another_suffix_is_refused_and_nothing_written(
    collector: MetricsCollectorInterface, tmp_path: Path, name: str
) -> None:
    """The error names the three that there are."""
    with pytest.raises(ConfigurationError, match=r"\.json, \.csv or \.parquet"):
        collector.export_metrics(str(tmp_path / name))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".json", ".csv", ".parquet"])
def test_an_export_that_fails_leaves_nothing_behind(
    collector: MetricsCollectorInterface, tmp_path: Path, suffix: str
) -> None:
    """A folder stands in the way: it stays, and no part of a file is left beside it."""
    collector.collect_round_metrics(0, MODEL, [update("factory-1", 0.5)])
    target = tmp_path / f"rounds{suffix}"
    target.mkdir()
    with pytest.raises(ExperimentError, match="cannot be written"):
        collector.export_metrics(str(target))
    assert list(tmp_path.iterdir()) == [target]
