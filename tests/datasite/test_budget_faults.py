"""Killed at any point of a round, a site has paid for what left it, and for one round more at most.

The sites die in processes of their own (`budget_site.py`).
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parents[1]

_LONGEST_S = 380  # two dozen sites one after the other, each of which dies and is opened again

pytestmark = pytest.mark.timeout(_LONGEST_S + 20)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What was found at each point."""
    done = subprocess.run(
        [
            sys.executable,
            str(TESTS / "datasite" / "budget_site.py"),
            str(tmp_path_factory.mktemp("killed")),
        ],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, (TESTS.parent, TESTS))),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        timeout=_LONGEST_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:].decode()
    visited: dict[str, Any] = json.loads(done.stdout)
    return visited


def test_a_site_that_was_killed_has_paid_for_what_left_and_a_round_more_at_most(
    found: dict[str, Any],
) -> None:
    """At every point of the round where something is written."""
    assert len(found["points"]) == 10
    assert len(found["moments"]) >= 12, "files and transactions of one round"
    for point, then in {**found["points"], **found["moments"]}.items():
        assert then["signal"] == (0 if point == "never" else signal.SIGKILL), point
        assert then["left"] <= then["paid"] <= then["left"] + 1, point


def test_what_is_committed_is_paid_and_nothing_else(found: dict[str, Any]) -> None:
    """Payment and reply are one: until the transaction ends there is neither."""
    paid = {point for point, then in found["points"].items() if then["paid"]}
    assert paid == {"paid and kept", "never"}
    *before, last = found["moments"].items()
    assert "after COMMIT" in last[0]
    assert last[1]["paid"] == 1
    assert not any(then["paid"] for _, then in before), "the payment is the round's last write"


def test_the_round_is_answered_after_the_restart_and_paid_once(found: dict[str, Any]) -> None:
    """Trained anew where nothing was kept, from the ledger where it was."""
    for point, then in {**found["points"], **found["moments"]}.items():
        assert (then["again"], then["paid_then"]) == ("update", 1), point
