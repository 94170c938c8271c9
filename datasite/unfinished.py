"""Files in the making: each is locked while its maker lives, so what a killed one left can go."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkstemp
from typing import Final

_SUFFIX: Final = ".part"


@contextmanager
def unfinished_file(folder: Path) -> Iterator[Path]:
    """Give a new file in `folder`, private to its owner; at the end it goes, unless it was renamed.

    Raises:
        OSError: It cannot be made.
    """
    for left in folder.glob(f"*{_SUFFIX}"):
        _delete_abandoned(left)
    descriptor, part = _locked_file(folder)
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)
        os.close(descriptor)


def _locked_file(folder: Path) -> tuple[int, Path]:
    """Make a file and lock it; again where another took it for abandoned before it was locked."""
    while True:
        descriptor, name = mkstemp(suffix=_SUFFIX, dir=folder)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor, Path(name)
        os.close(descriptor)


def _delete_abandoned(part: Path) -> None:
    """Delete a file in the making that nobody makes any more: its lock went with its maker."""
    try:
        descriptor = os.open(part, os.O_RDONLY)
    except FileNotFoundError:  # it has just been finished
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        part.unlink(missing_ok=True)
    except BlockingIOError:
        pass
    finally:
        os.close(descriptor)
