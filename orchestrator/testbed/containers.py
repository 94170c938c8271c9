"""A federation of containers on one Docker engine, hardened as in docker-compose.yml, of any size.

What runs is known to the engine alone, by labels, so that nothing has to be kept in step with it:

    container PROJECT-factory-1 ...    image, limits, health; its port 8080 on a port of 127.0.0.1
    volume    PROJECT-factory-1 ...    identity, accounts, data, ledger
    network   PROJECT                  one for all sites, over which they reach neither each other
                                       nor, for want of address translation, the outside

Only passwords, `site.yaml` files and the sites file lie on disk, in the account's state folder
(`~/.local/state/federated-maintenance/PROJECT`), which nobody else enters.
"""

import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import docker
import platformdirs
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.models.containers import Container
from docker.types import Mount

from core.exceptions import CommunicationError, ConfigurationError, DataSiteError
from core.version import VERSION
from orchestrator.testbed.settings import (
    free_ports,
    site_names,
    write_password,
    write_site_settings,
    write_sites_file,
)

IMAGE: Final = f"federated-maintenance-datasite:{VERSION}"

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_LABEL: Final = "federated-maintenance.testbed"
_SITE_LABEL: Final = "federated-maintenance.site"
_PORT: Final = 8080
_VOLUME: Final = "/var/lib/datasite"
_MEMORY: Final = "1g"
_MOST_PROCESSES: Final = 256
_READY_S: Final = 300.0
_POLL_S: Final = 0.3
_STOP_S: Final = 20
_LOG_LINES: Final = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteContainer:
    """One site of the testbed as the engine sees it now.

    Attributes:
        health: `healthy`, `starting`, `unhealthy`, or what became of it (`exited`, `paused`).
        port: On 127.0.0.1 of the engine's machine; kept over restarts.
        memory_mib: In use, without the page cache; 0 when it does not run.
    """

    site_id: str
    container: str
    port: int
    health: str
    memory_mib: int = 0

    @property
    def url(self) -> str:
        """Where it is reached from the engine's machine."""
        return f"http://127.0.0.1:{self.port}"


class ContainerTestbed:
    """The testbed of one project.

    Args:
        project: Names everything the testbed makes: lower-case letters, digits, dashes.

    Raises:
        ConfigurationError: `project` is no such name.
        CommunicationError: No Docker engine answers.
    """

    def __init__(self, project: str) -> None:
        if not _NAME.fullmatch(project):
            raise ConfigurationError(
                f"the project {project!r} is no name of at most 40 lower-case letters, digits and "
                "dashes that begins with a letter or digit"
            )
        self.project = project
        self.folder = platformdirs.user_state_path("federated-maintenance") / project
        try:
            self._docker = docker.from_env()
            self._docker.ping()
        except DockerException as exc:
            raise CommunicationError(
                f"no Docker engine answers ({exc}); start it, set DOCKER_HOST, or leave out "
                "--containers for sites as processes"
            ) from exc

    @property
    def sites_file(self) -> Path:
        """The sites file for experiments."""
        return self.folder / "sites.yaml"

    def sites(self, *, with_memory: bool = False) -> list[SiteContainer]:
        """Give the sites, in the order of their numbers.

        Raises:
            ConfigurationError: There is no testbed of this project.
        """
        found = self._containers()
        if not found:
            raise ConfigurationError(
                f"there is no testbed {self.project!r} on this engine; start one with "
                f"'orchestrator testbed up --containers --project {self.project}'"
            )
        return [_seen(container, with_memory=with_memory) for container in found]

    def up(self, num_sites: int, *, image: str = IMAGE) -> list[SiteContainer]:
        """Start the sites that do not run, and give all once they are healthy.

        Raises:
            ConfigurationError: The testbed there has another number of sites, or no such image.
            DataSiteError: A site ended or was not healthy in time; the message has the end of its
                log. What this call made is removed again.
        """
        with self._alone(), _translated(), ExitStack() as undo:
            found = self._containers()
            if not found:
                self._require_image(image)
                undo.callback(self._remove_all, keep_data=self._keeps_data())
                found = self._make(num_sites, image)
            elif len(found) != num_sites:
                raise ConfigurationError(
                    f"the testbed {self.project!r} has {len(found)} sites, asked for are "
                    f"{num_sites}; take it down first with 'orchestrator testbed down --containers "
                    f"--project {self.project}'"
                )
            for container in found:
                container.start()
            self._wait_until_healthy(found)
            undo.pop_all()
        return self.sites()

    def down(self, *, keep_data: bool = False) -> list[str]:
        """Remove everything of the project, or all but volumes and passwords; what was removed.

        Raises:
            ConfigurationError: There is no testbed of this project.
        """
        with self._alone(), _translated():
            removed = self._remove_all(keep_data=keep_data)
        if not removed:
            raise ConfigurationError(f"there is no testbed {self.project!r} on this engine")
        return removed

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the account's testbeds, so that two commands do not make or remove the same."""
        self.folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self.folder.parent, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError as exc:
            raise DataSiteError(
                "another 'orchestrator testbed up' or 'down' with --containers is at work; wait "
                "until it has ended"
            ) from exc
        finally:
            os.close(descriptor)

    def _make(self, num_sites: int, image: str) -> list[Container]:
        """Make network, volumes, files and containers; a volume that was kept is taken up again."""
        self._docker.networks.create(
            self.project,
            driver="bridge",
            labels={_LABEL: self.project},
            options={
                "com.docker.network.bridge.enable_icc": "false",
                "com.docker.network.bridge.enable_ip_masquerade": "false",
            },
        )
        names, ports = site_names(num_sites), free_ports(num_sites)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name in names:
            self._write_files(name)
        write_sites_file(
            self.sites_file,
            (
                (name, f"http://127.0.0.1:{port}", f"{name}.researcher")
                for name, port in zip(names, ports, strict=True)
            ),
        )
        return [self._create(name, port, image) for name, port in zip(names, ports, strict=True)]

    def _write_files(self, name: str) -> None:
        """Write what the site is configured by.

        The container's account is nobody of this machine, so it must be let read the files; who
        else could is kept out by the folder, through which a mounted file is not reached.
        """
        for account in ("operator", "researcher"):
            password = self.folder / f"{name}.{account}"
            if not password.exists():
                write_password(password, mode=0o444)
        settings = self.folder / f"{name}.yaml"
        write_site_settings(
            settings,
            site_id=name,
            state=f"{_VOLUME}/state",
            host="0.0.0.0",  # noqa: S104 - of the container, whose network lets nobody in
            port=_PORT,
            operator_password="/run/secrets/operator",  # noqa: S106 - a path
            researcher_password="/run/secrets/researcher",  # noqa: S106 - a path
        )
        settings.chmod(0o444)

    def _create(self, name: str, port: int, image: str) -> Container:
        labels = {_LABEL: self.project, _SITE_LABEL: name}
        full_name = f"{self.project}-{name}"
        self._docker.volumes.create(full_name, labels=labels)
        files = {
            f"{name}.yaml": "/etc/datasite/site.yaml",
            f"{name}.operator": "/run/secrets/operator",
            f"{name}.researcher": "/run/secrets/researcher",
        }
        return self._docker.containers.create(
            image,
            name=full_name,
            hostname=name,
            labels=labels,
            network=self.project,
            ports={f"{_PORT}/tcp": ("127.0.0.1", port)},
            mounts=[
                Mount(_VOLUME, full_name, type="volume"),
                *(
                    Mount(target, str(self.folder / file), type="bind", read_only=True)
                    for file, target in files.items()
                ),
            ],
            init=True,
            user="10001:10001",
            read_only=True,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges:true"],
            tmpfs={"/tmp": "size=256m,mode=1777,noexec,nosuid,nodev"},  # noqa: S108 - its own
            mem_limit=_MEMORY,
            pids_limit=_MOST_PROCESSES,
            restart_policy={"Name": "unless-stopped"},  # type: ignore[arg-type]  # stubs lack it
        )

    def _wait_until_healthy(self, containers: list[Container]) -> None:
        deadline = time.monotonic() + _READY_S
        for container in containers:
            while (site := _refreshed(container)).health != "healthy":
                if site.health != "starting" or time.monotonic() > deadline:
                    log = container.logs(tail=_LOG_LINES).decode(errors="replace")
                    raise DataSiteError(
                        f"{site.site_id} is {site.health} and not healthy; the end of its log:\n"
                        f"{log}",
                        site_id=site.site_id,
                    )
                time.sleep(_POLL_S)

    def _require_image(self, image: str) -> None:
        try:
            self._docker.images.get(image)
        except ImageNotFound as exc:
            raise ConfigurationError(
                f"there is no image {image} on this engine; build it in the repository with "
                "'docker compose build', or name another with --image"
            ) from exc

    def _containers(self) -> list[Container]:
        found = self._docker.containers.list(all=True, filters=self._ours())
        return sorted(found, key=lambda each: int(each.labels[_SITE_LABEL].rpartition("-")[2]))

    def _remove_all(self, *, keep_data: bool = False) -> list[str]:
        removed = []
        for container in self._containers():
            container.stop(timeout=_STOP_S)
            container.remove(force=True)
            removed.append(f"container {container.name}")
        for network in self._docker.networks.list(filters=self._ours()):
            network.remove()
            removed.append(f"network {network.name}")
        if not keep_data:
            for volume in self._docker.volumes.list(filters=self._ours()):
                volume.remove()
                removed.append(f"volume {volume.name}")
            if self.folder.exists():
                shutil.rmtree(self.folder)
                removed.append(f"folder {self.folder}")
        return removed

    def _keeps_data(self) -> bool:
        return bool(self._docker.volumes.list(filters=self._ours()))

    def _ours(self) -> dict[str, str | list[str] | bool]:
        return {"label": f"{_LABEL}={self.project}"}


def _refreshed(container: Container) -> SiteContainer:
    container.reload()
    return _seen(container, with_memory=False)


def _seen(container: Container, *, with_memory: bool) -> SiteContainer:
    state = container.attrs["State"]
    running = state["Status"] == "running"
    bound = container.attrs["HostConfig"]["PortBindings"][f"{_PORT}/tcp"][0]
    return SiteContainer(
        site_id=container.labels[_SITE_LABEL],
        container=str(container.name),
        port=int(bound["HostPort"]),
        health=state["Health"]["Status"] if running else state["Status"],
        memory_mib=_memory_mib(container) if running and with_memory else 0,
    )


def _memory_mib(container: Container) -> int:
    told = cast("dict[str, Any]", container.stats(stream=False, one_shot=True))
    memory = told["memory_stats"]
    details = memory.get("stats", {})
    cache = details.get("total_inactive_file", details.get("inactive_file", 0))  # cgroup v1, v2
    return int(memory.get("usage", 0) - cache) // 2**20


@contextmanager
def _translated() -> Iterator[None]:
    """Raise what the engine refuses as one of our errors, in its words."""
    try:
        yield
    except NotFound as exc:
        raise DataSiteError(f"somebody removed it meanwhile: {exc.explanation}") from exc
    except APIError as exc:
        raise DataSiteError(f"the Docker engine refused: {exc.explanation}") from exc
    except DockerException as exc:
        raise CommunicationError(f"the Docker engine was lost: {exc}") from exc
