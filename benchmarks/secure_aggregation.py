"""What `secure_aggregation` costs: time and bytes of a round, against the plain level.

    python benchmarks/secure_aggregation.py [--sites 3 5 10 16 32] [--parameters 10000 1000000]
        [--rounds 5] [--json FILE]

Sites in memory with real codec, ledger and audit log, which add a constant instead of training: all
of a round is overhead. All of them share this machine, so that a round takes their work one after
the other; sites with machines of their own do theirs at the same time, and what is left of it is
the orchestrator's. *At one site* is the mean over the sites of what one worked in a round, on one
thread. Bytes are those of all messages of a round, to the sites and from them, without an
evaluation, which costs the same at both levels. *With two drop-outs* two sites are lost with their
masked updates, where the threshold allows it: their masks are taken out one by one.
"""

import argparse
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from inmemory import SampleFederation
from live import Null, prepare, size_near
from loguru import logger
from measuring import machine, print_table, spread, write_json

from core import wire
from core.enums import DataDistribution
from core.exceptions import CommunicationError
from core.wire import Parcel
from orchestrator.communication.memory import Handler
from orchestrator.federation import load_federation
from orchestrator.fleet import Fleet
from orchestrator.privacy import safe_threshold

SITES: Final = (3, 5, 10, 16, 32)
PARAMETERS: Final = (10_000, 1_000_000)
MOST_BYTES: Final = 2.5
"""Times the plain level's, at ten sites."""

LEVELS: Final = ("none", "secure_aggregation")
DROP_OUTS: Final = 2


@dataclass(slots=True)
class Meter:
    """What went through the doors of sites.

    Attributes:
        lost: How many sites, the first ones by name, are gone when asked for their masked update.
    """

    lost: int = 0
    bytes_: int = 0
    work_s: float = 0.0
    _doors: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def through(self, handler: Handler) -> Handler:
        """Count what goes through a door, which are made in the order of the sites' names."""
        number = self._doors
        self._doors += 1

        def ask(request: Parcel, email: str) -> Parcel:
            if number < self.lost and wire.peek(request)["kind"] == "secure_mask":
                raise CommunicationError("gone")
            begin = time.thread_time()
            reply = handler(request, email)
            with self._lock:
                self.work_s += time.thread_time() - begin
                self.bytes_ += len(request) + len(reply)
            return reply

        return ask


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--sites", type=int, nargs="+", default=list(SITES))
    parser.add_argument("--parameters", type=int, nargs="+", default=list(PARAMETERS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything here")
    settings = parser.parse_args()
    cells = measure(settings.sites, settings.parameters, settings.rounds)
    print_table(
        f"median (least-greatest) of {settings.rounds} rounds",
        (
            "sites",
            "parameters",
            "s plain",
            "s secure",
            "s with two drop-outs",
            "ms at one site, plain",
            "ms at one site, secure",
            "MB plain",
            "MB secure",
            "bytes, times plain",
        ),
        [_row(cell) for cell in cells],
    )
    write_json(settings.json, {"machine": machine(), "rounds": settings.rounds, "cells": cells})
    over = [c for c in cells if c["sites"] == 10 and c["times_bytes"] > MOST_BYTES]  # noqa: PLR2004
    if over:
        raise SystemExit(f"more than {MOST_BYTES} times the bytes at 10 sites")


def measure(numbers: Sequence[int], parameters: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """Run every number of sites with every size at both levels.

    Returns:
        For each, `round_s` and `site_ms` by level (`with_drop_outs` besides), `bytes` of a round by
        level, and `times_bytes`.
    """
    logger.remove()
    torch.set_num_threads(1)
    cells = []
    for number in numbers:
        with (
            tempfile.TemporaryDirectory() as folder,
            SampleFederation(
                Path(folder), None, sites=number, distribution=DataDistribution.IID, seed=0
            ) as federation,
        ):
            cells += [_cell(federation, number, size, rounds) for size in parameters]
    return cells


def _cell(federation: SampleFederation, number: int, size: int, rounds: int) -> dict[str, Any]:
    model = {"type": "cnn", "options": size_near(size).options}
    cell: dict[str, Any] = {"sites": number, "parameters": size_near(size).parameters}
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    cases = [(level, level, 0) for level in LEVELS]
    if number - DROP_OUTS >= safe_threshold(number):
        cases.append(("with_drop_outs", LEVELS[1], DROP_OUTS))
    for name, level, lost in cases:
        meter = Meter()
        config = federation.config(
            {"model": model, "rounds": rounds + 1, "privacy": {"level": level}}
        )
        assert config.sites is not None  # noqa: S101 - as the federation has it
        fleet = Fleet(
            federation.communication(meter.through), load_federation(config.sites).sites, attempts=1
        )
        fleet.connect().require(number, what="log-in")
        prepared = prepare(fleet, config, Null, min_sites=number - lost)
        meter.lost = lost
        before = [meter.bytes_, meter.work_s]
        records = prepared.run(rounds + 1, is_evaluated=False)
        passed, worked = meter.bytes_ - before[0], meter.work_s - before[1]
        fleet.close()
        found["round_s"][name] = spread([record["seconds"]["round"] for record in records[1:]])
        found["site_ms"][name] = 1000 * worked / (rounds + 1) / number
        found["bytes"][name] = passed / (rounds + 1)
    plain, secure = (found["bytes"][level] for level in LEVELS)
    return {**cell, **found, "times_bytes": secure / plain}


def _row(cell: dict[str, Any]) -> tuple[object, ...]:
    rounds = cell["round_s"]
    return (
        cell["sites"],
        f"{cell['parameters']:,}",
        *(_shown(rounds.get(name)) for name in (*LEVELS, "with_drop_outs")),
        *(f"{cell['site_ms'][level]:.1f}" for level in LEVELS),
        *(f"{cell['bytes'][level] / 1e6:.2f}" for level in LEVELS),
        f"{cell['times_bytes']:.2f}",
    )


def _shown(found: dict[str, float] | None) -> str:
    if found is None:
        return "-"
    return f"{found['median']:.3f} ({found['min']:.3f}-{found['max']:.3f})"


if __name__ == "__main__":
    main()
