"""How a trainer's process comes to be: started anew, or as a copy of the site's own.

PyTorch takes seconds to import. A site that has just imported it itself, and done nothing else yet,
has its first trainer made as a copy of its process, which shares what is loaded. A trainer that
follows another is started anew: by then the site has threads, an open ledger and secrets.
"""

import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import pairwise
from multiprocessing.process import BaseProcess
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
    to have no threads of Python, and to know no secret that is not for the trainer.
    """
    if sys.platform != "linux":  # macOS's own libraries do not bear it
        return anew(descriptors, threads)
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_as_trainer, args=(descriptors, threads), daemon=True)
    process.start()
    return _Copy(process)


class _Copy:
    """A copy of this process, as `subprocess.Popen` would show it."""

    def __init__(self, process: BaseProcess) -> None:
        self._process = process
        self._reaping = threading.Lock()  # of two that wait at once, one would learn nothing

    @property
    def pid(self) -> int:
        assert self._process.pid is not None  # noqa: S101 - it was started
        return self._process.pid

    def poll(self) -> int | None:
        with self._reaping:
            return self._process.exitcode

    def wait(self) -> int:
        with self._reaping:
            self._process.join()
            assert self._process.exitcode is not None  # noqa: S101 - it has ended
            return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()


def _as_trainer(descriptors: Descriptors, threads: int) -> None:
    os.setsid()  # Ctrl-C is for the site, which ends its trainer itself
    os.dup2(_STANDARD_ERROR, 1)
    for before, after in pairwise((_STANDARD_ERROR, *sorted(descriptors), _MOST_FILES)):
        os.closerange(before + 1, after)
    main(*descriptors, threads)
