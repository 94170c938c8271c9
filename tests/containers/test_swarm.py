"""deploy/stack.yaml on two engines in a swarm: a factory on each, an experiment across them.

    docker compose build
    sudo .venv/bin/pytest -m swarm tests/containers

Both engines are the test's own: the machine's only gives the images. Needs root and the commands
that tests/second_engine.py names; takes two minutes, and 5 GB of disk while it runs.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from compose_project import ROOT
from second_engine import SecondEngine, link, open_engine, run
from site_process import wait_until

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(1200)]

IMAGES = ("federated-maintenance-datasite:0.1.0", "federated-maintenance-orchestrator:0.1.0")
STACK = "federation"
LABEL = "federation.site"
SERVICES = ("factory-1", "factory-2", "orchestrator")
FACTORIES = SERVICES[:2]
INBOX = "/var/lib/datasite/inbox"


class Swarm(NamedTuple):
    """Two nodes: the first leads, and has the orchestrator beside the first factory."""

    one: SecondEngine
    two: SecondEngine

    def exec(self, service: str, *command: str) -> str:
        """Run a command in the container of a service, on the engine that has to have it."""
        return self.engine(service).docker("exec", self.container(service), *command)

    def engine(self, service: str) -> SecondEngine:
        """Give the engine that has to have a service."""
        return self.two if service == "factory-2" else self.one

    def container(self, service: str) -> str:
        """Give the id of a service's container on its engine."""
        label = f"label=com.docker.swarm.service.name={STACK}_{service}"
        found = self.engine(service).docker("ps", "--quiet", "--filter", label)
        assert found, f"{self.engine(service).name} has no container of {service}"
        return found

    def placed(self) -> dict[str, str]:
        """Give the node of each service's task, if it runs: it does so once it is healthy."""
        told = self.one.docker(
            "stack", "ps", STACK, "--format", "{{.Name}} {{.Node}} {{.CurrentState}}"
        )
        tasks = [line.split() for line in told.splitlines()]
        return {
            name.removeprefix(f"{STACK}_").removesuffix(".1"): node
            for name, node, state, *_ in tasks
            if state == "Running"
        }

    def troubles(self) -> str:
        """Say what became of every task and what it had to say, for one who looks for a fault."""
        told = [self.one.docker("stack", "ps", STACK, "--no-trunc")]
        for service in SERVICES:
            name = f"{STACK}_{service}"
            command = ["docker", "--host", self.one.host, "service", "logs", "--tail", "20", name]
            told.append(subprocess.run(command, capture_output=True, text=True, check=False).stderr)
        return "\n".join(told)

    def containers(self) -> list[str]:
        """Give the ids of all containers that there are on either engine."""
        return [each for engine in self for each in engine.docker("ps", "-aq").split()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a copy of deploy/, with secrets of its own and the stack for two nodes."""
    made = tmp_path_factory.mktemp("swarm")
    shutil.copytree(ROOT / "deploy", made / "deploy")
    run(made / "deploy" / "make-secrets.sh")
    change_stack(made / "deploy" / "stack.yaml")
    sites_file = made / "deploy" / "compose" / "sites.yaml"
    sites = yaml.safe_load(sites_file.read_text())["sites"]
    sites = [site for site in sites if site["site_id"] in FACTORIES]
    sites_file.write_text(yaml.safe_dump({"sites": sites}))
    return made


def change_stack(path: Path) -> None:
    """Change the stack where two nodes and an ordinary kernel have to have it otherwise."""
    stack = yaml.safe_load(path.read_text())
    # Needs ESP in the kernel, which many have not. Nothing here is about secrecy on the way.
    stack["networks"] = {
        name: {key: value for key, value in network.items() if key != "driver_opts"}
        for name, network in stack["networks"].items()
    }
    # There is no third node for it.
    stack["services"]["factory-3"]["deploy"]["replicas"] = 0
    # There is no node for it alone: it may go where factory-1 is.
    placement = stack["services"]["orchestrator"]["deploy"]["placement"]
    placement["constraints"].remove(f"node.labels.{LABEL} != factory-1")
    path.write_text(yaml.safe_dump(stack))


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    """Give two engines in a swarm, each labelled with its factory, both with the images."""
    made = tmp_path_factory.mktemp("engines")
    with (
        open_engine(made / "one", "one", address="192.0.2.1") as one,
        open_engine(made / "two", "two", address="192.0.2.2") as two,
    ):
        link(one, two)
        one.docker("swarm", "init", "--advertise-addr", one.address)
        token = one.docker("swarm", "join-token", "--quiet", "worker")
        two.docker("swarm", "join", "--advertise-addr", two.address, "--token", token, one.address)
        for engine, factory in zip((one, two), FACTORIES, strict=True):
            one.docker("node", "update", "--label-add", f"{LABEL}={factory}", engine.name)
        # One archive for both: an image could be built anew between two.
        archive = made / "images.tar"
        try:
            run("docker", "save", "--output", archive, *IMAGES)
            for engine in (one, two):
                engine.docker("load", "--input", archive)
        finally:
            archive.unlink(missing_ok=True)
        yield Swarm(one, two)
        two.docker("swarm", "leave")
        one.docker("swarm", "leave", "--force")


@pytest.fixture(scope="module")
def federation(swarm: Swarm, folder: Path) -> Iterator[Swarm]:
    """Give the stack, deployed and healthy; removing it leaves no container on either node."""
    swarm.one.docker(
        "stack", "deploy", "-c", "deploy/stack.yaml", "--resolve-image", "never", STACK, cwd=folder
    )
    try:
        wait_until(
            lambda: set(swarm.placed()) == set(SERVICES), limit_s=300, what="all are healthy"
        )
    except pytest.fail.Exception as exc:
        exc.add_note(swarm.troubles())
        raise
    yield swarm
    swarm.one.docker("stack", "rm", STACK)
    wait_until(lambda: not swarm.containers(), limit_s=90, what="no container is left")


def test_each_factory_is_on_its_own_node(federation: Swarm) -> None:
    """The labels decide, and each engine has the containers that the leader says it has."""
    assert federation.placed() == {"factory-1": "one", "factory-2": "two", "orchestrator": "one"}
    for service in SERVICES:
        assert federation.container(service)
    assert len(federation.containers()) == len(SERVICES)


@pytest.mark.parametrize("service", SERVICES)
def test_no_process_can_gain_privileges(federation: Swarm, service: str) -> None:
    """The daemon's setting, which deploy/stack.yaml names, is in force where Swarm starts it."""
    status = federation.exec(service, "cat", "/proc/1/status").splitlines()
    assert "NoNewPrivs:\t1" in status


def test_an_experiment_runs_across_the_nodes(federation: Swarm, samples: list[Path]) -> None:
    """Both sites take part in every round, though the orchestrator is on one's node alone."""
    for path in samples:
        factory = path.stem
        if factory not in FACTORIES:
            continue
        container = federation.container(factory)
        federation.engine(factory).docker("cp", path, f"{container}:{INBOX}/demo.csv")
        federation.exec(
            factory, "datasite", "data", "register", f"{INBOX}/demo.csv",
            "--schema", "schemas/ai4i.yaml", "--name", "demo",
        )  # fmt: skip
    told = federation.exec("orchestrator", "orchestrator", "run", "experiments/demo.yaml", "--json")
    results = json.loads(told.splitlines()[-1])
    assert results["status"] == "COMPLETED"
    rounds = results["rounds"]
    assert [record["round_num"] for record in rounds] == [0, 1, 2, 3, 4]
    assert all(set(record["aggregation"]["sites"]) == set(FACTORIES) for record in rounds)
    assert all(record["missing"] == {} for record in rounds)
