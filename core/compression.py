"""Smaller bodies for what travels: pure functions that a site and its orchestrator both call.

    zstd   the floating tensors as they are, to the bit
    fp16   what a site adds to the model that it received, 2 bytes a number, rounded
    int8   the same, 1 byte a number

The global model travels to the sites as `compress` gives it, under all three; what a site sends is
made by `send` and read by `receive`. For zstd the bytes of all numbers are put in order of their
position, first bytes first: sign and exponent of trained weights are much alike, and the rest is
noise.

What fp16 and int8 round off stays with its site, which adds it to what it sends in the next round
(error feedback). So nothing is lost but only late: over any number of rounds, the sum of what came
is that of what was meant, but for what the last round left, at most half a step for each number.

    q_t = Q(Δ_t + e_t),   e_{t+1} = Δ_t + e_t − q_t,   so   Σ q_t = Σ Δ_t + e_0 − e_T

Q has one scale for each block of 256 numbers of a tensor. Rows would do as well for large layers,
but some rows here have three numbers, and a scale costs as much as four; one scale for a whole
tensor would round its small rows to nothing. A block costs 1.6 % whatever the shape.

Compressed parameters are parameters again, so that they travel as any others: integer tensors as
they are, and two tensors for all floating ones, whose names no model can have. Nothing in them says
how large they become: the receiver knows that from its own model, and refuses anything else.

Sources: Seide et al., Interspeech 2014 (error feedback); Karimireddy et al., ICML 2019,
https://arxiv.org/abs/1901.09847, algorithm 1; Alistarh et al., NeurIPS 2017,
https://arxiv.org/abs/1610.02132, section 4 (a scale for each block).
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import torch
import zstandard
from torch.nn import functional

from core.enums import Compression
from core.exceptions import ModelError, ProtocolError
from core.parameters import require_same_layout

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy.typing as npt

    from core.messages import Parameters

BLOCK: Final = 256
"""Numbers that share a scale; the last block of a tensor may have fewer."""

VALUES: Final = ".values"
SCALES: Final = ".scales"
"""No module or tensor of PyTorch has an empty name, so no name in a model starts with a dot."""

_LEVEL: Final = 1  # a higher one takes twice as long and gains nothing on such bytes
_SMALLEST_WINDOW_BYTES: Final = 1024
_LARGEST_INT8: Final = 127


class Sent(NamedTuple):
    """Both ends of a way, as the sender knows them.

    Attributes:
        travels: What is put into the message.
        arrives: What the receiver makes of it, to the bit.
        left: What was rounded off, to be added the next time; empty where nothing is.
    """

    travels: Parameters
    arrives: Parameters
    left: Parameters


def send(
    values: Parameters, start: Parameters, how: Compression, left: Parameters | None = None
) -> Sent:
    """Give what travels so that a receiver, which has `start`, comes near to `values`.

    Args:
        values: What the receiver should have.
        start: What it has already, in the same layout.
        how: In which form.
        left: What was rounded off before; nothing at first.

    Raises:
        ModelError: A number is not finite or beyond what float32 can scale, or a tensor's name
            starts with a dot; the message names the tensor.
    """
    match how:
        case Compression.NONE:
            return Sent(values, values, {})
        case Compression.ZSTD:
            return Sent(compress(values), values, {})
        case Compression.FP16 | Compression.INT8:
            return _send_rounded(values, start, how, left or {})


def receive(travelled: Parameters, start: Parameters, how: Compression) -> Parameters:
    """Give what the sender meant to arrive; see `send`, which has it as `arrives`.

    Raises:
        ProtocolError: `travelled` is not of the size and form that belong to `start`.
    """
    match how:
        case Compression.NONE:
            return travelled
        case Compression.ZSTD:
            return decompress(travelled, start)
        case Compression.FP16 | Compression.INT8:
            return _receive_rounded(travelled, start, how)


def compress(parameters: Parameters) -> Parameters:
    """Give `parameters` smaller, without loss; see `decompress`.

    Raises:
        ModelError: A tensor's name starts with a dot.
    """
    planes = [
        _planes(np.concatenate([_as_bytes(tensor) for _, tensor in group]), dtype.itemsize)
        for dtype, group in _by_dtype(parameters)
    ]
    return {VALUES: _deflated(planes), **_integers(parameters)}


def decompress(found: Parameters, layout: Parameters) -> Parameters:
    """Give what `compress` was given, to the bit.

    Args:
        found: What it gave.
        layout: Tensors of the expected names, shapes and dtypes; their values are not looked at.

    Raises:
        ProtocolError: `found` does not become that; no more memory is taken than that needs.
    """
    _require_form(found, {VALUES}, layout)
    groups = [(dtype, list(group)) for dtype, group in _by_dtype(layout)]
    content = _inflated(found[VALUES], sum(_size_bytes(group) for _, group in groups))
    restored: Parameters = {}
    begin = 0
    for dtype, group in groups:
        end = begin + _size_bytes(group)
        flat = _unplaned(content[begin:end], dtype.itemsize).view(dtype)
        restored |= _cut(flat, group)
        begin = end
    return _ordered(restored, found, layout)


def _send_rounded(
    values: Parameters, start: Parameters, how: Compression, left: Parameters
) -> Sent:
    quantised, scales = [], []
    arrives, rest = _integers(values), {}
    for name, tensor in _floating(values):
        meant = tensor.to(torch.float64)
        if name in left:
            meant = meant + left[name]
        numbers, scale = _quantise(meant - start[name], how)
        if not bool(torch.isfinite(scale).all()):
            raise ModelError(
                f"{name!r} holds values that are not finite, or too large for {how.value}: "
                "training diverged; lower training.learning_rate or set training.gradient_clip"
            )
        quantised.append(numbers.numpy())
        scales.append(scale)
        arrives[name] = _moved(start[name], numbers, scale)
        rest[name] = (meant - arrives[name]).to(_memory_dtype(tensor))
    planes = _planes(_joined(quantised).view(np.uint8), _number(how).itemsize)
    travels = {
        VALUES: _deflated([planes]),
        SCALES: torch.cat([torch.empty(0), *scales]),
        **_integers(values),
    }
    return Sent(travels, {name: arrives[name] for name in values}, rest)


def _receive_rounded(travelled: Parameters, start: Parameters, how: Compression) -> Parameters:
    _require_form(travelled, {VALUES, SCALES}, start)
    layout = _floating(start)
    scales = travelled[SCALES]
    sizes = [-(-tensor.numel() // BLOCK) for _, tensor in layout]
    if scales.dtype is not torch.float32 or scales.shape != (sum(sizes),):
        raise ProtocolError(
            f"{SCALES!r} is {scales.dtype} {tuple(scales.shape)}, expected float32 of {sum(sizes)}"
        )
    number = _number(how)
    content = _inflated(travelled[VALUES], sum(t.numel() for _, t in layout) * number.itemsize)
    numbers = _unplaned(content, number.itemsize).view(number)
    pieces = torch.split(numbers, [tensor.numel() for _, tensor in layout])
    restored = {
        name: _moved(tensor, piece, scale)
        for (name, tensor), piece, scale in zip(
            layout, pieces, torch.split(scales, sizes), strict=True
        )
    }
    return _ordered(restored, travelled, start)


def _quantise(delta: torch.Tensor, how: Compression) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the rounded numbers in units of their blocks' scales, and these; halves become even.

    The scale is the block's largest number by 127 for int8, and the power of two above it for fp16,
    whose own exponents then reach 2^24 below that.
    """
    flat = delta.reshape(-1)
    blocks = functional.pad(flat, (0, -len(flat) % BLOCK)).reshape(-1, BLOCK)
    largest = blocks.abs().amax(dim=1)
    if how is Compression.INT8:
        scale = (largest / _LARGEST_INT8).to(torch.float32)
    else:
        scale = torch.where(
            largest > 0, torch.exp2(torch.frexp(largest).exponent.double()), largest
        )
        scale = torch.where(torch.isfinite(largest), scale, largest).to(torch.float32)
    units = blocks / torch.where(scale > 0, scale, 1.0).to(torch.float64).unsqueeze(1)
    if how is Compression.INT8:
        units = units.round().clamp(-_LARGEST_INT8, _LARGEST_INT8)
    return units.reshape(-1)[: len(flat)].to(_number(how)), scale


def _moved(start: torch.Tensor, numbers: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Give start + scale · numbers in the dtype of `start`; the same bits on either side."""
    padded = functional.pad(numbers, (0, -len(numbers) % BLOCK)).reshape(-1, BLOCK)
    delta = padded.to(torch.float64) * scale.to(torch.float64).unsqueeze(1)
    moved = start.to(torch.float64) + delta.reshape(-1)[: len(numbers)].reshape(start.shape)
    return moved.to(start.dtype)


def _number(how: Compression) -> torch.dtype:
    return torch.int8 if how is Compression.INT8 else torch.float16


def _memory_dtype(tensor: torch.Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _floating(parameters: Parameters) -> list[tuple[str, torch.Tensor]]:
    """Give the floating tensors in the order in which they travel."""
    for name in parameters:
        if name.startswith("."):
            raise ModelError(
                f"the tensor's name {name!r} starts with a dot; rename it in the model"
            )
    return sorted((name, t) for name, t in parameters.items() if t.is_floating_point())


def _integers(parameters: Parameters) -> Parameters:
    return {name: t for name, t in parameters.items() if not t.is_floating_point()}


def _by_dtype(
    parameters: Parameters,
) -> Iterator[tuple[torch.dtype, Iterable[tuple[str, torch.Tensor]]]]:
    ordered = sorted(_floating(parameters), key=lambda item: str(item[1].dtype))
    return groupby(ordered, key=lambda item: item[1].dtype)


def _size_bytes(group: Sequence[tuple[str, torch.Tensor]]) -> int:
    return sum(tensor.numel() * tensor.element_size() for _, tensor in group)


def _cut(flat: torch.Tensor, group: Sequence[tuple[str, torch.Tensor]]) -> Parameters:
    pieces = torch.split(flat, [tensor.numel() for _, tensor in group])
    return {
        name: piece.reshape(tensor.shape)
        for (name, tensor), piece in zip(group, pieces, strict=True)
    }


def _ordered(restored: Parameters, found: Parameters, layout: Parameters) -> Parameters:
    """Give all tensors in the order of the model."""
    return {name: restored[name] if name in restored else found[name] for name in layout}


def _require_form(found: Parameters, coded: set[str], layout: Parameters) -> None:
    """Do nothing when `found` has the coded tensors, and the integer ones of `layout`."""
    if not coded <= found.keys():
        raise ProtocolError(f"compressed parameters lack {', '.join(sorted(coded - found.keys()))}")
    rest = {name: tensor for name, tensor in found.items() if name not in coded}
    try:
        require_same_layout(rest, _integers(layout), whose="compressed parameters")
    except ModelError as exc:
        raise ProtocolError(str(exc)) from exc


def _as_bytes(tensor: torch.Tensor) -> npt.NDArray[np.uint8]:
    plain = tensor.detach().cpu().resolve_neg().contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy()


def _joined(arrays: Sequence[npt.NDArray[np.generic]]) -> npt.NDArray[np.generic]:
    return np.concatenate(arrays) if arrays else np.empty(0, np.uint8)


def _planes(flat: npt.NDArray[np.uint8], itemsize: int) -> npt.NDArray[np.uint8]:
    """Give the first byte of every number, then the second of every one, and so on."""
    return np.ascontiguousarray(flat.reshape(-1, itemsize).T).reshape(-1)


def _unplaned(content: npt.NDArray[np.uint8], itemsize: int) -> torch.Tensor:
    """Undo `_planes`, into memory of its own."""
    return torch.from_numpy(np.array(content.reshape(itemsize, -1).T, order="C").reshape(-1))


def _deflated(planes: Sequence[npt.NDArray[np.uint8]]) -> torch.Tensor:
    content = np.concatenate(planes) if planes else np.empty(0, np.uint8)
    blob = zstandard.ZstdCompressor(level=_LEVEL).compress(content.data)
    return torch.frombuffer(bytearray(blob), dtype=torch.uint8)


def _inflated(blob: torch.Tensor, size_bytes: int) -> npt.NDArray[np.uint8]:
    """Give the content of one frame, which must be of this size.

    What the frame says of itself is judged before memory is taken: a few bytes can claim any size.
    """
    if blob.dtype is not torch.uint8 or blob.dim() != 1:
        raise ProtocolError(f"{VALUES!r} is {blob.dtype} {tuple(blob.shape)}, expected bytes")
    frame = blob.numpy().tobytes()
    try:
        claimed = zstandard.get_frame_parameters(frame)
        if claimed.content_size != size_bytes:
            raise ProtocolError(
                f"compressed parameters become {claimed.content_size} bytes, expected "
                f"{size_bytes}; is it the same model type with the same options?"
            )
        if claimed.window_size > max(size_bytes, _SMALLEST_WINDOW_BYTES):
            raise ProtocolError(
                f"compressed parameters ask for {claimed.window_size} bytes at once"
            )
        content = zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as exc:
        raise ProtocolError(f"compressed parameters cannot be read: {exc}") from exc
    if len(content) != size_bytes:
        raise ProtocolError(f"compressed parameters are {len(content)} bytes, not {size_bytes}")
    return np.frombuffer(content, np.uint8)
