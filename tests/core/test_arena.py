"""Memory in pieces: whole while anything refers to them, and used again from then on."""

import json
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.arena import Arena, Buffer

ROOT: Final = Path(__file__).resolve().parents[2]
_SPAN: Final = 1 << 16
"""The smallest piece that is set aside: one of fewer bytes takes as much."""

sizes = st.sampled_from([0, 1, 7, 4096, _SPAN - 1, _SPAN, _SPAN + 1, 3 * _SPAN])
steps = st.lists(st.tuples(st.just("allocate"), sizes) | st.tuples(st.just("drop"), st.integers(0)))


def place(arena: Arena, piece: Buffer) -> int:
    """Give where a piece begins."""
    found = arena.offset_of(piece)
    assert found is not None
    return found


@settings(max_examples=60, derandomize=True, deadline=None, database=None)
@given(steps=steps)
def test_pieces_that_are_alive_never_overlap(steps: list[tuple[str, int]]) -> None:
    """Whatever was allocated and dropped before, each keeps what was written into all of it."""
    arena = Arena.new()
    alive: list[tuple[memoryview, int]] = []
    for turn, (step, number) in enumerate(steps):
        if step == "allocate":
            piece = arena.allocate(number)
            assert len(piece) == number
            piece[:] = bytes([turn % 251]) * number
            alive.append((piece, turn % 251))
            del piece
        elif alive:
            del alive[number % len(alive)]
        assert all(bytes(piece) == bytes([mark]) * len(piece) for piece, mark in alive)
    spans = sorted((place(arena, piece), len(piece)) for piece, _ in alive if len(piece))
    assert all(begin + size <= following for (begin, size), (following, _) in pairwise(spans))
    alive.clear()
    arena.close()


def a_slice(piece: memoryview) -> object:
    """Give its end."""
    return piece[-16:]


def a_tensor(piece: memoryview) -> object:
    """Give its numbers."""
    return torch.frombuffer(piece, dtype=torch.float32)


def a_view_of_a_tensor(piece: memoryview) -> object:
    """Give a tensor in the memory of one that is gone."""
    return torch.frombuffer(piece, dtype=torch.float32)[2:].view(2, -1).T


def an_array(piece: memoryview) -> object:
    """Give NumPy's view of a tensor that is gone."""
    return torch.frombuffer(piece, dtype=torch.float64).numpy()[1:]


def another_view(piece: memoryview) -> object:
    """Give the same bytes as other numbers."""
    return np.frombuffer(piece, dtype=np.uint8).data.cast("B")


@pytest.mark.parametrize(
    "refer",
    [a_slice, a_tensor, a_view_of_a_tensor, an_array, another_view],
    ids=lambda refer: refer.__name__,
)
def test_a_piece_is_not_used_again_while_anything_lies_in_it(
    refer: Callable[[memoryview], object],
) -> None:
    """Though the piece itself is gone; once the last is gone too, it is the next one's."""
    arena = Arena.new()
    piece = arena.allocate(64)
    piece[:] = bytes(range(64))
    first, kept = place(arena, piece), refer(piece)
    del piece
    second = arena.allocate(64)
    second[:] = bytes(64)
    assert place(arena, second) != first
    assert bytes(arena.view(first, 64)) == bytes(range(64))
    del kept
    assert place(arena, arena.allocate(64)) == first


def test_a_size_has_pieces_of_its_own() -> None:
    """One that is free is not divided: a larger or a smaller one lies elsewhere."""
    arena = Arena.new()
    piece = arena.allocate(2 * _SPAN)
    freed = place(arena, piece)
    del piece
    smaller, larger = arena.allocate(_SPAN), arena.allocate(4 * _SPAN)
    assert freed not in {place(arena, smaller), place(arena, larger)}
    assert place(arena, arena.allocate(2 * _SPAN - 5)) == freed


def test_nothing_takes_no_place() -> None:
    """A piece of no bytes is empty, is nowhere, and any number of them leaves all of the room."""
    arena = Arena.new()
    empty = [arena.allocate(0) for _ in range(3)]
    assert [len(piece) for piece in empty] == [0, 0, 0]
    assert [arena.offset_of(piece) for piece in empty] == [None, None, None]
    assert place(arena, arena.allocate(1)) == 0


@pytest.mark.parametrize(
    "elsewhere",
    [bytearray(64), memoryview(bytearray(64)), bytes(64), b""],
    ids=["bytearray", "view", "bytes", "nothing"],
)
def test_memory_that_is_not_the_arenas_is_nowhere_in_it(elsewhere: Buffer) -> None:
    """Nor is a piece of another arena."""
    arena, other = Arena.new(), Arena.new()
    arena.allocate(64)
    assert arena.offset_of(elsewhere) is None
    assert arena.offset_of(other.allocate(64)) is None


def test_what_is_larger_than_the_arena_is_a_memory_error() -> None:
    """It is refused as memory is, and a smaller piece is given afterwards."""
    arena = Arena.new()
    with pytest.raises(MemoryError, match="no room for"):
        arena.allocate((1 << 34) + 1)
    assert len(arena.allocate(10)) == 10


def test_a_closed_arena_lasts_as_long_as_what_lies_in_it() -> None:
    """Its bytes stay, and closing again does nothing."""
    arena = Arena.new()
    piece = arena.allocate(4)
    piece[:] = b"kept"
    arena.close()
    arena.close()
    del arena
    assert bytes(piece) == b"kept"


OTHER = """
import sys
from core.arena import Arena

arena = Arena(int(sys.argv[1]))
for line in sys.stdin:
    offset, size = map(int, line.split())
    piece = arena.view(offset, size)
    assert arena.offset_of(piece) == offset
    print(bytes(piece).hex(), flush=True)
    piece[:] = bytes(reversed(bytes(piece)))
    print("written", flush=True)
"""


def test_two_processes_see_the_same_bytes() -> None:
    """A piece is found by its place in the other process, which may write its answer there."""
    arena = Arena.new()
    pieces = [arena.allocate(5), arena.allocate(3 * _SPAN)]
    other = subprocess.Popen(
        [sys.executable, "-c", OTHER, str(arena.descriptor)],
        pass_fds=[arena.descriptor],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdin is not None
    assert other.stdout is not None
    with other:
        for number, piece in enumerate(pieces):
            said = bytes([number, 1]) + bytes(len(piece) - 4) + b"to"
            piece[:] = said  # after the other began: neither has a copy
            other.stdin.write(f"{place(arena, piece)} {len(piece)}\n")
            other.stdin.flush()
            assert other.stdout.readline().strip() == said.hex()
            assert other.stdout.readline() == "written\n"
            assert bytes(piece) == said[::-1]
        other.stdin.close()
    assert other.returncode == 0


RESIDENT = """
import json
from core.arena import Arena

MIB = 1 << 20

def resident_mib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssShmem")) // 1024

def written(arena, mib):
    piece = arena.allocate(mib * MIB)
    piece[:] = b"x" * len(piece)
    return piece

arena = Arena.new()
found = {"nothing": resident_mib()}
pieces = [written(arena, 32) for _ in range(16)]
found["alive"] = resident_mib()
places = sorted(arena.offset_of(piece) for piece in pieces)
pieces.clear()
one = arena.allocate(1)
found["dropped"] = resident_mib()
pieces = [arena.allocate(32 * MIB) for _ in range(16)]
found["the same places"] = sorted(arena.offset_of(piece) for piece in pieces) == places
print(json.dumps(found))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="it is Linux that says so")
def test_the_memory_of_many_free_pieces_is_given_back() -> None:
    """Of 512 MiB that were written and dropped 256 stay; all of the addresses are used again."""
    done = subprocess.run(
        [sys.executable, "-c", RESIDENT], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert found == {"nothing": 0, "alive": 512, "dropped": 256, "the same places": True}


AGAIN = """
from core.arena import Arena

MIB = 1 << 20

def resident_mib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssShmem")) // 1024

arena = Arena.new()
most = 0
for size in (32, 16, 64, 8):
    for count in (1024 // size, 256 // size, 256 // size):
        pieces = [arena.allocate(size * MIB) for _ in range(count)]
        for piece in pieces:
            piece[:] = b"x" * len(piece)
        del piece
        pieces.clear()
        arena.allocate(1)
        most = max(most, resident_mib())
print(most)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="it is Linux that says so")
def test_no_more_memory_is_kept_however_often_pieces_come_and_go() -> None:
    """Of pieces of several sizes, used again and again, 256 MiB stay at most."""
    done = subprocess.run(
        [sys.executable, "-c", AGAIN], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) <= 256
