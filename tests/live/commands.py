"""The researcher's command as a person runs it."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from loguru import logger

from orchestrator.cli.app import main
from orchestrator.testbed.processes import Testbed


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a command ended, and what it said."""

    returncode: int
    stdout: str
    stderr: str


def orchestrator(*arguments: str | Path) -> Ended:
    """Run `orchestrator` to its end, in this process: PySyft takes seconds to import anew."""
    out, err = io.StringIO(), io.StringIO()
    kept = sys.argv
    sys.argv = ["orchestrator", *map(str, arguments)]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
    except SystemExit as exc:
        code = int(exc.code or 0)
    finally:
        sys.argv = kept
        logger.remove()  # it writes to a stream that ends here
    return Ended(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


def write_only_site(testbed: Testbed, site_id: str, folder: Path) -> Path:
    """Write a sites file of one site of the testbed."""
    federation = yaml.safe_load(testbed.sites_file.read_text(encoding="utf-8"))
    (site,) = (each for each in federation["sites"] if each["site_id"] == site_id)
    site["password_file"] = str(testbed.folder / site["password_file"])
    path = folder / "sites.yaml"
    path.write_text(yaml.safe_dump({"sites": [site]}), encoding="utf-8")
    return path


def start_orchestrator(*arguments: str | Path) -> subprocess.Popen[str]:
    """Start `orchestrator`; its output can be read line by line."""
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def signal_after(
    command: subprocess.Popen[str], number: signal.Signals, seen: Callable[[str], bool]
) -> tuple[int, str]:
    """Send a signal once a line is `seen`; exit code and what was said on standard error."""
    assert command.stdout is not None
    for line in command.stdout:
        if seen(line):
            command.send_signal(number)
            break
    _, errors = command.communicate(timeout=60)
    return command.returncode, errors


def write_experiment(folder: Path, testbed: Testbed, **changes: Any) -> Path:
    """Write an experiment: small, quick, FedAvg with the CNN."""
    settings = {
        "name": "test",
        "rounds": 3,
        "dataset": "ai4i",
        "sites": str(testbed.sites_file),
        "runs": str(folder / "runs"),
        "training": {"local_epochs": 1, "batch_size": 64, "learning_rate": 0.05},
        "limits": {"attempts": 1, "connect_s": 10, "sites_s": 0},
        **changes,
    }
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def results(folder: Path, run_id: str) -> dict[str, Any]:
    """Give what `orchestrator show --json` says of a run."""
    shown = orchestrator("show", run_id, "--runs", folder / "runs", "--json")
    assert shown.returncode == 0, shown.stderr
    found: dict[str, Any] = json.loads(shown.stdout)
    return found
