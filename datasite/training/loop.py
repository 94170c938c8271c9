"""What a trainer's process does: jobs come in over a pipe that the site holds, replies go back.

The pipe carries what is to be done; models lie in memory that the site sees too, and are named by
their place in it. The first thing that goes back is a word that it has started. It ends when the
site does, whatever the site died of: the lifeline is a pipe that only the site holds open. An
unexpected error ends it with a traceback in the site's private log; the site answers the request
with a `Failure` and starts a new trainer.
"""

import contextlib
import os
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import torch
from loguru import logger

from core.arena import Arena
from core.wire import Parcel
from datasite.training.orders import Account, Work
from datasite.training.work import Assignment, Done, Worker, perform

NAME: Final = "site-trainer"
"""What the process is called where the system shows names: by `ps -o comm`, by `top`."""


class Room:
    """Where the reply to the job at hand may be put."""

    memory = memoryview(b"")

    def allocate(self, size_bytes: int) -> bytearray | memoryview:
        """Give the room, or memory of the trainer's own where it is too small."""
        return self.memory[:size_bytes] if size_bytes <= len(self.memory) else bytearray(size_bytes)


def main(jobs_fd: int, lifeline_fd: int, arena_fd: int, threads: int) -> None:
    """Perform jobs until the site closes the pipe."""
    _take_name()
    threading.Thread(target=_end_with_the_site, args=(lifeline_fd,), daemon=True).start()
    logger.remove()  # its own way prints the values of variables
    logger.add(sys.stderr, format="{time} {level} {message}", diagnose=False)
    torch.set_num_threads(threads)
    arena, room = Arena(arena_fd), Room()
    worker = Worker(room.allocate)
    with Connection(jobs_fd) as pipe:
        pipe.send_bytes(b"started")
        work = Work(pipe)
        while True:
            try:
                job, order, head = work.heard()
            except EOFError:
                return
            state = pipe.recv_bytes() if order.has_state else b""
            room.memory = arena.view(*order.room)
            request = Parcel(head, arena.view(*order.body))
            done = perform(worker, Assignment(job, request, state))
            _tell(pipe, work, done, is_in_room=arena.offset_of(done.reply.body) is not None)


def _take_name() -> None:
    with contextlib.suppress(OSError):  # a system without /proc
        Path("/proc/self/comm").write_text(NAME, encoding="ascii")


def _tell(pipe: Connection, work: Work, done: Done, *, is_in_room: bool) -> None:
    reply = done.reply
    account = Account(len(reply.body), reply.body_hash, is_in_room, len(done.state) > 0)
    work.say(account, reply.head)
    if len(reply.body) and not is_in_room:
        pipe.send_bytes(reply.body)
    if done.state:
        pipe.send_bytes(done.state)


def _end_with_the_site(lifeline_fd: int) -> None:
    os.read(lifeline_fd, 1)  # returns only when the site's end is closed
    os._exit(0)
