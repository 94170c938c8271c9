"""deploy/stack.yaml says what docker-compose.yml says, but for what Swarm has another word for."""

from pathlib import Path
from typing import Any, TypeAlias

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
STACK = ROOT / "deploy" / "stack.yaml"
SERVICES = ["factory-1", "factory-2", "factory-3", "orchestrator"]

Facts: TypeAlias = dict[str, Any]

# What one file alone says, by the reason; every other fact stands in both, and is equal.
COMPOSE_ALONE = {
    "build": "a node gets its images ready made",
    "depends_on": "Swarm knows no order; the orchestrator waits for its sites by itself",
    "restart": "deploy.restart_policy is Swarm's word for it",
    "security_opt": "Swarm ignores it; the daemon of a node has a setting, as a comment says",
    "volumes ./deploy/experiments": "a node has no checkout; the image has the same experiments",
}
STACK_ALONE = {
    "deploy endpoint_mode": "names lead straight to the one task; no virtual address between",
    "deploy placement": "compose has one machine",
    "deploy restart_policy": "compose's word for it is `restart`",
    "healthcheck": "Swarm replaces what is unhealthy, so it is more patient than the image's",
}
# How Swarm mounts a tmpfs that is given by its size alone, as seen in /proc/mounts.
SWARM_TMPFS = {"mode=1777", "noexec", "nosuid", "nodev"}


@pytest.fixture(scope="module")
def stack() -> Facts:
    """Give deploy/stack.yaml."""
    parsed: Facts = yaml.safe_load(STACK.read_text())
    return parsed


def size_bytes(text: str) -> int:
    """Give what a size such as 256m means."""
    return int(text[:-1]) * {"m": 2**20, "g": 2**30}[text[-1].lower()]


def facts(model: Facts, name: str, folder: Path) -> Facts:
    """Give all that a file says of a service, each fact under one name in both files' terms."""
    service = dict(model["services"][name])
    deploy = service.pop("deploy")
    found = {f"deploy {key}": value for key, value in deploy.items() if key != "resources"}
    for kind, limit in deploy["resources"]["limits"].items():
        found[f"limit {kind}"] = limit
    assert set(deploy["resources"]) == {"limits"}
    for sort in ("configs", "secrets"):
        for use in service.pop(sort):
            file = folder / model[sort][use["source"]]["file"]
            found[f"{sort} {use['target']}"] = file.resolve().relative_to(ROOT).as_posix()
            assert set(use) == {"source", "target"}
    for mount in service.pop("volumes"):
        if isinstance(mount, str):
            source, _, target = mount.partition(":")
            found[f"volumes {source}"] = target
        else:
            assert mount["type"] == "tmpfs"
            found[f"tmpfs {mount['target']}"] = (mount["tmpfs"]["size"], SWARM_TMPFS)
    for mount in service.pop("tmpfs", []):
        target, _, options = mount.partition(":size=")
        size, *others = options.split(",")
        found[f"tmpfs {target}"] = (size_bytes(size), set(others))
    return found | service


@pytest.mark.parametrize("name", SERVICES)
def test_compose_and_stack_say_the_same_of_a_service(
    name: str, compose: Facts, stack: Facts
) -> None:
    """Whatever one file says that the other does not is one of the differences above."""
    in_compose = facts(compose, name, ROOT)
    in_stack = facts(stack, name, STACK.parent)
    for fact in COMPOSE_ALONE:
        in_compose.pop(fact, None)
    for fact in STACK_ALONE:
        in_stack.pop(fact, None)
    assert in_stack == in_compose
    assert in_stack["limit memory"]  # an empty comparison would hold too
    assert in_stack["cap_drop"] == ["ALL"]


def test_each_difference_is_there(compose: Facts, stack: Facts) -> None:
    """One that is no longer there would hide the next of its name."""
    of_compose = {fact for name in SERVICES for fact in facts(compose, name, ROOT)}
    of_stack = {fact for name in SERVICES for fact in facts(stack, name, STACK.parent)}
    assert of_compose - of_stack == set(COMPOSE_ALONE)
    assert of_stack - of_compose == set(STACK_ALONE)


def test_both_files_have_the_same_parts(compose: Facts, stack: Facts) -> None:
    """The stack lacks what the demonstration and the build of images need, and nothing else."""
    assert set(stack["services"]) == set(compose["services"]) == set(SERVICES)
    assert set(stack["networks"]) == set(compose["networks"])
    assert set(stack["configs"]) == set(compose["configs"])
    assert set(compose["volumes"]) - set(stack["volumes"]) == {"demo-samples"}
    assert stack["volumes"].items() <= compose["volumes"].items()
    assert set(compose["secrets"]) - set(stack["secrets"]) == {"ca_bundle", "pip_conf"}
    assert set(stack["secrets"]) <= set(compose["secrets"])


def test_no_network_of_either_file_has_a_way_out(compose: Facts, stack: Facts) -> None:
    """Swarm's are also encrypted between nodes, and open to an operator's own containers."""
    overlay = {"driver": "overlay", "attachable": True, "driver_opts": {"encrypted": "true"}}
    for name, network in compose["networks"].items():
        assert network == {"internal": True}
        assert stack["networks"][name] == {"internal": True, **overlay}


@pytest.mark.parametrize("name", SERVICES)
def test_a_labelled_node_takes_its_own_service_alone(name: str, stack: Facts) -> None:
    """A service keeps away from the nodes of all others, which leaves it its own."""
    constraints = stack["services"][name]["deploy"]["placement"]["constraints"]
    others = [other for other in SERVICES if other != name]
    assert constraints == [f"node.labels.federation.site != {other}" for other in others]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_comes_back_whatever_ended_it(name: str, compose: Facts, stack: Facts) -> None:
    """`unless-stopped` there, `any` here; its name then leads to the new task at once."""
    deploy = stack["services"][name]["deploy"]
    assert compose["services"][name]["restart"] == "unless-stopped"
    assert deploy["restart_policy"]["condition"] == "any"
    assert deploy["endpoint_mode"] == "dnsrr"
