"""How soon an orchestrator notices that a site is gone, hangs, or is back.

    python benchmarks/noticing.py [--repeats N] [--json FILE] [--markdown FILE]

Three live PySyft sites and two runs over them: in one the victim is asked all the time, in the
other it is idle while the others train without end. It is killed and started again, frozen and
thawed. What counts is when its status in the run changes, as `orchestrator show` has it; of a site
that was started again, from its first answer on. docs/resilience.md has the figures.
"""

import argparse
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import psutil
from live import experiment, live_sites
from loguru import logger
from measuring import machine, markdown_table, spread, write_json
from quantities import write_into

from orchestrator.communication.live import over_pysyft
from orchestrator.experiment import ExperimentOrchestrator, new_run_id
from orchestrator.halting import Halt
from orchestrator.runs import RunStore
from orchestrator.testbed.processes import Testbed

MARKS: Final = (
    "<!-- written by benchmarks/noticing.py: begin -->",
    "<!-- written by benchmarks/noticing.py: end -->",
)
SITES: Final = 3
VICTIM: Final = "factory-3"
DEADLINE_S: Final = 3.0
GONE_S, BACK_S = 2.0, 5.0
"""Within which it is to be noticed."""

_LOOK_S: Final = 0.02
_PATIENCE_S: Final = 120.0

_ALWAYS_ASKED: Final[Mapping[str, object]] = {"training": {"local_epochs": 1}}
_IDLE: Final[Mapping[str, object]] = {
    "training": {"local_epochs": 1_000_000},
    "participation": {"sites": ["factory-1", "factory-2"]},
}

Seconds = tuple[float, float]
"""Until it was noticed that the victim is gone, and that it is back."""


class Run:
    """A run under way, and where it says that the victim stands."""

    def __init__(self, store: RunStore, run_id: str, testbed: Testbed) -> None:
        self._store = store
        self._run_id = run_id
        self._testbed = testbed

    def wait_for(self, *statuses: str) -> float:
        """Wait until the victim stands so; since when, in seconds of the clock."""
        end = time.monotonic() + _PATIENCE_S
        while time.monotonic() < end:
            standing = self._store.sites(self._run_id).get(VICTIM, {"status": "", "since": ""})
            if standing["status"] in statuses:
                return datetime.fromisoformat(standing["since"]).timestamp()
            time.sleep(_LOOK_S)
        raise RuntimeError(f"{VICTIM} is not {' or '.join(statuses)} after {_PATIENCE_S:g} s")

    def victim(self) -> psutil.Process:
        """Give the victim's process."""
        (site,) = (site for site in self._testbed.sites() if site.site_id == VICTIM)
        process = site.process()
        if process is None:
            raise RuntimeError(f"{VICTIM} is not running")
        return process

    def start_again(self) -> None:
        """Start the victim; return when it answers."""
        self._testbed.up(SITES)


@contextmanager
def under_way(testbed: Testbed, *, call_s: float, **changes: object) -> Iterator[Run]:
    """Have a run under way meanwhile, whose requests have so many seconds."""
    with tempfile.TemporaryDirectory(prefix="noticing-") as runs:
        store, halt, run_id = RunStore(Path(runs)), Halt(), new_run_id("noticing")
        config = experiment(
            testbed,
            rounds=100_000,
            runs=runs,
            min_sites=SITES - 1,
            limits={"attempts": 1, "connect_s": DEADLINE_S, "call_s": call_s},
            **changes,
        )
        orchestrator = ExperimentOrchestrator(over_pysyft, store, halt=halt)
        orchestrator.setup(config, run_id)
        thread = threading.Thread(target=_until_stopped, args=(orchestrator, run_id))
        thread.start()
        try:
            yield Run(store, run_id, testbed)
        finally:
            halt.at_once()
            thread.join()


def _until_stopped(orchestrator: ExperimentOrchestrator, run_id: str) -> None:
    with suppress(KeyboardInterrupt):
        orchestrator.run_experiment(run_id)


def kill(run: Run) -> Seconds:
    """Kill the victim, and start it again."""
    begin = time.time()
    run.victim().kill()
    gone_s = run.wait_for("OFFLINE") - begin
    run.start_again()
    answers = time.time()
    return gone_s, max(0.0, run.wait_for("ONLINE", "BUSY") - answers)


def freeze(run: Run) -> Seconds:
    """Freeze the victim, and let it go on."""
    victim, begin = run.victim(), time.time()
    victim.send_signal(signal.SIGSTOP)
    try:
        gone_s = run.wait_for("OFFLINE") - begin
    finally:
        begin = time.time()
        victim.send_signal(signal.SIGCONT)
    return gone_s, run.wait_for("ONLINE", "BUSY") - begin


def measure(testbed: Testbed, repeats: int) -> dict[str, Any]:
    """Hurt the victim in each way so many times."""
    cases: Mapping[str, tuple[Mapping[str, object], float, Callable[[Run], Seconds]]] = {
        "killed, asked in every round": (_ALWAYS_ASKED, DEADLINE_S, kill),
        "killed, idle": (_IDLE, 3600.0, kill),
        f"frozen, requests with {DEADLINE_S:g} s": (_ALWAYS_ASKED, DEADLINE_S, freeze),
    }
    results = {}
    for what, (changes, call_s, hurt) in cases.items():
        print(f"measuring: {what}", flush=True)
        with under_way(testbed, call_s=call_s, **changes) as run:
            taken = []
            for _ in range(repeats):
                run.wait_for("ONLINE", "BUSY")
                time.sleep(random.uniform(1.0, 2.0))  # noqa: S311 - somewhere in a round
                taken.append(hurt(run))
        gone, back = zip(*taken, strict=True)
        results[what] = {"gone_s": spread(gone), "back_s": spread(back)}
    return results


def write_up(results: Mapping[str, Any]) -> str:
    """Give the table."""
    where = results["machine"]
    rows = []
    for what, seconds in results["cases"].items():
        most_s = GONE_S if what.startswith("killed") else DEADLINE_S + GONE_S
        for event, at_most_s in (("gone_s", most_s), ("back_s", BACK_S)):
            found = seconds[event]
            status = "OFFLINE" if event == "gone_s" else "ONLINE again"
            rows.append(
                (
                    f"{what}: {status}",
                    f"{found['median']:.2f}",
                    f"{found['min']:.2f} – {found['max']:.2f}",
                    f"{at_most_s:g}",
                    "yes" if found["max"] <= at_most_s else "no",
                )
            )
    return (
        f"{where['date']}; {where['cores']} cores, with a load of {where['load']:g} at the start; "
        f"{results['repeats']} times each.\n\n"
        + markdown_table(("seconds", "median", "least – most", "at most", "met"), rows)
    )


def main() -> None:
    """Measure, print and write it."""
    settings = _settings()
    logger.remove()
    with live_sites(SITES, None) as testbed:
        results = {
            "machine": machine(),
            "repeats": settings.repeats,
            "cases": measure(testbed, settings.repeats),
        }
    text = write_up(results)
    print(f"\n{text}")
    write_json(settings.json, results)
    if settings.markdown:
        write_into(settings.markdown, text, marks=MARKS)


def _settings() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repeats", type=int, default=5)
    for name in ("--json", "--markdown"):
        parser.add_argument(name, type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
