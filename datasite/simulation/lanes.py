"""Where simulated sites work: all in this process, or divided among several.

A site always has the same lane, so that its data stay there, and a lane does one piece of work at a
time. Which lane that is changes no result.
"""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from multiprocessing import get_context, parent_process
from typing import TYPE_CHECKING, Final, Protocol

import torch

from core import wire
from core.exceptions import DataSiteError
from core.wire import Parcel
from datasite.simulation.sites import Setup, SimulatedSites

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_PATIENCE_S: Final = 5.0
"""Longest that a lane's end waits for the work under way, which nothing can stop in a thread."""


class Lane(Protocol):
    """Answers for its sites, one request at a time; may be called from several threads."""

    def handle(self, site_id: str, request: Parcel, email: str) -> Parcel:
        """Give the site's answer; an error of the site comes as an encoded `Failure`.

        Raises:
            DataSiteError: The lane ended in the middle of the work, or is closed.
        """

    def close(self) -> None:
        """Let no further work begin, and end what runs for it."""


class SimulatedFederation:
    """Simulated sites and their lanes.

    Args:
        setup: What the sites are made of.
        lanes: How many; 1 is this process, more are processes of their own.
    """

    def __init__(self, setup: Setup, *, lanes: int = 1) -> None:
        site_ids = sorted(setup.files)
        lanes = min(lanes, len(site_ids))
        setup = replace(setup, room_bytes=setup.room_bytes // lanes)
        if lanes == 1:
            self._lanes: list[Lane] = [InlineLane(setup)]
        else:
            self._lanes = [
                ProcessLane(_of_sites(setup, site_ids[first::lanes])) for first in range(lanes)
            ]
        self._lane_of = {
            site_id: self._lanes[number % lanes] for number, site_id in enumerate(site_ids)
        }

    @property
    def lanes(self) -> int:
        """How many sites can work at once."""
        return len(self._lanes)

    def handlers(self) -> Mapping[str, Callable[[Parcel, str], Parcel]]:
        """Give each site's door: a request and the caller's e-mail in, a reply out."""
        return {site_id: partial(lane.handle, site_id) for site_id, lane in self._lane_of.items()}

    def close(self) -> None:
        """End every lane."""
        for lane in self._lanes:
            lane.close()


class InlineLane:
    """Works in the thread that calls, on one core.

    Args:
        setup: The sites it answers for.
    """

    def __init__(self, setup: Setup) -> None:
        self._turn = threading.Lock()
        self._is_closed = False
        self._sites = _on_one_core(setup)

    def handle(self, site_id: str, request: Parcel, email: str) -> Parcel:
        """See `Lane.handle`."""
        with self._turn:
            if self._is_closed:
                raise _closed(site_id)
            return self._sites.handle(site_id, request, email)

    def close(self) -> None:
        """See `Lane.close`."""
        self._is_closed = True
        if self._turn.acquire(timeout=_PATIENCE_S):
            self._turn.release()


class ProcessLane:
    """Works in a process of its own, started with the first request and anew when it has died.

    It ends with this process, whatever that dies of, and takes no notice of Ctrl-C, which is for
    this process to act on.

    Args:
        setup: The sites it answers for.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._turn = threading.Lock()
        self._is_closed = False
        self._pool: ProcessPoolExecutor | None = None
        self._pid: int | None = None
        self._proposed: list[tuple[str, Parcel, str]] = []

    def handle(self, site_id: str, request: Parcel, email: str) -> Parcel:
        """See `Lane.handle`."""
        with self._turn:
            if self._is_closed:
                raise _closed(site_id)
            try:
                pool = self._pool or self._start()
                reply = _ask(pool, site_id, request, email)
            except BrokenProcessPool as exc:
                self._pool = self._pid = None
                if self._is_closed:
                    raise _closed(site_id) from exc
                raise DataSiteError(
                    f"{site_id}: the process that simulates it ended in the middle of the work; "
                    "too little memory is the usual reason: use fewer workers",
                    site_id=site_id,
                ) from exc
            if not len(request.body) and wire.peek(request)["kind"] == "propose":
                self._proposed.append((site_id, request, email))
            return reply

    def close(self) -> None:
        """See `Lane.close`; work under way is given up."""
        self._is_closed = True
        pool, pid = self._pool, self._pid
        if pool is None:
            return
        if pid is not None:  # the pool itself would wait for the work
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        pool.shutdown(cancel_futures=True)

    def _start(self) -> ProcessPoolExecutor:
        # Spawned and not forked: a fork would copy the locks of threads that it does not have.
        pool = ProcessPoolExecutor(
            1, mp_context=get_context("spawn"), initializer=_begin, initargs=(self._setup,)
        )
        self._pool = pool
        with _without_interrupts():
            started = pool.submit(os.getpid)
        self._pid = started.result()
        for proposal in self._proposed:  # the process before knew of them
            _ask(pool, *proposal)
        return pool


def _ask(pool: ProcessPoolExecutor, site_id: str, request: Parcel, email: str) -> Parcel:
    # A body may be a view of another's memory, which cannot go to another process.
    sent = (request.head, bytes(request.body))
    return Parcel(*pool.submit(_handle, site_id, sent, email).result())


_sites: list[SimulatedSites] = []
"""In a lane's own process: its sites. A process pool has no other place for them."""


def _begin(setup: Setup) -> None:
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    _sites.append(_on_one_core(setup))


def _handle(site_id: str, request: tuple[bytes, bytes], email: str) -> tuple[bytes, bytes]:
    head, body = request
    reply = _sites[0].handle(site_id, Parcel(head, bytearray(body)), email)
    return reply.head, bytes(reply.body)


def _end_with_the_parent() -> None:
    parent = parent_process()
    assert parent is not None  # noqa: S101 - a pool's process has one
    parent.join()
    os._exit(0)


def _on_one_core(setup: Setup) -> SimulatedSites:
    torch.set_num_threads(1)
    return SimulatedSites(setup)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Have the processes that this thread starts never be told of Ctrl-C: they inherit its mask."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _of_sites(setup: Setup, site_ids: list[str]) -> Setup:
    return replace(setup, files={site_id: setup.files[site_id] for site_id in site_ids})


def _closed(site_id: str) -> DataSiteError:
    return DataSiteError(f"{site_id}: the simulation is closed", site_id=site_id)
