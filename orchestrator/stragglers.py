"""Sites that are slow: how long a round waits for them, and what is done about the late."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import Field

from orchestrator.section import Section

_SHARE = 0.8
"""Of the cutoff, after which a site sends what it has: the rest is for the way and for its turn."""


class Stragglers(Section):
    """The section `stragglers` of an experiment; results then depend on who was quick.

    Attributes:
        cutoff_s: After so many seconds a round goes on once `min_sites` updates are there; the
            others are called off and dropped.
        partial: Whether a site sends what it has trained shortly before the cutoff, with the steps
            really done, its first epoch at least. It is part of the plan, and for algorithms that
            account for it alone.
    """

    cutoff_s: float = Field(gt=0)
    partial: bool = False

    @property
    def stop_after_s(self) -> float | None:
        """After how long a site stops training and sends what it has; None for never."""
        return _SHARE * self.cutoff_s if self.partial else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long the sites of one round are waited for.

    Attributes:
        what: What they were asked for, as in "round 3".
        call_off: Has a site stop what nobody waits for any more; called in a thread.
        cutoff_s: Who is not there after so many seconds is late, once enough others are.
        minimum: How many are enough.
    """

    what: str
    call_off: Callable[[str], object]
    cutoff_s: float = math.inf
    minimum: int = 0
