"""A trainer that was taken over, to be kept in by the site around it."""

from collections.abc import Callable
from typing import Any

from core import wire
from datasite.trainer import InlineTrainer, Watch
from datasite.training.work import Assignment, Done


class Says(InlineTrainer):
    """A trainer that was taken over: it does the work, and answers something else."""

    def __init__(self, change: Callable[[dict[str, Any]], object]) -> None:
        super().__init__()
        self._change = change

    def perform(self, assignment: Assignment, *, deadline_s: float, watch: Watch) -> Done:
        """Do the work; change the answer."""
        done = super().perform(assignment, deadline_s=deadline_s, watch=watch)
        reply: Any = wire.decode(done.reply)
        self._change(reply)
        return Done(wire.encode(reply), done.state)
