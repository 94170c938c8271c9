"""Every moment at which a process writes something that is to last, and a fuse that ends it there.

A moment lies before or after one of the calls by which files come to be: `fsync`, `replace`,
`unlink`, `ftruncate`, SQLite's COMMIT; and, for a plain `write` to a file, also in its middle. A
fuse that is lit counts moments, and at the last one the process kills itself as `kill -9` would.
"""

import os
import signal
import sqlite3
import stat
from collections.abc import Callable
from ctypes import c_int
from functools import partial
from pathlib import Path
from typing import Any, Final

UNLIT: Final = 0


class Fuse:
    """Counts down in memory that the runner and the process share.

    Args:
        left: How many moments are left; `UNLIT` for a process that nothing is to happen to.
        note: Where the name of the last moment is written.
    """

    def __init__(self, left: c_int, note: Path) -> None:
        self._left = left
        self.note = note

    def light(self, moments: int) -> None:
        """Have it end the process at so many moments from now."""
        self.note.unlink(missing_ok=True)
        self._left.value = moments

    def put_out(self) -> None:
        """Have nothing happen any more."""
        self._left.value = UNLIT

    @property
    def left(self) -> int:
        """How many moments are left."""
        return int(self._left.value)

    @property
    def last_moment(self) -> str:
        """The moment at which it ended the process."""
        return self.note.read_text(encoding="utf-8") if self.note.exists() else ""

    def leave(self) -> None:
        """Have nothing happen to this process, which is a copy of the one whose moments count."""
        self._left = c_int(UNLIT)

    def burn(self, moment: str) -> None:
        """Count a moment of this process, and end it if that is the last one."""
        if self._left.value == UNLIT:
            return
        self._left.value -= 1
        if self._left.value == UNLIT:
            self.note.write_text(moment, encoding="utf-8")
            os.kill(os.getpid(), signal.SIGKILL)


def lay(fuse: Fuse) -> None:
    """Have the calls of this process that write burn `fuse`."""
    os.register_at_fork(after_in_child=fuse.leave)
    os.write = _written(fuse, os.write)
    for name in ("fsync", "replace", "unlink", "ftruncate"):
        setattr(os, name, _around(fuse, name, getattr(os, name)))

    class Connection(sqlite3.Connection):
        def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
            if statement != "COMMIT":
                return super().execute(statement, *values)
            return _around(fuse, "COMMIT", super().execute)(statement)

        def commit(self) -> None:
            if self.in_transaction:
                _around(fuse, "COMMIT", super().commit)()

    for module in (sqlite3, sqlite3.dbapi2):
        module.connect = partial(module.connect, factory=Connection)


def _around(fuse: Fuse, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def burning(*arguments: Any, **options: Any) -> Any:
        moment = f"{name} {_named(*arguments[:1])}"
        fuse.burn(f"before {moment}")
        result = call(*arguments, **options)
        fuse.burn(f"after {moment}")
        return result

    return burning


def _written(fuse: Fuse, write: Callable[[int, Any], int]) -> Callable[[int, Any], int]:
    def burning(descriptor: int, data: Any) -> int:
        if fuse.left == UNLIT or not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return write(descriptor, data)
        view, moment = memoryview(data), f"write {_named(descriptor)}"
        fuse.burn(f"before {moment}")
        half = write(descriptor, view[: len(view) // 2])
        fuse.burn(f"in the middle of {moment}")
        whole = half + write(descriptor, view[half:])
        fuse.burn(f"after {moment}")
        return whole

    return burning


def _named(what: object = "") -> str:
    """Give the file's name, of a path or of a descriptor."""
    if isinstance(what, int):
        what = Path(f"/proc/self/fd/{what}").resolve()
    return Path(str(what)).name
