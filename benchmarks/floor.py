"""The floor under a round: what processes and pipes take to carry the same numbers.

    python benchmarks/floor.py [--children 4] [--parameters 2500000] [--rounds 20]

One child process stands for each site, joined to its parent by two pipes (`os.pipe`, with the
system's own capacity). What goes through them is the parameters as raw float32 and nothing else: no
header, no checksum, no encoding, no disk. Both ends read into memory that they have from the start.
In one round the parent writes the parameters to every child and reads as many back from each:

- *copy*: a child sends back what it got, and the parent leaves it at that;
- *same work*: a child adds a constant to what it got; the parent makes sure that every number of
  every child is finite, and the mean of the children, summed in float64, is what it sends next.
  This is all that a round with the null objective does to numbers.

The parent goes about it in two ways, *in turn* (write to every child, then read from every one), as
a plain program would, and *in threads* (one for each child), the quickest we found. Each is a floor
of its own. What the children must have sent is checked after the last round, outside the clock.
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
from itertools import product
from typing import Final

import numpy as np
import numpy.typing as npt

FORMS: Final = ("copy", "same work")
WAYS: Final = ("in turn", "in threads")

_STEP: Final = np.float32(2**-10)
"""What a child adds; a power of two, so that sums of it are exact."""

_WARM_UP: Final = 2

Numbers = npt.NDArray[np.float32]
Samples = Mapping[str, Mapping[str, Sequence[float]]]
"""Milliseconds of each round, by form and way."""


def measure(children: int, parameters: int, rounds: int) -> Samples:
    """Give how long rounds of every form took, in every way."""
    samples: dict[str, dict[str, Sequence[float]]] = {form: {} for form in FORMS}
    for form, way in product(FORMS, WAYS):
        with _started(children, parameters, form) as started:
            samples[form][way] = _rounds(started, parameters, rounds, form=form, way=way)
    return samples


def medians(*measured: Samples) -> dict[str, float]:
    """Give each floor in ms: the median over all that was measured of one form and way."""
    return {
        f"{form}, {way}": statistics.median(ms for samples in measured for ms in samples[form][way])
        for form, way in product(FORMS, WAYS)
    }


class _Child:
    """A child, as its parent holds it."""

    def __init__(self, parameters: int, form: str) -> None:
        self.received: Numbers = np.zeros(parameters, np.float32)
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--child", form, "--parameters", str(parameters)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # as a site is: the scheduler shares among sessions
        )
        if self.process.stdin is None or self.process.stdout is None:
            raise RuntimeError("a child was started without its pipes")
        self._to, self._from = self.process.stdin, self.process.stdout

    def send(self, numbers: Numbers) -> None:
        _write(self._to.fileno(), numbers)

    def receive(self, form: str) -> None:
        if not _read(self._from.fileno(), self.received):
            raise RuntimeError(f"a child of the floor ended: exit code {self.process.wait()}")
        if form == "same work" and not np.isfinite(self.received).all():
            raise RuntimeError("a child of the floor sent a number that is not finite")

    def end(self) -> None:
        """Let it see the end of its input, and reap it."""
        self._to.close()
        self._from.close()
        self.process.wait()


@contextmanager
def _started(children: int, parameters: int, form: str) -> Iterator[Sequence[_Child]]:
    started: list[_Child] = []
    try:
        started += [_Child(parameters, form) for _ in range(children)]
        yield started
    finally:
        for child in started:
            child.end()


def _rounds(
    children: Sequence[_Child], parameters: int, rounds: int, *, form: str, way: str
) -> list[float]:
    numbers: Numbers = np.ones(parameters, np.float32)
    total = np.empty(parameters, np.float64)
    taken = []
    with ThreadPoolExecutor(len(children)) as pool:
        exchange = _in_turn if way == "in turn" else _in_threads(pool)
        for _ in range(_WARM_UP + rounds):
            begin = time.perf_counter()
            exchange(children, numbers, form)
            if form == "same work":
                total.fill(0.0)
                for child in children:
                    total += child.received
                total /= len(children)
                numbers = total.astype(np.float32)
            taken.append(1000 * (time.perf_counter() - begin))
    steps = _WARM_UP + rounds if form == "same work" else 0
    for child in children:
        np.testing.assert_array_equal(child.received, np.float32(1) + steps * _STEP)
    return taken[_WARM_UP:]


def _in_turn(children: Sequence[_Child], numbers: Numbers, form: str) -> None:
    for child in children:
        child.send(numbers)
    for child in children:
        child.receive(form)


def _in_threads(pool: ThreadPoolExecutor) -> Callable[[Sequence[_Child], Numbers, str], None]:
    def exchange(children: Sequence[_Child], numbers: Numbers, form: str) -> None:
        def with_one(child: _Child) -> None:
            child.send(numbers)
            child.receive(form)

        list(pool.map(with_one, children))

    return exchange


def _serve(parameters: int, form: str) -> None:
    """Be a child until the parent closes its end."""
    numbers: Numbers = np.empty(parameters, np.float32)
    while _read(sys.stdin.fileno(), numbers):
        if form == "same work":
            numbers += _STEP
        _write(sys.stdout.fileno(), numbers)


def _write(descriptor: int, numbers: Numbers) -> None:
    left = memoryview(numbers.data).cast("B")
    while left:
        left = left[os.write(descriptor, left) :]


def _read(descriptor: int, numbers: Numbers) -> bool:
    """Fill `numbers`; False when the other end was closed."""
    left = memoryview(numbers.data).cast("B")
    while left:
        size_bytes = os.readv(descriptor, [left])
        if size_bytes == 0:
            return False
        left = left[size_bytes:]
    return True


def main() -> None:
    """Measure and print; or be a child."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--children", type=int, default=4)
    parser.add_argument("--parameters", type=int, default=2_500_000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--child", choices=FORMS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        _serve(arguments.parameters, arguments.child)
        return
    samples = measure(arguments.children, arguments.parameters, arguments.rounds)
    for form, way in product(FORMS, WAYS):
        print(f"{form}, {way}: {statistics.median(samples[form][way]):.3g} ms")


if __name__ == "__main__":
    main()
