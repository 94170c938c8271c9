"""Early stopping: when the validation parts stop improving, a run ends before its last round.

What it knows is replayed from the run's history, so that a resumed run stops where an undisturbed
one would have.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.configuration import EarlyStopping, Judged, Mode


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
