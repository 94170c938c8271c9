"""Messages to bytes and back: one safetensors blob, the message itself as JSON in its metadata.

    uint64 length | JSON header {"__metadata__": {"message"}, tensors} | tensor bytes

where `message` is JSON again, {"version", "fields"}, and a tensor's name starts with the field it
belongs to: `parameters/stem.weight`.

safetensors cannot carry code, so nothing here is ever executed; there is no pickle. `decode` takes
bytes from anyone: what is not a valid message of this version is a `ProtocolError`, found before
anything larger than the input is allocated.
"""

import json
from functools import cache
from typing import Annotated, Any, TypeGuard, TypeVar, get_args, get_type_hints

import safetensors.torch
from pydantic import Field, TypeAdapter, ValidationError

from core import messages
from core.exceptions import ModelError, ProtocolError
from core.messages import Message, Parameters

VERSION = "1"
"""Both sides must speak the same; see the rules of change in `core.messages`."""

MAX_HEADER_BYTES = 16 * 2**20
MAX_MESSAGE_BYTES = 2**31
"""A model of half a billion float32 parameters; more is refused on either side."""

_LENGTH_BYTES = 8
_METADATA = "__metadata__"
_MESSAGE = "message"
_TENSOR_KEYS = {"dtype", "shape", "data_offsets"}
_PARAMETERS = "parameters"
_TENSOR_FIELDS = (_PARAMETERS, "control")
_KINDS_WITH_PARAMETERS = frozenset({"train", "update", "evaluate"})

M = TypeVar("M")


@cache
def _adapter() -> TypeAdapter[Message]:
    return TypeAdapter(Annotated[Message, Field(discriminator="kind")])


def encode(message: Message) -> bytes:
    """Give the bytes of `message`; equal messages have equal bytes.

    Raises:
        ModelError: A tensor cannot travel (sparse or complex), a number in the message is not
            finite (JSON has no word for those), or the message is too large.
    """
    fields: dict[str, Any] = {**message}  # what is left is JSON once the tensors are out
    tensors: Parameters = {
        f"{field}/{name}": tensor
        for field in _TENSOR_FIELDS
        for name, tensor in fields.pop(field, {}).items()
    }
    try:
        envelope = {"version": VERSION, "fields": fields}
        # safetensors writes several metadata in random order; equal messages are to be equal bytes.
        metadata = {_MESSAGE: json.dumps(envelope, allow_nan=False, sort_keys=True)}
        blob: bytes = safetensors.torch.save(_independent(tensors), metadata)
        _require_size(blob)
    except (ValueError, KeyError, RuntimeError, ProtocolError) as exc:
        raise ModelError(f"a {fields.get('kind')!r} message cannot be encoded: {exc}") from exc
    return blob


def decode(blob: bytes) -> Message:
    """Give the message that `encode` was given.

    Raises:
        ProtocolError: `blob` is not a message of this version.
    """
    fields = _read_fields(blob)
    try:
        tensors = _by_field(safetensors.torch.load(blob))
        if fields.get("kind") in _KINDS_WITH_PARAMETERS:
            tensors.setdefault(_PARAMETERS, {})
        return _adapter().validate_python({**fields, **tensors})
    except ValidationError as exc:
        raise ProtocolError(f"not a valid message: {_first_mistake(exc)}") from exc
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError, TypeError) as exc:
        raise ProtocolError(f"the tensors of the message cannot be read: {exc}") from exc


def peek(blob: bytes) -> Message:
    """Give the message without its tensors: `parameters`, where it has any, is empty.

    For who decides on a message and passes its bytes on; whether the tensors can be read is found
    out by who reads them.

    Raises:
        ProtocolError: The fields are not those of a message of this version.
    """
    fields = _read_fields(blob)
    if fields.get("kind") in _KINDS_WITH_PARAMETERS:
        fields[_PARAMETERS] = {}
    try:
        return _adapter().validate_python(fields)
    except ValidationError as exc:
        raise ProtocolError(f"not a valid message: {_first_mistake(exc)}") from exc


def head_bytes(blob: bytes) -> int:
    """Give the length of a message's head: all but its tensors, which are the rest.

    Raises:
        ProtocolError: It is no message.
    """
    return _LENGTH_BYTES + _require_size(blob)


def is_kind(message: Message, kind: type[M]) -> TypeGuard[M]:
    """Tell whether `message` is of the typed dictionary `kind`."""
    return bool(message["kind"] == _kind_name(kind.__name__))


@cache
def _kind_name(name: str) -> str:
    return str(get_args(get_type_hints(getattr(messages, name))["kind"])[0])


def _independent(tensors: Parameters) -> Parameters:
    """Contiguous tensors that share no memory: safetensors refuses views of one another."""
    seen: set[int] = set()
    result: Parameters = {}
    for name, tensor in tensors.items():
        if tensor.is_complex():
            message = f"a tensor may not be complex; {name!r} is"
            raise ValueError(message)
        # A view may say "negated" instead of being it; safetensors reads the bytes alone.
        plain = tensor.detach().resolve_neg().contiguous()
        storage = plain.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != plain.nbytes:
            plain = plain.clone()
        seen.add(plain.untyped_storage().data_ptr())
        result[name] = plain
    return result


def _by_field(tensors: Parameters) -> dict[str, Parameters]:
    """Give the tensors by the field that each one's name starts with.

    Raises:
        ValueError: A name starts with none.
    """
    fields: dict[str, Parameters] = {}
    for full_name, tensor in tensors.items():
        field, _, name = full_name.partition("/")
        if field not in _TENSOR_FIELDS:
            message = f"the tensor {full_name!r} belongs to no field"
            raise ValueError(message)
        fields.setdefault(field, {})[name] = tensor
    return fields


def _read_fields(blob: bytes) -> dict[str, Any]:
    header_bytes = _require_size(blob)
    try:
        header = json.loads(blob[_LENGTH_BYTES : _LENGTH_BYTES + header_bytes])
        envelope = json.loads(header[_METADATA][_MESSAGE])
        version = envelope["version"]
        if version != VERSION:
            raise ProtocolError(
                f"the message is of version {version!r}, this side speaks {VERSION!r}; "
                "install the same release at the site and at the orchestrator"
            )
        _require_known(header, envelope)
        fields = envelope["fields"]
        _require_plain(fields)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise ProtocolError("not a message: its header cannot be read") from exc
    if not isinstance(fields, dict) or not fields.keys().isdisjoint(_TENSOR_FIELDS):
        raise ProtocolError("not a message: its header holds no plain fields")
    return fields


def _require_size(blob: bytes) -> int:
    """Give the length of the header; both it and the message must be within the limits."""
    if not _LENGTH_BYTES < len(blob) <= MAX_MESSAGE_BYTES:
        raise ProtocolError(f"not a message: {len(blob)} bytes")
    header_bytes = int.from_bytes(blob[:_LENGTH_BYTES], "little")
    if header_bytes > min(MAX_HEADER_BYTES, len(blob) - _LENGTH_BYTES):
        raise ProtocolError(f"not a message: its header claims {header_bytes} bytes")
    return header_bytes


def _require_known(header: dict[str, Any], envelope: dict[str, Any]) -> None:
    """Do nothing when the header holds what `encode` writes and no more: it is no place to hide in.

    Raises:
        ValueError: It holds more.
    """
    tensors = [entry for name, entry in header.items() if name != _METADATA]
    if (
        header[_METADATA].keys() != {_MESSAGE}
        or envelope.keys() != {"version", "fields"}
        or any(tensor.keys() != _TENSOR_KEYS for tensor in tensors)
    ):
        message = "unknown keys"
        raise ValueError(message)


def _require_plain(fields: object) -> None:
    r"""Do nothing when `fields` can be written out again.

    JSON can smuggle in what it has no words for: infinity as `1e999`, half a character as `\ud800`,
    which no database and no log takes.

    Raises:
        ValueError: They cannot.
    """
    json.dumps(fields, ensure_ascii=False, allow_nan=False).encode()


def _first_mistake(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False)[0]
    path = ".".join(str(part) for part in first["loc"])
    return f"{path}: {first['msg']}" if path else first["msg"]
