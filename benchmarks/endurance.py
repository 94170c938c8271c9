"""Whether memory, open files and stored state stay flat over long runs, and with a large model.

    python benchmarks/endurance.py [--only PART ...] [--json FILE] [--markdown FILE]
        [--pictures FOLDER]
    python benchmarks/endurance.py --from FILE [--markdown FILE] [--pictures FOLDER]

- `memory`: ten sites in memory, ledgers and all, in one process with the orchestrator: 500 rounds.
- `live`: three live PySyft sites, each a server and a trainer, and an orchestrator: 200 rounds.
  Beside it, how long a site takes to tell its operator its status while it trains.
- `large`: rounds of a model of 60 MB over three live sites; the peaks of every process.

After each round every process is asked what it has of memory and how many files it has open. What
counts is the growth after round 20, when everything is loaded: the most that a process had from
there on, over what it had there. docs/endurance.md has the figures.
"""

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

import endurance_pictures
import psutil
from apart import apart, resident_bytes
from inmemory import SampleFederation
from live import experiment, live_sites, measure_null, site_processes, size_near
from measuring import machine, markdown_table, write_json
from quantities import number_text, write_into

from core.enums import DataDistribution
from datasite.operator_door import OperatorDoor
from orchestrator.communication.live import over_pysyft
from orchestrator.experiment import ExperimentOrchestrator
from orchestrator.observer import Observer
from orchestrator.runs import RunStore
from orchestrator.testbed.processes import Testbed

MARKS: Final = (
    "<!-- written by benchmarks/endurance.py: begin -->",
    "<!-- written by benchmarks/endurance.py: end -->",
)
PARTS: Final = ("memory", "live", "large")
SETTLED: Final = 20
"""The round from which on nothing is to grow."""

MOST_GROWTH: Final = 0.1
MOST_MODELS: Final = 4.0
"""That the orchestrator may have of a large model, for each site in flight."""

MEMORY_SITES, MEMORY_ROUNDS = 10, 500
LIVE_SITES, LIVE_ROUNDS = 3, 200
LARGE_PARAMETERS, LARGE_ROUNDS = 15_000_000, 3
ASKED_EVERY_S: Final = 0.1
MIB: Final = 2**-20


class Samples(Observer):
    """What every process has after each round.

    Args:
        processes: Their ids, by what each is.
        folder: Whose files are counted.
    """

    def __init__(self, processes: Mapping[str, int], folder: Path) -> None:
        self._processes = processes
        self._folder = folder
        self.resident: dict[str, list[int]] = {name: [] for name in processes}
        self.files: dict[str, list[int]] = {name: [] for name in processes}
        self.stored: list[int] = []

    def round_done(self, run_id: str, record: Mapping[str, Any]) -> None:
        """Ask every process."""
        del run_id, record
        for name, pid in self._processes.items():
            self.resident[name].append(resident_bytes(pid))
            self.files[name].append(psutil.Process(pid).num_fds())
        self.stored.append(_stored_bytes(self._folder))

    def as_json(self) -> dict[str, Any]:
        """Give the samples."""
        return {"resident": self.resident, "files": self.files, "stored": self.stored}


def _stored_bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # a checkpoint has just been dropped
            continue
    return total


def measure_memory() -> dict[str, Any]:
    """Run ten sites in memory, in this process."""
    with tempfile.TemporaryDirectory(prefix="endurance-") as folder:
        place = Path(folder)
        distribution = DataDistribution.IID
        with SampleFederation(
            place, None, sites=MEMORY_SITES, distribution=distribution, seed=0
        ) as federation:
            changes = {
                "rounds": MEMORY_ROUNDS,
                "evaluation": {"every": 1},
                "training": {"local_epochs": 1},
            }
            samples = Samples({"all": os.getpid()}, place)
            federation.run("endurance", federation.config(changes), observer=samples)
    return samples.as_json()


def measure_live(testbed: Testbed) -> dict[str, Any]:
    """Run the orchestrator of three live sites in this process."""
    found = site_processes(testbed)
    processes = {"orchestrator": os.getpid()}
    for role, pids in found.items():
        processes |= {f"{role} {number}": pid for number, pid in enumerate(pids, 1)}
    samples = Samples(processes, testbed.folder)
    with tempfile.TemporaryDirectory(prefix="endurance-") as runs:
        store = RunStore(Path(runs))
        config = experiment(testbed, rounds=LIVE_ROUNDS, runs=runs, evaluation={"every": 1})
        orchestrator = ExperimentOrchestrator(over_pysyft, store, samples)
        orchestrator.setup(config, "endurance")
        orchestrator.run_experiment("endurance")
    return samples.as_json()


def _live(source: Path | None) -> dict[str, Any]:
    with live_sites(LIVE_SITES, source) as testbed, _Asking(testbed) as asking:
        measured = apart(measure_live, testbed)
    return {**measured, "status": _percentiles(asking.taken_ms)}


def _percentiles(taken_ms: Sequence[float]) -> dict[str, float]:
    ordered = sorted(taken_ms)
    last = len(ordered) - 1
    return {
        "times": len(ordered),
        "median_ms": ordered[last // 2],
        "p99_ms": ordered[int(0.99 * last)],
        "max_ms": ordered[last],
    }


def _large(source: Path | None) -> dict[str, Any]:
    with live_sites(LIVE_SITES, source) as testbed:
        return apart(measure_null, testbed, size_near(LARGE_PARAMETERS), LARGE_ROUNDS)


class _Asking:
    """Asks one site for its status, by the operator's door, as long as the context lasts."""

    def __init__(self, testbed: Testbed) -> None:
        site_id = testbed.sites()[0].site_id
        self._door = OperatorDoor(site_id=site_id, state=testbed.folder / site_id / "state")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self.taken_ms: list[float] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._over.set()
        self._thread.join()
        self._door.close()

    def _ask(self) -> None:
        while not self._over.wait(ASKED_EVERY_S):
            begin = time.perf_counter()
            status = self._door.status()["status"]
            taken_ms = 1000 * (time.perf_counter() - begin)
            if status == "BUSY":
                self.taken_ms.append(taken_ms)


MEASURES: Final[Mapping[str, Callable[[Path | None], dict[str, Any]]]] = {
    "memory": lambda _source: apart(measure_memory),
    "live": _live,
    "large": _large,
}


def growth(values: Sequence[int]) -> float:
    """Give by how much the greatest value from the settled round on is over the one there."""
    return max(values[SETTLED:]) / values[SETTLED] - 1


def write_up(results: Mapping[str, Any]) -> str:
    """Give the tables."""
    where = results["machine"]
    text = [
        (
            f"{where['date']}; {where['cores']} cores, with a load of {where['load']:g} at the "
            f"start; Python {where['python']}, torch {where['torch']}."
        )
    ]
    for part in ("memory", "live"):
        if part in results:
            text += [_growths(part, results[part])]
    if "live" in results:
        text += [_status(results["live"]["status"])]
    if "large" in results:
        text += [_large_table(results["large"])]
    return "\n\n".join(text)


def _growths(part: str, samples: Mapping[str, Any]) -> str:
    rounds = len(samples["stored"])
    header = (
        f"{part}, {rounds} rounds",
        f"MiB after round {SETTLED}",
        "MiB at most from there on",
        "growth",
        "at most",
        "met",
        "open files: least",
        "most",
    )
    rows = []
    for name, values in samples["resident"].items():
        files, grown = samples["files"][name][SETTLED:], growth(values)
        rows.append(
            (
                name,
                number_text(values[SETTLED] * MIB),
                number_text(max(values[SETTLED:]) * MIB),
                f"{100 * grown:.1f} %",
                f"{100 * MOST_GROWTH:.0f} %",
                _met(grown < MOST_GROWTH),
                min(files),
                max(files),
            )
        )
    stored = samples["stored"]
    a_round = (stored[-1] - stored[SETTLED]) / (len(stored) - 1 - SETTLED) / 1000
    return (
        f"{markdown_table(header, rows)}\n\n"
        f"On disk, all of it: {stored[SETTLED] * MIB:.1f} MiB after round {SETTLED}, "
        f"{stored[-1] * MIB:.1f} MiB after the last: {a_round:.1f} kB a round."
    )


def _status(status: Mapping[str, float]) -> str:
    return (
        f"A site that trains was asked {status['times']} times for its status: median "
        f"{status['median_ms']:.1f} ms, 99th percentile {status['p99_ms']:.1f} ms, at most "
        f"{status['max_ms']:.1f} ms."
    )


def _large_table(cell: Mapping[str, Any]) -> str:
    ours, model_bytes = cell["orchestrator"], cell["orchestrator"]["model_bytes"]
    a_site = ours["over_start"] / LIVE_SITES
    rows = [
        (
            f"orchestrator, over its start, for each of {LIVE_SITES} sites",
            f"{ours['over_start_bytes'] / LIVE_SITES * MIB:.0f}",
            f"{a_site:.2f}",
            f"{MOST_MODELS:g}",
            _met(a_site <= MOST_MODELS),
        ),
        *(
            (
                f"a site's {role}, all of it",
                f"{cell[f'{role}_peak_bytes'] * MIB:.0f}",
                f"{cell[f'{role}_peak_bytes'] / model_bytes:.2f}",
                "",
                "",
            )
            for role in ("server", "trainer")
        ),
    ]
    title = f"{cell['parameters']:,} parameters, {model_bytes * MIB:.0f} MiB, {LARGE_ROUNDS} rounds"
    return markdown_table((title, "MiB at most", "models", "at most", "met"), rows)


def _met(is_met: bool) -> str:  # noqa: FBT001 - a cell of a table
    return "yes" if is_met else "no"


def main() -> None:
    """Measure, or read what was measured; print, write and draw it."""
    settings = _settings()
    if settings.earlier:
        results = json.loads(settings.earlier.read_text(encoding="utf-8"))
    else:
        results = {"machine": machine()}
        for part in settings.only:
            print(f"measuring: {part}", flush=True)
            results[part] = MEASURES[part](settings.source)
    text = write_up(results)
    print(f"\n{text}")
    write_json(settings.json, results)
    if settings.markdown:
        write_into(settings.markdown, text, marks=MARKS)
    if settings.pictures:
        endurance_pictures.draw(results, settings.pictures)


def _settings() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART")
    parser.add_argument("--source", type=Path, help="the AI4I 2020 CSV")
    parser.add_argument("--from", dest="earlier", type=Path, metavar="FILE")
    for name in ("--json", "--markdown", "--pictures"):
        parser.add_argument(name, type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
