"""The algebra of parameters: one obvious function each; algorithms have no loops over names.

Sums run in float64 and are cast back to each tensor's own dtype. Integer tensors (counters) are
never averaged: the largest is taken.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence

import torch

from core.exceptions import AggregationError, ModelError
from core.messages import Parameters


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


def require_same_layout(found: Parameters, expected: Parameters, *, whose: str) -> None:
    """Do nothing when both have the same names, shapes and dtypes.

    Raises:
        ModelError: They differ; the message starts with `whose` and names the tensor.
    """
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
