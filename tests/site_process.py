"""A real PySyft site as a process, to be stopped, killed, frozen and started again."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import httpx
import pytest

from datasite.operator_door import OperatorDoor

if TYPE_CHECKING:
    from orchestrator.communication.pysyft import PySyftCarrier

_TESTS: Final = Path(__file__).resolve().parent
_ECHO: Final = _TESTS / "live" / "echo_site.py"
_BOOT_S: Final = 90

OPERATOR: Final = ("operator@factory-1.example.com", "operator-of-factory-1")
RESEARCHER: Final = ("researcher@lab.example.com", "Researcher-of-the-lab-1")


def wait_until(claim: Callable[[], bool], *, limit_s: float, what: str) -> None:
    """Return when `claim` holds; fail the test when it does not within `limit_s`."""
    end = time.monotonic() + limit_s
    pause = threading.Event()
    while not claim():
        if time.monotonic() > end:
            pytest.fail(f"not within {limit_s} s: {what}")
        pause.wait(0.05)


def free_port() -> int:
    """Give a port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class SiteProcess:
    """A site that can be stopped, killed, frozen and started again on its port; it echoes.

    Args:
        state: Where the site keeps its state.
        log: Where it writes what it has to say.
        script: What runs it, if it is not to echo.
    """

    def __init__(self, state: Path, log: Path, script: Path = _ECHO) -> None:
        self._script = script
        self.state = state
        self.log = log
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, password: str = OPERATOR[1]) -> None:
        """Start the site, configured with the operator's `password`, and return when it answers."""
        options = {
            "state": str(self.state),
            "port": self.port,
            "email": OPERATOR[0],
            "password": password,
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    str(self._script),
                    json.dumps(options),
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": f"{_TESTS.parent}{os.pathsep}{_TESTS}"},
            )
        wait_until(self.answers, limit_s=_BOOT_S, what=f"the site answers; see {self.log}")

    def answers(self) -> bool:
        """Say whether the site answers; fail when its process has ended."""
        if self.process is None or self.process.poll() is not None:
            pytest.fail(f"the site ended:\n{self.log.read_text(encoding='utf-8')}")
        try:
            return httpx.get(f"{self.url}/api/v2/", timeout=1, trust_env=False).is_success
        except httpx.TransportError:
            return False

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the site's process."""
        assert self.process is not None
        self.process.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End the site by a signal; its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)
        self.process.send_signal(number)
        return self.process.wait(timeout=20)

    def door(self) -> OperatorDoor:
        """Give the operator's door to this site."""
        return OperatorDoor(site_id="factory-1", state=self.state)

    def carrier(self, account: tuple[str, str] = RESEARCHER) -> "PySyftCarrier":
        """Log in; the researcher unless told otherwise."""
        from orchestrator.communication.pysyft import PySyftCarrier  # noqa: PLC0415  slow import

        return PySyftCarrier.open(self.url, email=account[0], password=account[1])
