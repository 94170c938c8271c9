"""Early stopping: when the validation parts stop improving, a run ends before its last round.

What it knows is replayed from the run's history, so that a resumed run stops where an undisturbed
one would have.
"""

import math
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

from pydantic import Field

from orchestrator.section import Section


class Judged(Enum):
    """What early stopping looks at: a metric of the pooled validation parts."""

    LOSS = "loss"
    PR_AUC = "pr_auc"
    ROC_AUC = "roc_auc"
    F1 = "f1"
    MCC = "mcc"


class Mode(Enum):
    """Whether a metric is better when it is larger."""

    MAX = "max"
    MIN = "min"


class EarlyStopping(Section):
    """When a run ends before its last round. Test parts are never looked at.

    Attributes:
        metric: Of the pooled validation parts.
        mode: By default `min` for the loss and `max` for all else.
        patience: Evaluations in a row without improvement that end the run.
        min_delta: What counts as an improvement must be more than this.
        restore_best: Whether the best round's model is the run's; else it is the last.
    """

    metric: Judged = Judged.PR_AUC
    mode: Mode | None = None
    patience: int = Field(default=5, ge=1)
    min_delta: float = Field(default=0.0, ge=0)
    restore_best: bool = True


class Stopper:
    """Watches the pooled validation metrics round by round.

    Args:
        settings: What to watch, and for how long; None watches nothing and never stops.
        history: The records of earlier rounds.

    Attributes:
        best_round: Where the metric was best; None before the first evaluation.
    """

    def __init__(
        self, settings: EarlyStopping | None, history: Iterable[Mapping[str, Any]] = ()
    ) -> None:
        self._settings = settings
        self._best = math.nan
        self._since = 0
        self.best_round: int | None = None
        for record in history:
            self.see(record)

    @property
    def is_over(self) -> bool:
        """Whether the run is to end now."""
        return self._settings is not None and self._since >= self._settings.patience

    @property
    def restores(self) -> bool:
        """Whether the best round's model is to be the run's."""
        return self._settings is not None and self._settings.restore_best

    def see(self, record: Mapping[str, Any]) -> bool:
        """Take note of a round's record; whether it is the best so far.

        A round without evaluation says nothing. A metric that is not a number is no improvement.
        """
        if self._settings is None or "validation" not in record:
            return False
        value = float(record["validation"][self._settings.metric.value])
        if self._improves(value, self._settings):
            self._best, self._since, self.best_round = value, 0, record["round_num"]
            return True
        self._since += 1
        return False

    def _improves(self, value: float, settings: EarlyStopping) -> bool:
        if math.isnan(value):
            return False
        if math.isnan(self._best):
            return True
        natural = Mode.MIN if settings.metric is Judged.LOSS else Mode.MAX
        sign = 1 if (settings.mode or natural) is Mode.MAX else -1
        return sign * (value - self._best) > settings.min_delta
