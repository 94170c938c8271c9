"""Membership inference: was a window among those that a model was trained on?

An attack gives each window a score, higher for a member. Both have the model, the window and its
label, and nothing of the site: *loss threshold* takes the loss alone; *likelihood ratio* has shadow
models besides, trained in the same way on rows of the same kind, and knows for each window how
models with it and models without it answer.

Sources: Yeom et al., CSF 2018, https://arxiv.org/abs/1709.01604 (loss threshold); Carlini et al.,
IEEE S&P 2022, https://arxiv.org/abs/2112.03570 (likelihood ratio; TPR at a low FPR).
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import norm
from sklearn.metrics import roc_auc_score, roc_curve

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

LOW_FPR: Final = 0.01
_FEWEST_SHADOWS: Final = 2
"""With a window, and without it; of the others no scores are given."""


class Attacked(NamedTuple):
    """Models that were trained in the same way on different rows of one table.

    Attributes:
        confidence: (models, rows) log p − log (1 − p), p being the probability that a model gives a
            row's true label: minus infinity is surprise, 0 is a half.
        is_member: (models, rows) whether the row was among the model's training windows.
    """

    confidence: Floats
    is_member: Bools


class Success(NamedTuple):
    """How well an attack tells members from others.

    Attributes:
        auc: Probability that a member scores above another; a half is chance.
        tpr: Share of the members found where one in a hundred of the others is taken for one; a
            hundredth is chance.
    """

    auc: float
    tpr: float


def by_loss(attacked: Attacked, target: int) -> Floats:
    """Give each row's score by the loss of model `target`: (rows,)."""
    return -np.logaddexp(0.0, -attacked.confidence[target])


def by_likelihood_ratio(attacked: Attacked, target: int) -> Floats:
    """Give each row's log p(φ | member) − log p(φ | not) with all other models as shadows: (rows,).

    φ is the confidence. Both densities are normal, with the row's own means over the shadows with
    it and without it, and a deviation that all rows share, as few shadows ask for. NaN where fewer
    than two shadows have the row, or lack it.
    """
    shadows = np.delete(np.arange(len(attacked.confidence)), target)
    answers, has_it = attacked.confidence[shadows], attacked.is_member[shadows]
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = _log_density(attacked.confidence[target], answers, has_it)
        ratio -= _log_density(attacked.confidence[target], answers, ~has_it)
    enough = np.minimum(has_it.sum(axis=0), (~has_it).sum(axis=0)) >= _FEWEST_SHADOWS
    return np.where(enough, ratio, np.nan)


def success(scores: Sequence[Floats], is_member: Sequence[Bools]) -> Success:
    """Judge the scores of several targets together; rows without a score do not count."""
    score, member = np.concatenate(scores), np.concatenate(is_member)
    known = ~np.isnan(score)
    score, member = score[known], member[known]
    false_rate, true_rate, _ = roc_curve(member, score)
    return Success(
        auc=float(roc_auc_score(member, score)),
        tpr=float(np.interp(LOW_FPR, false_rate, true_rate)),
    )


def _log_density(observed: Floats, answers: Floats, counts: Bools) -> Floats:
    """Give the log density of (rows,) under normals fitted to the answers that count."""
    number = counts.sum(axis=0)
    mean = np.where(counts, answers, 0.0).sum(axis=0) / number
    squares = np.where(counts, (answers - mean) ** 2, 0.0)
    freedom = np.maximum(number - 1, 0).sum()
    deviation = np.sqrt(np.nansum(squares) / freedom)
    density: Floats = norm.logpdf(observed, mean, deviation * np.sqrt(1 + 1 / number))
    return density
