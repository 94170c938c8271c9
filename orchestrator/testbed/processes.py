"""A federation of local processes: each a `datasite serve` on 127.0.0.1 in its own folder.

    .testbed/testbed.json             what runs: sites, ports, processes
    .testbed/sites.yaml               the sites file for experiments
    .testbed/factory-1/site.yaml, operator.password, researcher.password, site.log, state/

Only their owner reads the passwords.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import psutil

from core.exceptions import ConfigurationError, DataSiteError
from orchestrator.files import write_whole
from orchestrator.testbed.settings import (
    free_ports,
    site_names,
    write_password,
    write_site_settings,
    write_sites_file,
)

_READY_S = 180.0
_STOP_S = 15.0
_POLL_S = 0.1
_LOG_LINES = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteProcess:
    """One site of the testbed.

    Attributes:
        pid: Of its process; 0 when it was never started.
        started: When that process began, so that its pid is not taken for another's.
    """

    site_id: str
    port: int
    pid: int = 0
    started: float = 0.0

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def process(self) -> psutil.Process | None:
        """Give the running process, or None."""
        try:
            process = psutil.Process(self.pid)
            is_ours = abs(process.create_time() - self.started) < 1.0
            alive = process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None
        return process if self.pid and is_ours and alive else None


class Testbed:
    """The testbed in one folder.

    Args:
        folder: Made by `up`; everything of the testbed lies in it.
    """

    __test__ = False  # pytest: a class of ours, not a test

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()

    @property
    def sites_file(self) -> Path:
        """The sites file for experiments."""
        return self.folder / "sites.yaml"

    def config_file(self, site_id: str) -> Path:
        """The `site.yaml` of one site, for the operator's commands."""
        return self.folder / site_id / "site.yaml"

    def sites(self) -> list[SiteProcess]:
        """Give the sites as last recorded.

        Raises:
            ConfigurationError: There is no testbed in the folder.
        """
        try:
            record = json.loads((self.folder / "testbed.json").read_text(encoding="utf-8"))
        except FileNotFoundError as exc:
            raise ConfigurationError(
                f"there is no testbed in {self.folder}; start one with 'orchestrator testbed up'"
            ) from exc
        return [SiteProcess(**site) for site in record["sites"]]

    def up(self, num_sites: int) -> list[SiteProcess]:
        """Start the sites that do not run, and give all once they answer.

        A site that was there before keeps its port, accounts and data.

        Raises:
            ConfigurationError: The testbed there has another number of sites.
            DataSiteError: A site ended or did not answer in time; the message has the end of its
                log. Sites started by this call are stopped again.
        """
        known = self.sites() if (self.folder / "testbed.json").exists() else []
        if known and len(known) != num_sites:
            raise ConfigurationError(
                f"the testbed in {self.folder} has {len(known)} sites, asked for are {num_sites}; "
                "take it down first with 'orchestrator testbed down --delete'"
            )
        sites = known or self._lay_out(num_sites)
        with self._stopped_on_error([site for site in sites if site.process() is None]) as starting:
            for index, site in enumerate(sites):
                if site in starting:
                    sites[index] = self._start(site)
                    starting[starting.index(site)] = sites[index]
                    self._record(sites)
            self._wait_until_ready(sites)
        return sites

    def down(self, *, delete: bool = False) -> list[str]:
        """Stop every site; their names. With `delete`, remove the folder and all data in it too."""
        sites = self.sites()
        stopped = [site.site_id for site in sites if site.process() is not None]
        _stop(sites)
        if delete:
            shutil.rmtree(self.folder)
        return stopped

    def _lay_out(self, num_sites: int) -> list[SiteProcess]:
        """Write what the sites are configured by."""
        names = site_names(num_sites)
        sites = [
            SiteProcess(site_id=name, port=port)
            for name, port in zip(names, free_ports(num_sites), strict=True)
        ]
        for site in sites:
            folder = self.folder / site.site_id
            for account in ("operator", "researcher"):
                write_password(folder / f"{account}.password")
            write_site_settings(
                folder / "site.yaml",
                site_id=site.site_id,
                state="state",
                host="127.0.0.1",
                port=site.port,
                operator_password="operator.password",  # noqa: S106 - a path
                researcher_password="researcher.password",  # noqa: S106 - a path
            )
        write_sites_file(
            self.sites_file,
            ((site.site_id, site.url, f"{site.site_id}/researcher.password") for site in sites),
        )
        self._record(sites)
        return sites

    def _start(self, site: SiteProcess) -> SiteProcess:
        log = (self.folder / site.site_id / "site.log").open("ab")
        with log:
            child = subprocess.Popen(  # noqa: S603 - our own module, fixed arguments
                _datasite("serve", "--config", str(self.config_file(site.site_id))),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,  # it goes on when this command ends
            )
        started = psutil.Process(child.pid).create_time()
        return SiteProcess(site_id=site.site_id, port=site.port, pid=child.pid, started=started)

    def _wait_until_ready(self, sites: list[SiteProcess]) -> None:
        deadline = time.monotonic() + _READY_S
        for site in sites:
            while not _answers(site):
                if site.process() is None or time.monotonic() > deadline:
                    raise DataSiteError(
                        f"{site.site_id} did not start; the end of its log:\n{self._log_end(site)}",
                        site_id=site.site_id,
                    )
                time.sleep(_POLL_S)

    @contextmanager
    def _stopped_on_error(self, sites: list[SiteProcess]) -> Iterator[list[SiteProcess]]:
        try:
            yield sites
        except BaseException:
            _stop(sites)
            raise

    def _record(self, sites: list[SiteProcess]) -> None:
        record = {"sites": [asdict(site) for site in sites]}
        write_whole(self.folder / "testbed.json", json.dumps(record, indent=2).encode())

    def _log_end(self, site: SiteProcess) -> str:
        log = self.folder / site.site_id / "site.log"
        text = log.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-_LOG_LINES:])


def run_datasite(*arguments: str) -> str:
    """Run the operator's command and give what it printed.

    Raises:
        DataSiteError: It failed; the message is its own.
    """
    done = subprocess.run(  # noqa: S603 - our own module
        _datasite(*arguments), capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        raise DataSiteError(done.stderr.strip().removeprefix("error: ") or done.stdout.strip())
    return done.stdout


def _datasite(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "datasite", *arguments]


def _answers(site: SiteProcess) -> bool:
    try:
        return httpx.get(f"{site.url}/api/v2/", timeout=2.0, trust_env=False).is_success
    except httpx.TransportError:
        return False


def _stop(sites: list[SiteProcess]) -> None:
    """End the sites' processes: SIGTERM to all, SIGKILL to what is left."""
    running = [process for site in sites if (process := site.process()) is not None]
    for process in running:
        process.terminate()
    _, left = psutil.wait_procs(running, timeout=_STOP_S)
    for process in left:
        process.kill()
    psutil.wait_procs(left, timeout=_STOP_S)
