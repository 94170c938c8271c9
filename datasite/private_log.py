"""What a site writes of itself: lines that anybody may read outside, and everything in a file.

A site's standard error is read by whoever reads the machine's logs: the container engine, a
collector, its support. The text of an exception may quote data, and so may what a library or a
third party's model prints. So while a site runs, standard output and standard error, which its
trainer inherits, are a file in its private folder. Outside go only the lines that this code logs at
INFO and above, and without their exceptions.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

from loguru import logger

from core.commands import configure_logging
from core.exceptions import DataSiteError, FederatedLearningError

if TYPE_CHECKING:
    from loguru import Message, Record

NAME: Final = "private.log"

_MOST_BYTES: Final = 16 << 20
"""What is in a larger file is put aside, over what was put aside before."""

_TIME: Final = "YYYY-MM-DD HH:mm:ss.SSS"
_LINE: Final = f"{{time:{_TIME}}} {{level: <7}} {{message}}"
_INFO: Final = 20
_OURS: Final = frozenset({"core", "datasite"})
_STANDARD: Final = (1, 2)


@contextmanager
def private_log(state: Path, *, site_id: str) -> Iterator[None]:
    """Have the process write into `state` what may hold data, until the context is left.

    Raises:
        DataSiteError: The file cannot be written; or an error ended what was done in the context
            whose text is for the file alone.
    """
    path = state / NAME
    with ExitStack() as undo:
        undo.callback(configure_logging, debug=False)
        outside = undo.enter_context(_moved(path, site_id))
        logger.remove()
        # One way for both: a line is then made once.
        logger.add(_Written(path, outside), level="DEBUG", format=_LINE, diagnose=False)
        try:
            yield
        except Exception as exc:
            if isinstance(exc, FederatedLearningError) and not exc.stays_inside:
                raise
            logger.opt(exception=exc).bind(site_id=site_id).error("the site ends")
            raise DataSiteError(
                f"{site_id}: ended by {type(exc).__name__}; {path} says why", site_id=site_id
            ) from exc


@contextmanager
def _moved(path: Path, site_id: str) -> Iterator[TextIO]:
    """Have what is written to standard output and error go to `path`; where it went before."""
    try:
        kept = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError as exc:
        raise DataSiteError(
            f"{site_id}: {path} cannot be written: {exc.strerror}", site_id=site_id
        ) from exc
    before = {number: os.dup(number) for number in _STANDARD}
    with os.fdopen(os.dup(2), "w", encoding="utf-8", buffering=1) as outside:
        _flush()
        for number in _STANDARD:
            os.dup2(kept, number)
        os.close(kept)
        try:
            yield outside
        finally:
            _flush()
            for number, former in before.items():
                os.dup2(former, number)
                os.close(former)


def _write(path: Path, line: str) -> None:
    """Write a line, and put aside what has become too much: of the trainer too, which has the file.

    The file stays the same one and is emptied, since the trainer holds it open.
    """
    sys.stderr.write(line)
    sys.stderr.flush()
    if path.stat().st_size > _MOST_BYTES:
        shutil.copyfile(path, path.with_suffix(".log.1"))
        os.truncate(path, 0)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


class _Written:
    """Where lines go: all of them into the file; outside those of ours, without exceptions."""

    def __init__(self, path: Path, outside: TextIO) -> None:
        self._path = path
        self._outside = outside

    def __call__(self, line: "Message") -> None:
        record = line.record
        try:
            if record["level"].no >= _INFO and _is_ours(record):
                own = line if record["exception"] is None else _without_exception(record)
                self._outside.write(own)
                self._outside.flush()
        finally:
            _write(self._path, line)


def _without_exception(record: "Record") -> str:
    time = format(record["time"], _TIME)
    return f"{time} {record['level'].name: <7} {record['message']}\n"


def _is_ours(record: "Record") -> bool:
    return str(record["name"]).partition(".")[0] in _OURS
