"""Where simulated sites work: all in this process, or divided among several.

A site always has the same lane, so that its data stay there, and a lane does one piece of work at a
time. Which lane that is changes no result.
"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from multiprocessing import get_context, parent_process, resource_tracker
from typing import TYPE_CHECKING, Final, Protocol

import torch

from core import wire
from core.exceptions import DataSiteError
from core.wire import Parcel
from datasite.simulation.sites import Setup, SimulatedSites

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from multiprocessing.connection import Connection

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

    A process and a pipe instead of a `ProcessPoolExecutor` of one: when its process dies while a
    call is handed in, or in the middle of an answer, the executor of Python 3.11 waits for ever.

    Args:
        setup: The sites it answers for.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._turn = threading.Lock()
        self._is_closed = False
        self._child: _Child | None = None
        self._proposed: list[tuple[str, Parcel, str]] = []

    def handle(self, site_id: str, request: Parcel, email: str) -> Parcel:
        """See `Lane.handle`."""
        with self._turn:
            if self._is_closed:
                raise _closed(site_id)
            try:
                child = self._child or self._start()
                reply = child.ask(site_id, request, email)
            except (EOFError, OSError) as exc:
                self._stop()
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
        child = self._child
        if child is not None:
            child.kill()  # which ends the work under way, and so its turn
        with self._turn:
            self._stop()

    def _stop(self) -> None:
        if self._child is not None:
            self._child.stop()
            self._child = None

    def _start(self) -> _Child:
        self._child = child = _Child(self._setup)
        if self._is_closed:  # in the meantime, when there was no process to end
            child.kill()
        for proposal in self._proposed:  # the process before knew of them
            child.ask(*proposal)
        return child


class _Child:
    """One lane's process, and the pipe to it."""

    def __init__(self, setup: Setup) -> None:
        # Spawned and not forked: a fork would copy the locks of threads that it does not have.
        context = get_context("spawn")
        self._pipe, requests_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(requests_end, setup), daemon=True)
        with _without_interrupts():
            self._process.start()
        requests_end.close()  # the child's own is the only one left, so that its death is seen

    def ask(self, site_id: str, request: Parcel, email: str) -> Parcel:
        """Give the child's answer; EOFError or OSError when it has died."""
        self._pipe.send((site_id, email, request.head))
        self._pipe.send_bytes(request.body)
        return Parcel(self._pipe.recv_bytes(), bytearray(self._pipe.recv_bytes()))

    def kill(self) -> None:
        """End the process now; who waits for its answer is told."""
        self._process.kill()

    def stop(self) -> None:
        """End the process now and reap it."""
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _serve(requests: Connection, setup: Setup) -> None:
    """Answer in a lane's own process until its parent ends it, or has ended."""
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    sites = _on_one_core(setup)
    with suppress(EOFError, BrokenPipeError):
        while True:
            site_id, email, head = requests.recv()
            request = Parcel(head, bytearray(requests.recv_bytes()))
            reply = sites.handle(site_id, request, email)
            requests.send_bytes(reply.head)
            requests.send_bytes(reply.body)


def _end_with_the_parent() -> None:
    parent = parent_process()
    assert parent is not None  # noqa: S101 - a spawned process has one
    parent.join()
    os._exit(0)


def _on_one_core(setup: Setup) -> SimulatedSites:
    torch.set_num_threads(1)
    return SimulatedSites(setup)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Have the processes that this thread starts never be told of Ctrl-C: they inherit its mask."""
    resource_tracker.ensure_running()  # or it is started below, and lets the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _of_sites(setup: Setup, site_ids: list[str]) -> Setup:
    return replace(setup, files={site_id: setup.files[site_id] for site_id in site_ids})


def _closed(site_id: str) -> DataSiteError:
    return DataSiteError(f"{site_id}: the simulation is closed", site_id=site_id)
