"""Metrics from counts, against scikit-learn on the rows behind them."""

import math
from collections.abc import Callable
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from core.evaluation import (
    BINS,
    at_threshold,
    best_threshold,
    count_scores,
    majority_baseline,
    pool,
    pr_auc,
    probability_at,
    roc_auc,
    summarise,
)
from core.exceptions import DataError, ModelError
from core.messages import ScoreCounts

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

# A bin of a row and whether it is a failure; a few rows, so that ties are frequent.
rows = st.lists(
    st.tuples(st.integers(BINS // 2 - 4, BINS // 2 + 4), st.booleans()), min_size=1, max_size=30
)
rows_of_both_labels = rows.filter(lambda found: {label for _, label in found} == {True, False})
quietly = settings(max_examples=100, derandomize=True, deadline=None, database=None)


def score_in(bins: Integers) -> Floats:
    """Give the score in the middle of each bin: the inverse of q = s / (4 + |s|)."""
    middle = (2 * bins + 1) / BINS - 1
    return 4 * middle / (1 - np.abs(middle))


def columns(found: list[tuple[int, bool]]) -> tuple[Integers, Integers]:
    """Give bins and labels as columns."""
    bins, labels = zip(*found, strict=True)
    return np.array(bins, np.int64), np.array(labels, np.int64)


def counts_of(bins: Integers, labels: Integers) -> ScoreCounts:
    """Count rows whose scores are in the middle of their bins; each has a loss of 0.5."""
    return count_scores(score_in(bins), labels, np.full(len(bins), 0.5))


def table(rows_: int, seed: int) -> tuple[Floats, Integers]:
    """Give scores and labels such as a fair model has: 5 % failures, which score higher."""
    random = np.random.default_rng(seed)
    labels = (random.random(rows_) < 0.05).astype(np.int64)
    return random.normal(3.0 * labels - 3.0, 1.5), labels


@quietly
@given(found=rows_of_both_labels)
def test_pr_auc_is_average_precision_on_binned_scores(found: list[tuple[int, bool]]) -> None:
    """With ties and all, as scikit-learn counts."""
    bins, labels = columns(found)
    expected = metrics.average_precision_score(labels, bins)
    assert pr_auc(counts_of(bins, labels)) == pytest.approx(expected, abs=1e-12)


@quietly
@given(found=rows_of_both_labels)
def test_roc_auc_is_exact_on_binned_scores(found: list[tuple[int, bool]]) -> None:
    """A tie counts half, as in scikit-learn."""
    bins, labels = columns(found)
    expected = metrics.roc_auc_score(labels, bins)
    assert roc_auc(counts_of(bins, labels)) == pytest.approx(expected, abs=1e-12)


@quietly
@given(found=rows, first_bin=st.integers(BINS // 2 - 5, BINS // 2 + 5))
def test_metrics_at_a_threshold_are_exact(found: list[tuple[int, bool]], first_bin: int) -> None:
    """Calling a failure from a bin up gives scikit-learn's numbers; 0/0 is 0."""
    bins, labels = columns(found)
    called = (bins >= first_bin).astype(np.int64)
    assert at_threshold(counts_of(bins, labels), first_bin) == pytest.approx(
        {
            "f1": metrics.f1_score(labels, called, zero_division=0),
            "precision": metrics.precision_score(labels, called, zero_division=0),
            "recall": metrics.recall_score(labels, called, zero_division=0),
            "mcc": metrics.matthews_corrcoef(labels, called) if len(set(labels)) > 1 else 0.0,
        },
        abs=1e-12,
    )


@settings(quietly, max_examples=30)
@given(found=rows)
def test_the_best_threshold_has_nearly_the_largest_f1(found: list[tuple[int, bool]]) -> None:
    """No other of all the bins does better by more than a twentieth."""
    counts = counts_of(*columns(found))
    chosen = at_threshold(counts, best_threshold(counts))["f1"]
    largest = max(at_threshold(counts, first_bin)["f1"] for first_bin in range(BINS))
    assert chosen >= 0.95 * largest


def test_the_best_threshold_is_in_the_middle_of_those_that_are_as_good() -> None:
    """A failure in bin 300 and none in bin 200: 201 to 300 all part them, and 251 is between."""
    counts = counts_of(np.array([300, 200]), np.array([1, 0]))
    assert best_threshold(counts) == 251


@quietly
@given(found=rows, cut=st.integers(0, 30))
def test_two_sites_pooled_are_one_table(found: list[tuple[int, bool]], cut: int) -> None:
    """Wherever the rows lie, the sum of the counts is that of all rows."""
    bins, labels = columns(found)
    parts = [counts_of(bins[:cut], labels[:cut]), counts_of(bins[cut:], labels[cut:])]
    assert pool(parts) == counts_of(bins, labels)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_on_raw_scores_the_width_of_a_bin_costs_little(seed: int) -> None:
    """Half a hundredth of PR-AUC and half a thousandth of ROC-AUC, with some 250 failures."""
    scores, labels = table(5000, seed)
    counts = count_scores(scores, labels, np.zeros(len(scores)))
    exact = metrics.average_precision_score(labels, scores)
    assert pr_auc(counts) == pytest.approx(exact, abs=0.005)
    assert roc_auc(counts) == pytest.approx(metrics.roc_auc_score(labels, scores), abs=0.0005)


@quietly
@given(found=rows_of_both_labels)
@pytest.mark.parametrize(
    ("area", "exact"),
    [(pr_auc, metrics.average_precision_score), (roc_auc, metrics.roc_auc_score)],
    ids=["pr", "roc"],
)
def test_a_binned_area_lies_between_those_of_the_best_and_worst_order_within_bins(
    area: Callable[[ScoreCounts], float],
    exact: Callable[[Integers, Floats], float],
    found: list[tuple[int, bool]],
) -> None:
    """So does the exact one, whatever the scores were: the error is bounded by the ties."""
    bins, labels = columns(found)
    worst, best = exact(labels, bins - labels / 2), exact(labels, bins + labels / 2)
    assert worst - 1e-12 <= area(counts_of(bins, labels)) <= best + 1e-12


def test_counts_are_worked_by_hand() -> None:
    """Scores of 0 and just below it are in the two bins in the middle."""
    # q = s / (4 + |s|): 0 -> 0 -> bin 256; -0.01 -> -0.0025 -> (0.9975) * 256 = 255.4 -> bin 255
    scores, labels = np.array([0.0, -0.01, 0.0]), np.array([1, 0, 0])
    counts = count_scores(scores, labels, np.array([0.5, 0.25, 0.25]))
    assert (counts["count"], counts["loss_total"]) == (3, 1.0)
    assert {i: n for i, n in enumerate(counts["positives"]) if n} == {256: 1}
    assert {i: n for i, n in enumerate(counts["negatives"]) if n} == {255: 1, 256: 1}


@pytest.mark.parametrize(("score", "expected"), [(1e300, BINS - 1), (-1e300, 0)], ids=str)
def test_a_score_beyond_measure_is_in_the_last_bin(score: float, expected: int) -> None:
    """Nothing is lost at the ends."""
    counts = count_scores(np.array([score]), np.array([1]), np.zeros(1))
    assert counts["positives"].index(1) == expected


@pytest.mark.parametrize(
    ("scores", "losses"),
    [([math.nan], [0.0]), ([math.inf], [0.0]), ([0.0], [math.inf]), ([0.0], [math.nan])],
    ids=["score nan", "score inf", "loss inf", "loss nan"],
)
def test_a_diverged_model_is_said_and_not_counted(scores: list[float], losses: list[float]) -> None:
    """NaN has no bin, and an infinite loss no sum."""
    with pytest.raises(ModelError, match="it diverged"):
        count_scores(np.array(scores), np.array([1]), np.array(losses))


def test_without_failures_the_areas_are_undefined() -> None:
    """NaN and not 0: there was nothing to find."""
    counts = counts_of(np.array([100, 200]), np.array([0, 0]))
    assert math.isnan(pr_auc(counts))
    assert math.isnan(roc_auc(counts))
    assert at_threshold(counts, best_threshold(counts)) == {
        "f1": 0.0,
        "precision": 0.0,
        "recall": 0.0,
        "mcc": 0.0,
    }


def test_without_non_failures_only_the_ranking_is_undefined() -> None:
    """Everything called a failure is one: precision is 1 throughout."""
    counts = counts_of(np.array([100, 200]), np.array([1, 1]))
    assert pr_auc(counts) == 1.0
    assert math.isnan(roc_auc(counts))


def test_scores_that_are_all_tied_know_nothing() -> None:
    """PR-AUC is the failure rate, 1 of 4, and ROC-AUC that of a coin."""
    counts = counts_of(np.full(4, 300), np.array([1, 0, 0, 0]))
    assert (pr_auc(counts), roc_auc(counts)) == (0.25, 0.5)


def test_a_perfect_ranking_has_area_one() -> None:
    """Each failure scores above each non-failure."""
    counts = counts_of(np.array([300, 299, 298]), np.array([1, 0, 0]))
    assert (pr_auc(counts), roc_auc(counts), best_threshold(counts)) == (1.0, 1.0, 300)


def test_the_baseline_answers_no_failure_always() -> None:
    """With 1 failure in 4 rows it is right three times of four and finds nothing."""
    counts = counts_of(np.full(4, 300), np.array([1, 0, 0, 0]))
    assert majority_baseline(counts) == {
        "accuracy": 0.75,
        "pr_auc": 0.25,
        "roc_auc": 0.5,
        "f1": 0.0,
        "mcc": 0.0,
    }


def test_a_summary_has_the_mean_loss() -> None:
    """Four rows of loss 0.5 each."""
    counts = counts_of(np.full(4, 300), np.array([1, 0, 0, 0]))
    assert summarise(counts, 300)["loss"] == 0.5


def test_a_threshold_is_said_as_a_probability() -> None:
    """Bin 256 begins at log-odds 0; q = 1/2 is s = 4, whose probability is 1 / (1 + e^-4)."""
    assert probability_at(BINS // 2) == 0.5
    assert probability_at(3 * BINS // 4) == pytest.approx(1 / (1 + math.exp(-4)))
    assert probability_at(0) == 0.0
    assert [probability_at(i) for i in range(BINS)] == sorted(map(probability_at, range(BINS)))


@pytest.mark.parametrize("parts", [[], ["short"]], ids=["none", "other bins"])
def test_counts_that_do_not_fit_are_refused(parts: list[str]) -> None:
    """No sites, or a site of another release, give no pooled numbers."""
    short = cast("ScoreCounts", {"count": 1, "loss_total": 0.0, "negatives": [1], "positives": [0]})
    with pytest.raises(DataError, match=f"over {BINS} bins"):
        pool([short for _ in parts])
