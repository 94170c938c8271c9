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
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

from loguru import logger

from core.commands import configure_logging
from core.exceptions import DataSiteError, FederatedLearningError

if TYPE_CHECKING:
    from loguru import Record

NAME: Final = "private.log"

_MOST_BYTES: Final = 16 << 20
"""What is in a larger file is put aside, over what was put aside before."""

_LINE: Final = "{time:YYYY-MM-DD HH:mm:ss.SSS} {level: <7} {message}"
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
        logger.add(outside, level="INFO", format=_line, filter=_is_ours, diagnose=False)
        logger.add(partial(_write, path), level="DEBUG", format=_LINE, diagnose=False)
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


def _line(_record: "Record") -> str:
    """Give the format of a line outside: loguru adds exceptions to a text, and none to this."""
    return _LINE + "\n"


def _is_ours(record: "Record") -> bool:
    return str(record["name"]).partition(".")[0] in _OURS
