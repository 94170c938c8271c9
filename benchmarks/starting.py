"""How long sites take to be ready, and the two commands to say what they can do."""

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import psutil
from live import running
from measuring import spread

from orchestrator.testbed.processes import Testbed

_IMPORT: Final = [sys.executable, "-c", "import syft"]
_NOTHING: Final = [sys.executable, "-c", "pass"]


def measure_start(sites: int, repeats: int) -> dict[str, Any]:
    """Time sites that are started all at once until every one answers.

    Each repeat is one start from nothing, one with the state of the first, and the floor: as many
    processes at once that import PySyft and do nothing else.

    Returns:
        For `new`, `existing` and `floor`: `wall_s`, and `cpu_s`, the CPU time of all processes
        together up to then.
    """
    taken: dict[str, list[tuple[float, float]]] = {"new": [], "existing": [], "floor": []}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
            testbed = Testbed(Path(folder) / "testbed")
            taken["new"].append(_start(testbed, sites))
            taken["existing"].append(_start(testbed, sites))
        taken["floor"].append(_all_at_once([_IMPORT] * sites))
    return {
        "sites": sites,
        "repeats": repeats,
        **{
            name: {
                "wall_s": spread([wall for wall, _ in times]),
                "cpu_s": spread([cpu for _, cpu in times]),
            }
            for name, times in taken.items()
        },
    }


def measure_help(repeats: int) -> dict[str, dict[str, float]]:
    """Time `--help` of both commands, in seconds, and a Python that does nothing (`floor`)."""
    here = Path(sys.executable).parent
    commands = {
        "datasite": [str(here / "datasite"), "--help"],
        "orchestrator": [str(here / "orchestrator"), "--help"],
        "floor": _NOTHING,
    }
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(repeats):
        for name, command in commands.items():
            taken[name].append(_all_at_once([command])[0])
    return {name: spread(times) for name, times in taken.items()}


def _start(testbed: Testbed, sites: int) -> tuple[float, float]:
    begin = time.perf_counter()
    with running(testbed, sites):
        wall = time.perf_counter() - begin
        processes = [p for site in testbed.sites() if (p := site.process()) is not None]
        return wall, sum(_cpu_seconds(process) for process in processes)


def _cpu_seconds(process: psutil.Process) -> float:
    """Give the CPU time of a process and of all below it, those that have ended included."""
    times = process.cpu_times()
    own = times.user + times.system + times.children_user + times.children_system
    return float(own) + sum(_cpu_seconds(child) for child in process.children())


def _all_at_once(commands: Sequence[Sequence[str]]) -> tuple[float, float]:
    """Give wall and CPU seconds of commands that run at the same time.

    Raises:
        RuntimeError: One failed; what it printed is in the message.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.perf_counter()
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for command in commands
    ]
    try:
        for process in started:
            printed, _ = process.communicate()
            if process.returncode:
                raise RuntimeError(f"{' '.join(process.args)} failed:\n{printed}")  # type: ignore[arg-type]
    finally:
        for process in started:
            process.kill()
            process.wait()
    wall = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
