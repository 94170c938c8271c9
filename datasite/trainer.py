"""Where training runs: a child process of the site or, for federations in memory, the caller's.

A child, so that the server keeps answering while it trains, so that a deadline really stops the
work, and so that a crash costs one reply and not the site.
"""

import json
import os
import subprocess
import sys
import threading
from multiprocessing import Pipe
from typing import Final, Protocol

import torch
from loguru import logger

from core.exceptions import DataSiteError
from core.wire import Parcel
from datasite.mailbox import Mailbox
from datasite.training.work import Assignment, Done, Worker, perform

_START_S: Final = 120.0
"""Longest a trainer may take to import what it needs; a request's deadline begins after that."""


class Trainer(Protocol):
    """Performs one job at a time; the site sees to that."""

    def perform(self, assignment: Assignment, *, deadline_s: float) -> Done:
        """Do the work; what went wrong in it comes as an encoded `Failure`.

        Raises:
            DataSiteError: The trainer crashed, did not finish within `deadline_s`, or is closed.
        """

    def close(self) -> None:
        """End it; a job under way is given up."""


class InlineTrainer:
    """Trains in the calling thread, without a deadline; for federations in memory."""

    def __init__(self, *, threads: int = 1) -> None:
        torch.set_num_threads(threads)
        self._worker = Worker()

    def perform(self, assignment: Assignment, *, deadline_s: float) -> Done:
        """See `Trainer.perform`."""
        del deadline_s  # nothing can stop a thread
        return perform(self._worker, assignment)

    def close(self) -> None:
        """See `Trainer.close`."""


class TrainerProcess:
    """Trains in a persistent child process, which is started anew when it has died.

    Args:
        site_id: Named in errors.
        threads: CPU threads of the child.
    """

    def __init__(self, *, site_id: str, threads: int) -> None:
        self._site_id = site_id
        self._threads = threads
        self._child = _Child(threads)
        self._closed = False
        self._replacing = threading.Lock()

    def perform(self, assignment: Assignment, *, deadline_s: float) -> Done:
        """See `Trainer.perform`."""
        if self._closed:
            raise DataSiteError(f"{self._site_id}: the trainer is closed", site_id=self._site_id)
        if self._child.process.poll() is not None:
            self._restart("had ended")
        try:
            return self._child.ask(assignment, deadline_s)
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

    def close(self) -> None:
        """See `Trainer.close`."""
        with self._replacing:
            self._closed = True
            self._child.stop()

    def _restart(self, why: str) -> None:
        with self._replacing:
            self._child.stop()
            if self._closed:  # in the middle of a job, which is given up
                return
            logger.bind(site_id=self._site_id).warning("the trainer {}; starting a new one", why)
            self._child = _Child(self._threads)


class _Child:
    """One trainer process: a pipe for what is to be done, mailboxes for what it is done with."""

    def __init__(self, threads: int) -> None:
        self._pipe, jobs_end = Pipe()
        self._asked, self._answered = Mailbox.new(), Mailbox.new()
        lifeline_end, self._lifeline = os.pipe()
        descriptors = (
            jobs_end.fileno(),
            lifeline_end,
            self._asked.descriptor,
            self._answered.descriptor,
        )
        self.process = subprocess.Popen(  # noqa: S603 - our own module, fixed arguments
            [sys.executable, "-m", "datasite.training", *map(str, descriptors), str(threads)],
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            start_new_session=True,  # Ctrl-C is for the site, which ends its trainer itself
        )
        jobs_end.close()
        os.close(lifeline_end)
        self._started = False

    def ask(self, assignment: Assignment, deadline_s: float) -> Done:
        """Give the child's answer; TimeoutError, saying what, when it takes longer."""
        pipe = self._pipe
        if not self._started:
            if not pipe.poll(_START_S):
                raise TimeoutError(f"did not start within {_START_S:g} s")
            pipe.recv_bytes()
            self._started = True
        request = assignment.request
        lengths = self._asked.put((request.head, request.body, assignment.state))
        pipe.send_bytes(json.dumps([assignment.job, lengths]).encode())
        if not pipe.poll(deadline_s):
            raise TimeoutError(f"was stopped at its deadline of {deadline_s:g} s")
        head, body, state = self._answered.parts(json.loads(pipe.recv_bytes()))
        # Copied, because the reply may still be on its way when the next is put in.
        return Done(Parcel(bytes(head), bytearray(body)), bytes(state))

    def stop(self) -> None:
        """End the process now and reap it."""
        if not self._pipe.closed:
            self.process.kill()
            self.process.wait()
            self._pipe.close()
            self._asked.close()
            self._answered.close()
            os.close(self._lifeline)
