"""Memory that a site and its trainer both see, so that a model does not pass through a pipe.

It has no name and no place on a disk, and is gone with the last process that holds it.
"""

import itertools
import mmap
import os
import tempfile
from collections.abc import Sequence
from typing import Final

from core.wire import Buffer

_PAGE_BYTES: Final = 1 << 20


class Mailbox:
    """One side's view: what one side puts in, the other reads, and only one of them at a time.

    Args:
        descriptor: Of the memory; the other side has it by inheritance.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._map: mmap.mmap | None = None

    @classmethod
    def new(cls) -> "Mailbox":
        """Make one; empty."""
        if hasattr(os, "memfd_create"):
            return cls(os.memfd_create("federated-maintenance"))
        with tempfile.TemporaryFile() as file:  # where the system has no nameless memory
            return cls(os.dup(file.fileno()))

    def put(self, parts: Sequence[Buffer]) -> list[int]:
        """Lay the parts in, one after the other, over what was there; their lengths.

        Raises:
            OSError: There is no memory left.
        """
        lengths = [len(part) for part in parts]
        view, begin = self.view(sum(lengths), is_writer=True), 0
        for part, length in zip(parts, lengths, strict=True):
            view[begin : begin + length] = part
            begin += length
        return lengths

    def view(self, length: int, *, is_writer: bool = False) -> memoryview:
        """Give the first `length` bytes, in place: they last until something is put in again."""
        if self._map is None or len(self._map) < length:
            if is_writer:
                pages = max(1, -(-length // _PAGE_BYTES))
                os.ftruncate(self.descriptor, pages * _PAGE_BYTES)
            self._map = mmap.mmap(self.descriptor, 0)
        return memoryview(self._map)[:length]

    def parts(self, lengths: Sequence[int]) -> list[memoryview]:
        """Give what was put in with these lengths, in place, as `view` does."""
        view = self.view(sum(lengths))
        ends = list(itertools.accumulate(lengths))
        return [view[end - length : end] for length, end in zip(lengths, ends, strict=True)]

    def close(self) -> None:
        """Let go of it; closing again does nothing."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor, self._map = -1, None
