"""The algebra of parameters: one obvious function each; algorithms have no loops over names.

Sums run in float64 and are cast back to each tensor's own dtype. Integer tensors (counters) are
never averaged: the largest is taken.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import wraps
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from core.arena import scratch
from core.exceptions import AggregationError, ModelError
from core.messages import Parameters

_BLOCK: Final = 1 << 15
"""Numbers that are worked on at once, in the processor's cache."""

_LARGE_BYTES: Final = 1 << 20

Numbers = npt.NDArray[Any]


Shapes = tuple[tuple[str, torch.Size], ...]


class Laid(Parameters):
    """Parameters of one dtype that lie one after the other in memory, as they come from the wire.

    What is done to all of them is then done at once: a model has a dozen tensors and more, and
    where they are small, to go from one to the next takes longer than the arithmetic. The single
    tensors are made when somebody first looks for one, which in most of a round nobody does.

    Args:
        shapes: Names and shapes in the order in which they lie.
        flat: The memory, of one dimension.

    Attributes:
        shapes: Likewise.
        flat: Likewise.
    """

    _is_made = True  # of one that is being unpickled, whose tensors are put in one by one

    def __init__(self, shapes: Shapes, flat: torch.Tensor) -> None:
        super().__init__()
        self.shapes = shapes
        self.flat = flat
        self._is_made = False

    def make(self) -> None:
        """Have the tensors there; again does nothing, and any number of threads may call it."""
        if not self._is_made:
            parts = torch.split(self.flat, [shape.numel() for _, shape in self.shapes])
            for (name, shape), part in zip(self.shapes, parts, strict=True):
                dict.__setitem__(self, name, part.view(shape))
            self._is_made = True


def _looking(method: Callable[..., Any]) -> Callable[..., Any]:
    """Give a method of `dict` that finds the tensors made."""

    @wraps(method)
    def look(own: Laid, *others: Any) -> Any:  # noqa: ANN401 - whatever a dict's method takes
        own.make()
        return method(own, *others)

    return look


def _changing(method: Callable[..., Any]) -> Callable[..., Any]:
    """Give a method of `dict` after which the tensors are no longer those in the memory."""

    @wraps(method)
    def change(own: Laid, *others: Any, **named: Any) -> Any:  # noqa: ANN401 - likewise
        own.make()
        own.shapes = ()
        return method(own, *others, **named)

    return change


for _name in (
    *("__contains__", "__eq__", "__getitem__", "__iter__", "__len__", "__ne__", "__or__"),
    *("__repr__", "__reversed__", "__ror__", "copy", "get", "items", "keys", "values"),
):
    setattr(Laid, _name, _looking(getattr(dict, _name)))
for _name in (
    *("__delitem__", "__ior__", "__setitem__", "clear", "pop", "popitem", "setdefault", "update"),
):
    setattr(Laid, _name, _changing(getattr(dict, _name)))


def laid(parameters: Parameters) -> Laid | None:
    """Give parameters that lie one after the other as such; None when they do not."""
    return parameters if isinstance(parameters, Laid) and parameters.shapes else None


def copied(parameters: Parameters) -> Parameters:
    """Give a copy on the CPU, which lies as it travels where all tensors are of one dtype."""
    plain = {name: tensor.detach().cpu() for name, tensor in sorted(parameters.items())}
    dtypes = {tensor.dtype for tensor in plain.values()}
    if len(dtypes) != 1:
        return {name: tensor.clone() for name, tensor in plain.items()}
    shapes = tuple((name, tensor.shape) for name, tensor in plain.items())
    lying = Laid(shapes, _empty(sum(shape.numel() for _, shape in shapes), dtypes.pop()))
    for name, tensor in plain.items():
        lying[name].copy_(tensor)
    return lying


def cloned(parameters: Parameters) -> Parameters:
    """Give a copy on the same device, which lies one after the other if `parameters` do."""
    lying = laid(parameters)
    if lying is not None and lying.flat.device.type == "cpu":
        return Laid(lying.shapes, _copied(lying.flat, lying.flat.dtype))
    return {name: tensor.detach().clone() for name, tensor in parameters.items()}


def runs(left: Parameters, right: Parameters) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Give the tensors of both, side by side; both have one layout, whatever their dtypes."""
    ours, theirs = laid(left), laid(right)
    if ours is not None and theirs is not None and ours.shapes == theirs.shapes:
        yield ours.flat, theirs.flat
        return
    for name, tensor in left.items():
        yield tensor, right[name]


def weighted_sum(terms: Sequence[Parameters], weights: Sequence[float]) -> Parameters:
    """Give Σ_k `weights[k]` · `terms[k]`, tensor by tensor; integer tensors give their maximum.

    All terms have one layout (see `require_same_layout`). The terms are added in the order given.
    """
    first = terms[0]
    return {name: _weighted_tensor([term[name] for term in terms], weights) for name in first}


def _weighted_tensor(tensors: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    if not tensors[0].is_floating_point():
        return torch.stack(list(tensors)).amax(dim=0)
    # Starting from the first term and not from 0 keeps a -0.0: one site alone is bit-equal.
    total = tensors[0].to(torch.float64) * weights[0]
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        total.add_(tensor.to(torch.float64), alpha=weight)
    return total.to(tensors[0].dtype)


def as_float64(parameters: Parameters) -> Parameters:
    """Give a copy whose floating tensors are float64, for sums that must not round early.

    Integer tensors keep their dtype. The copy has memory of its own.
    """
    lying = laid(parameters)
    if lying is not None and lying.flat.is_floating_point():
        return Laid(lying.shapes, _copied(lying.flat, torch.float64))
    return {
        name: tensor.to(torch.float64, copy=True, memory_format=torch.contiguous_format)
        if tensor.is_floating_point()
        else tensor.clone()
        for name, tensor in parameters.items()
    }


def _copied(flat: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return _empty(flat.numel(), dtype).copy_(flat)


def _empty(numel: int, dtype: torch.dtype) -> torch.Tensor:
    """Give memory, such as was used before where it is much."""
    size_bytes = numel * dtype.itemsize
    if size_bytes < _LARGE_BYTES:
        return torch.empty(numel, dtype=dtype)
    return torch.frombuffer(scratch().allocate(size_bytes), dtype=dtype)


def cast_like(parameters: Parameters, like: Parameters) -> Parameters:
    """Give a copy in the dtypes of `like`, as they travel to sites; undoes `as_float64`.

    A number that is too large for its new dtype becomes infinite (see `require_finite`).

    Raises:
        ModelError: The names differ, or a floating tensor would become an integer one.
    """
    lying, target = laid(parameters), laid(like)
    if (
        lying is not None
        and target is not None
        and lying.shapes == target.shapes
        and lying.flat.is_floating_point() == target.flat.is_floating_point()
    ):
        return Laid(target.shapes, _copied(lying.flat, target.flat.dtype))
    if parameters.keys() != like.keys():
        different = sorted(parameters.keys() ^ like.keys())
        raise ModelError(f"cannot cast: only one side has {', '.join(different)}")
    for name, tensor in parameters.items():
        if tensor.is_floating_point() and not like[name].is_floating_point():
            raise ModelError(
                f"cannot cast {name!r} from {tensor.dtype} to {like[name].dtype}: "
                "counters are not averaged; take their maximum"
            )
    return {name: tensor.to(like[name].dtype, copy=True) for name, tensor in parameters.items()}


def difference(left: Parameters, right: Parameters) -> Parameters:
    """Give left − right in float64, of the floating tensors only: the delta of a site.

    Both have one layout (see `require_same_layout`), whatever their dtypes.
    """
    return {
        name: tensor.to(torch.float64) - right[name].to(torch.float64)
        for name, tensor in left.items()
        if tensor.is_floating_point()
    }


def add_scaled(total: torch.Tensor, tensor: torch.Tensor, factor: float) -> None:
    """Add factor · tensor to `total`, which is float64, in its place and block by block.

    At once, a copy of all of `tensor` in float64 would be made first. It is numpy's work, because
    each call of PyTorch's costs several times what a small model's arithmetic does.
    """
    sums, terms = total.view(-1).numpy(), _numbers(tensor)
    with np.errstate(all="ignore"):  # what is not finite is for whoever asks
        for begin in range(0, len(terms), _BLOCK):
            term = terms[begin : begin + _BLOCK].astype(np.float64)
            if factor != 1.0:
                term *= factor
            sums[begin : begin + _BLOCK] += term


def _numbers(tensor: torch.Tensor) -> Numbers:
    """Give a tensor's numbers in its own memory, or exact ones where numpy has no such kind."""
    plain = tensor.detach().reshape(-1)
    if plain.dtype is torch.bfloat16:
        plain = plain.to(torch.float32)
    numbers: Numbers = plain.numpy()
    return numbers


def l2_norm(parameters: Parameters) -> float:
    """Give √Σ x² over all floating tensors as one vector, in float64; 0.0 if there are none."""
    return math.hypot(
        *(
            float(torch.linalg.vector_norm(tensor, dtype=torch.float64))
            for tensor in parameters.values()
            if tensor.is_floating_point()
        )
    )


def distance(left: Parameters, right: Parameters) -> float:
    """Give the l2 norm of left − right over all floating tensors, in float64.

    Both have one layout. It is found block by block, in the processor's cache and not in memory
    twice the size of the model.
    """
    total = 0.0
    with np.errstate(all="ignore"):  # what is not finite makes the distance so
        for tensor, other in runs(left, right):
            if tensor.is_floating_point():
                ours, theirs = _numbers(tensor), _numbers(other)
                for begin in range(0, len(ours), _BLOCK):
                    end = begin + _BLOCK
                    delta = np.subtract(ours[begin:end], theirs[begin:end], dtype=np.float64)
                    total += float(delta.dot(delta))
    return math.sqrt(total) if total >= 0 else math.nan


def add(left: Parameters, right: Parameters) -> Parameters:
    """Give left + right in float64, of the floating tensors that `right` has."""
    return {
        name: left[name].to(torch.float64) + tensor.to(torch.float64)
        for name, tensor in right.items()
        if tensor.is_floating_point()
    }


def scale(parameters: Parameters, factor: float) -> Parameters:
    """Give factor · parameters in float64, of the floating tensors only."""
    return {
        name: factor * tensor.to(torch.float64)
        for name, tensor in parameters.items()
        if tensor.is_floating_point()
    }


def moved(parameters: Parameters, step: float) -> Parameters:
    """Give parameters + step in their own dtypes, of floating tensors; others as they are."""
    lying = laid(parameters)
    if lying is not None and lying.flat.is_floating_point():
        return Laid(lying.shapes, lying.flat + step)
    return {
        name: tensor + step if tensor.is_floating_point() else tensor
        for name, tensor in parameters.items()
    }


def zeros_like(parameters: Parameters) -> Parameters:
    """Give zeros in float64 for each floating tensor."""
    return {
        name: torch.zeros_like(tensor, dtype=torch.float64)
        for name, tensor in parameters.items()
        if tensor.is_floating_point()
    }


def require_same_layout(found: Parameters, expected: Parameters, *, whose: str) -> None:
    """Do nothing when both have the same names, shapes and dtypes.

    Raises:
        ModelError: They differ; the message starts with `whose` and names the tensor.
    """
    ours, theirs = laid(found), laid(expected)
    if (
        ours is not None
        and theirs is not None
        and (ours.shapes, ours.flat.dtype) == (theirs.shapes, theirs.flat.dtype)
    ):
        return
    missing, unknown = expected.keys() - found.keys(), found.keys() - expected.keys()
    if missing or unknown:
        raise ModelError(
            f"{whose}: the parameters do not fit: missing {sorted(missing)}, "
            f"unknown {sorted(unknown)}; is it the same model type with the same options?"
        )
    for name, tensor in expected.items():
        got = found[name]
        if (got.shape, got.dtype) != (tensor.shape, tensor.dtype):
            raise ModelError(
                f"{whose}: {name!r} is {got.dtype} {tuple(got.shape)}, "
                f"expected {tensor.dtype} {tuple(tensor.shape)}"
            )


def require_finite(parameters: Parameters, *, whose: str) -> None:
    """Do nothing when every number is finite.

    Raises:
        ModelError: One is NaN or infinite; the message starts with `whose` and names the tensor.
    """
    lying = laid(parameters)
    if lying is not None and bool(torch.isfinite(lying.flat).all()):
        return
    for name, tensor in parameters.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelError(
                f"{whose}: {name!r} holds values that are not finite: training diverged; "
                "lower training.learning_rate or set training.gradient_clip"
            )


def largest_difference(left: Parameters, right: Parameters) -> float:
    """Give max |left − right| over all floating tensors; NaN if any is, 0.0 if there are none."""
    require_same_layout(left, right, whose="right operand")
    differences = [
        float((left[name] - right[name]).abs().max())
        for name in left
        if left[name].is_floating_point() and left[name].numel()
    ]
    return math.nan if any(map(math.isnan, differences)) else max(differences, default=0.0)


def digest(parameters: Parameters) -> str:
    """Give the SHA-256 of names, dtypes, shapes and bytes: equal exactly when bit-equal."""
    sha = hashlib.sha256()
    for name in sorted(parameters):
        tensor = parameters[name].detach().contiguous()
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def count(parameters: Iterable[torch.Tensor]) -> int:
    """Give the number of scalars."""
    return sum(tensor.numel() for tensor in parameters)


def require_updates(num_updates: int) -> None:
    """Do nothing when there is something to aggregate.

    Raises:
        AggregationError: There is nothing.
    """
    if num_updates == 0:
        raise AggregationError("no updates to aggregate: no site answered this round")
