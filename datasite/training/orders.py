"""What passes through the pipe between site and trainer: a line of JSON, then a message's head."""

import json
from multiprocessing.connection import Connection
from typing import TypedDict, cast

from datasite.training.work import Job


class Order(TypedDict):
    """What the trainer is to do; places are (offset, bytes) in the shared memory.

    `body` is where the request's body lies, and `room` where the reply's may be put; `has_state`
    says that the kept state follows in the pipe.
    """

    job: Job
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


def say(pipe: Connection, said: Order | Account, head: bytes) -> None:
    """Send what is said, and a head."""
    pipe.send_bytes(json.dumps(said).encode() + b"\n" + head)


def heard_order(pipe: Connection) -> tuple[Order, bytes]:
    """Give the next order and the request's head; EOFError when there is none any more."""
    said, _, head = pipe.recv_bytes().partition(b"\n")
    return cast("Order", json.loads(said)), head


def heard_account(pipe: Connection) -> tuple[Account, bytes]:
    """Give the account and the reply's head; EOFError when the trainer has ended."""
    said, _, head = pipe.recv_bytes().partition(b"\n")
    return cast("Account", json.loads(said)), head
