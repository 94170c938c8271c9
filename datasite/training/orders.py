"""What passes through the pipe between site and trainer: a few numbers, then a message's head.

A job is the same in every round of a plan, so it goes through once, as JSON.
"""

import json
from multiprocessing.connection import Connection
from struct import Struct
from typing import NamedTuple, cast

from datasite.training.work import Job

_ORDER = Struct("<4Q?I")
_ACCOUNT = Struct("<Q32s??")


class Order(NamedTuple):
    """What the trainer is to do; places are (offset, bytes) in the shared memory.

    `body` is where the request's body lies, and `room` where the reply's may be put; `has_state`
    says that the kept state follows in the pipe.
    """

    body: tuple[int, int]
    room: tuple[int, int]
    has_state: bool


class Account(NamedTuple):
    """What came of it.

    `body_bytes` of the reply's body are in the room, or follow in the pipe where they found none
    there; then the state follows, if there is one.
    """

    body_bytes: int
    body_hash: bytes
    is_in_room: bool
    has_state: bool


class Orders:
    """The site's side of the pipe."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._last: Job | None = None

    def say(self, job: Job, order: Order, head: bytes) -> None:
        """Send a job, if it is another one than before, what is to be done, and the request."""
        said = b"" if job is self._last else json.dumps(job).encode()
        (body, body_bytes), (room, room_bytes), has_state = order
        numbers = _ORDER.pack(body, body_bytes, room, room_bytes, has_state, len(said))
        self._pipe.send_bytes(b"".join((numbers, said, head)))
        self._last = job

    def heard(self) -> tuple[Account, bytes]:
        """Give the account and the reply's head; EOFError when the trainer has ended."""
        said = self._pipe.recv_bytes()
        return Account(*_ACCOUNT.unpack_from(said)), said[_ACCOUNT.size :]


class Work:
    """The trainer's side of the pipe."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._job: Job | None = None

    def heard(self) -> tuple[Job, Order, bytes]:
        """Give the next job, order and request's head; EOFError when there is none any more."""
        said = self._pipe.recv_bytes()
        body, body_bytes, room, room_bytes, has_state, job_bytes = _ORDER.unpack_from(said)
        begin = _ORDER.size + job_bytes
        if job_bytes:
            self._job = cast("Job", json.loads(said[_ORDER.size : begin]))
        assert self._job is not None  # noqa: S101 - the first order brings one
        return self._job, Order((body, body_bytes), (room, room_bytes), has_state), said[begin:]

    def say(self, account: Account, head: bytes) -> None:
        """Send what came of it, and the reply's head."""
        self._pipe.send_bytes(_ACCOUNT.pack(*account) + head)
