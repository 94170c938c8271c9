"""Gradient inversion: the rows of a site, from one update of it. For windows of one row.

The attacker has the model, the parameters that the site received, how rows are standardised, the
ranges of the schema, how the site trains, how many rows there are and, to make it easy, their
labels. Two attacks:

*Span.* The first layer is linear in the encoded row a = (e(x), 1). The gradient of its weight and
bias is Σ δ_i a_iᵀ over the rows of a batch, so that its row space is spanned by what the rows are
encoded as, unless they are more than the layer has outputs. Every row is where

    min over x of ‖a − V Vᵀ a‖² / ‖a‖²

is 0, V being the gradient's first n right singular vectors. Many starts, of which those that come
nearest and differ are kept.

*Matching.* Rows are looked for whose gradient g points where the site's change c points:

    min over x of 1 − ⟨g(x), c⟩ / (‖g(x)‖ ‖c‖)

with each row's gradient shortened to the plan's norm where the plan says so.

Sources: Zhu et al., NeurIPS 2019, https://arxiv.org/abs/1906.08935, and Geiping et al., NeurIPS
2020, https://arxiv.org/abs/2003.14053 (matching, the cosine); Dimitrov et al., NeurIPS 2024,
https://arxiv.org/abs/2403.03945, and Petrov et al., NeurIPS 2024, https://arxiv.org/abs/2405.15586
(batches from the low rank of a linear layer's gradient).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from core.messages import Parameters
from core.models.cnn import CNN

STEPS: Final = 200
_SPAN_STARTS: Final = 256
_MATCHING_STARTS: Final = 2
_RATE: Final = 0.05
"""Adam's first rate, in shares of each feature's range; it falls to 0."""

_LEAST_NORM: Final = 1e-12
_DIFFERENT: Final = 0.02
"""In the share of a feature's range; rows that are nearer in every feature are one."""

_FOUND: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the attacker has of one update.

    Attributes:
        model: The architecture.
        parameters: Those that the site received.
        change: Received minus returned parameters, without what decay of weights did.
        labels: (n,) of the rows to be found.
        class_weights: (2,) of the loss.
        low: (sensors,) least value of each feature, standardised.
        high: (sensors,) greatest.
        clip_norm: To which each row's gradient was shortened; None where none was.
    """

    model: CNN
    parameters: Parameters
    change: Parameters
    labels: torch.Tensor
    class_weights: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    clip_norm: float | None = None


def by_span(seen: Seen, *, seed: int) -> torch.Tensor:
    """Give the rows whose encodings the first layer's gradient is made of: (≤ n, 1, sensors)."""
    weight, bias = (seen.change[name] for name, _ in islice(seen.model.named_parameters(), 2))
    gradient = torch.cat([weight.flatten(1), bias.unsqueeze(1)], dim=1).double()
    basis = torch.linalg.svd(gradient, full_matrices=False).Vh[: len(seen.labels)].float()

    def outside(rows: torch.Tensor) -> torch.Tensor:
        encoded = functional.pad(seen.model.encoding(rows), (0, 1), value=1.0).flatten(1)
        beside = encoded - encoded @ basis.T @ basis
        return beside.square().sum(dim=1) / encoded.square().sum(dim=1)

    shares, apart = _descend(seen, outside, (_SPAN_STARTS, 1, len(seen.low)), seed)
    chosen: list[torch.Tensor] = []
    for share in shares[apart.argsort()]:
        if all((share - other).abs().max() > _DIFFERENT for other in chosen):
            chosen.append(share)
    return _rows(seen, torch.stack(chosen[: len(seen.labels)]))


def by_matching(seen: Seen, *, seed: int) -> torch.Tensor:
    """Give the rows whose gradient points where the change does: (n, 1, sensors)."""
    wanted = _flat({name: seen.change[name] for name in seen.parameters})
    wanted = wanted / wanted.norm().clamp_min(_LEAST_NORM)

    def apart(rows: torch.Tensor) -> torch.Tensor:
        directions = vmap(lambda batch: _direction(seen, batch))(rows)
        return 1 - functional.cosine_similarity(directions, wanted, dim=1, eps=_LEAST_NORM)

    shape = (_MATCHING_STARTS, len(seen.labels), 1, len(seen.low))
    shares, remaining = _descend(seen, apart, shape, seed)
    return _rows(seen, shares[remaining.argmin()])


def _descend(
    seen: Seen,
    objective: Callable[[torch.Tensor], torch.Tensor],
    shape: tuple[int, ...],
    seed: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Descend from `shape[0]` random starts within the ranges; the best of each, and its value.

    Rows are given in shares of the ranges.
    """
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(shape, generator=generator).requires_grad_()
    optimizer = torch.optim.Adam([share], lr=_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    best, least = share.detach().clone(), torch.full((shape[0],), torch.inf)
    for _ in range(STEPS):
        optimizer.zero_grad(set_to_none=True)
        value = objective(_rows(seen, share))
        with torch.no_grad():
            is_better = value < least
            least = torch.where(is_better, value, least)
            best[is_better] = share[is_better]
        value.sum().backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            share.clamp_(0.0, 1.0)
    return best, least


def _rows(seen: Seen, share: torch.Tensor) -> torch.Tensor:
    return seen.low + (seen.high - seen.low) * share


def match(
    guess: torch.Tensor, truth: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor
) -> tuple[float, float]:
    """Pair each guess with a truth of its own, as near as may be; there may be more truths.

    Returns:
        The error Σ ‖guess − truth‖² / Σ ‖mean − truth‖², 0 where all is found exactly, and 1 where
        it is as good to guess the mean; and which share of the guesses are found: nearer to their
        truth than a tenth of `deviation`, over the features as root mean square.
    """
    guesses, truths = ((each - mean) / deviation for each in (guess, truth))
    apart = torch.cdist(guesses.flatten(1), truths.flatten(1)).square().numpy()
    mine, theirs = linear_sum_assignment(apart)
    error = apart[mine, theirs]
    found = np.sqrt(error / len(deviation)) < _FOUND
    return float(error.sum() / truths[theirs].square().sum()), float(found.mean())


def _direction(seen: Seen, rows: torch.Tensor) -> torch.Tensor:
    """Give the flat gradient of one step on `rows: (n, 1, sensors)`."""
    if seen.clip_norm is None:
        weights = seen.class_weights[seen.labels]
        return _flat(grad(_loss, argnums=1)(seen, seen.parameters, rows, seen.labels, weights))
    each = vmap(
        lambda row, label: grad(_loss, argnums=1)(
            seen,
            seen.parameters,
            row.unsqueeze(0),
            label.unsqueeze(0),
            seen.class_weights[label].unsqueeze(0),
        )
    )(rows, seen.labels)
    gradients = torch.cat([tensor.flatten(1) for tensor in each.values()], dim=1)
    norms = gradients.norm(dim=1, keepdim=True).clamp_min(_LEAST_NORM)
    return (gradients * (seen.clip_norm / norms).clamp_max(1.0)).sum(dim=0)


def _loss(
    seen: Seen,
    parameters: Parameters,
    rows: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    logits = functional_call(seen.model, parameters, (rows,))
    return (weights * functional.cross_entropy(logits, labels, reduction="none")).sum()


def _flat(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors.values()])
