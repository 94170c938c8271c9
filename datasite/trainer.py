"""Where training runs: a child process of the site or, for federations in memory, the caller's.

A child, so that the server keeps answering while it trains, so that a deadline really stops the
work, and so that a crash costs one reply and not the site.
"""

import os
import select
import threading
import time
from collections.abc import Callable
from multiprocessing import Pipe
from typing import Final, Protocol

import torch
from loguru import logger

from core.arena import Arena, Buffer
from core.exceptions import DataSiteError, FederatedLearningError
from core.wire import Parcel
from datasite.training.child import Start, anew, as_a_copy
from datasite.training.orders import Order, Orders
from datasite.training.work import Assignment, Done, Worker, perform

_SPARE_BYTES: Final = 1 << 16
"""How much larger than a request its answer may be and still find room in the shared memory."""

_START_S: Final = 120.0
"""Longest a trainer may take to import what it needs; a request's deadline begins after that."""


_GLANCE_S: Final = 0.25
"""How often it is asked, while work goes on, whether it may."""

Watch = Callable[[], None]
"""Does nothing while the work may go on; what it raises stops the work."""


def unwatched() -> None:
    """Let the work go on."""


class Trainer(Protocol):
    """Performs one job at a time; the site sees to that."""

    def perform(self, assignment: Assignment, *, deadline_s: float, watch: Watch) -> Done:
        """Do the work; what went wrong in it comes as an encoded `Failure`.

        Raises:
            DataSiteError: The trainer crashed, did not finish within `deadline_s`, or is closed.
            FederatedLearningError: As `watch` raised it: the work was stopped.
        """

    def allocate(self, size_bytes: int) -> bytearray | memoryview:
        """Give memory for a request's body, where the trainer finds it the quickest."""

    def close(self) -> None:
        """End it; a job under way is given up."""


class InlineTrainer:
    """Trains in the calling thread, without a deadline; for federations in memory."""

    def __init__(self, *, threads: int = 1) -> None:
        torch.set_num_threads(threads)
        self._worker = Worker()

    def perform(self, assignment: Assignment, *, deadline_s: float, watch: Watch) -> Done:
        """See `Trainer.perform`."""
        del deadline_s, watch  # nothing can stop a thread
        return perform(self._worker, assignment)

    def allocate(self, size_bytes: int) -> bytearray:
        """See `Trainer.allocate`."""
        return bytearray(size_bytes)

    def close(self) -> None:
        """See `Trainer.close`."""


class TrainerProcess:
    """Trains in a persistent child process, which is started anew when it has died.

    Args:
        site_id: Named in errors.
        threads: CPU threads of the child.
        is_copy: The first child is a copy of this process; see `datasite.training.child`.
    """

    def __init__(self, *, site_id: str, threads: int, is_copy: bool = False) -> None:
        self._site_id = site_id
        self._threads = threads
        self._arena = Arena.new()
        self._child = _Child(threads, self._arena, as_a_copy if is_copy else anew)
        self._closed = False
        self._replacing = threading.Lock()

    def perform(self, assignment: Assignment, *, deadline_s: float, watch: Watch) -> Done:
        """See `Trainer.perform`."""
        if self._closed:
            raise DataSiteError(f"{self._site_id}: the trainer is closed", site_id=self._site_id)
        if self._child.process.poll() is not None:
            self._restart("had ended")
        try:
            return self._child.ask(assignment, deadline_s, watch)
        except FederatedLearningError as exc:
            self._restart(f"was stopped ({exc})")
            raise
        except TimeoutError as exc:
            self._restart(str(exc))
            raise DataSiteError(
                f"{self._site_id}: training {exc}; train less in a round, or allow more time",
                site_id=self._site_id,
            ) from exc
        except (EOFError, OSError) as exc:
            code = self._child.process.wait()
            self._restart(f"ended with exit code {code}")
            raise DataSiteError(
                f"{self._site_id}: the trainer ended in the middle of the work (exit code "
                f"{code}); the site's log says why",
                site_id=self._site_id,
            ) from exc

    def allocate(self, size_bytes: int) -> memoryview:
        """See `Trainer.allocate`: memory that the child sees too."""
        return self._arena.allocate(size_bytes)

    def close(self) -> None:
        """See `Trainer.close`."""
        with self._replacing:
            self._closed = True
            self._child.stop()
            self._arena.close()

    def _restart(self, why: str) -> None:
        with self._replacing:
            self._child.stop()
            if self._closed:  # in the middle of a job, which is given up
                return
            logger.bind(site_id=self._site_id).warning("the trainer {}; starting a new one", why)
            self._child = _Child(self._threads, self._arena, anew)


class _Child:
    """One trainer process, and the pipe to it."""

    def __init__(self, threads: int, arena: Arena, start: Start) -> None:
        self._arena = arena
        self._pipe, jobs_end = Pipe()
        lifeline_end, self._lifeline = os.pipe()
        self.process = start((jobs_end.fileno(), lifeline_end, arena.descriptor), threads)
        jobs_end.close()
        os.close(lifeline_end)
        self._poll = select.poll()  # once: a connection's own `poll` makes one each time
        self._poll.register(self._pipe.fileno(), select.POLLIN)
        self._started = False
        self._orders = Orders(self._pipe)

    def ask(self, assignment: Assignment, deadline_s: float, watch: Watch) -> Done:
        """Give the child's answer; TimeoutError, saying what, when it takes longer."""
        pipe = self._pipe
        if not self._started:
            if not self._hears(_START_S, watch):
                raise TimeoutError(f"did not start within {_START_S:g} s")
            pipe.recv_bytes()
            self._started = True
        body = self._shared(assignment.request.body)
        room = self._arena.allocate(len(body) + _SPARE_BYTES)
        order = Order(self._place(body), self._place(room), len(assignment.state) > 0)
        self._orders.say(assignment.job, order, assignment.request.head)
        if assignment.state:
            pipe.send_bytes(assignment.state)
        if not self._hears(deadline_s, watch):
            raise TimeoutError(f"was stopped at its deadline of {deadline_s:g} s")
        account, head = self._orders.heard()
        answered: Buffer = room[: account.body_bytes]
        if not account.is_in_room:
            answered = bytearray(pipe.recv_bytes()) if account.body_bytes else b""
        state = pipe.recv_bytes() if account.has_state else b""
        return Done(Parcel(head, answered, account.body_hash), state)

    def stop(self) -> None:
        """End the process now and reap it."""
        if not self._pipe.closed:
            self.process.kill()
            self.process.wait()
            self._pipe.close()
            os.close(self._lifeline)

    def _hears(self, limit_s: float, watch: Watch) -> bool:
        """Wait for the child to say something; False when it does not within `limit_s`."""
        end = time.monotonic() + limit_s
        while not self._poll.poll(1000 * min(_GLANCE_S, max(0.0, end - time.monotonic()))):
            if time.monotonic() >= end:
                return False
            watch()
        return True

    def _shared(self, body: Buffer) -> memoryview:
        """Give a body in shared memory: as it is, when it came in there."""
        if self._arena.offset_of(body) is not None:
            return memoryview(body)
        piece = self._arena.allocate(len(body))
        piece[:] = body
        return piece

    def _place(self, piece: memoryview) -> tuple[int, int]:
        return self._arena.offset_of(piece) or 0, len(piece)
