"""How a trainer's process comes to be: started anew, or as a copy of the site's own.

PyTorch takes seconds to import. A site that has just imported it itself, and done nothing else yet,
has its first trainer made as a copy of its process, which shares what is loaded. A trainer that
follows another is started anew: by then the site has threads and an open ledger.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from itertools import pairwise
from typing import Final, Protocol, TypeAlias

from datasite.training.loop import main

_STANDARD_ERROR: Final = 2
_MOST_FILES: Final = max(os.sysconf("SC_OPEN_MAX"), 1 << 16)


class Child(Protocol):
    """A process below this one; a part of what `subprocess.Popen` is."""

    @property
    def pid(self) -> int:
        """Its number."""

    def poll(self) -> int | None:
        """Give its exit code; None while it runs."""

    def wait(self) -> int:
        """Wait for its end, and give its exit code."""

    def kill(self) -> None:
        """End it now."""


Descriptors: TypeAlias = tuple[int, int, int]
"""Of the jobs, of the lifeline, of the arena."""

Start: TypeAlias = Callable[[Descriptors, int], Child]
"""Starts a trainer that has these descriptors, and so many threads."""


def anew(descriptors: Descriptors, threads: int) -> Child:
    """Start a trainer as a program of its own."""
    return subprocess.Popen(  # noqa: S603 - our own module, fixed arguments
        [sys.executable, "-m", "datasite.training", *map(str, descriptors), str(threads)],
        pass_fds=descriptors,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        start_new_session=True,  # Ctrl-C is for the site, which ends its trainer itself
    )


def as_a_copy(descriptors: Descriptors, threads: int) -> Child:
    """Start a trainer as a copy of this process, where the system is known to copy well.

    It has what this process has loaded, and none of its files but `descriptors`. This process has
    to have no threads of Python.
    """
    if sys.platform != "linux":  # macOS's own libraries do not bear it
        return anew(descriptors, threads)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return _Copy(pid)
    code = 1
    try:
        _as_trainer(descriptors, threads)
        code = 0
    except BaseException:  # noqa: BLE001 - nothing of the site's is to happen in the copy
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


class _Copy:
    """A copy of this process, as `subprocess.Popen` would show it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None
        self._reaping = threading.Lock()  # once reaped, its number may be another's

    def poll(self) -> int | None:
        with self._reaping:
            if self._code is None:
                reaped, status = os.waitpid(self.pid, os.WNOHANG)
                self._code = os.waitstatus_to_exitcode(status) if reaped else None
            return self._code

    def wait(self) -> int:
        while (code := self.poll()) is None:
            with contextlib.suppress(ChildProcessError):  # another thread was quicker
                os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        return code

    def kill(self) -> None:
        with self._reaping:
            if self._code is None:
                os.kill(self.pid, signal.SIGKILL)


def _as_trainer(descriptors: Descriptors, threads: int) -> None:
    os.setsid()  # Ctrl-C is for the site, which ends its trainer itself
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(_STANDARD_ERROR, 1)
    for before, after in pairwise((_STANDARD_ERROR, *sorted(descriptors), _MOST_FILES)):
        os.closerange(before + 1, after)
    main(*descriptors, threads)
