"""Commands as processes of their own, forked from one that has imported PySyft already.

They are the commands that people run, from their arguments on; what is left out is the start of
Python and its imports, several seconds of each.
"""

import importlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import psutil
from moments import UNLIT, Fuse, lay

_CONTEXT: Final = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "datasite.server",
        "datasite.serve",
        "datasite.data.copy",
        "datasite.data.table",
        "orchestrator.communication.live",
        "orchestrator.experiment",
    ]
)


def new_fuse(note: Path) -> Fuse:
    """Give a fuse that is not lit."""
    return Fuse(_CONTEXT.RawValue("i", UNLIT), note)


class Command:
    """A running command.

    Args:
        package: Whose command it is: `datasite` or `orchestrator`.
        arguments: Of the command line.
        output: What it says is appended to this file.
        fuse: Burns at its writes.
    """

    def __init__(
        self, package: str, arguments: Sequence[str | Path], *, output: Path, fuse: Fuse
    ) -> None:
        self.output = output
        self._process = _CONTEXT.Process(
            target=_perform, args=(package, list(map(str, arguments)), output, fuse), daemon=True
        )
        self._process.start()

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """How it ended, the negative number of the signal that ended it; None while it runs."""
        return self._process.exitcode

    @property
    def said(self) -> str:
        """What it has said, and those before it that wrote to the same file."""
        return self.output.read_text(encoding="utf-8")

    def wait(self, limit_s: float) -> None:
        """Return when it has ended, or the time is over."""
        self._process.join(limit_s)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal; one that has ended gets none."""
        if self.exit_code is None:
            os.kill(self.pid, number)

    def children(self) -> list[psutil.Process]:
        """Give the processes that it has started."""
        return psutil.Process(self.pid).children()

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it, frozen or not; its exit code."""
        self.send(number)
        self.send(signal.SIGCONT)
        self.wait(30)
        assert self.exit_code is not None, f"{self.output} says why it goes on"
        return self.exit_code


def _perform(package: str, arguments: list[str], output: Path, fuse: Fuse) -> None:
    said = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for number in (1, 2):
        os.dup2(said, number)
    os.close(said)
    lay(fuse)
    sys.argv = [package, *arguments]
    importlib.import_module(f"{package}.cli").main()
