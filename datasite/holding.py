"""Who has a state folder to itself: the site that serves it, or a command that replaces it."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from core.exceptions import DataSiteError


@contextlib.contextmanager
def held(state: Path, *, site_id: str) -> Iterator[None]:
    """Hold the state folder until the block ends; the lock goes with the process, however it ends.

    Unlike the operator's door, which opens when a site is ready, it is held from the first moment.

    Raises:
        DataSiteError: A site runs on this folder, or it is being restored.
    """
    descriptor = os.open(state, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            if exc.errno not in {errno.EWOULDBLOCK, errno.EACCES}:
                raise DataSiteError(
                    f"{site_id}: {state} cannot be locked: {exc.strerror}; choose a folder on a "
                    "file system with locks",
                    site_id=site_id,
                ) from exc
            message = f"{state}: a site is running on this state already; stop it first"
            raise DataSiteError(message, site_id=site_id) from exc
        yield
    finally:
        os.close(descriptor)
