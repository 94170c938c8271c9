"""Memory for models, in pieces that are used again: fresh memory costs more than what it is for.

An arena is one range of addresses, of which only what is written takes memory. It may be seen by
two processes, of which one allocates; then a model passes from one to the other by its place. A
piece is free again when nothing refers to it any more, neither a view nor a tensor in it.
"""

import ctypes
import mmap
import os
import tempfile
import threading
import weakref
from collections import deque
from functools import cache, partial
from typing import Any, Final, Self, TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview

_RANGE_BYTES: Final = 1 << 34
_SMALLEST_BYTES: Final = 1 << 16
_FREE_BYTES: Final = 1 << 28
_FREE_PIECES: Final = 4
"""Of free pieces so much memory is kept, and that of so many of the largest ones if that is more;
of others it is given back, and their addresses are kept."""


@cache
def scratch() -> "Arena":
    """Give the arena of this process, for what comes and goes in each round."""
    return Arena.new()


os.register_at_fork(after_in_child=scratch.cache_clear)  # two that allocate would not do


class Arena:
    """A range of memory without a name, gone with the last process that holds it.

    Args:
        descriptor: Of the memory; another process has it by inheritance.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._map = mmap.mmap(descriptor, _RANGE_BYTES)
        self._base = ctypes.addressof(ctypes.c_ubyte.from_buffer(self._map))
        self._allocating = threading.Lock()
        self._free: dict[int, list[int]] = {}
        self._free_bytes = 0
        self._given_back: set[int] = set()
        self._end = 0
        # By identity: a reference to what has no hash has none either.
        self._alive: dict[int, tuple[weakref.ref[Any], tuple[int, int]]] = {}
        # Filled whenever a piece dies, which may be while this thread allocates: no lock for it.
        self._returned: deque[tuple[int, int]] = deque()
        self._gives_back = partial(_give_back, self._alive, self._returned)

    @classmethod
    def new(cls) -> Self:
        """Make one."""
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("federated-maintenance")
        else:  # a file that has no name any more, where there is no nameless memory
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        os.ftruncate(descriptor, _RANGE_BYTES)
        return cls(descriptor)

    def allocate(self, size_bytes: int) -> memoryview:
        """Give a piece; what is in it is left from before.

        Raises:
            MemoryError: Every address is in use.
        """
        if not size_bytes:
            return memoryview(bytearray())
        span = max(_SMALLEST_BYTES, 1 << (size_bytes - 1).bit_length())
        with self._allocating:
            self._take_back()
            offset = self._free_offset(span)
        piece = (ctypes.c_ubyte * size_bytes).from_buffer(self._map, offset)
        alive = weakref.ref(piece, self._gives_back)
        self._alive[id(alive)] = alive, (span, offset)
        return memoryview(piece).cast("B")

    def view(self, offset: int, size_bytes: int) -> memoryview:
        """Give the piece that the other process allocated there."""
        return memoryview(self._map)[offset : offset + size_bytes]

    def offset_of(self, buffer: Buffer) -> int | None:
        """Give where in the arena a whole piece, or a view of `view`, begins; None if elsewhere."""
        if not len(buffer) or memoryview(buffer).readonly:
            return None
        offset = ctypes.addressof(ctypes.c_ubyte.from_buffer(buffer)) - self._base
        return offset if 0 <= offset < _RANGE_BYTES else None

    def close(self) -> None:
        """Let go of the memory, as soon as nothing lies in it any more; again does nothing."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def _take_back(self) -> None:
        while self._returned:
            span, offset = self._returned.popleft()
            offsets = self._free.setdefault(span, [])
            most_bytes = max(_FREE_BYTES, _FREE_PIECES * max(self._free))
            if self._free_bytes + span > most_bytes and hasattr(mmap, "MADV_REMOVE"):
                self._map.madvise(mmap.MADV_REMOVE, offset, span)
                self._given_back.add(offset)
            else:
                self._free_bytes += span
            offsets.append(offset)

    def _free_offset(self, span: int) -> int:
        offsets = self._free.get(span)
        if offsets:
            offset = offsets.pop()
            if offset in self._given_back:
                self._given_back.remove(offset)
            else:
                self._free_bytes -= span
            return offset
        offset = self._end
        if offset + span > _RANGE_BYTES:
            raise MemoryError(f"no room for {span} bytes more")
        self._end += span
        return offset


def _give_back(
    alive: "dict[int, tuple[weakref.ref[Any], tuple[int, int]]]",
    returned: deque[tuple[int, int]],
    piece: "weakref.ref[Any]",
) -> None:
    """Take note that a piece died; no method, which would keep the arena's memory until then."""
    returned.append(alive.pop(id(piece))[1])
