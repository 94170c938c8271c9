"""`docker compose` on a copy of the repository's files, and experiments in its containers."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import docker
import yaml
from docker.models.containers import Container

ROOT = Path(__file__).resolve().parents[1]
FACTORIES = ("factory-1", "factory-2", "factory-3")


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Compose:
    """One compose project.

    Attributes:
        folder: Holds a copy of docker-compose.yml and deploy/, and the project's secrets.
        files: Compose files, of which later ones override earlier ones.
    """

    folder: Path
    project: str
    files: tuple[str, ...]

    def run(self, *arguments: str, check: bool = True) -> Ended:
        """Run `docker compose` to its end; what it said is in the error when it fails."""
        files = [part for file in self.files for part in ("--file", file)]
        done = subprocess.run(
            ["docker", "compose", "--project-name", self.project, *files, *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        ended = Ended(code=done.returncode, out=done.stdout, err=done.stderr)
        assert not check or ended.code == 0, f"docker compose {arguments}: {ended.out}{ended.err}"
        return ended

    def datasite(self, factory: str, *arguments: str, check: bool = True) -> Ended:
        """Run the operator's command in a factory's container."""
        return self.run("exec", "--no-TTY", factory, "datasite", *arguments, check=check)

    def python(self, service: str, script: str) -> str:
        """Run Python in a service's container, and give what it printed."""
        return self.run("exec", "--no-TTY", service, "python", "-c", script).out.strip()

    def orchestrator(self, *arguments: str, check: bool = True) -> Ended:
        """Run the researcher's command in a container of its own."""
        return self.run("run", "--rm", "--no-TTY", "orchestrator", *arguments, check=check)

    def write_experiment(self, name: str, **settings: Any) -> str:
        """Write an experiment of slow rounds beside the others; its path in the containers.

        An update takes some seconds, so that faults happen while sites train.
        """
        experiment = {
            "name": name,
            "dataset": "demo",
            "sites": "/etc/orchestrator/sites.yaml",
            "min_sites": 2,
            "training": {"local_epochs": 25, "learning_rate": 0.05},
            **settings,
        }
        path = self.folder / "deploy" / "experiments" / f"{name}.yaml"
        path.write_text(yaml.safe_dump(experiment))
        return f"experiments/{path.name}"

    def start_orchestrator(self, name: str, *arguments: str) -> Container:
        """Start the researcher's command in a container `name`, which goes on by itself."""
        self.run("run", "--detach", "--no-TTY", "--name", name, "orchestrator", *arguments)
        return docker.from_env().containers.get(name)

    def container(self, service: str) -> Container:
        """Give the running container of a service."""
        return docker.from_env().containers.get(f"{self.project}-{service}-1")


@contextmanager
def open_testbed(folder: Path, name: str, *, overlay: str = "") -> Iterator[Compose]:
    """Give a testbed of its own project, with secrets of its own, up and healthy; then remove it.

    Args:
        folder: Where the repository's files are copied to.
        name: Tells the testbeds of one session apart.
        overlay: A folder of deploy/ that changes the testbed: its compose.yaml is added, and what
            it has to be prepared with is run.
    """
    shutil.copy(ROOT / "docker-compose.yml", folder)
    shutil.copytree(ROOT / "deploy", folder / "deploy")
    subprocess.run([folder / "deploy" / "make-secrets.sh"], check=True)
    files: tuple[str, ...] = ("docker-compose.yml",)
    if overlay:
        subprocess.run([folder / "deploy" / overlay / "make-certificates.sh"], check=True)
        files = (*files, f"deploy/{overlay}/compose.yaml")
    made = Compose(folder, f"{name}-{os.getpid()}", files)
    try:
        made.run("up", "--detach", "--wait", "--no-build")
        yield made
    finally:
        made.run("--profile", "demo", "down", "--volumes", "--remove-orphans", check=False)
    assert left_behind(made.project) == []


def left_behind(project: str) -> list[str]:
    """Name what the engine still has of a project."""
    engine = docker.from_env()
    ours = {"label": f"com.docker.compose.project={project}"}
    containers = engine.containers.list(all=True, filters=ours)
    others = [*engine.networks.list(filters=ours), *engine.volumes.list(filters=ours)]
    return sorted(str(each.name) for each in [*containers, *others])


def events(container: Container) -> Iterator[dict[str, Any]]:
    """Give what a command with --json tells, event by event, until it ends."""
    pending = b""
    for chunk in container.logs(stream=True, follow=True, stdout=True, stderr=False):
        pending += chunk
        *lines, pending = pending.split(b"\n")
        yield from (cast("dict[str, Any]", json.loads(line)) for line in lines if line.strip())
