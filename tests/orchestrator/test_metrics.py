"""Pooled numbers, worked by hand, and the files that they are exported to."""

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pytest

from core import ConfigurationError, ExperimentError, ModelInterface
from core.evaluation import BINS
from core.messages import ClientUpdate, EvaluationReport, ScoreCounts
from core.models import build_model
from orchestrator.metrics import (
    MetricsCollector,
    evaluation_metrics,
    export_rounds,
    training_metrics,
)


def counts(
    positives: dict[int, int], negatives: dict[int, int], *, loss_total: float = 0.0
) -> ScoreCounts:
    """Give counts from bins to how many rows are in them."""
    return ScoreCounts(
        count=sum(positives.values()) + sum(negatives.values()),
        loss_total=loss_total,
        positives=[positives.get(i, 0) for i in range(BINS)],
        negatives=[negatives.get(i, 0) for i in range(BINS)],
    )


def report(site_id: str, *, validation: ScoreCounts, test: ScoreCounts) -> EvaluationReport:
    """Give a site's report."""
    return EvaluationReport(
        kind="evaluation", datasite_id=site_id, round_num=0, validation=validation, test=test
    )


def update(site_id: str, *, samples: int, loss: float, fit_s: float) -> ClientUpdate:
    """Give a site's update, as far as metrics go."""
    return ClientUpdate(
        kind="update",
        datasite_id=site_id,
        round_num=0,
        num_samples=samples,
        num_steps=4,
        metrics={"train_loss": loss, "fit_s": fit_s},
        parameters={},
    )


TWO_SITES = {
    "factory-1": report(
        "factory-1",
        validation=counts({300: 1}, {299: 3}),
        test=counts({300: 1, 290: 1}, {200: 2}, loss_total=2.0),
    ),
    "factory-2": report(
        "factory-2",
        validation=counts({300: 1}, {310: 1, 200: 2}),
        test=counts({300: 1}, {310: 1, 200: 2}, loss_total=4.0),
    ),
}


def test_training_metrics_weigh_by_samples() -> None:
    """The loss of a large site counts for more, and the slowest fit is the round's."""
    # (1 * 0.8 + 3 * 0.4) / 4 = 0.5
    found = training_metrics(
        [
            update("factory-1", samples=1, loss=0.8, fit_s=2.0),
            update("factory-2", samples=3, loss=0.4, fit_s=1.0),
        ]
    )
    assert found["training"] == {"loss": pytest.approx(0.5), "slowest_fit_s": 2.0}
    assert found["sites"]["factory-2"] == {
        "num_samples": 3,
        "num_steps": 4,
        "train_loss": 0.4,
        "fit_s": 1.0,
    }


def test_the_threshold_comes_from_validation_and_the_metrics_from_test() -> None:
    """Two sites as one table, judged at the bin that was best on other rows."""
    found = evaluation_metrics(TWO_SITES)
    # Validation pooled: failures 2 in bin 300; others 1 in 310, 3 in 299, 2 in 200. From bin 300:
    # 2 found, 1 false, none missed: F1 = 4/5. Bin 300 begins at q = 600/512 - 1 = 0.171875, that is
    # s = 4 q / (1 - q) = 0.8301887, with probability 1 / (1 + e^-s) = 0.6963948.
    assert found["threshold"] == pytest.approx(0.6963948, abs=1e-7)
    assert found["validation"]["f1"] == pytest.approx(4 / 5)
    # Test pooled: failures 2 in bin 300, 1 in bin 290; others 1 in bin 310, 4 in bin 200. From bin
    # 300 up: tp 2, fp 1, fn 1, tn 4 (bin 290 would have been better here, and may not be chosen).
    pooled = found["global"]
    assert pooled["precision"] == pytest.approx(2 / 3)
    assert pooled["recall"] == pytest.approx(2 / 3)
    assert pooled["f1"] == pytest.approx(2 / 3)
    # (2*4 - 1*1) / sqrt(3 * 3 * 5 * 5) = 7/15
    assert pooled["mcc"] == pytest.approx(7 / 15)
    # Σ ΔR P: bin 300 adds 2/3 at 2/3, bin 290 adds 1/3 at 3/4: 4/9 + 1/4
    assert pooled["pr_auc"] == pytest.approx(4 / 9 + 1 / 4)
    # Of 15 pairs: each of three failures beats 4 others of 5: 12/15
    assert pooled["roc_auc"] == pytest.approx(12 / 15)
    # (2 + 4) / 8 rows
    assert pooled["loss"] == pytest.approx(0.75)


def test_each_site_is_judged_at_the_common_threshold() -> None:
    """Its own rows, and the bin that all agreed on."""
    per_site = evaluation_metrics(TWO_SITES)["per_site"]
    # factory-1 from bin 300 up: tp 1, fp 0, fn 1; factory-2: tp 1, fp 1, fn 0.
    assert per_site["factory-1"]["precision"] == 1.0
    assert per_site["factory-1"]["recall"] == 0.5
    assert per_site["factory-2"]["precision"] == 0.5
    assert per_site["factory-2"]["recall"] == 1.0
    assert per_site["factory-1"]["loss"] == 0.5


def test_the_baseline_is_that_of_the_pooled_test_rows() -> None:
    """Three failures in eight rows."""
    baseline = evaluation_metrics(TWO_SITES)["baseline"]
    assert (baseline["accuracy"], baseline["pr_auc"]) == (5 / 8, 3 / 8)


@pytest.mark.parametrize("bin_of_failures", range(0, BINS, 17))
def test_every_bin_can_be_the_threshold(bin_of_failures: int) -> None:
    """At the ends too, it is a probability that JSON can say."""
    part = counts({bin_of_failures: 1}, {})
    found = evaluation_metrics({"a": report("a", validation=part, test=part)})
    assert 0.0 <= found["threshold"] <= 1.0
    assert found["global"]["f1"] == 1.0


def evaluated(round_num: int, pr_auc: float, seconds: float = 1.0) -> dict[str, Any]:
    """Give the record of an evaluated round."""
    return {
        "round_num": round_num,
        "global": {"pr_auc": pr_auc / 2},
        "per_site": {},
        "threshold": 0.5,
        "validation": {"pr_auc": pr_auc},
        "baseline": {"pr_auc": 0.03},
        "seconds": {"round": seconds},
    }


def test_an_experiments_metrics_name_the_last_and_the_best_round() -> None:
    """Best on validation, so that the test rows choose nothing."""
    rounds = [evaluated(0, 0.4), evaluated(1, 0.9), evaluated(2, 0.6), {"round_num": 3}]
    found = MetricsCollector().collect_experiment_metrics({"rounds": rounds})
    assert found["rounds"] == 4
    assert found["final"]["round_num"] == 2
    assert found["final"]["global"] == {"pr_auc": 0.3}
    assert found["best"] == {"round_num": 1, "pr_auc": 0.9}
    assert found["seconds"] == 3.0


def test_a_round_without_failures_to_find_is_never_the_best() -> None:
    """NaN compares with nothing: it must not win by coming first."""
    rounds = [evaluated(0, math.nan), evaluated(1, 0.2)]
    collector = MetricsCollector()
    found = collector.collect_experiment_metrics({"rounds": rounds})
    assert found["best"] == {"round_num": 1, "pr_auc": 0.2}
    assert collector.collect_experiment_metrics({"rounds": rounds[:1]})["best"] is None


def test_a_collector_has_the_model_evaluated_at_the_sites() -> None:
    """It asks with the round and the new model, and the record has both kinds of numbers."""
    asked: list[tuple[int, ModelInterface]] = []

    def evaluate(round_num: int, model: ModelInterface) -> Mapping[str, EvaluationReport]:
        asked.append((round_num, model))
        return TWO_SITES

    model = build_model({"type": "cnn", "options": {}}, sensors=1, window_steps=1)
    updates = [cast("dict[str, Any]", update("factory-1", samples=1, loss=0.5, fit_s=0.1))]
    record = MetricsCollector(evaluate).collect_round_metrics(4, model, updates)
    assert asked == [(4, model)]
    assert {"training", "sites", "global", "per_site", "threshold", "baseline"} <= record.keys()


ROUNDS: list[dict[str, Any]] = [
    {
        "round_num": 0,
        "training": {"loss": 0.1 + 0.2},
        "sites": {"factory-1": {"num_samples": 3}},
        "missing": {},
    },
    {
        "round_num": 1,
        "training": {"loss": 1e-17},
        "sites": {"factory-1": {"num_samples": 3}},
        "global": {"pr_auc": 0.25},
        "missing": {"factory-2": 'said "no",\nand hung up'},
    },
]
FLAT = [
    {"round_num": 0, "training.loss": 0.1 + 0.2, "sites.factory-1.num_samples": 3},
    {
        "round_num": 1,
        "training.loss": 1e-17,
        "sites.factory-1.num_samples": 3,
        "global.pr_auc": 0.25,
        "missing.factory-2": 'said "no",\nand hung up',
    },
]


def test_json_keeps_the_structure(tmp_path: Path) -> None:
    """Read back, it is what was exported, to the last digit."""
    export_rounds(ROUNDS, tmp_path / "rounds.json")
    assert json.loads((tmp_path / "rounds.json").read_text()) == ROUNDS


def test_json_is_for_every_reader(tmp_path: Path) -> None:
    """NaN is no JSON: null says that there is no number."""
    export_rounds([{"round_num": 0, "global": {"pr_auc": math.nan}}], tmp_path / "rounds.json")
    text = (tmp_path / "rounds.json").read_text()
    assert "NaN" not in text
    assert json.loads(text) == [{"round_num": 0, "global": {"pr_auc": None}}]


def test_csv_is_flat(tmp_path: Path) -> None:
    """A column for each number of any round, empty where a round has none."""
    export_rounds(ROUNDS, tmp_path / "rounds.csv")
    with (tmp_path / "rounds.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [{k: v for k, v in row.items() if v} for row in rows] == [
        {name: str(value) for name, value in row.items()} for row in FLAT
    ]


def test_parquet_is_flat_and_typed(tmp_path: Path) -> None:
    """Whole numbers stay whole."""
    export_rounds(ROUNDS, tmp_path / "rounds.parquet")
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / "rounds.parquet"), pd.DataFrame(FLAT), check_exact=True
    )


@pytest.mark.parametrize("suffix", [".json", ".csv", ".parquet"])
def test_no_rounds_are_a_file_too(tmp_path: Path, suffix: str) -> None:
    """The export of a run that never began."""
    export_rounds([], tmp_path / f"rounds{suffix}")
    assert (tmp_path / f"rounds{suffix}").exists()


def test_another_suffix_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    """With the three that there are."""
    with pytest.raises(ConfigurationError, match=r"rounds\.xlsx: .*\.json, \.csv or \.parquet"):
        export_rounds(ROUNDS, tmp_path / "rounds.xlsx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".json", ".csv", ".parquet"])
def test_an_export_replaces_the_one_before(tmp_path: Path, suffix: str) -> None:
    """Nothing of the old file is left, and nothing beside it."""
    path = tmp_path / f"rounds{suffix}"
    export_rounds(ROUNDS * 50, path)
    export_rounds(ROUNDS, path)
    fresh = tmp_path / "fresh" / path.name
    export_rounds(ROUNDS, fresh)
    assert path.read_bytes() == fresh.read_bytes()
    assert {item.name for item in tmp_path.iterdir()} == {path.name, "fresh"}


def test_an_export_below_a_file_is_told(tmp_path: Path) -> None:
    """A folder cannot be made where a file is."""
    (tmp_path / "results").write_text("")
    with pytest.raises(ExperimentError, match=r"rounds\.json cannot be written"):
        export_rounds(ROUNDS, tmp_path / "results" / "rounds.json")
