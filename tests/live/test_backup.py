"""A live site is backed up in the middle of a run, lost, restored, and the run goes on."""

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import orchestrator, results, start_orchestrator, write_experiment

from core.exceptions import DataSiteError
from datasite.configuration import load_site_config
from orchestrator.communication.channel import site_at
from orchestrator.testbed.presets import AI4I_SCHEMA
from orchestrator.testbed.processes import Testbed, run_datasite

pytestmark = pytest.mark.live

SITE = "factory-1"


@pytest.fixture
def lone(tmp_path: Path, samples: list[Path]) -> Iterator[Testbed]:
    """Give a testbed of one site with data, to be lost."""
    made = Testbed(tmp_path / "testbed")
    made.up(1)
    try:
        contract = ("--schema", str(AI4I_SCHEMA), "--name", "ai4i")
        operator(made, "data", "register", str(samples[0]), *contract)
        yield made
    finally:
        made.down()


def operator(testbed: Testbed, *arguments: str) -> str:
    """Run the operator's command; what it printed."""
    return run_datasite(*arguments, "--config", str(testbed.config_file(SITE)))


def told(testbed: Testbed) -> dict[str, object]:
    """Give who the site is, whom it knows and what it holds."""
    accounts, datasets, plans = (
        json.loads(operator(testbed, noun, "list", "--json")) for noun in ("users", "data", "plans")
    )
    site = site_at(testbed.sites()[0].url, timeout_s=10)
    return {"site": site, "accounts": accounts, "datasets": datasets, "plans": plans}


def test_a_site_backed_up_in_a_run_is_restored_and_the_run_resumes(
    lone: Testbed, tmp_path: Path
) -> None:
    """Identity, accounts, data, plans and log are as they were; the end is the undisturbed one."""
    training = {"local_epochs": 20, "batch_size": 64, "learning_rate": 0.05}
    experiment = write_experiment(tmp_path, lone, rounds=16, training=training)
    assert orchestrator("run", experiment, "--run-id", "undisturbed").returncode == 0
    archive = tmp_path / "site.tar.gz"
    run = start_orchestrator("run", experiment, "--run-id", "disturbed", "--json")
    assert run.stdout is not None
    next(line for line in run.stdout if json.loads(line).get("event") == "round")
    operator(lone, "backup", "--out", str(archive))
    assert run.poll() is None  # it was under way
    before = told(lone)
    run.send_signal(signal.SIGKILL)
    run.communicate(timeout=60)

    with pytest.raises(DataSiteError, match="is running on this state"):
        operator(lone, "restore", str(archive), "--replace")
    lone.down()
    shutil.rmtree(load_site_config(lone.config_file(SITE)).state)
    operator(lone, "restore", str(archive))
    lone.up(1)

    assert told(lone) == before
    operator(lone, "audit", "verify")
    resumed = orchestrator("resume", "disturbed", "--runs", tmp_path / "runs")
    assert resumed.returncode == 0, resumed.stderr
    ended, undisturbed = (results(tmp_path, name) for name in ("disturbed", "undisturbed"))
    assert ended["parameters_sha256"] == undisturbed["parameters_sha256"]
