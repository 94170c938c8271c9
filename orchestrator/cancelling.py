"""Stopping a run from another process than its own."""

import time
from typing import Final

from core.enums import ExperimentStatus
from core.exceptions import ExperimentError
from orchestrator.runs import RunStore

_GLANCE_S: Final = 0.05


def cancel(store: RunStore, run_id: str, *, limit_s: float = 10.0) -> None:
    """Have a run stop at once, whoever runs it, and be CANCELLED.

    Raises:
        ExperimentError: It is not under way, or its process did not stop within `limit_s`.
    """
    unfinished = {ExperimentStatus.PENDING.name, ExperimentStatus.RUNNING.name}
    ownership, end = store.ownership(run_id), time.monotonic() + limit_s
    row, holder = store.find(run_id), ownership.holder()
    if holder is None and row.status not in unfinished:
        raise ExperimentError(f"run {run_id!r} is {row.status} and not under way")
    if holder is not None:
        ownership.ask_to_stop()
    while ownership.holder() is not None:
        if time.monotonic() > end:
            raise ExperimentError(
                f"run {run_id!r}: {holder} was asked to stop, and has not within {limit_s:g} s; "
                "end that process"
            )
        time.sleep(_GLANCE_S)
    if store.find(run_id).status in unfinished:  # nobody was there to do it
        with store.owned(run_id):
            store.move(run_id, ExperimentStatus.CANCELLED, message=how_to_go_on(run_id))


def how_to_go_on(run_id: str) -> str:
    """Say what has become of a run that was stopped, and how it is taken up again."""
    return f"stopped; to go on: orchestrator resume {run_id}"
