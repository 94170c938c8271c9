"""The floors under a round: what processes, pipes and HTTP take to carry the same numbers.

    python benchmarks/floor.py [--children 4] [--parameters 2500000] [--rounds 20]

One child process stands for each site. What goes there and back is the parameters as raw float32
and nothing else; nothing is kept. Two floors have pipes between the children and their parent, no
header and no checksum:

- *plain*: what a plain program would do that trusts everybody and loses nothing. The parent sends
  the parameters to every child over `multiprocessing.Pipe` and then receives as many from each; a
  child adds a constant; the mean, summed in float64, is what the parent sends next. This is what
  a round with the null objective does to numbers, and what a round's cost is held against.
- *quickest*: the quickest way to move so many bytes that we found, for who wants to know what the
  machine can do. Both ends write and read the system's pipes into memory that they have from the
  start, the parent with a thread for each child; a child sends back what it got, and that is all.

The third is what the usual libraries take, of Python's as the federation is:

- *echo*: a child is a FastAPI route under uvicorn that sends back what it got, with an HMAC-SHA256
  in both directions; the parent asks all at once, with a `requests` session and a thread for each.
  With much to carry it is not measured.

What came over pipes is checked after the last round, outside the clock; an echo has its HMAC.
"""

import argparse
import hashlib
import hmac
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Final

import numpy as np
import numpy.typing as npt

_MOST_ECHOED_BYTES: Final = 200_000_000
_KEY: Final = bytes(32)
_TAG: Final = "x-tag"

_STEP: Final = np.float32(2**-10)
"""What a child adds; a power of two, so that sums of it are exact."""

_WARM_UP: Final = 2

Numbers = npt.NDArray[np.float32]
Samples = Mapping[str, Sequence[float]]
"""Milliseconds of each round, by floor."""


def measure(children: int, parameters: int, rounds: int) -> Samples:
    """Give how long rounds of each floor took."""
    samples = {
        "plain": _plain(children, parameters, rounds),
        "quickest": _quickest(children, parameters, rounds),
    }
    if 4 * parameters * children <= _MOST_ECHOED_BYTES:
        samples["echo"] = _echoed(children, parameters, rounds)
    return samples


def medians(*measured: Samples) -> dict[str, float]:
    """Give each floor in ms: the median over all that was measured of it."""
    return {
        name: statistics.median(ms for samples in measured for ms in samples[name])
        for name in measured[0]
    }


def _plain(children: int, parameters: int, rounds: int) -> list[float]:
    numbers: Numbers = np.ones(parameters, np.float32)
    taken = []
    with _piped(children, "add") as pipes:
        for _ in range(_WARM_UP + rounds):
            begin = time.perf_counter()
            for pipe in pipes:
                pipe.send_bytes(numbers)
            total = np.zeros(parameters)
            for pipe in pipes:
                total += np.frombuffer(pipe.recv_bytes(), np.float32)
            numbers = (total / children).astype(np.float32)
            taken.append(1000 * (time.perf_counter() - begin))
    expected = np.float32(1) + (_WARM_UP + rounds) * _STEP
    np.testing.assert_array_equal(numbers, np.full(parameters, expected))
    return taken[_WARM_UP:]


def _add(descriptor: int, _parameters: int) -> None:
    """Be a child of the plain program until the parent closes its end."""
    with Connection(descriptor) as pipe:
        while (numbers := _next(pipe)) is not None:
            pipe.send_bytes(numbers + _STEP)


def _next(pipe: Connection) -> Numbers | None:
    try:
        return np.frombuffer(pipe.recv_bytes(), np.float32)
    except EOFError:
        return None


def _quickest(children: int, parameters: int, rounds: int) -> list[float]:
    numbers: Numbers = np.ones(parameters, np.float32)
    received = [np.zeros(parameters, np.float32) for _ in range(children)]
    taken = []

    def exchange(pipe: Connection, answer: Numbers) -> None:
        _write(pipe, numbers)
        if not _fill(pipe, answer):
            raise RuntimeError("a child of the floor ended")

    with (
        _piped(children, "repeat", parameters) as pipes,
        ThreadPoolExecutor(children) as pool,
    ):
        for _ in range(_WARM_UP + rounds):
            begin = time.perf_counter()
            list(pool.map(exchange, pipes, received))
            taken.append(1000 * (time.perf_counter() - begin))
    for answer in received:
        np.testing.assert_array_equal(answer, numbers)
    return taken[_WARM_UP:]


def _repeat(descriptor: int, parameters: int) -> None:
    """Be a child of the quickest way until the parent closes its end."""
    numbers: Numbers = np.empty(parameters, np.float32)
    with Connection(descriptor) as pipe:
        while _fill(pipe, numbers):
            _write(pipe, numbers)


def _write(pipe: Connection, numbers: Numbers) -> None:
    left = memoryview(numbers.data).cast("B")
    while left:
        left = left[os.write(pipe.fileno(), left) :]


def _fill(pipe: Connection, numbers: Numbers) -> bool:
    """Fill `numbers`; False when the other end was closed."""
    left = memoryview(numbers.data).cast("B")
    while left:
        size_bytes = os.readv(pipe.fileno(), [left])
        if size_bytes == 0:
            return False
        left = left[size_bytes:]
    return True


def _echoed(children: int, parameters: int, rounds: int) -> list[float]:
    import requests  # noqa: PLC0415  a child of a pipe has no use for it

    numbers = np.ones(parameters, np.float32).tobytes()
    taken = []

    def exchange(session: requests.Session, url: str) -> None:
        answer = session.post(url, data=numbers, headers={_TAG: _tag(numbers)})
        if not hmac.compare_digest(answer.headers[_TAG], _tag(answer.content)):
            raise RuntimeError("an answer of the floor does not have its tag")

    with (
        _listening(children) as urls,
        ThreadPoolExecutor(children) as pool,
        ExitStack() as undo,
    ):
        sessions = [undo.enter_context(requests.Session()) for _ in urls]
        for session in sessions:
            session.trust_env = False  # a proxy of the environment's is not asked for
        for _ in range(_WARM_UP + rounds):
            begin = time.perf_counter()
            list(pool.map(exchange, sessions, urls))
            taken.append(1000 * (time.perf_counter() - begin))
    return taken[_WARM_UP:]


def _serve(descriptor: int, _parameters: int) -> None:
    """Be a child that echoes over HTTP until it is ended."""
    import uvicorn  # noqa: PLC0415  likewise
    from fastapi import FastAPI, Request, Response  # noqa: PLC0415

    application = FastAPI()

    @application.post("/")
    async def echo(request: Request) -> Response:
        content = await request.body()
        if not hmac.compare_digest(request.headers[_TAG], _tag(content)):
            return Response(status_code=401)
        return Response(content, headers={_TAG: _tag(content)})

    with socket.socket(fileno=descriptor) as listener:
        config = uvicorn.Config(application, log_config=None, access_log=False)
        uvicorn.Server(config).run(sockets=[listener])


def _tag(content: bytes) -> str:
    return hmac.new(_KEY, content, hashlib.sha256).hexdigest()


@contextmanager
def _piped(number: int, child: str, parameters: int = 0) -> Iterator[Sequence[Connection]]:
    """Give the pipes to so many children; they see the end of theirs, and are waited for."""
    pipes, processes = [], []
    try:
        for _ in range(number):
            ours, theirs = Pipe()
            processes.append(_started(child, theirs.fileno(), parameters))
            theirs.close()
            pipes.append(ours)
        yield pipes
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.wait()


@contextmanager
def _listening(number: int) -> Iterator[Sequence[str]]:
    """Give the addresses of so many children; whoever asks one early waits until it is there."""
    urls, processes = [], []
    try:
        for _ in range(number):
            with socket.create_server(("127.0.0.1", 0)) as listener:
                processes.append(_started("serve", listener.fileno(), 0))
                urls.append(f"http://127.0.0.1:{listener.getsockname()[1]}/")
        yield urls
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _started(child: str, descriptor: int, parameters: int) -> subprocess.Popen[bytes]:
    """Start a child: this file as a program, which loads nothing of the federation."""
    command = [sys.executable, __file__, "--be", child, str(descriptor)]
    return subprocess.Popen(
        [*command, "--parameters", str(parameters)],
        pass_fds=[descriptor],
        start_new_session=True,  # as a site is: the scheduler shares among sessions
    )


CHILDREN: Final[Mapping[str, Callable[[int, int], None]]] = {
    "add": _add,
    "repeat": _repeat,
    "serve": _serve,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--children", type=int, default=4)
    parser.add_argument("--parameters", type=int, default=2_500_000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--be", nargs=2, metavar=("CHILD", "FD"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.be:
        child, descriptor = arguments.be
        CHILDREN[child](int(descriptor), arguments.parameters)
        return
    samples = measure(arguments.children, arguments.parameters, arguments.rounds)
    for name, taken in samples.items():
        print(f"{name}: {statistics.median(taken):.3g} ms")


if __name__ == "__main__":
    main()
