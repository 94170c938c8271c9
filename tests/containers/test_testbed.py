"""The testbed of docker-compose.yml, as its users meet it."""

import json
from typing import Any

import docker
import pytest
from compose_project import FACTORIES, Compose

SERVICES = (*FACTORIES, "orchestrator")


@pytest.fixture(scope="session")
def demo(compose: Compose) -> str:
    """Run the demonstration once; what it printed."""
    return compose.run("--profile", "demo", "run", "--rm", "--no-TTY", "demo").out


def state_of(compose: Compose, factory: str) -> dict[str, Any]:
    """Give what must outlive a restart: data, plans, accounts, and the audit log's last row."""
    told = {
        name: json.loads(compose.datasite(factory, name, "list", "--json").out)
        for name in ("data", "plans", "users")
    }
    rows = json.loads(compose.datasite(factory, "audit", "show", "--json").out)
    return {**told, "audit": rows, "identity": identity_of(compose, factory)}


def identity_of(compose: Compose, factory: str) -> str:
    """Give who the site says it is to PySyft's clients."""
    script = (
        "import json, urllib.request as u;"
        "m = json.load(u.urlopen('http://127.0.0.1:8080/api/v2/metadata'));"
        "print(m['id'], m['verify_key'])"
    )
    return compose.python(factory, script)


def test_the_demonstration_ends_completed(compose: Compose, demo: str) -> None:
    """Five rounds over three containers, from generated data to a table of scores."""
    assert "COMPLETED, 5 of 5 rounds" in demo
    assert all(factory in demo for factory in FACTORIES)
    listed = json.loads(compose.orchestrator("list", "--json").out)
    assert [(run["status"], run["rounds_done"]) for run in listed if run["name"] == "demo"] == [
        ("COMPLETED", 5)
    ]


def test_the_demonstration_can_be_repeated(compose: Compose, demo: str) -> None:
    """The data are registered already, and are the same."""
    again = compose.run("--profile", "demo", "run", "--rm", "--no-TTY", "demo").out
    assert "COMPLETED, 5 of 5 rounds" in again
    listed = json.loads(compose.datasite("factory-1", "data", "list", "--json").out)
    assert [(dataset["name"], dataset["version"]) for dataset in listed] == [("demo", 1)]


def test_a_restart_loses_nothing(compose: Compose, demo: str) -> None:
    """Data, plans, accounts, log and identity are the same, and the log's chain is whole."""
    before = {factory: state_of(compose, factory) for factory in FACTORIES}
    assert all(len(state["plans"]) >= 1 for state in before.values())
    compose.run("restart")
    compose.run("up", "--detach", "--wait", "--no-build")
    assert {factory: state_of(compose, factory) for factory in FACTORIES} == before
    for factory in FACTORIES:
        compose.datasite(factory, "audit", "verify")


def test_an_operator_registers_a_file(compose: Compose, demo: str) -> None:
    """A file is copied into the inbox, registered by command, and offered to researchers."""
    samples = compose.folder / "samples"
    compose.run(
        "run", "--rm", "--no-TTY", "--volume", f"{compose.project}_runs:/var/lib/orchestrator/data",
        "orchestrator", "testbed", "data", "--sites", "1", "--rows", "600", "--out", "data/press",
    )  # fmt: skip
    compose.run(
        "cp", "orchestrator:/var/lib/orchestrator/runs/press/factory-1.csv", f"{samples}.csv"
    )
    compose.run("cp", f"{samples}.csv", "factory-2:/var/lib/datasite/inbox/press.csv")
    registered = compose.datasite(
        "factory-2", "data", "register", "/var/lib/datasite/inbox/press.csv",
        "--schema", "schemas/ai4i.yaml", "--name", "press",
    )  # fmt: skip
    assert "registered 'press', version 1: 600 rows" in registered.out
    sites = json.loads(compose.orchestrator("sites", "/etc/orchestrator/sites.yaml", "--json").out)
    offered = {site["site_id"]: site["datasets"] for site in sites}
    assert "press (600 rows)" in offered["factory-2"]
    assert "press" not in offered["factory-1"]


@pytest.mark.parametrize("service", SERVICES)
def test_a_container_is_hardened(compose: Compose, service: str) -> None:
    """What compose asks for is what the engine runs, and the process in it has no more."""
    inspected = compose.container(service).attrs
    host = inspected["HostConfig"]
    assert inspected["Config"]["User"] == "10001:10001"
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert host["CapAdd"] is None
    assert host["Privileged"] is False
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert host["Init"] is True
    assert host["PidsLimit"] == 256
    assert 0 < host["Memory"] <= 2 * 1024**3
    assert inspected["State"]["Health"]["Status"] == "healthy"
    status = compose.python(service, "print(open('/proc/1/status').read())")
    found = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert found["Uid"].split() == ["10001"] * 4
    assert int(found["CapEff"], 16) == int(found["CapBnd"], 16) == 0
    assert found["NoNewPrivs"] == "1"


def test_no_secret_is_in_a_layer_or_in_what_the_engine_tells(
    compose: Compose, engine: docker.DockerClient
) -> None:
    """Passwords are in files of their own, which images and `docker inspect` know nothing of."""
    passwords = [path.read_text().strip() for path in (compose.folder / "secrets").iterdir()]
    assert len(set(passwords)) == 6
    told = [json.dumps(compose.container(service).attrs) for service in SERVICES]
    for name in ("datasite", "orchestrator"):
        image = engine.images.get(f"federated-maintenance-{name}:0.1.0")
        told.append(json.dumps([image.attrs, image.history()]))
    assert not [password for password in passwords for text in told if password in text]


@pytest.mark.parametrize("service", SERVICES)
def test_nothing_can_be_written_but_data_and_scratch(compose: Compose, service: str) -> None:
    """The volume and /tmp take a file; every other folder refuses, and /tmp runs nothing."""
    script = """
import json, os, pathlib
def writes(folder):
    path = pathlib.Path(folder, "probe")
    try:
        path.write_text("x")
    except OSError:
        return False
    path.unlink()
    return True
folders = [f for f, _, _ in os.walk("/") if not f.startswith(("/proc", "/sys", "/dev"))]
print(json.dumps([f for f in folders if writes(f)]))
"""
    written = set(json.loads(compose.python(service, script)))
    kept = "/var/lib/orchestrator/runs" if service == "orchestrator" else "/var/lib/datasite"
    assert {"/tmp", kept} <= written  # noqa: S108
    assert all(folder.startswith(("/tmp", kept)) for folder in written)  # noqa: S108
    script = (
        "import os; open('/tmp/x', 'w').write('#!/bin/sh'); os.chmod('/tmp/x', 0o700);"
        "print(os.access('/tmp/x', os.X_OK)); os.unlink('/tmp/x')"
    )
    assert compose.python(service, script) == "False"


REACH = """
import socket
for host, port in {targets!r}:
    try:
        socket.create_connection((host, port), timeout=3).close()
        print(host, "reached")
    except OSError as exc:
        print(host, "not reached")
"""


def test_a_factory_reaches_neither_another_factory_nor_the_outside(
    compose: Compose, engine: docker.DockerClient
) -> None:
    """Not by name, not by address; the same probe from the orchestrator reaches the factories."""
    addresses = {factory: address_of(compose, factory) for factory in FACTORIES}
    gateway = engine.networks.get("bridge").attrs["IPAM"]["Config"][0].get("Gateway", "172.17.0.1")
    targets = [
        ("factory-2", 8080), (addresses["factory-2"], 8080), (addresses["factory-3"], 8080),
        ("1.1.1.1", 53), (gateway, 22), ("example.com", 80),
    ]  # fmt: skip
    found = compose.python("factory-1", REACH.format(targets=targets)).splitlines()
    assert found == [f"{host} not reached" for host, _ in targets]
    targets = [(host, 8080) for host in (*FACTORIES, *addresses.values())]
    found = compose.python("orchestrator", REACH.format(targets=targets)).splitlines()
    assert found == [f"{host} reached" for host, _ in targets]


def address_of(compose: Compose, factory: str) -> str:
    """Give a factory's address on its only network."""
    networks = compose.container(factory).attrs["NetworkSettings"]["Networks"]
    assert list(networks) == [f"{compose.project}_{factory}"]
    return str(networks[f"{compose.project}_{factory}"]["IPAddress"])


def test_the_orchestrator_has_no_factory_volume(compose: Compose) -> None:
    """Its only volume holds the runs; a factory's state is not there under any name."""
    mounted = compose.container("orchestrator").attrs["Mounts"]
    assert [m["Name"] for m in mounted if m["Type"] == "volume"] == [f"{compose.project}_runs"]
    assert compose.python(
        "orchestrator", "import os; print(os.path.exists('/var/lib/datasite'))"
    ) == ("False")
    for factory in FACTORIES:
        mounted = compose.container(factory).attrs["Mounts"]
        volumes = [m["Name"] for m in mounted if m["Type"] == "volume"]
        assert volumes == [f"{compose.project}_{factory}"]


def test_each_image_has_its_own_half(compose: Compose, engine: docker.DockerClient) -> None:
    """The site's has no orchestrator and the reverse; both say which code they are."""
    halves = {"datasite": "orchestrator", "orchestrator": "datasite"}
    for name, other in halves.items():
        service = "factory-1" if name == "datasite" else name
        names = ("core", name, other)
        script = f"import importlib.util as u; print([bool(u.find_spec(n)) for n in {names!r}])"
        assert compose.python(service, script) == "[True, True, False]"
        labels = engine.images.get(f"federated-maintenance-{name}:0.1.0").labels
        status = json.loads(compose.datasite("factory-1", "status", "--json").out)
        assert labels["org.opencontainers.image.version"] == status["version"]
        assert labels["federated-maintenance.code-hash"] == status["code_hash"]
