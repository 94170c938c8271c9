"""DP-SGD: one site's share of one round, of which a unit's presence can hardly be told.

In each step every unit, a window or a machine, is taken with probability q. Its gradient g is
shortened to a norm C, and

    Σ g min(1, C / ‖g‖) + N(0, σ² C²)

over q n, which is how many are taken on average, goes to the optimiser. Abadi et al., CCS 2016,
https://arxiv.org/abs/1607.00133, algorithm 1. Per-example gradients and their clipping are
Opacus'. A step in which nobody is taken has noise alone, for whether one was is a secret too. What
the algorithm adds comes after the noise, and looks at no data.

A unit's loss is its own: it is not divided by anything of the batch, which would mix the units.
The gradient of a machine is the mean over its windows, or over some of them where it has many.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import numpy as np
import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer

from core.exceptions import ModelError
from datasite.training.fit import Fitted, build_optimizer, losses
from datasite.training.noise import SecretRandom

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from core.messages import TrainingSettings
    from core.privacy import DifferentialPrivacy
    from datasite.mechanism import Mechanism
    from datasite.training.objectives import Objective
    from datasite.training.tensors import Tensors

_ROOM_BYTES: Final = 2**26
"""For the gradients of the examples that are looked at together."""

_WINDOWS_OF_A_MACHINE: Final = 64
"""The most that are looked at in a step, any of them."""

_ROUNDING: Final = 1e-5
"""By so much a norm is kept below the clipping norm, relative to it: what float32 rounds off in
norms and sums then does not make a unit count for more than the noise is made for."""


class Batch(NamedTuple):
    """Windows whose gradients are taken together.

    Attributes:
        windows: (n,) int64, which of the training part.
        owners: (n,) int64, whose each is, among the units of the batch.
        units: How many these are.
    """

    windows: torch.Tensor
    owners: torch.Tensor
    units: int


class Units(Protocol):
    """What a step takes."""

    def batches(self, chosen: torch.Tensor, room: int) -> Iterator[Batch]:
        """Give the units `chosen` in batches of about `room` windows."""


class Windows:
    """Each training window is a unit."""

    def batches(self, chosen: torch.Tensor, room: int) -> Iterator[Batch]:
        """See `Units`."""
        for piece in torch.split(chosen, room):
            if len(piece):
                yield Batch(piece, torch.arange(len(piece)), len(piece))


class Machines:
    """All training windows of a machine are a unit.

    Args:
        machines: (n,) int64, whose each training window is.
        secret: Chooses among the windows of a machine.
    """

    def __init__(self, machines: torch.Tensor, secret: SecretRandom) -> None:
        self._secret = secret
        order = np.argsort(machines.numpy(), kind="stable")
        _, first = np.unique(machines.numpy()[order], return_index=True)
        self._windows = [torch.from_numpy(part) for part in np.split(order, first[1:])]

    def batches(self, chosen: torch.Tensor, room: int) -> Iterator[Batch]:
        """See `Units`."""
        for piece in torch.split(chosen, max(1, room // _WINDOWS_OF_A_MACHINE)):
            if not len(piece):
                continue
            found = [self._some(int(machine)) for machine in piece]
            owners = torch.repeat_interleave(torch.tensor([len(each) for each in found]))
            yield Batch(torch.cat(found), owners, len(piece))

    def _some(self, machine: int) -> torch.Tensor:
        windows = self._windows[machine]
        return windows[self._secret.some(len(windows), _WINDOWS_OF_A_MACHINE)]


def fit_privately(
    model: nn.Module,
    data: Tensors,
    *,
    settings: TrainingSettings,
    positive_weight: float,
    objective: Objective,
    privacy: DifferentialPrivacy,
    mechanism: Mechanism,
) -> Fitted:
    """Train `model` in place; see `datasite.training.fit.fit` for what is not said here.

    What is drawn at random is secret: there is no seed, and two fits differ.

    Args:
        model: Gives logits (batch, 2).
        data: Windows and labels to train on.
        settings: Optimiser and its settings; epochs and batch size are in the mechanism already.
        positive_weight: Weight of a failure in the loss.
        objective: What the algorithm adds to the gradient.
        privacy: Clipping norm and unit.
        mechanism: How often units are taken, and how much noise is added.

    Raises:
        ModelError: The model has no gradients by example: it has buffers, or a part that takes no
            part.
    """
    secret = SecretRandom()
    units = Machines(data.machines, secret) if privacy["unit"] == "machine" else Windows()
    weights = torch.tensor([1.0, positive_weight])
    hooked = _hooked(model)
    optimizer = _Noisy(
        build_optimizer(list(model.parameters()), settings), secret, privacy, mechanism
    )
    model.train()
    try:
        for _ in range(mechanism["steps"]):
            chosen = secret.chosen(mechanism["units"], mechanism["sample_rate"])
            for batch in units.batches(chosen, optimizer.room):
                labels = data.labels[batch.windows]
                # Hooks on a layer's gradient warn where its input has none.
                inputs = data.windows(data.starts[batch.windows]).requires_grad_()
                logits = hooked(inputs)
                each = weights[labels] * losses(logits, labels, settings["focal_gamma"])
                shares = torch.bincount(batch.owners, minlength=batch.units)[batch.owners]
                (each / shares).sum().backward()  # type: ignore[no-untyped-call]
                optimizer.take(batch)
            optimizer.make_gradient()
            objective.correct_gradients(model)
            optimizer.original_optimizer.step()
    finally:
        hooked.remove_hooks()
    return Fitted(num_samples=len(data.labels), num_steps=mechanism["steps"], train_loss=None)


class _Noisy(DPOptimizer):  # type: ignore[misc]  # Opacus' own types do not check
    """Opacus' optimiser, with noise from a secret source, and gradients by unit.

    Attributes:
        room: How many windows may be looked at together.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        secret: SecretRandom,
        privacy: DifferentialPrivacy,
        mechanism: Mechanism,
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=mechanism["noise_multiplier"],
            max_grad_norm=privacy["clip_norm"] * (1 - _ROUNDING),
            expected_batch_size=None,
            loss_reduction="sum",
        )
        self._secret = secret
        self._deviation = mechanism["noise_multiplier"] * privacy["clip_norm"]
        self._expected = mechanism["units"] * mechanism["sample_rate"]
        size_bytes = sum(p.numel() * p.element_size() for p in self.params)
        self.room = max(1, _ROOM_BYTES // max(1, size_bytes))

    def take(self, batch: Batch) -> None:
        """Shorten and add up the gradients of a batch's units.

        Raises:
            ModelError: A parameter has none by example.
        """
        try:
            gradients = self.grad_samples
        except ValueError as exc:
            raise ModelError(
                "the model has a part that takes no part in its answer, and so no gradient for "
                "each example; choose another model, or another privacy level"
            ) from exc
        gradients = [_by_unit(gradient, batch) for gradient in gradients]
        # One that is not finite would make all parameters so, and the failure would tell of it.
        finite = torch.stack([g.flatten(1).isfinite().all(dim=1) for g in gradients]).all(dim=0)
        for parameter, gradient in zip(self.params, gradients, strict=True):
            gradient[~finite] = 0.0
            parameter.grad_sample = gradient
        self.clip_and_accumulate()
        for parameter in self.params:
            parameter.grad_sample = None

    def make_gradient(self) -> None:
        """Add the noise, and give each parameter its share of a step's gradient."""
        for p in self.params:
            noise = self._secret.gaussian(p.shape, self._deviation)
            total = noise if p.summed_grad is None else p.summed_grad.double() + noise
            p.grad = (total / self._expected).to(p.dtype)
            p.summed_grad = None


def _by_unit(gradient: torch.Tensor, batch: Batch) -> torch.Tensor:
    if batch.units == len(gradient):
        return gradient
    total = gradient.new_zeros(batch.units, *gradient.shape[1:])
    return total.index_add_(0, batch.owners, gradient)


def _hooked(model: nn.Module) -> GradSampleModule:
    try:
        return GradSampleModule(model, batch_first=True, loss_reduction="sum", strict=True)
    except NotImplementedError as exc:
        raise ModelError(
            f"{type(model).__name__} has layers with buffers, which mix the examples of a batch; "
            "choose another model, or another privacy level"
        ) from exc
