"""What passes through the pipe between site and trainer: lines of JSON, then a message's head.

A job is the same in every round of a plan, so it has a line of its own, which is read only once.
"""

import json
from functools import lru_cache
from multiprocessing.connection import Connection
from typing import TypedDict, cast

from datasite.training.work import Job


class Order(TypedDict):
    """What the trainer is to do; places are (offset, bytes) in the shared memory.

    `body` is where the request's body lies, and `room` where the reply's may be put; `has_state`
    says that the kept state follows in the pipe.
    """

    body: tuple[int, int]
    room: tuple[int, int]
    has_state: bool


class Account(TypedDict):
    """What came of it.

    `body_bytes` of the reply's body are in the room, or follow in the pipe where they found none
    there; then the state follows, if there is one. `body_hash` is the body's, in hexadecimal.
    """

    body_bytes: int
    body_hash: str
    is_in_room: bool
    has_state: bool


class JobWriter:
    """Writes jobs out, the same one but once."""

    def __init__(self) -> None:
        self._last: tuple[Job, bytes] | None = None

    def write(self, job: Job) -> bytes:
        """Give the job's line."""
        if self._last is None or self._last[0] is not job:
            self._last = job, json.dumps(job).encode()
        return self._last[1]


def say_order(pipe: Connection, job: bytes, order: Order, head: bytes) -> None:
    """Send a job's line, what is to be done, and the request's head."""
    pipe.send_bytes(b"\n".join((job, json.dumps(order).encode(), head)))


def say_account(pipe: Connection, account: Account, head: bytes) -> None:
    """Send what came of it, and the reply's head."""
    pipe.send_bytes(b"\n".join((json.dumps(account).encode(), head)))


def heard_order(pipe: Connection) -> tuple[Job, Order, bytes]:
    """Give the next job, order and request's head; EOFError when there is none any more."""
    job, said, head = pipe.recv_bytes().split(b"\n", maxsplit=2)
    return _job(job), cast("Order", json.loads(said)), head


def heard_account(pipe: Connection) -> tuple[Account, bytes]:
    """Give the account and the reply's head; EOFError when the trainer has ended."""
    said, _, head = pipe.recv_bytes().partition(b"\n")
    return cast("Account", json.loads(said)), head


@lru_cache(maxsize=4)
def _job(said: bytes) -> Job:
    return cast("Job", json.loads(said))
