"""Tensors to one piece of bytes and back, described as safetensors describes them.

The bytes lie one after the other, the widest dtype first. A description has dtype, shape and place
of each by its name, which starts with a message's field: `parameters/stem.weight`.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeAlias

import torch
from blake3 import blake3

from core.arena import Buffer
from core.limits import MAX_MESSAGE_BYTES
from core.messages import Parameters
from core.parameters import Laid, Shapes, laid

ALIGNMENT: Final = 8
"""Where bytes begin at a multiple of it, a tensor of any dtype can lie in them."""

ENTRY_KEYS: Final = frozenset({"dtype", "shape", "data_offsets"})
_BLOCK_BYTES: Final = 1 << 18

PARAMETERS: Final = "parameters"
TENSOR_FIELDS: Final = (PARAMETERS, "control")

_DTYPES: Final = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_DTYPE_NAMES: Final = {dtype: name for name, dtype in _DTYPES.items()}

Allocate: TypeAlias = Callable[[int], bytearray | memoryview]
"""Gives memory of so many bytes."""

Entries: TypeAlias = Mapping[str, Any]
"""How bytes divide: `dtype`, `shape` and `data_offsets` by each tensor's name."""


def content_hash(*parts: Buffer) -> bytes:
    """Give the BLAKE3 of the parts one after the other: 32 bytes that name a content."""
    hasher = blake3()
    for part in parts:
        hasher.update(part)
    return hasher.digest()


def pack(
    fields: Mapping[str, Parameters], allocate: Allocate = bytearray
) -> tuple[str, Buffer, bytes]:
    """Give how the tensors lie, as a head says it, their bytes, and the hash of these.

    They are hashed while they are in the processor's cache.

    Args:
        fields: The tensors by field and name.
        allocate: Gives the memory for their bytes.

    Raises:
        ValueError: A tensor cannot travel.
    """
    lying = laid(fields.get(PARAMETERS, {})) if len(fields) == 1 else None
    if lying is not None and travels(lying):
        body = allocate(lying.flat.nbytes)
        return text_of(lying.shapes, lying.flat.dtype), body, _copied(as_bytes(lying.flat), body)
    tensors = {f"{field}/{name}": t for field, found in fields.items() for name, t in found.items()}
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    entries: dict[str, Any] = {}
    body = allocate(sum(tensor.numel() * tensor.element_size() for _, tensor in ordered))
    view, hasher, begin = memoryview(body), blake3(), 0
    for name, tensor in ordered:
        plain = _plain(name, tensor)
        entries[name] = _described(plain.dtype, plain.shape, begin)
        end = begin + plain.nbytes
        if end > begin:
            memory = as_bytes(plain)
            view[begin:end] = memory
            hasher.update(memory)
        begin = end
    return _as_text(entries), body, hasher.digest()


def travels(lying: Laid) -> bool:
    """Tell whether the parameters lie as `pack` would lay them."""
    flat = lying.flat
    is_dense = flat.device.type == "cpu" and flat.is_contiguous() and not flat.is_neg()
    return is_dense and flat.dtype in _DTYPE_NAMES and _is_ordered(lying.shapes)


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """Give the bytes of a tensor that is contiguous, in its memory."""
    memory: memoryview = tensor.detach().reshape(-1).view(torch.uint8).numpy().data
    return memory


def _copied(memory: memoryview, body: Buffer) -> bytes:
    """Copy `memory` into `body` and give its hash, in blocks that stay in the cache."""
    view, hasher = memoryview(body), blake3()
    for begin in range(0, len(memory), _BLOCK_BYTES):
        block = memory[begin : begin + _BLOCK_BYTES]
        view[begin : begin + len(block)] = block
        hasher.update(block)
    return hasher.digest()


class Division:
    """How a body divides into tensors; what it says is checked when the first is divided by it.

    Args:
        entries: As a head describes the tensors; who made it has looked at the keys.

    Attributes:
        entries: Likewise; not to be changed.
        fields: What the tensors' names start with.
    """

    def __init__(self, entries: Entries) -> None:
        self.entries = entries
        self.fields = frozenset(name.partition("/")[0] for name in entries)
        self._parts: Mapping[str, _Part] | None = None
        self._size_bytes = 0

    def unpack(self, body: Buffer) -> dict[str, Parameters]:
        """Give the tensors of `body`, in its memory, by the field each one's name starts with.

        Raises:
            ValueError: They do not fill it exactly, one after the other.
        """
        parts = self._checked()
        if self._size_bytes != len(body):
            message = f"its body has {len(body)} bytes, and its tensors {self._size_bytes}"
            raise ValueError(message)
        memory = _as_tensor(body)
        return {field: part.of(memory) for field, part in parts.items()}

    def _checked(self) -> "Mapping[str, _Part]":
        if self._parts is None:
            fields: dict[str, list[_Entry]] = {}
            end = 0
            for full_name, entry in sorted(
                self.entries.items(), key=lambda item: _whole(item[1]["data_offsets"])
            ):
                dtype, shape, begin = _DTYPES[entry["dtype"]], _whole(entry["shape"]), end
                end += math.prod(shape) * dtype.itemsize
                field, _, name = full_name.partition("/")
                if entry["data_offsets"] != [begin, end]:
                    message = f"the tensor {full_name!r} is not where it must be"
                    raise ValueError(message)
                described = _Entry(name, dtype, torch.Size(shape), begin, end)
                fields.setdefault(field, []).append(described)
            self._size_bytes = end
            self._parts = {field: _Part(found) for field, found in fields.items()}
        return self._parts


@lru_cache(maxsize=16)
def divided(said: str) -> Division:
    """Read what a head says of the tensors, as `pack` has it; the same text is read once.

    Raises:
        ValueError: It is no such text.
    """
    if said and not said.startswith(","):
        message = "no entries of a JSON object"
        raise ValueError(message)
    return division(json.loads(f"{{{said[1:]}}}", object_pairs_hook=once_each))


def division(entries: object) -> Division:
    """Give the division that these entries of a header describe.

    Raises:
        ValueError: One has other keys than it must have, or belongs to no field: a header is no
            place to hide in.
    """
    if not isinstance(entries, dict) or any(
        not isinstance(entry, dict) or entry.keys() != ENTRY_KEYS for entry in entries.values()
    ):
        message = "unknown keys"
        raise ValueError(message)
    found = Division(entries)
    if not found.fields.issubset(TENSOR_FIELDS):
        message = "a tensor belongs to no field"
        raise ValueError(message)
    return found


def once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Give the object of these pairs; of a name that comes twice each reader takes another.

    Raises:
        ValueError: One does.
    """
    found = dict(pairs)
    if len(found) != len(pairs):
        message = "a name comes twice"
        raise ValueError(message)
    return found


def _as_text(entries: Entries) -> str:
    """Give the entries as they follow others in a JSON object."""
    return "".join(
        f", {json.dumps(name, ensure_ascii=False)}: {json.dumps(entry)}"
        for name, entry in entries.items()
    )


@lru_cache(maxsize=8)
def _is_ordered(shapes: Shapes) -> bool:
    names = [name for name, _ in shapes]
    return names == sorted(names)


@lru_cache(maxsize=8)
def text_of(shapes: Shapes, dtype: torch.dtype) -> str:
    """Give the entries, as a head says them, of parameters that lie one after the other."""
    entries: dict[str, Any] = {}
    begin = 0
    for name, shape in shapes:
        entries[f"{PARAMETERS}/{name}"] = _described(dtype, shape, begin)
        begin += shape.numel() * dtype.itemsize
    return _as_text(entries)


def _described(dtype: torch.dtype, shape: torch.Size, begin: int) -> dict[str, Any]:
    end = begin + shape.numel() * dtype.itemsize
    return {"dtype": _DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}


def _plain(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Give the tensor as its bytes stand in memory, one after the other.

    Raises:
        ValueError: It has none.
    """
    if tensor.dtype not in _DTYPE_NAMES or tensor.layout is not torch.strided or tensor.is_meta:
        message = (
            f"{name!r} is {tensor.dtype}, {tensor.layout}, on {tensor.device}; what can travel are "
            f"dense tensors of {', '.join(_DTYPES)}"
        )
        raise ValueError(message)
    # A view may say "negated" instead of being it; what travels are the bytes alone.
    return tensor.detach().cpu().resolve_neg().contiguous()


class _Entry(NamedTuple):
    name: str
    dtype: torch.dtype
    shape: torch.Size
    begin: int
    end: int


class _Part:
    """The tensors of one field, as they lie in the body."""

    def __init__(self, entries: Sequence[_Entry]) -> None:
        self._entries = entries
        self._begin, self._end = entries[0].begin, entries[-1].end
        self._dtype = entries[0].dtype
        self._is_one = all(entry.dtype is self._dtype for entry in entries) and (
            self._end - self._begin == sum(entry.end - entry.begin for entry in entries)
        )
        self._shapes = tuple((entry.name, entry.shape) for entry in entries)

    def of(self, memory: torch.Tensor) -> Parameters:
        """Give them."""
        if self._is_one:
            return Laid(self._shapes, memory[self._begin : self._end].view(self._dtype))
        return {
            entry.name: memory[entry.begin : entry.end].view(entry.dtype).view(entry.shape)
            for entry in self._entries
        }


def _as_tensor(body: Buffer) -> torch.Tensor:
    """Give the bytes as a tensor in the same memory, where a tensor can lie in it."""
    if not len(body):
        return torch.empty(0, dtype=torch.uint8)
    can_be_written = not memoryview(body).readonly  # PyTorch knows no other tensors
    memory = torch.frombuffer(body if can_be_written else bytearray(body), dtype=torch.uint8)
    return memory if memory.data_ptr() % ALIGNMENT == 0 else memory.clone()


def _whole(numbers: object) -> list[int]:
    """Give the numbers of a list of whole ones.

    Raises:
        ValueError: It holds others.
    """
    if not isinstance(numbers, list) or any(
        type(number) is not int or not 0 <= number <= MAX_MESSAGE_BYTES for number in numbers
    ):
        message = "shapes and offsets are lists of whole numbers"
        raise ValueError(message)
    return numbers
