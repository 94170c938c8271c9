"""Docker engines beside the machine's own, which neither sees nor notices them."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
import pytest
from site_process import wait_until

_COMMANDS: Final = ("docker", "dockerd", "ip", "nsenter", "setpriv", "unshare")
_CGROUPS: Final = Path("/sys/fs/cgroup")
_BOOT_S: Final = 60

# Hides the machine's engine and containerd, whose sockets and pid files are in /run.
_BOOT: Final = """
set -e
hostname "$1"
mount -t tmpfs tmpfs /run
ip link set lo up
exec dockerd --config-file "$2"
"""


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command to its end, and give what it printed; what it said is in the error."""
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


@dataclass(frozen=True, kw_only=True)
class SecondEngine:
    """One engine, with processes, mounts, network and hostname of its own.

    Attributes:
        name: Its hostname, and so its name as a node of a swarm.
        address: What it is reached at by the engine that it is linked with.
        host: Where it listens, as Docker's commands want it.
        folder: Holds all that it stores, its socket and its log.
        cgroup: Under which its containers are.
        process: The outermost of its processes.
    """

    name: str
    address: str
    host: str
    folder: Path
    cgroup: str
    process: subprocess.Popen[bytes]

    def docker(self, *arguments: str | Path, cwd: Path | None = None) -> str:
        """Run `docker` on this engine, and give what it printed."""
        return run("docker", "--host", self.host, *arguments, cwd=cwd)

    def answers(self) -> bool:
        """Say whether the engine answers; fail when it has ended."""
        if self.process.poll() is not None:
            log = (self.folder / "log").read_text(errors="replace").splitlines()
            pytest.fail("\n".join([f"no second engine could be started: {self.name}", *log[-20:]]))
        command = ["docker", "--host", self.host, "version"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def end(self) -> None:
        """End the engine with its containers, and remove what it stored."""
        if self.process.poll() is None:
            # The kernel ends all others of a process namespace with its first. Mounts and network
            # go with the last of them, and `unshare` ends after it.
            outer = psutil.Process(self.process.pid)
            for process in outer.children() or [outer]:
                process.kill()
            self.process.wait(timeout=60)
        for parent in (*_CGROUPS.glob(self.cgroup), *_CGROUPS.glob(f"*/{self.cgroup}")):
            for folder, _, _ in os.walk(parent, topdown=False):
                Path(folder).rmdir()
        shutil.rmtree(self.folder)


@contextmanager
def open_engine(folder: Path, name: str, *, address: str) -> Iterator[SecondEngine]:
    """Give an engine that answers; then end it, whatever became of it, and all that it holds.

    It ends too when the tests are killed, as each of its processes is told of the end of the one
    before; only files are left then.

    Args:
        folder: Is made, and removed.
        name: The engine's hostname.
        address: In 192.0.2.0/24, which is nobody's, so that Docker's own networks keep off it.
    """
    if os.geteuid() != 0:
        pytest.fail("a second Docker engine needs root: run this test as root")
    lacking = [command for command in _COMMANDS if shutil.which(command) is None]
    if lacking:
        pytest.fail(f"a second Docker engine needs commands that are not here: {lacking}")
    cgroup = f"{name}-{os.getpid()}"
    host = f"unix://{folder / 'docker.sock'}"
    folder.mkdir()
    settings = {
        "cgroup-parent": f"/{cgroup}",
        "data-root": str(folder / "data"),
        "exec-opts": ["native.cgroupdriver=cgroupfs"],
        "hosts": [host],
        "no-new-privileges": True,  # as deploy/stack.yaml asks of each node
    }
    (folder / "daemon.json").write_text(json.dumps(settings))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL",
             "unshare", "--net", "--uts", "--pid", "--mount-proc", "--fork", "--kill-child",
             "sh", "-c", _BOOT, "sh", name, folder / "daemon.json"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the tests, which then end it in their order
        )  # fmt: skip
    engine = SecondEngine(
        name=name, address=address, host=host, folder=folder, cgroup=cgroup, process=process
    )
    try:
        wait_until(engine.answers, limit_s=_BOOT_S, what=f"the second engine {name} answers")
        yield engine
    finally:
        engine.end()


def link(one: SecondEngine, two: SecondEngine) -> None:
    """Join two engines by a cable of which the machine itself has no end."""
    ends = [str(engine.process.pid) for engine in (one, two)]
    run(
        "ip", "link", "add", "eth0", "netns", ends[0], "type", "veth",
        "peer", "name", "eth0", "netns", ends[1],
    )  # fmt: skip
    for engine, end in zip((one, two), ends, strict=True):
        inside = ("nsenter", "--target", end, "--net", "ip")
        run(*inside, "address", "add", f"{engine.address}/24", "dev", "eth0")
        run(*inside, "link", "set", "eth0", "up")
