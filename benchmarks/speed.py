"""What the federation costs, each figure beside its floor: one command, one table.

    python benchmarks/speed.py [--only PART ...] [--sites 4 8 16] [--rounds 50]
        [--parameters 10000 2500000 15000000] [--source ai4i2020.csv]
        [--json FILE] [--markdown FILE] [--pictures FOLDER]
    python benchmarks/speed.py --from FILE [--markdown FILE] [--pictures FOLDER]

Over live PySyft sites as local processes, which share this machine's cores with the orchestrator:

- `rounds`: with the null objective, sites answer at once with changed parameters. A round is then
  all overhead: encoding, hashing, carrying, checking, the sites' ledgers, aggregation. Beside it,
  the floors of `floor.py`, measured before and after each cell; bytes; memory.
- `training`: the example experiment; which part of a round is not the slowest site's fit.
- `login`: to all sites at once. The floor is as many password checks at once, by bcrypt as PySyft
  makes them.
- `startup`: three sites at once, from nothing and with their state, beside as many bare imports of
  PySyft; and `--help` of both commands, beside a Python that does nothing.
- `simulation`: sites played in one process (see `simulation.py`), beside the fit of one alone.
- `compression`: bytes of a round and the PR-AUC that is reached, in each form (see
  `compression.py`), beside the same without.

Training and log-in are measured with the first number of `--sites`. Each measurement has a fresh
process as its orchestrator, so that none inherits another's memory. PyTorch and numpy have one
thread in every process, unless OMP_NUM_THREADS says otherwise: there are more sites than cores.
docs/speed.md says how to read the table. `--from` draws and writes up again what `--json` kept.
"""

import argparse
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import bcrypt
import compression
import floor
import pictures
import simulation
from apart import apart
from bare import measure_fits
from live import (
    Size,
    live_sites,
    measure_logins,
    measure_null,
    measure_training,
    size_near,
)
from measuring import machine, spread, write_json
from quantities import (
    FLOOR_NAMES,
    MOST_MODELS,
    Floor,
    Quantity,
    Target,
    once,
    scaled,
    table,
    write_into,
)
from starting import measure_help, measure_start

from orchestrator.testbed.processes import Testbed

KILO: Final = 1e3
MILLION: Final = 1e6

LOGINS: Final = 5
STARTING_SITES: Final = 3
HELPS: Final = 10
COMPRESSION_SEEDS: Final = (0, 1, 2)
COMPRESSION_ROUNDS: Final = 20
FEWEST_ROUNDS: Final = 8
MOST_CARRIED_BYTES: Final = 2e9
"""Rounds of large models are fewer: those that carry so much to the sites, but `FEWEST_ROUNDS`."""

ROUND_TARGETS: Final[Mapping[tuple[int, int], Target]] = {
    (4, 10_000): Target(of="median", at_most=8.0),
    (16, 10_000): Target(of="median", at_most=30.0),
    (4, 2_500_000): Target(of="ratio", at_most=1.6),
    (16, 2_500_000): Target(of="ratio", at_most=1.6),
}
"""By number of sites and asked number of parameters: milliseconds, or beside the plain pipes."""

ECHO_TARGETS: Final[Mapping[tuple[int, int], Target]] = {
    (4, 10_000): Target(of="ratio", at_most=2.3)
}
"""Beside the HTTP echo, which took 3.5 ms on the machine for which the 8 ms above were asked."""

MEMORY_TARGETS: Final[Mapping[tuple[int, int], Target]] = {
    (16, 2_500_000): Target(of="ratio", at_most=MOST_MODELS),
    (16, 15_000_000): Target(of="ratio", at_most=MOST_MODELS),
}
"""Likewise; 10,000 parameters are too few to be seen in the memory of a process."""

OVERHEAD_TARGET: Final = Target(of="median", at_most=8.0)
START_TARGET: Final = Target(of="median", at_most=15.0)
HELP_TARGET: Final = Target(of="median", at_most=0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a part gives: rows of the table, and all that it measured."""

    quantities: Sequence[Quantity] = ()
    measured: Mapping[str, Any] = field(default_factory=dict)


Settings = argparse.Namespace


def main() -> None:
    """Measure, or read what was measured; print, write and draw it."""
    settings = _settings()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # sites are taken down
    try:
        results = _read(settings.earlier) if settings.earlier else _measure(settings)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    text = _write_up(results)
    print(f"\n{text}")
    write_json(settings.json, results)
    if settings.markdown:
        write_into(settings.markdown, text)
    if settings.pictures:
        pictures.draw(results, settings.pictures)


def _measure(settings: Settings) -> dict[str, Any]:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    begin = time.perf_counter()
    results: dict[str, Any] = {"machine": machine(), "command": _command()}
    outcomes = [*_live(settings), *(part(settings) for part in _chosen(OTHER_PARTS, settings))]
    for outcome in outcomes:
        for name, measured in outcome.measured.items():
            # A part that is measured for each number of sites gives a list each time.
            results[name] = [*results.get(name, []), *measured] if name in results else measured
    quantities = [row for outcome in outcomes for row in outcome.quantities]
    parts = list(dict.fromkeys(row.part for row in quantities))
    return {
        **results,
        "minutes": (time.perf_counter() - begin) / 60,
        "quantities": [
            row.as_json() for row in sorted(quantities, key=lambda row: parts.index(row.part))
        ],
    }


def _live(settings: Settings) -> list[Outcome]:
    """Measure what needs sites, one number of them after the other."""
    outcomes: list[Outcome] = []
    for number in settings.sites:
        parts = _chosen(LIVE_PARTS if number == settings.sites[0] else EVERY_NUMBER, settings)
        if parts:
            _say(f"starting {number} sites")
            with live_sites(number, settings.source) as testbed:
                outcomes += [part(settings, testbed, number) for part in parts]
    return outcomes


def _rounds(settings: Settings, testbed: Testbed, sites: int) -> Outcome:
    quantities: list[Quantity] = []
    cells = []
    for asked in settings.parameters:
        size = size_near(asked)
        rounds = _rounds_of(settings.rounds, sites, size)
        _say(f"{sites} sites, {size.parameters:,} parameters, {rounds} rounds")
        before = floor.measure(sites, size.parameters, rounds)
        cell = apart(measure_null, testbed, size, rounds)
        after = floor.measure(sites, size.parameters, rounds)
        cell |= {"sites": sites, "asked": asked, "floor_ms": floor.medians(before, after)}
        cells.append(cell)
        quantities += _of_a_cell(cell)
    return Outcome(quantities=quantities, measured={"rounds": cells})


def _rounds_of(most: int, sites: int, size: Size) -> int:
    affordable = int(MOST_CARRIED_BYTES / (4 * size.parameters * sites))
    return min(most, max(FEWEST_ROUNDS, affordable))


def _of_a_cell(cell: Mapping[str, Any]) -> list[Quantity]:
    asked = (cell["sites"], cell["asked"])
    where = f"{cell['sites']} sites, {cell['parameters']:,} parameters"
    targets = {"plain": ROUND_TARGETS, "echo": ECHO_TARGETS}
    rows = [
        Quantity(
            part="rounds",
            what=f"round, {where}",
            unit="ms",
            spread=cell["round_ms"],
            floor=Floor(what=FLOOR_NAMES[name], value=floor_ms),
            target=targets[name].get(asked) if name in targets else None,
        )
        for name, floor_ms in cell["floor_ms"].items()
    ]
    raw = Floor(what="raw float32", value=4 * cell["parameters"] * cell["sites"] / MILLION)
    rows += [
        Quantity(
            part="bytes",
            what=f"{direction} in a round, {where}",
            unit="MB",
            spread=scaled(cell[f"{direction}_bytes"], 1 / MILLION),
            floor=raw,
        )
        for direction in ("sent", "received")
        if cell[f"{direction}_bytes"] is not None
    ]
    memory = cell["orchestrator"]
    rows.append(
        Quantity(
            part="memory",
            what=f"orchestrator's peak over its level without the model, {where}",
            unit="MB",
            spread=once(memory["over_start_bytes"] / MILLION),
            floor=Floor(what="the model", value=memory["model_bytes"] / MILLION),
            target=MEMORY_TARGETS.get(asked),
        )
    )
    rows += [
        Quantity(
            part="memory",
            what=f"peak of a site's {role}, {where}",
            unit="MB",
            spread=once(cell[f"{role}_peak_bytes"] / MILLION),
        )
        for role in ("server", "trainer")
    ]
    return rows


def _training(settings: Settings, testbed: Testbed, sites: int) -> Outcome:
    _say(f"{sites} sites, training")
    measured = apart(measure_training, testbed, settings.training_rounds)
    where = f"{sites} sites, {measured['local_epochs']} epochs"
    fit = Floor(what="the slowest fit", value=measured["slowest_fit_s"]["median"])
    quantities = [
        Quantity(
            part="training",
            what=f"round of training with evaluation, {where}",
            unit="s",
            spread=measured["round_s"],
            floor=fit,
        ),
        Quantity(
            part="training",
            what="of it evaluation at all sites",
            unit="s",
            spread=measured["evaluate_s"],
        ),
        Quantity(
            part="training",
            what="not the slowest fit, of the round without its evaluation",
            unit="%",
            spread=scaled(measured["overhead_share"], 100),
            target=OVERHEAD_TARGET,
        ),
        Quantity(
            part="training",
            what="not the slowest fit, of the round with its evaluation",
            unit="%",
            spread=scaled(measured["overhead_with_evaluation_share"], 100),
        ),
    ]
    return Outcome(quantities=quantities, measured={"training": {"sites": sites, **measured}})


def _login(settings: Settings, testbed: Testbed, sites: int) -> Outcome:
    del settings
    _say(f"{sites} sites, log-in")
    before = _password_checks(sites)
    first, *later = apart(measure_logins, testbed, LOGINS)
    floor_s = spread([*before, *_password_checks(sites)])
    least = Floor(what="password checks", value=floor_s["median"])
    quantities = [
        Quantity(
            part="login",
            what=f"log-in to {sites} sites at once",
            unit="s",
            spread=spread(later),
            floor=least,
        ),
        Quantity(
            part="login",
            what="the first one, with the import of PySyft",
            unit="s",
            spread=once(first),
        ),
    ]
    measured = {"sites": sites, "first_s": first, "later_s": spread(later), "floor_s": floor_s}
    return Outcome(quantities=quantities, measured={"login": measured})


def _password_checks(number: int) -> list[float]:
    """Give the seconds of `number` checks at once, some times over."""
    password = b"a password of the benchmark"
    hashed = bcrypt.hashpw(password, bcrypt.gensalt())
    taken = []
    with ThreadPoolExecutor(number) as pool:  # bcrypt works outside the interpreter's lock
        for _ in range(LOGINS):
            begin = time.perf_counter()
            list(pool.map(lambda _: bcrypt.checkpw(password, hashed), range(number)))
            taken.append(time.perf_counter() - begin)
    return taken


def _startup(settings: Settings) -> Outcome:
    _say(f"starting {STARTING_SITES} sites at once, {settings.repeats} times")
    start = measure_start(STARTING_SITES, settings.repeats)
    helps = measure_help(HELPS)
    quantities = [
        Quantity(
            part="startup",
            what=f"{STARTING_SITES} sites at once, {state}, until all answer",
            unit=f"{unit} s",
            spread=start[name][f"{unit}_s"],
            floor=Floor(what="import of PySyft", value=start["floor"][f"{unit}_s"]["median"]),
            target=START_TARGET if unit == "wall" else None,
        )
        for name, state in (("new", "from nothing"), ("existing", "with their state"))
        for unit in ("wall", "cpu")
    ]
    quantities += [
        Quantity(
            part="startup",
            what=f"`{command} --help`",
            unit="s",
            spread=helps[command],
            floor=Floor(what="Python", value=helps["floor"]["median"]),
            target=HELP_TARGET,
        )
        for command in ("datasite", "orchestrator")
    ]
    return Outcome(quantities=quantities, measured={"startup": start, "help": helps})


def _simulation(settings: Settings) -> Outcome:
    quantities: list[Quantity] = []
    measured = []
    for sites in settings.simulated:
        _say(f"{sites} simulated sites")
        fits = [apart(_bare_fits)]
        found = simulation.measure(sites)
        fits.append(apart(_bare_fits))
        floor_ms = min(each["median"] for each in fits)
        measured.append({**found, "floor_ms": floor_ms})
        per_s = found["site_rounds_per_s"]
        ends = {"min": "max", "median": "median", "max": "min"}
        quantities += [
            Quantity(
                part="simulation",
                what=f"a simulated site's round, {sites} sites on one core",
                unit="ms",
                spread={name: 1000 / per_s[other] for name, other in ends.items()},
                floor=Floor(what="its fit alone", value=floor_ms),
            ),
            Quantity(
                part="simulation",
                what=f"memory beyond that of ten simulated sites, {sites} sites",
                unit="MB",
                spread=once(found["growth_bytes"] / MILLION),
            ),
        ]
    return Outcome(quantities=quantities, measured={"simulation": measured})


def _compression(settings: Settings) -> Outcome:
    _say("every form of compression, over sites in memory")
    measured = apart(
        compression.measure, settings.source, seeds=COMPRESSION_SEEDS, rounds=COMPRESSION_ROUNDS
    )
    forms = measured["forms"]
    none = forms[compression.NONE]
    quantities = [
        Quantity(
            part="compression",
            what=f"{what} in a round, {measured['parameters']:,} parameters, {form}",
            unit="kB",
            spread=scaled(cell[name], 1 / KILO),
            floor=Floor(what="none", value=none[name]["median"] / KILO),
        )
        for name, what in (("down_bytes", "to a site"), ("up_bytes", "from a site"))
        for form, cell in forms.items()
        if form != compression.NONE
    ]
    quantities += [
        Quantity(
            part="compression",
            what=f"PR-AUC after {measured['rounds']} rounds, {form}",
            unit="",
            spread=cell["pr_auc"],
            floor=Floor(what="none", value=none["pr_auc"]["median"]),
        )
        for form, cell in forms.items()
        if form != compression.NONE
    ]
    return Outcome(quantities=quantities, measured={"compression": measured})


def _bare_fits() -> Mapping[str, float]:
    config = simulation.configure(Path(), rounds=1, algorithm="fedavg", workers=1)
    windows = config.training.batch_size  # a site there trains on one batch
    return measure_fits(config, windows=windows, repeats=500)


EVERY_NUMBER: Final[Mapping[str, Callable[[Settings, Testbed, int], Outcome]]] = {"rounds": _rounds}
"""Parts over live sites that are measured with every number of them."""

LIVE_PARTS: Final[Mapping[str, Callable[[Settings, Testbed, int], Outcome]]] = {
    **EVERY_NUMBER,
    "training": _training,
    "login": _login,
}
"""Parts over live sites; a further one is one line here, or above."""

OTHER_PARTS: Final[Mapping[str, Callable[[Settings], Outcome]]] = {
    "startup": _startup,
    "simulation": _simulation,
    "compression": _compression,
}
"""Parts that start what they need themselves; what else is to be measured is one line more here."""


def _chosen(parts: Mapping[str, Any], settings: Settings) -> list[Any]:
    return [part for name, part in parts.items() if name in settings.only]


def _write_up(results: Mapping[str, Any]) -> str:
    there = results["machine"]
    return (
        f"`{results['command']}`: {results['minutes']:.0f} minutes on {there['date']}, "
        f"{there['cores']} cores ({there['processor']}), load {there['load']} before, "
        f"Python {there['python']}, torch {there['torch']}.\n\n{table(results['quantities'])}"
    )


def _command() -> str:
    """Give the command of this run without folders, as the write-up has it."""
    given = [Path(word).name if os.sep in word else word for word in sys.argv[1:]]
    return shlex.join(["python", "benchmarks/speed.py", *given])


def _read(path: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return results


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def _settings() -> Settings:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parts = [*LIVE_PARTS, *OTHER_PARTS]
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, metavar="PART")
    parser.add_argument("--sites", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument(
        "--parameters", type=int, nargs="+", default=[10_000, 2_500_000, 15_000_000]
    )
    parser.add_argument("--rounds", type=int, default=50, help="at most, with the null objective")
    parser.add_argument("--simulated", type=int, nargs="+", default=[100, 1000], metavar="SITES")
    parser.add_argument("--training-rounds", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=3, help="of starting sites")
    parser.add_argument("--source", type=Path, help="the AI4I 2020 CSV; by default data like it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything here")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="put the table in here")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="draw speed-*.png here")
    parser.add_argument(
        "--from", dest="earlier", type=Path, metavar="FILE", help="measure nothing, read this JSON"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
