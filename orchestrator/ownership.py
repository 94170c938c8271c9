"""Who runs a run: one process at a time, by a lock that ends with it; and the word to stop."""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TextIO, cast

from core.exceptions import ExperimentError
from orchestrator.files import part_of, parts_below, write_whole

_OWNER: Final = "owner"
_CANCEL: Final = "cancel"

_TRIES: Final = 5
_BETWEEN_S: Final = 0.05
"""Whoever asks whether there is an owner holds the lock for an instant."""


class Ownership:
    """The owner of the run in one folder.

    Args:
        run_id: The run's id, for errors.
        folder: The run's folder.
    """

    def __init__(self, run_id: str, folder: Path) -> None:
        self._run_id = run_id
        self._folder = folder

    @contextmanager
    def held(self) -> Iterator[None]:
        """Own the run: nobody else can run it meanwhile; the lock dies with the process.

        What an owner before was writing when it was killed is taken away.

        Raises:
            ExperimentError: Another process owns it; the message names it.
        """
        with self._opened("a+") as stream:
            self._lock(stream)
            stream.truncate(0)
            stream.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            stream.flush()
            (self._folder / _CANCEL).unlink(missing_ok=True)
            self._tidy()
            yield

    def holder(self) -> str | None:
        """Name the process that owns the run, as `process 123 on machine`; None without one."""
        if not (self._folder / _OWNER).exists():
            return None
        with self._opened("r") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                stream.seek(0)
                return stream.read().strip() or "a process that has just begun"
        return None

    def ask_to_stop(self) -> None:
        """Have the owner stop at once; a word in the folder reaches it and no other process."""
        write_whole(self._folder / _CANCEL, b"")

    def is_asked_to_stop(self) -> bool:
        """Tell whether somebody has asked."""
        return (self._folder / _CANCEL).exists()

    def _tidy(self) -> None:
        """Remove what was not written to its end, but the word to stop: others write that."""
        word = part_of(self._folder / _CANCEL)
        for part in parts_below(self._folder):
            if part != word:
                part.unlink(missing_ok=True)

    def _opened(self, mode: str) -> TextIO:
        path = self._folder / _OWNER
        try:
            return cast("TextIO", path.open(mode, encoding="utf-8"))
        except OSError as exc:
            what = "read" if mode == "r" else "written"
            raise ExperimentError(f"{path} cannot be {what}: {exc.strerror}") from exc

    def _lock(self, stream: TextIO) -> None:
        for _ in range(_TRIES):
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(_BETWEEN_S)
            else:
                return
        stream.seek(0)
        raise ExperimentError(
            f"run {self._run_id!r} is being run by {stream.read().strip() or 'another process'}; "
            f"wait for it, or end it first: orchestrator cancel {self._run_id}"
        )
