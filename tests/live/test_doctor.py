"""Both doctors over live sites: well, and in each way in which a site can be out of reach."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import orchestrator

from core.checkup import Outcome
from datasite.doctor import examine
from orchestrator.testbed.processes import Testbed

pytestmark = pytest.mark.live


def visited(file: Path) -> tuple[int, dict[str, dict[str, str]], str]:
    """Run `orchestrator doctor`; its exit code, its findings by check, and all that it said."""
    done = orchestrator("doctor", file, "--json")
    rows = {row["check"]: row for row in json.loads(done.stdout)}
    return done.returncode, rows, done.stdout + done.stderr


def sites_file(testbed: Testbed, folder: Path, **changes: Any) -> Path:
    """Write a sites file in which factory-2 is described otherwise."""
    federation = yaml.safe_load(testbed.sites_file.read_text(encoding="utf-8"))
    for site in federation["sites"]:
        site["password_file"] = str(testbed.folder / site["password_file"])
    federation["sites"][1].update(changes)
    (folder / "sites.yaml").write_text(yaml.safe_dump(federation), encoding="utf-8")
    return folder / "sites.yaml"


def test_a_running_site_is_well(testbed: Testbed) -> None:
    """By the operator's command; its data are looked at, its port is its own."""
    command = [sys.executable, "-m", "datasite", "doctor", "--json"]
    config = str(testbed.config_file("factory-1"))
    done = subprocess.run(
        [*command, "--config", config], capture_output=True, text=True, check=False, timeout=120
    )
    rows = {row["check"]: row for row in json.loads(done.stdout)}
    assert done.returncode == 0, done.stdout
    assert {row["outcome"] for row in rows.values()} == {"ok"}
    assert f"the site runs and answers on {testbed.sites()[0].url}" in rows["port"]["found"]
    assert "within its contract" in rows["data ai4i"]["found"]


def test_a_federation_is_well(testbed: Testbed) -> None:
    """Each site reached, logged in to and asked; all have one training code."""
    code, rows, _ = visited(testbed.sites_file)
    assert code == 0, rows
    assert {row["outcome"] for row in rows.values()} == {"ok"}
    steps = ("reached", "health", "log-in", "session")
    for site_id in ("factory-1", "factory-2", "factory-3"):
        assert all(f"{site_id} {step}" in rows for step in steps)
        assert "data: ai4i" in rows[f"{site_id} session"]["found"]
    assert rows["training code"]["found"].endswith("at factory-1, factory-2, factory-3")


def test_a_wrong_password_is_told_and_not_shown(testbed: Testbed, tmp_path: Path) -> None:
    """The other sites are looked at as ever."""
    wrong = "this-is-the-wrong-password"
    (tmp_path / "wrong").write_text(wrong)
    code, rows, said = visited(sites_file(testbed, tmp_path, password_file=str(tmp_path / "wrong")))
    assert code == 1
    assert [name for name, row in rows.items() if row["outcome"] == "FAIL"] == ["factory-2 log-in"]
    assert "was refused" in rows["factory-2 log-in"]["found"]
    assert "operator" in rows["factory-2 log-in"]["advice"]
    assert "factory-2 session" not in rows
    assert wrong not in said


def test_a_frozen_site_does_not_hold_the_doctors_up(testbed: Testbed) -> None:
    """Whom it stands still is named by both, within their patience."""
    site = testbed.sites()[2]
    os.kill(site.pid, signal.SIGSTOP)
    try:
        code, rows, _ = visited(testbed.sites_file)
        own = {f.check: f.verdict for f in examine(testbed.config_file(site.site_id))}
    finally:
        os.kill(site.pid, signal.SIGCONT)
    assert code == 1
    failed = [name for name, row in rows.items() if row["outcome"] == "FAIL"]
    assert failed == ["factory-3 reached"]
    assert "no answer within 15 s" in rows["factory-3 reached"]["found"]
    assert "the site runs and does not answer at " in own["port"].found
    assert own["trainer"].outcome is Outcome.OK
