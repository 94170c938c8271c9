"""What is written beside something and then put into its place, and what the disk says to it."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from core.exceptions import DataSiteError


@contextlib.contextmanager
def scratch_folder(folder: Path, name: str) -> Iterator[Path]:
    """Give a private folder in `folder`, which is gone afterwards."""
    with on_disk(folder):
        made = tempfile.mkdtemp(prefix=f".{name}.", dir=folder)
    try:
        yield Path(made)
    finally:
        shutil.rmtree(made, ignore_errors=True)


@contextlib.contextmanager
def on_disk(path: Path) -> Iterator[None]:
    """Translate what the disk says.

    Raises:
        DataSiteError: It is full, or somebody else's, or not there.
    """
    try:
        yield
    except OSError as exc:
        raise DataSiteError(f"{path} cannot be written: {exc.strerror or exc}") from exc
