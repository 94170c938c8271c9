"""The floor under a round: what processes and pipes take to carry the same numbers.

    python benchmarks/floor.py [--children 4] [--parameters 2500000] [--rounds 20]

One child process stands for each site, joined to its parent by a pipe. What goes through it is the
parameters as raw float32 and nothing else: no header, no checksum, no disk. There are two floors:

- *plain*: what a plain program would do that trusts everybody and loses nothing. The parent sends
  the parameters to every child over `multiprocessing.Pipe` and then receives as many from each; a
  child adds a constant; the mean, summed in float64, is what the parent sends next. This is what
  a round with the null objective does to numbers, and what a round's cost is held against.
- *quickest*: the quickest way to move so many bytes that we found, for who wants to know what the
  machine can do. Both ends write and read the system's pipes into memory that they have from the
  start, the parent with a thread for each child; a child sends back what it got, and that is all.

What the children must have sent is checked after the last round, outside the clock.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Final

import numpy as np
import numpy.typing as npt

FLOORS: Final = ("plain", "quickest")

_STEP: Final = np.float32(2**-10)
"""What a child adds; a power of two, so that sums of it are exact."""

_WARM_UP: Final = 2

Numbers = npt.NDArray[np.float32]
Samples = Mapping[str, Sequence[float]]
"""Milliseconds of each round, by floor."""


def measure(children: int, parameters: int, rounds: int) -> Samples:
    """Give how long rounds of either floor took."""
    return {
        "plain": _plain(children, parameters, rounds),
        "quickest": _quickest(children, parameters, rounds),
    }


def medians(*measured: Samples) -> dict[str, float]:
    """Give each floor in ms: the median over all that was measured of it."""
    return {
        name: statistics.median(ms for samples in measured for ms in samples[name])
        for name in FLOORS
    }


def _plain(children: int, parameters: int, rounds: int) -> list[float]:
    numbers: Numbers = np.ones(parameters, np.float32)
    taken = []
    with _started(children, "add") as pipes:
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


def _add(pipe: Connection, _parameters: int) -> None:
    """Be a child of the plain program until the parent closes its end."""
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
        _started(children, "echo", parameters) as pipes,
        ThreadPoolExecutor(children) as pool,
    ):
        for _ in range(_WARM_UP + rounds):
            begin = time.perf_counter()
            list(pool.map(exchange, pipes, received))
            taken.append(1000 * (time.perf_counter() - begin))
    for answer in received:
        np.testing.assert_array_equal(answer, numbers)
    return taken[_WARM_UP:]


def _echo(pipe: Connection, parameters: int) -> None:
    """Be a child of the quickest way until the parent closes its end."""
    numbers: Numbers = np.empty(parameters, np.float32)
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


@contextmanager
def _started(number: int, child: str, parameters: int = 0) -> Iterator[Sequence[Connection]]:
    """Give the pipes to so many children; they see the end of theirs, and are waited for.

    A child is this file as a program, which loads numpy and nothing of the federation.
    """
    pipes, processes = [], []
    try:
        for _ in range(number):
            ours, theirs = Pipe()
            command = [sys.executable, __file__, "--be", child, str(theirs.fileno())]
            process = subprocess.Popen(
                [*command, "--parameters", str(parameters)],
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # as a site is: the scheduler shares among sessions
            )
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        yield pipes
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.wait()


CHILDREN: Final[Mapping[str, Callable[[Connection, int], None]]] = {"add": _add, "echo": _echo}


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
        with Connection(int(descriptor)) as pipe:
            CHILDREN[child](pipe, arguments.parameters)
        return
    samples = measure(arguments.children, arguments.parameters, arguments.rounds)
    for name in FLOORS:
        print(f"{name}: {statistics.median(samples[name]):.3g} ms")


if __name__ == "__main__":
    main()
