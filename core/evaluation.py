"""From scores to counts at a site, and from summed counts to metrics at the orchestrator.

A site says how many failures and non-failures scored in each of `BINS` bins, and no more. Counts of
several sites add up, so pooled metrics are those of the union of their rows, up to the width of a
bin: within a bin, all scores count as equal (tied).

A score s is the log-odds of failure; bins have equal width in s / (4 + |s|), which is finest around
s = 0 and never clips: models that overfit give scores beyond ±40, and a fixed range would tie all
their failures in its last bin.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from core.exceptions import DataError, ModelError
from core.messages import ScoreCounts

BINS = 512

_HALF = 4.0
"""The log-odds at which half of the bins on that side are used up."""

_NEARLY = 0.95
"""Of the largest F1."""

FloatArray = npt.NDArray[np.float64]
CountArray = npt.NDArray[np.int64]


def count_scores(scores: FloatArray, labels: CountArray, losses: FloatArray) -> ScoreCounts:
    """Count `scores: (n,)`, log-odds of failure, into bins by true label `(n,)` in {0, 1}.

    Raises:
        ModelError: A score or a loss is not finite.
    """
    if not (np.isfinite(scores).all() and np.isfinite(losses).all()):
        raise ModelError("the model's scores are not finite: it diverged; lower the learning rate")
    squashed = scores / (_HALF + np.abs(scores))
    bins = np.clip(np.floor((squashed + 1) * BINS / 2), 0, BINS - 1).astype(np.int64)
    return ScoreCounts(
        count=len(scores),
        loss_total=float(losses.sum()),
        negatives=np.bincount(bins[labels == 0], minlength=BINS).tolist(),
        positives=np.bincount(bins[labels == 1], minlength=BINS).tolist(),
    )


def pool(parts: Sequence[ScoreCounts]) -> ScoreCounts:
    """Add counts up, as if the rows behind them were one table.

    Raises:
        DataError: Nothing to add, or histograms of another number of bins.
    """
    if not parts or any(len(p["negatives"]) != BINS or len(p["positives"]) != BINS for p in parts):
        raise DataError(f"expected evaluation counts over {BINS} bins from at least one site")
    return ScoreCounts(
        count=sum(part["count"] for part in parts),
        loss_total=math.fsum(part["loss_total"] for part in parts),
        negatives=np.sum([part["negatives"] for part in parts], axis=0).tolist(),
        positives=np.sum([part["positives"] for part in parts], axis=0).tolist(),
    )


def pr_auc(counts: ScoreCounts) -> float:
    """Area under precision over recall, as average precision: Σ (R_i − R_{i−1}) P_i.

    NaN without failures. Source: scikit-learn's `average_precision_score`, on binned scores.
    """
    true, predicted = _cumulative(counts)
    if not true[-1]:
        return math.nan
    precision = np.divide(true, predicted, out=np.ones_like(true), where=predicted > 0)
    return float(np.sum(np.diff(true, prepend=0.0) * precision) / true[-1])


def roc_auc(counts: ScoreCounts) -> float:
    """Probability that a failure scores above a non-failure, a tie counting half; else NaN."""
    negatives, positives = _histograms(counts)
    below = np.cumsum(negatives) - negatives
    pairs = negatives.sum() * positives.sum()
    return float((positives * (below + negatives / 2)).sum() / pairs) if pairs else math.nan


def best_threshold(counts: ScoreCounts) -> int:
    """Give the bin from which calling a failure is best: the middle of those with nearly best F1.

    Nearly is within 5 % of the largest F1. With the few failures of a validation part the largest
    itself is an accident of single rows.
    """
    true, predicted = _cumulative(counts)
    f1 = (2 * true / np.maximum(predicted + true[-1], 1))[::-1]  # by the first bin that counts
    nearly = np.flatnonzero(f1 >= _NEARLY * f1.max())
    return int(nearly[len(nearly) // 2])


def probability_at(first_bin: int) -> float:
    """Give the lower edge of a bin as a probability of failure."""
    squashed = 2 * first_bin / BINS - 1
    if squashed == -1:
        return 0.0
    score = _HALF * squashed / (1 - abs(squashed))
    return (1 + math.tanh(score / 2)) / 2  # 1 / (1 + e^-score), without its overflow


def at_threshold(counts: ScoreCounts, first_bin: int) -> dict[str, float]:
    """Give `f1`, `precision`, `recall` and `mcc` when bins from `first_bin` up call a failure.

    A quotient 0/0 is 0, as nothing was found.
    """
    negatives, positives = _histograms(counts)
    tp, fp = float(positives[first_bin:].sum()), float(negatives[first_bin:].sum())
    fn, tn = float(positives.sum()) - tp, float(negatives.sum()) - fp
    spread = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return {
        "f1": _quotient(2 * tp, 2 * tp + fp + fn),
        "precision": _quotient(tp, tp + fp),
        "recall": _quotient(tp, tp + fn),
        "mcc": _quotient(tp * tn - fp * fn, spread),
    }


def majority_baseline(counts: ScoreCounts) -> dict[str, float]:
    """Give what always answering "no failure" scores; its PR-AUC is the failure rate.

    Of counts that were all withheld nothing is known: NaN.
    """
    if not counts["count"]:
        return dict.fromkeys(("accuracy", "pr_auc", "roc_auc", "f1", "mcc"), math.nan)
    positives = sum(counts["positives"])
    rate = _quotient(positives, counts["count"])
    return {"accuracy": 1 - rate, "pr_auc": rate, "roc_auc": 0.5, "f1": 0.0, "mcc": 0.0}


def summarise(counts: ScoreCounts, first_bin: int) -> dict[str, float]:
    """Give a part's metrics: mean `loss`, `pr_auc`, `roc_auc`, and those of `at_threshold`.

    Of a part whose counts the site withheld nothing is known: they are NaN.
    """
    known = {
        "loss": _quotient(counts["loss_total"], counts["count"]),
        "pr_auc": pr_auc(counts),
        "roc_auc": roc_auc(counts),
        **at_threshold(counts, first_bin),
    }
    return known if counts["count"] else dict.fromkeys(known, math.nan)


def _histograms(counts: ScoreCounts) -> tuple[FloatArray, FloatArray]:
    return np.asarray(counts["negatives"], float), np.asarray(counts["positives"], float)


def _cumulative(counts: ScoreCounts) -> tuple[FloatArray, FloatArray]:
    """True positives, and all called positive, as the threshold falls bin by bin from the top."""
    negatives, positives = _histograms(counts)
    true = np.cumsum(positives[::-1])
    return true, true + np.cumsum(negatives[::-1])


def _quotient(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else 0.0
