"""A run with too few sites waits for those that are away, up to a limit, and says for whom."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from core.exceptions import FederatedLearningError
from orchestrator.fleet import Answers, Fleet

T = TypeVar("T")

_GLANCE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 2.0

TellAway = Callable[[Mapping[str, str], float], None]
"""Told who is away and why, and for how many seconds at most the run waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """How a run waits.

    Attributes:
        limit_s: For how long at most, from the first time that too few answered.
        tell: Told at the beginning of each wait, and when others are waited for.
    """

    fleet: Fleet
    limit_s: float
    tell: TellAway

    def enough(
        self,
        ask: Callable[[], Answers[T]],
        fewest: int,
        *,
        what: str,
        round_num: int | None = None,
    ) -> Answers[T]:
        """Ask until at least `fewest` sites answer, as long as it is for those who are away.

        What a site has done already it does not do again: it is answered from what it has stored.

        Raises:
            FederatedLearningError: Too few answered, and nobody is away, or they were for too long;
                as `Answers.require`.
        """
        end = math.inf  # until somebody lacks: the work before that is no waiting
        waited_for: set[str] = set()
        pause_s = _GLANCE_S
        while True:
            answers = ask()
            try:
                answers.require(fewest, what=what, round_num=round_num)
            except FederatedLearningError as exc:
                away = {s: str(error) for s, error in answers.failed.items() if error.retryable}
                lacking = fewest - len(answers.ok)
                end = min(end, time.monotonic() + self.limit_s)
                if len(away) < lacking or time.monotonic() >= end:
                    if not waited_for:
                        raise
                    told = f"(waited {self.limit_s:g} s for {', '.join(sorted(waited_for))})"
                    raise type(exc)(f"{exc}\n{told}", round_num=round_num) from exc
                if not away.keys() <= waited_for:
                    waited_for |= away.keys()
                    self.tell(away, self.limit_s)
                self._until_back(away, lacking, end)
                self.fleet.halt.wait(pause_s)  # who comes and goes is not asked without a pause
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            else:
                return answers

    def _until_back(self, away: Mapping[str, str], lacking: int, end: float) -> None:
        """Wait until `lacking` of those who were away are back, or the time is over."""

        def are_back() -> bool:
            return sum(not self.fleet.circuits[s].is_away for s in away) >= lacking

        while time.monotonic() < end and not self.fleet.circuits.wait(are_back, limit_s=_GLANCE_S):
            self.fleet.halt.check()
