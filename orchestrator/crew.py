"""Threads for what waits on sites: one for each request under way, and none for the idle."""

import ctypes
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import cache
from typing import Any, Final, TypeVar

T = TypeVar("T")

_Errand = tuple[Future[Any], Callable[[], Any]]
"""What is to be done, and where what came of it goes."""

_IDLE_S: Final = 5.0

_ARENA_MAX: Final = -8
"""glibc's M_ARENA_MAX: in how many places `malloc` finds memory."""

_ARENAS: Final = 2


class Crew:
    """Runs errands at once, each in a thread; a thread that has had none for a while ends.

    The threads of a pool of `concurrent.futures` are waited for at the end of the process: after
    Ctrl-C, for as long as the slowest site takes. These are daemons, and are not.

    Args:
        most: Most threads; by default as many as there are errands.
    """

    def __init__(self, most: int | None = None) -> None:
        self._most = most
        self._errands: deque[_Errand] = deque()
        self._changed = threading.Condition()
        self._threads = 0
        self._free = 0
        _share_memory()

    def put(self, work: Callable[[], T]) -> Future[T]:
        """Have `work` done; its result, or what it raised, is the future's."""
        future: Future[T] = Future()
        with self._changed:
            self._errands.append((future, work))
            if len(self._errands) <= self._free:
                self._changed.notify()
            elif self._most is None or self._threads < self._most:
                self._threads += 1
                threading.Thread(target=self._run, name="crew", daemon=True).start()
        return future

    def close(self) -> None:
        """Drop what nobody has begun; what is under way is not waited for."""
        with self._changed:
            self._errands.clear()

    def _run(self) -> None:
        while (errand := self._next()) is not None:
            future, work = errand
            try:
                future.set_result(work())
            except BaseException as exc:  # noqa: BLE001 - raised where the answer is read
                future.set_exception(exc)
            del errand, future, work  # an answer is held by who asked, and by nobody else

    def _next(self) -> _Errand | None:
        with self._changed:
            self._free += 1
            is_awaited = self._changed.wait_for(lambda: self._errands, timeout=_IDLE_S)
            self._free -= 1
            if is_awaited:
                return self._errands.popleft()
            self._threads -= 1
            return None


@cache
def _share_memory() -> None:
    """Have threads find memory in the same few places, for as long as the process lives.

    By default glibc has places of its own for each thread, and what was freed in one is of no use
    to another: with many sites as much as several models.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_ARENA_MAX, _ARENAS)
