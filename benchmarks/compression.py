"""What `compression` saves on the way, and what it costs in learning.

    python benchmarks/compression.py [--source ai4i2020.csv] [--seeds 0 1 2 3 4] [--rounds 20]
        [--json FILE]

The example experiment, whose model is the CNN, over four in-memory sites with real codec, divided
by label; in every form, with the same seeds. The seed decides division, splits, starting values and
batches. Bytes are those of the messages for training, heads included, of one site in one round:
*to a site*, which it then has for the evaluation of the round before as well, and *from a site*.
PR-AUC is that of the last round on all test parts together; *beside none* is the difference seed by
seed. Time is that of a whole run, in which nothing travels: what compressing costs alone.
"""

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from inmemory import SampleFederation
from loguru import logger
from measuring import machine, print_table, spread, write_json

from core import wire
from core.enums import Compression, DataDistribution
from core.wire import Parcel
from orchestrator.communication.memory import Handler

SITES: Final = 4
SEEDS: Final = (0, 1, 2, 3, 4)
FORMS: Final = tuple(how.value for how in Compression)
NONE: Final = Compression.NONE.value


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--source", type=Path, help="the AI4I 2020 CSV; by default data like it")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything here")
    settings = parser.parse_args()
    measured = measure(settings.source, seeds=settings.seeds, rounds=settings.rounds)
    seeds = f"{len(settings.seeds)} seeds: least, median, greatest"
    print_table(
        f"{measured['parameters']:,} parameters, {SITES} sites, {settings.rounds} rounds, {seeds}",
        ("compression", "to a site", "from a site", "PR-AUC", "beside none", "s a run"),
        [_row(form, measured["forms"]) for form in FORMS],
    )
    write_json(settings.json, {"machine": machine(), **measured})


def measure(source: Path | None, *, seeds: Sequence[int], rounds: int) -> dict[str, Any]:
    """Run every form with every seed.

    Returns:
        `parameters` (how many the model has) and `forms`: for each, spreads over the seeds of
        `down_bytes` and `up_bytes` (of one site in a round), `pr_auc`, `difference` (of it, to none
        with the same seed) and `run_s`.
    """
    logger.disable("datasite")
    torch.set_num_threads(1)
    cells: dict[str, dict[str, list[float]]] = {form: defaultdict(list) for form in FORMS}
    parameters = 0
    for seed in seeds:
        with (
            tempfile.TemporaryDirectory() as folder,
            SampleFederation(
                Path(folder),
                source,
                sites=SITES,
                distribution=DataDistribution.NON_IID_LABEL,
                seed=seed,
            ) as federation,
        ):
            for form in FORMS:
                found, parameters = _run(federation, form, seed=seed, rounds=rounds)
                for name, value in found.items():
                    cells[form][name].append(value)
    for cell in cells.values():
        pairs = zip(cell["pr_auc"], cells[NONE]["pr_auc"], strict=True)
        cell["difference"] = [ours - theirs for ours, theirs in pairs]
    return {
        "source": source.name if source else "generated",
        "sites": SITES,
        "rounds": rounds,
        "seeds": list(seeds),
        "parameters": parameters,
        "forms": {
            form: {name: spread(values) for name, values in cell.items()}
            for form, cell in cells.items()
        },
    }


def _run(
    federation: SampleFederation, form: str, *, seed: int, rounds: int
) -> tuple[Mapping[str, float], int]:
    config = federation.config({"seed": seed, "rounds": rounds, "compression": form})
    sizes: list[tuple[int, int]] = []

    def counting(handler: Handler) -> Handler:
        def handle(request: Parcel, email: str) -> Parcel:
            reply = handler(request, email)
            if wire.peek(request)["kind"] == "train":
                sizes.append((len(request), len(reply)))
            return reply

        return handle

    begin = time.perf_counter()
    record = federation.run(f"{form}-{seed}", config, counting)
    run_s = time.perf_counter() - begin
    found = {
        "down_bytes": statistics.mean(down for down, _ in sizes),
        "up_bytes": statistics.mean(up for _, up in sizes),
        "pr_auc": record["global"]["pr_auc"],
        "run_s": run_s,
    }
    return found, federation.count_parameters(f"{form}-{seed}")


def _row(form: str, forms: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Sequence[str]:
    cell, none = forms[form], forms[NONE]

    def size(name: str) -> str:
        share = cell[name]["median"] / none[name]["median"]
        return f"{cell[name]['median'] / 1000:.1f} kB ({share:.0%})"

    return (
        form,
        size("down_bytes"),
        size("up_bytes"),
        _three(cell["pr_auc"], ".3f"),
        _three(cell["difference"], "+.3f"),
        f"{cell['run_s']['median']:.1f}",
    )


def _three(values: Mapping[str, float], form: str) -> str:
    return " / ".join(f"{values[name]:{form}}" for name in ("min", "median", "max"))


if __name__ == "__main__":
    main()
