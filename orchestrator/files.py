"""Files that are there whole or not at all, whatever happens while they are written."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from core.exceptions import ExperimentError
from core.files import sync_folder


def write_whole(path: Path, content: bytes) -> None:
    """Replace `path` by `content` in one step that survives a crash or a power cut.

    Raises:
        ExperimentError: It cannot be written, a full disk for one; what was there is still there.
    """
    part = part_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
        sync_folder(path.parent)
    except OSError as exc:
        with suppress(OSError):
            part.unlink()
        raise ExperimentError(f"{path} cannot be written: {exc.strerror}") from exc


def parts_below(folder: Path) -> Iterator[Path]:
    """Give what lies in a folder, and in those within, that was not written to its end."""
    return folder.rglob(part_of(Path("*")).name)


def part_of(path: Path) -> Path:
    """Give where the content lies until it is whole; a crash may leave it, to be removed."""
    return path.with_name(f".{path.name}.part")
