"""`orchestrator testbed up --containers`: sites of any number, through the Docker SDK."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import httpx
import pytest
import yaml
from compose_project import ROOT, Ended

PROJECT = f"sdk-{os.getpid()}"
TESTBED = ("--containers", "--project", PROJECT)

Command = Callable[..., Ended]


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Give the researcher's command, with a state folder and a working folder of its own."""
    home = tmp_path_factory.mktemp("home")

    def run(*arguments: str | Path) -> Ended:
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator", *map(str, arguments)],
            cwd=home,
            env={**os.environ, "XDG_STATE_HOME": str(home / "state"), "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        return Ended(code=done.returncode, out=done.stdout, err=done.stderr)

    return run


@pytest.fixture(scope="module")
def sites_file(images: None, command: Command, engine: docker.DockerClient) -> Iterator[Path]:
    """Give the sites file of a testbed of two; the tests take it down, this what they left."""
    before = made_by_anybody(engine)
    up = command("testbed", "up", "--sites", "2", *TESTBED)
    assert up.code == 0, up.err
    path = Path(up.out.splitlines()[-1].removeprefix("sites file for experiments: "))
    yield path
    command("testbed", "down", *TESTBED)
    assert made_by_anybody(engine) == before
    assert not path.parent.exists()


def made_by_anybody(engine: docker.DockerClient) -> dict[str, set[str]]:
    """Name all containers, networks and volumes of this project that the engine has."""
    found = {
        "containers": [each.name for each in engine.containers.list(all=True)],
        "networks": [each.name for each in engine.networks.list()],
        "volumes": [each.name for each in engine.volumes.list()],
    }
    return {kind: {n for n in names if PROJECT in n} for kind, names in found.items()}


def status(command: Command) -> tuple[int, list[dict[str, Any]]]:
    """Give exit code and rows of `testbed status`."""
    told = command("testbed", "status", *TESTBED, "--json")
    return told.code, json.loads(told.out)


def test_the_sites_run_and_are_logged_in_to_from_here(command: Command, sites_file: Path) -> None:
    """Both are healthy with their memory and ports, and answer at the sites file's addresses."""
    code, rows = status(command)
    assert (code, [row["site_id"] for row in rows]) == (0, ["factory-1", "factory-2"])
    assert all(row["health"] == "healthy" and 100 < row["memory_mib"] < 800 for row in rows)
    urls = [site["url"] for site in yaml.safe_load(sites_file.read_text())["sites"]]
    assert urls == [f"http://127.0.0.1:{row['port']}" for row in rows]
    offered = json.loads(command("sites", sites_file, "--json").out)
    assert [site["status"] for site in offered] == ["ONLINE", "ONLINE"]


def test_nothing_is_written_where_it_is_called(sites_file: Path) -> None:
    """The working folder stays empty; secrets lie in the account's state folder, closed."""
    home = sites_file.parents[3]
    assert [path.name for path in home.iterdir()] == ["state"]
    assert sites_file.parent.stat().st_mode & 0o777 == 0o700


def test_up_again_starts_what_stopped(
    command: Command, sites_file: Path, engine: docker.DockerClient
) -> None:
    """A killed site is told of by `status`, started by `up`, and keeps its port and identity."""
    _, before = status(command)
    engine.containers.get(f"{PROJECT}-factory-2").kill()
    code, rows = status(command)
    assert (code, rows[1]["health"]) == (1, "exited")
    assert command("testbed", "up", "--sites", "2", *TESTBED).code == 0
    code, after = status(command)
    assert code == 0
    assert [row["port"] for row in after] == [row["port"] for row in before]


def test_the_sites_are_hardened_and_apart(sites_file: Path, engine: docker.DockerClient) -> None:
    """As docker-compose.yml has them; neither the other site nor the outside is reached."""
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["factory-1"]
    container = engine.containers.get(f"{PROJECT}-factory-1")
    host = container.attrs["HostConfig"]
    assert container.attrs["Config"]["User"] == compose["user"]
    assert host["ReadonlyRootfs"] is compose["read_only"]
    assert host["CapDrop"] == compose["cap_drop"]
    assert host["SecurityOpt"] == compose["security_opt"]
    assert host["Init"] is compose["init"]
    assert [f"{path}:{how}" for path, how in host["Tmpfs"].items()] == compose["tmpfs"]
    limits = compose["deploy"]["resources"]["limits"]
    assert (host["Memory"], limits["memory"]) == (1024**3, "1g")
    assert host["PidsLimit"] == limits["pids"]
    other = engine.containers.get(f"{PROJECT}-factory-2").attrs["NetworkSettings"]["Networks"]
    script = f"""
import socket
for place in (({other[PROJECT]["IPAddress"]!r}, 8080), ("1.1.1.1", 53)):
    try:
        socket.create_connection(place, timeout=3)
        print("reached", place)
    except OSError:
        pass
"""
    assert container.exec_run(["python", "-c", script]).output == b""


def test_another_number_of_sites_is_refused(command: Command, sites_file: Path) -> None:
    """Nothing is changed, and the way is shown."""
    refused = command("testbed", "up", "--sites", "3", *TESTBED)
    assert refused.code == 4
    assert "has 2 sites, asked for are 3" in refused.err
    assert f"down --containers --project {PROJECT}" in refused.err


def test_data_can_be_kept(command: Command, sites_file: Path, engine: docker.DockerClient) -> None:
    """With --keep-data volumes stay, and a site that comes back is the same to who knows it."""
    before = identities(sites_file)
    assert command("testbed", "down", *TESTBED, "--keep-data").code == 0
    assert made_by_anybody(engine)["containers"] == set()
    assert len(made_by_anybody(engine)["volumes"]) == 2
    assert command("testbed", "up", "--sites", "2", *TESTBED).code == 0
    assert identities(sites_file) == before


def identities(sites_file: Path) -> list[str]:
    """Give who the sites say they are."""
    urls = [site["url"] for site in yaml.safe_load(sites_file.read_text())["sites"]]
    return [httpx.get(f"{url}/api/v2/metadata").json()["id"] for url in urls]


def test_a_site_that_does_not_become_healthy_is_told_of_with_its_log(
    command: Command, engine: docker.DockerClient, images: None
) -> None:
    """A wrong image ends the command, which takes away what it had made."""
    project = f"{PROJECT}-wrong"
    failed = command(
        "testbed", "up", "--sites", "1", "--containers", "--project", project,
        "--image", "federated-maintenance-orchestrator:0.1.0",
    )  # fmt: skip
    assert failed.code == 1
    assert re.search("factory-1 is (exited|restarting) and not healthy; the end of", failed.err)
    assert not any(project in n for names in made_by_anybody(engine).values() for n in names)


def test_without_a_testbed_or_an_image_the_command_says_what_to_do(command: Command) -> None:
    """Exit code 4, and the command to type."""
    nowhere = ("--containers", "--project", f"{PROJECT}-nowhere")
    for verb in ("status", "down"):
        ended = command("testbed", verb, *nowhere)
        assert (ended.code, "there is no testbed" in ended.err) == (4, True)
    ended = command("testbed", "up", *nowhere, "--image", "no-such-image:1")
    assert (ended.code, "docker compose build" in ended.err) == (4, True)


@pytest.mark.parametrize("project", ["..", "a/b", "", "Upper", "x" * 41])
def test_a_project_that_is_no_name_is_refused(command: Command, project: str) -> None:
    """It names a folder that `down` deletes, and everything in Docker."""
    ended = command("testbed", "down", "--containers", "--project", project)
    assert (ended.code, "is no name of at most 40" in ended.err) == (4, True)


@pytest.mark.parametrize(
    "arguments",
    [("up", "--image", "x"), ("down", "--keep-data"), ("down", "--containers", "--delete"),
     ("status", "--project", "x")],
)  # fmt: skip
def test_an_option_that_would_be_passed_over_is_refused(
    command: Command, arguments: tuple[str, ...]
) -> None:
    """Rather than do something else than what was meant."""
    ended = command("testbed", *arguments)
    assert (ended.code, "--containers; see --help" in ended.err) == (4, True)
