"""A run that is hurt as a scenario says, and goes on until it is done."""

import signal
import threading
import time
from collections.abc import Iterable
from typing import Final

import psutil
from forked import Command
from live_federation import LiveFederation
from proxy import FaultProxy
from scenario import ORCHESTRATOR, TRAINER, Scenario, Strike

_RUN_S: Final = 150.0
_LOOK_S: Final = 0.02
_MOST_STARTS: Final = 8


class Course:
    """One run.

    Args:
        federation: Its sites.
        scenario: What happens to it.

    Attributes:
        before: How many rows each site's audit log had before.
        struck: What has happened so far.
        cuts_made: Whether the network was cut, by site.
        moments_left: Of the fuse, at the end; none when it burned down.
        exit_codes: How the run's orchestrators ended.
    """

    def __init__(self, federation: LiveFederation, scenario: Scenario) -> None:
        self.federation = federation
        self.scenario = scenario
        self.before = {site_id: site.rows() for site_id, site in federation.sites.items()}
        self.struck: list[Strike] = []
        self.cuts_made: dict[str, bool] = {}
        self.moments_left = 0
        self.exit_codes: list[int] = []
        self._frozen: list[tuple[float, Command]] = []
        self._due_at: float | None = None

    def play(self) -> None:
        """Run it to its end.

        Raises:
            AssertionError: It does not come to one.
        """
        self._prepare()
        try:
            self._follow()
        finally:
            self._thaw(everybody=True)
            if self.scenario.fuse:
                fuse = self.federation.fuse_of(self.scenario.fuse[0])
                self.moments_left = fuse.left
                fuse.put_out()
            self.cuts_made = {site: self._proxy(site).mend() for site, _ in self.scenario.cuts}
        self.federation.wait_until_well()

    def _prepare(self) -> None:
        for site_id, cut in self.scenario.cuts:
            self._proxy(site_id).cut(cut)
        if self.scenario.fuse:
            whom, moment = self.scenario.fuse
            self.federation.fuse_of(whom).light(moment)

    def _follow(self) -> None:
        orchestrator = self.federation.orchestrate(self.scenario)
        pending = list(self.scenario.strikes)
        end, pause = time.monotonic() + _RUN_S, threading.Event()
        while orchestrator.exit_code != 0:
            assert time.monotonic() < end, f"not done in {_RUN_S:g} s: {self}"
            for site in self.federation.sites.values():
                site.running()
            if orchestrator.exit_code is not None:
                self.exit_codes.append(orchestrator.exit_code)
                assert len(self.exit_codes) < _MOST_STARTS, f"started too often: {self}"
                orchestrator = self.federation.orchestrate(self.scenario)
            if pending and self._is_due(pending[0]) and self._strike(pending[0], orchestrator):
                self.struck.append(pending.pop(0))
            self._thaw()
            pause.wait(_LOOK_S)

    def _is_due(self, strike: Strike) -> bool:
        if self._due_at is None:
            rows = self.federation.sites[strike.watched].rows() - self.before[strike.watched]
            if rows >= strike.after:
                self._due_at = time.monotonic() + strike.delay_s
        return self._due_at is not None and time.monotonic() >= self._due_at

    def _strike(self, strike: Strike, orchestrator: Command) -> bool:
        """Send the signal; False when there is nobody to have it yet."""
        if strike.whom.startswith(TRAINER):
            site = self.federation.sites[strike.whom.removeprefix(TRAINER)]
            if not _kill(site.running().children()):
                return False
        else:
            is_centre = strike.whom == ORCHESTRATOR
            whom = orchestrator if is_centre else self.federation.sites[strike.whom].running()
            whom.send(strike.number)
            if strike.number is signal.SIGSTOP:
                self._frozen.append((time.monotonic() + strike.pause_s, whom))
        self._due_at = None
        return True

    def _thaw(self, *, everybody: bool = False) -> None:
        now = time.monotonic()
        for until, whom in list(self._frozen):
            if everybody or until <= now:
                whom.send(signal.SIGCONT)
                self._frozen.remove((until, whom))

    def _proxy(self, site_id: str) -> FaultProxy:
        return self.federation.sites[site_id].proxy

    def __str__(self) -> str:
        """Say what was to happen, what has, and where more is."""
        struck = "; ".join(map(str, self.struck)) or "nothing"
        output = self.federation.output_of(self.scenario.name)
        said = output.read_text(encoding="utf-8")[-1500:] if output.exists() else ""
        return (
            f"{self.scenario}\nhappened: {struck}; exit codes {self.exit_codes}\n"
            f"in {self.federation.folder}; the orchestrators said at last:\n{said}"
        )


def _kill(processes: Iterable[psutil.Process]) -> bool:
    """Kill them; whether there was one."""
    found = list(processes)
    for process in found:
        process.kill()
    return bool(found)
