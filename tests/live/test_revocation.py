"""The operator takes a plan back while a live site trains under it."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from commands import orchestrator, start_orchestrator, write_experiment, write_only_site
from site_process import wait_until

from datasite.operator_door import OperatorDoor
from orchestrator.testbed.processes import Testbed, run_datasite

pytestmark = pytest.mark.live

SITE = "factory-1"


def operator(testbed: Testbed, *arguments: str) -> str:
    """Run the operator's command at the site; what it printed."""
    return run_datasite(*arguments, "--config", str(testbed.config_file(SITE)))


def log(testbed: Testbed, *arguments: str) -> list[dict[str, Any]]:
    """Give the site's audit rows."""
    rows: list[dict[str, Any]] = json.loads(
        operator(testbed, "audit", "show", "--limit", "1000", "--json", *arguments)
    )
    return rows


@pytest.mark.parametrize("channel", ["session", "signed"])
def test_revoking_during_a_round_ends_it_at_once(
    testbed: Testbed, tmp_path: Path, channel: str
) -> None:
    """The run fails and says why, the work stops within a second, and the site works on."""
    sites = str(write_only_site(testbed, SITE, tmp_path))
    endless = {"local_epochs": 1_000_000, "batch_size": 64, "learning_rate": 0.05}
    experiment = write_experiment(tmp_path, testbed, sites=sites, training=endless, channel=channel)
    run_id = f"endless-{channel}"
    run = start_orchestrator("run", experiment, "--run-id", run_id)
    door = OperatorDoor(site_id=SITE, state=testbed.folder / SITE / "state")

    def trains() -> bool:
        has_begun = any(row["action"] == "statistics" for row in log(testbed, "--plan", plan_id))
        return has_begun and door.status()["status"] == "BUSY"

    try:
        assert run.stdout is not None
        plan_id = plan_of(testbed, run_id)
        wait_until(trains, limit_s=60, what="the site trains")
        operator(testbed, "plans", "revoke", plan_id, "--reason", "contract ended")
        _, errors = run.communicate(timeout=60)
    finally:
        door.close()
        run.kill()
    assert run.returncode == 1, errors
    assert f"plan {plan_id[:12]} is REVOKED (contract ended)" in errors
    revoked, refused = log(testbed, "--plan", plan_id)[-2:]
    assert (revoked["action"], revoked["outcome"]) == ("plan revoked", "ok")
    assert (refused["action"], refused["outcome"]) == ("train", "PlanError")
    took = datetime.fromisoformat(refused["at"]) - datetime.fromisoformat(revoked["at"])
    assert took.total_seconds() < 1.0
    assert "all as they were written" in operator(testbed, "audit", "verify")
    quick = write_experiment(tmp_path, testbed, sites=sites, rounds=1, channel=channel)
    after = orchestrator("run", quick)
    assert after.returncode == 0, after.stderr


def plan_of(testbed: Testbed, run_id: str) -> str:
    """Wait until the run has proposed its plan to the site; the plan's id."""
    found: list[str] = []

    def is_proposed() -> bool:
        plans = json.loads(operator(testbed, "plans", "list", "--json"))
        found[:] = [plan["plan_id"] for plan in plans if plan["proposal"]["run_id"] == run_id]
        return bool(found)

    wait_until(is_proposed, limit_s=60, what=f"{run_id} proposes its plan")
    return found[0]
