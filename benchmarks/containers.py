"""What the containers cost: the images' sizes, the start of three sites, memory of each.

    docker compose build
    python benchmarks/containers.py [--sites 3] [--repeats 3] [--json FILE]

Start-up is from `orchestrator testbed up --containers` on, with new volumes, until every site is
healthy. Memory is what the engine counts for a site's container without the page cache, at rest and
after a run of 20 rounds with the CNN on AI4I-like data.
"""

import argparse
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
from measuring import machine, print_table, spread, write_json

from core.configuration import parse, read_yaml
from core.enums import DataDistribution
from core.version import VERSION
from orchestrator.communication.live import over_pysyft
from orchestrator.configuration import ExperimentConfig
from orchestrator.experiment import ExperimentOrchestrator, new_run_id
from orchestrator.observer import Observer
from orchestrator.runs import RunStore
from orchestrator.testbed.ai4i import generate_ai4i
from orchestrator.testbed.containers import ContainerTestbed
from orchestrator.testbed.presets import AI4I_EXPERIMENT
from orchestrator.testbed.samples import write_samples

INBOX = "/var/lib/datasite/inbox"
IMAGES = ("datasite", "orchestrator")


def main() -> None:
    """Measure and print."""
    arguments = _arguments()
    sizes = {name: _image_mb(name) for name in IMAGES}
    runs = [_measure(arguments.sites) for _ in range(arguments.repeats)]
    results = {
        "machine": machine(),
        "sites": arguments.sites,
        "repeats": arguments.repeats,
        "image_mb": sizes,
        "start_s": spread([run["start_s"] for run in runs]),
        "at_rest_mib": spread([mib for run in runs for mib in run["at_rest_mib"]]),
        "after_a_run_mib": spread([mib for run in runs for mib in run["after_a_run_mib"]]),
    }
    rows = [(f"image of the {name}, MB", size, size, size) for name, size in sizes.items()]
    named = {
        "start_s": f"start of {arguments.sites} sites, s",
        "at_rest_mib": "memory of a site at rest, MiB",
        "after_a_run_mib": "memory of a site after a run, MiB",
    }
    rows += [(title, *results[name].values()) for name, title in named.items()]
    print_table(f"containers, {results['machine']}", ("", "min", "median", "max"), rows)
    write_json(arguments.json, results)


def _image_mb(name: str) -> int:
    image = docker.from_env().images.get(f"federated-maintenance-{name}:{VERSION}")
    return int(image.attrs["Size"]) // 1_000_000


def _measure(num_sites: int) -> dict[str, Any]:
    with _testbed() as testbed, tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        testbed.up(num_sites)
        started = time.perf_counter() - begin
        at_rest = [site.memory_mib for site in testbed.sites(with_memory=True)]
        _register_samples(testbed, Path(folder), num_sites)
        _run(testbed, Path(folder))
        after = [site.memory_mib for site in testbed.sites(with_memory=True)]
    return {"start_s": started, "at_rest_mib": at_rest, "after_a_run_mib": after}


@contextmanager
def _testbed() -> Iterator[ContainerTestbed]:
    testbed = ContainerTestbed(f"benchmark-{os.getpid()}")
    try:
        yield testbed
    finally:
        testbed.down()


def _register_samples(testbed: ContainerTestbed, folder: Path, num_sites: int) -> None:
    table = generate_ai4i(rows=10_000, seed=0)
    paths = write_samples(table, folder, sites=num_sites, distribution=DataDistribution.IID, seed=0)
    for path in paths:
        container = f"{testbed.project}-{path.stem}"
        command = ["data", "register", f"{INBOX}/{path.name}", "--schema", "schemas/ai4i.yaml"]
        for arguments in (
            ["cp", path, f"{container}:{INBOX}/"],
            ["exec", container, "datasite", *command, "--name", "ai4i"],
        ):
            subprocess.run(["docker", *arguments], check=True, capture_output=True)  # noqa: S607


def _run(testbed: ContainerTestbed, folder: Path) -> None:
    settings = {
        **read_yaml(AI4I_EXPERIMENT),
        "sites": str(testbed.sites_file),
        "runs": str(folder / "runs"),
    }
    config = parse(settings, ExperimentConfig, source=str(AI4I_EXPERIMENT))
    store = RunStore(config.runs)
    run_id = new_run_id(config.name)
    store.create(run_id, config)
    ExperimentOrchestrator(over_pysyft, store, Observer()).run_experiment(run_id)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sites", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    main()
