"""Messages to bytes and back, in two parts: a head that says what it is, a body of raw tensors.

    head   uint64 length | JSON {"__metadata__": {"message"}, tensors} | spaces up to 8 bytes
    body   the tensors' bytes, one after the other, the widest dtype first

where `message` is JSON again, {"version", "fields"}, and a tensor's name starts with the field it
belongs to: `parameters/stem.weight`. Both parts together are a file of safetensors, which any of
its readers opens; its own writer takes many times as long.

The model of a round goes to many sites in messages that differ in their heads alone: its body is
made once (`Packed`), hashed once, and named by that hash. The hash is BLAKE3 and not SHA-256,
because hashing was a large part of a round of large models.

Such a file cannot carry code, so nothing here is ever executed; there is no pickle. `decode` takes
bytes from anyone: what is not a valid message of this version is a `ProtocolError`, found before
anything larger than the input is allocated.
"""

import json
from collections.abc import Iterable, Mapping
from functools import cache
from typing import (
    Annotated,
    Any,
    Final,
    Self,
    TypeGuard,
    TypeVar,
    cast,
    get_args,
    get_type_hints,
)

import torch
from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from core.arena import Buffer, scratch
from core.exceptions import ModelError, ProtocolError
from core.limits import MAX_HEADER_BYTES, MAX_MESSAGE_BYTES
from core.messages import Message, Parameters
from core.packing import (
    ALIGNMENT,
    PARAMETERS,
    TENSOR_FIELDS,
    Allocate,
    Division,
    Entries,
    as_bytes,
    content_hash,
    divided,
    division,
    once_each,
    pack,
    text_of,
    travels,
)
from core.parameters import Laid, laid

VERSION = "1"
"""Both sides must speak the same; see the rules of change in `core.messages`."""

_LENGTH_BYTES = 8
_METADATA = "__metadata__"
_MESSAGE = "message"
_OPENING = f'{{"{_METADATA}": {{"{_MESSAGE}": "'
_READER = json.JSONDecoder()
_WRITER = json.JSONEncoder(allow_nan=False, sort_keys=True)
_QUOTER = json.JSONEncoder(ensure_ascii=False)
_NO_TENSORS: Final[Parameters] = {}
_KINDS_WITH_PARAMETERS = ("train", "update", "evaluate", "masked_update")
"""No set: a kind that somebody made a list of cannot be looked up in one."""

M = TypeVar("M")


class Parcel:
    """An encoded message, as it travels.

    Attributes:
        head: What it says; a multiple of 8 bytes.
        body: Its tensors' bytes; never to be changed, since decoded tensors lie in it.
    """

    __slots__ = ("_body_hash", "body", "head")

    def __init__(self, head: bytes, body: Buffer = b"", body_hash: bytes | None = None) -> None:
        self.head = head
        self.body = body
        self._body_hash = body_hash

    @classmethod
    def of(cls, blob: Buffer) -> Self:
        """Part a message that came in one piece, without copying its body.

        What is no message is all head, and nobody can decode it.
        """
        view = memoryview(blob)
        try:
            head_bytes = _LENGTH_BYTES + _header_bytes(view)
        except ProtocolError:
            head_bytes = len(view)
        return cls(bytes(view[:head_bytes]), view[head_bytes:])

    @property
    def body_hash(self) -> bytes:
        """The body's name; computed when it is first asked for."""
        if self._body_hash is None:
            self._body_hash = content_hash(self.body)
        return self._body_hash

    @property
    def name(self) -> str:
        """The message's name: equal for equal messages alone; 64 hexadecimal digits."""
        return content_hash(self.head, self.body_hash).hex()

    def joined(self) -> bytes:
        """Give both parts as one."""
        return b"".join((self.head, self.body))

    def __len__(self) -> int:
        return len(self.head) + len(self.body)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Parcel):
            return NotImplemented
        return self.head == other.head and self.body == other.body

    def __hash__(self) -> int:
        return hash(self.name)


class Packed(Laid):
    """Parameters whose bytes were made once, for any number of messages.

    They are not to be changed: the tensors lie in those bytes.

    Args:
        parameters: Of a model; copied.
        control: What the algorithm sends beside them; copied.

    Attributes:
        control: Likewise.
        said: How the body divides, as a head says it.
        body: The bytes of all.
        body_hash: Their name.

    Raises:
        ModelError: A tensor cannot travel (sparse or complex).
    """

    def __init__(self, parameters: Parameters, control: Parameters | None = None) -> None:
        fields = {PARAMETERS: parameters, **({"control": control} if control else {})}
        try:
            self.said, self.body, self.body_hash = pack(fields, scratch().allocate)
        except (ValueError, RuntimeError) as exc:
            raise ModelError(f"the parameters cannot be encoded: {exc}") from exc
        lying = divided(self.said).unpack(self.body)
        self.control = lying.get("control", {})
        own = lying.get(PARAMETERS, {})
        if isinstance(own, Laid):
            super().__init__(own.shapes, own.flat)
        else:
            super().__init__((), torch.empty(0))
            self.update(own)

    @classmethod
    def over(cls, parameters: Parameters, control: Parameters) -> Self:
        """Give parameters that nobody else has, without a copy where they lie as they travel.

        Raises:
            ModelError: As the constructor.
        """
        lying = laid(parameters)
        if control or lying is None or not travels(lying):
            return cls(parameters, control)
        packed = cls.__new__(cls)
        Laid.__init__(packed, lying.shapes, lying.flat)
        packed.said = text_of(lying.shapes, lying.flat.dtype)
        packed.body, packed.control = as_bytes(lying.flat), {}
        packed.body_hash = content_hash(packed.body)
        return packed


@cache
def _adapter() -> TypeAdapter[Message]:
    return TypeAdapter(Annotated[Message, Field(discriminator="kind")])


def encode(message: Message, allocate: Allocate = bytearray) -> Parcel:
    """Give the bytes of `message`; equal messages have equal bytes.

    Where its parameters are `Packed`, and its control is theirs, their body is the message's.

    Args:
        message: What to say.
        allocate: Gives the memory for the body.

    Raises:
        ModelError: A tensor cannot travel (sparse or complex), a number in the message is not
            finite (JSON has no word for those), or the message is too large.
    """
    fields: dict[str, Any] = {**message}  # what is left is JSON once the tensors are out
    tensors: dict[str, Parameters] = {
        field: fields.pop(field) for field in TENSOR_FIELDS if field in fields
    }
    try:
        packed = tensors.get(PARAMETERS)
        if isinstance(packed, Packed) and tensors.get("control", packed.control) is packed.control:
            parcel = Parcel(_head(fields, packed.said), packed.body, packed.body_hash)
        else:
            said, body, body_hash = pack(tensors, allocate)
            parcel = Parcel(_head(fields, said), body, body_hash)
        _require_size(len(parcel))
    except (ValueError, KeyError, RuntimeError, ProtocolError) as exc:
        raise ModelError(f"a {fields.get('kind')!r} message cannot be encoded: {exc}") from exc
    return parcel


def decode(parcel: Parcel) -> Message:
    """Give the message that `encode` was given; its tensors lie in the parcel's body.

    Raises:
        ProtocolError: `parcel` is not a message of this version.
    """
    lying, fields = _read_head(parcel.head)
    try:
        tensors = lying.unpack(parcel.body)
        message = _valid({**fields, **_empty(tensors, fields)})
        return cast("Message", {**message, **tensors})
    except (ValueError, KeyError, RuntimeError, TypeError) as exc:
        raise ProtocolError(f"the tensors of the message cannot be read: {exc}") from exc


def peek(parcel: Parcel) -> Message:
    """Give the message without its tensors: `parameters`, where it has any, is empty.

    For who decides on a message and passes its bytes on; whether tensors of their names lie in the
    body is found out by who reads them.

    Raises:
        ProtocolError: The fields are not those of a message of this version.
    """
    return glance(parcel)[0]


def glance(parcel: Parcel) -> tuple[Message, Entries]:
    """Give what `peek` gives, and what the head says of the tensors, which nobody has checked.

    Raises:
        ProtocolError: As `peek`.
    """
    lying, fields = _read_head(parcel.head)
    message = _valid({**fields, **_empty(lying.fields, fields)})
    message.pop("control", None)
    return cast("Message", message), lying.entries


def is_kind(message: Message, kind: type[M]) -> TypeGuard[M]:
    """Tell whether `message` is of the typed dictionary `kind`."""
    return bool(message["kind"] == _kind_name(kind))  # type: ignore[arg-type]  # mypy sees no hash in it


@cache
def _kind_name(kind: type[object]) -> str:
    return str(get_args(get_type_hints(kind)["kind"])[0])


def _head(fields: Mapping[str, Any], entries: str) -> bytes:
    said = _WRITER.encode({"version": VERSION, "fields": fields})
    header = f"{_OPENING[:-1]}{_QUOTER.encode(said)}}}{entries}}}".encode()
    header += b" " * (-len(header) % ALIGNMENT)
    if len(header) > MAX_HEADER_BYTES:
        message = f"its header has {len(header)} bytes, more than {MAX_HEADER_BYTES}"
        raise ValueError(message)
    return len(header).to_bytes(_LENGTH_BYTES, "little") + header


def _read_head(head: Buffer) -> tuple[Division, dict[str, Any]]:
    """Give how the body divides, and the message's fields."""
    header_bytes = _header_bytes(head)
    try:
        said, lying = _parted(bytes(head[_LENGTH_BYTES : _LENGTH_BYTES + header_bytes]))
        envelope = from_json(said, allow_inf_nan=False)
        version = envelope["version"]
        if version != VERSION:
            raise ProtocolError(
                f"the message is of version {version!r}, this side speaks {VERSION!r}; "
                "install the same release at the site and at the orchestrator"
            )
        fields = envelope["fields"]
        if envelope.keys() != {"version", "fields"} or not isinstance(fields, dict):
            raise ProtocolError("not a message: its header holds no plain fields")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise ProtocolError("not a message: its header cannot be read") from exc
    if not fields.keys().isdisjoint(TENSOR_FIELDS):
        raise ProtocolError("not a message: its header holds no plain fields")
    return lying, fields


def _parted(header: bytes) -> tuple[str, Division]:
    """Give a header's message and how the body divides, which most often was read before.

    Raises:
        ValueError: It is no header.
    """
    text = header.decode()
    if text.startswith(_OPENING):  # as `_head` writes it
        said, end = _READER.raw_decode(text, len(_OPENING) - 1)
        rest = text[end:].rstrip(" ")
        if rest.startswith("}") and rest.endswith("}"):
            return said, divided(rest[1:-1])
    entries = json.loads(text, object_pairs_hook=once_each)
    metadata = entries.pop(_METADATA)
    if metadata.keys() != {_MESSAGE}:
        message = "unknown keys"
        raise ValueError(message)
    return metadata[_MESSAGE], division(entries)


def _header_bytes(blob: Buffer) -> int:
    """Give the length of the header; both it and the message must be within the limits."""
    _require_size(len(blob))
    header_bytes = int.from_bytes(blob[:_LENGTH_BYTES], "little")
    if header_bytes > min(MAX_HEADER_BYTES, len(blob) - _LENGTH_BYTES):
        raise ProtocolError(f"not a message: its header claims {header_bytes} bytes")
    return header_bytes


def _require_size(size_bytes: int) -> None:
    if not _LENGTH_BYTES < size_bytes <= MAX_MESSAGE_BYTES:
        raise ProtocolError(f"not a message: {size_bytes} bytes")


def _empty(tensor_fields: Iterable[str], fields: Mapping[str, Any]) -> dict[str, Parameters]:
    """Give what stands for a message's tensors where it is looked at without them."""
    empty = dict.fromkeys(tensor_fields, _NO_TENSORS)
    if fields.get("kind") in _KINDS_WITH_PARAMETERS:
        empty[PARAMETERS] = _NO_TENSORS
    return empty


def _valid(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Give the fields of a message.

    Raises:
        ProtocolError: They are none's.
    """
    try:
        return cast("dict[str, Any]", _adapter().validate_python(fields))
    except ValidationError as exc:
        raise ProtocolError(f"not a valid message: {_first_mistake(exc)}") from exc


def _first_mistake(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False)[0]
    path = ".".join(str(part) for part in first["loc"])
    return f"{path}: {first['msg']}" if path else first["msg"]
