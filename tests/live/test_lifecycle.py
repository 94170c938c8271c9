"""Runs over live sites that die, runs that are stopped, and runs beside each other."""

import json
import signal
import subprocess
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from commands import orchestrator, results, start_orchestrator, write_experiment, write_only_site
from federations import Federation
from site_process import wait_until

from datasite.operator_door import OperatorDoor
from orchestrator.testbed.processes import Testbed, run_datasite

pytestmark = pytest.mark.live

SITE = "factory-1"
PATIENCE_S = 60.0
ENDLESS = {"local_epochs": 1_000_000, "batch_size": 64, "learning_rate": 0.05}


def log(testbed: Testbed) -> list[dict[str, Any]]:
    """Give the site's newest audit rows."""
    config = str(testbed.config_file(SITE))
    rows: list[dict[str, Any]] = json.loads(
        run_datasite("audit", "show", "--last", "20", "--json", "--config", config)
    )
    return rows


def until(run: subprocess.Popen[str], event: str, **facts: object) -> None:
    """Read a run's JSON lines up to one that tells of `event`."""
    assert run.stdout is not None
    for line in run.stdout:
        told = json.loads(line)
        if told["event"] == event and facts.items() <= told.items():
            return
    pytest.fail(f"it ended without {event}: {run.stderr.read() if run.stderr else ''}")


def status_of(folder: Path, run_id: str, site_id: str) -> str:
    """Give where the run says that a site stands."""
    sites = json.loads((folder / "runs" / run_id / "sites.json").read_text(encoding="utf-8"))
    return str(sites[site_id]["status"])


def test_a_run_outlives_a_site_that_is_killed_and_started_again(
    testbed: Testbed, federation: Federation, tmp_path: Path
) -> None:
    """It is OFFLINE at once, waited for, logged in to anew, and the bits are those of no death."""
    limits = {"attempts": 1, "sites_s": PATIENCE_S}
    experiment = write_experiment(tmp_path, testbed, rounds=12, limits=limits)
    run = start_orchestrator("run", experiment, "--run-id", "outlives", "--json")
    try:
        until(run, "round", round_num=0)
        victim = testbed.sites()[1].process()
        assert victim is not None
        victim.kill()
        until(run, "away")
        wait_until(
            lambda: status_of(tmp_path, "outlives", "factory-2") == "OFFLINE",
            limit_s=PATIENCE_S,
            what="the run says that factory-2 is OFFLINE",
        )
        victim.wait(timeout=10)
        testbed.up(3)
        _, errors = run.communicate(timeout=PATIENCE_S)
    finally:
        run.kill()
        testbed.up(3)
    assert run.returncode == 0, errors
    ended = results(tmp_path, "outlives")
    assert [len(record["sites"]) for record in ended["rounds"]] == [3] * 12
    undisturbed = federation.run("undisturbed", rounds=12)
    assert ended["parameters_sha256"] == undisturbed["parameters_sha256"]


def cancel(run: subprocess.Popen[str], folder: Path) -> None:
    """Cancel the run from another terminal."""
    del run
    done = orchestrator("cancel", "endless", "--runs", folder / "runs")
    assert done.returncode == 0, done.stderr
    assert "CANCELLED stopped; to go on: orchestrator resume endless" in done.stdout


def interrupt_twice(run: subprocess.Popen[str], folder: Path) -> None:
    """Press Ctrl-C, see what it says, and press it again."""
    del folder
    assert run.stderr is not None
    run.send_signal(signal.SIGINT)
    for line in run.stderr:
        if "stopping after this round; Ctrl-C again to stop at once" in line:
            break
    run.send_signal(signal.SIGINT)


@pytest.mark.parametrize("stop", [cancel, interrupt_twice], ids=["cancel", "ctrl-c-twice"])
def test_a_run_that_is_stopped_at_once_stops_its_sites_within_a_second(
    testbed: Testbed, tmp_path: Path, stop: Callable[[subprocess.Popen[str], Path], None]
) -> None:
    """In the middle of training without end; the run is CANCELLED."""
    sites = str(write_only_site(testbed, SITE, tmp_path))
    experiment = write_experiment(tmp_path, testbed, sites=sites, training=ENDLESS)
    run = start_orchestrator("run", experiment, "--run-id", "endless", "--json")
    door = OperatorDoor(site_id=SITE, state=testbed.folder / SITE / "state")
    try:
        until(run, "started")
        wait_until(
            lambda: door.status()["status"] == "BUSY", limit_s=PATIENCE_S, what="the site trains"
        )
        stop(run, tmp_path)
        _, errors = run.communicate(timeout=PATIENCE_S)
        wait_until(
            lambda: door.status()["status"] == "ONLINE", limit_s=PATIENCE_S, what="it is free"
        )
    finally:
        door.close()
        run.kill()
    assert (run.returncode, "Traceback" in errors) == (130, False), errors
    called, stopped = log(testbed)[-2:]
    assert (called["action"], called["detail"]["stopped"]) == ("cancel", 1)
    assert (stopped["action"], stopped["outcome"]) == ("train", "CalledOffError")
    took = datetime.fromisoformat(stopped["at"]) - datetime.fromisoformat(called["at"])
    assert took.total_seconds() < 1.0
    assert results(tmp_path, "endless")["status"] == "CANCELLED"


def test_two_runs_at_once_over_the_same_sites_end_as_if_alone(
    testbed: Testbed, federation: Federation, tmp_path: Path
) -> None:
    """A site trains for one at a time; each run gets what it would have got."""
    rounds = 10
    first = write_experiment(tmp_path, testbed, rounds=rounds, seed=1)
    run = start_orchestrator("run", first, "--run-id", "first", "--json")
    try:
        until(run, "started")
        drained = threading.Thread(target=run.communicate)
        drained.start()
        other = tmp_path / "other"
        other.mkdir()
        second = write_experiment(other, testbed, rounds=rounds, seed=2)
        done = orchestrator("run", second, "--run-id", "second")
        drained.join(PATIENCE_S)
    finally:
        run.kill()
    assert (run.returncode, done.returncode) == (0, 0), done.stderr
    for folder, run_id, seed in ((tmp_path, "first", 1), (other, "second", 2)):
        alone = federation.run(run_id, rounds=rounds, seed=seed)
        assert results(folder, run_id)["parameters_sha256"] == alone["parameters_sha256"]
