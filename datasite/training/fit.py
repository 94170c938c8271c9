"""One site's share of one round: a number of epochs of mini-batch descent."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from core.exceptions import ConfigurationError
from core.messages import TrainingSettings
from datasite.training.objectives import Objective
from datasite.training.tensors import Tensors

_SMALLEST = 1e-12
"""A power below 1 has no gradient at 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """What a fit did.

    Attributes:
        num_samples: Windows trained on.
        num_steps: Optimiser steps really taken.
        train_loss: Mean loss over the last epoch, as far as it went; None where it is not told.
    """

    num_samples: int
    num_steps: int
    train_loss: float | None


def fit(
    model: nn.Module,
    data: Tensors,
    *,
    settings: TrainingSettings,
    positive_weight: float,
    objective: Objective,
    seed: int,
    stop_after_s: float = math.inf,
) -> Fitted:
    """Train `model` in place.

    The loss is cross entropy or, with a `focal_gamma` above 0, the focal loss, as a mean over the
    batch in which a failure weighs `positive_weight`. The data's gradient is clipped, then the
    objective adds its own part. The order of the batches comes from `seed` alone; nothing else is
    random.

    Args:
        model: Gives logits (batch, 2).
        data: Windows and labels to train on.
        settings: Epochs, batch size, optimiser and its settings.
        positive_weight: Weight of a failure in the loss; a non-failure has 1.
        objective: What the algorithm adds to the gradient.
        seed: Decides the order of the batches.
        stop_after_s: After so long no further step is taken; the first epoch is always whole, so
            that what is learned never rests on a few windows.
    """
    end = time.monotonic() + stop_after_s
    parameters = list(model.parameters())  # to walk the modules takes time, and each step would
    optimizer = build_optimizer(parameters, settings)
    weights = torch.tensor([1.0, positive_weight])
    generator = torch.Generator().manual_seed(seed)
    model.train()
    num_steps, total, seen = 0, 0.0, 0
    for epoch in range(settings["local_epochs"]):
        if epoch and time.monotonic() >= end:
            break
        total, seen = 0.0, 0
        order = torch.randperm(len(data.labels), generator=generator)
        starts = torch.split(data.starts[order], settings["batch_size"])
        batches = torch.split(data.labels[order], settings["batch_size"])
        for begins, labels in zip(starts, batches, strict=True):
            for parameter in parameters:
                parameter.grad = None
            logits = model(data.windows(begins))
            loss = mean_loss(logits, labels, weights, settings["focal_gamma"])
            loss.backward()  # type: ignore[no-untyped-call]
            if settings["gradient_clip"] is not None:
                nn.utils.clip_grad_norm_(parameters, settings["gradient_clip"])
            objective.correct_gradients(model)
            optimizer.step()
            num_steps += 1
            total += loss.item() * len(labels)
            seen += len(labels)
            if epoch and time.monotonic() >= end:
                break
    return Fitted(num_samples=len(data.labels), num_steps=num_steps, train_loss=total / seen)


def mean_loss(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, focal_gamma: float
) -> torch.Tensor:
    """Give Σ w_y (1 − p_y)^γ (−log p_y) / Σ w_y over the batch, p_y being the true class's.

    With γ = 0 it is cross entropy. Source: Lin et al., ICCV 2017, https://arxiv.org/abs/1708.02002.

    Args:
        logits: (n, classes).
        labels: (n,) int64.
        weights: (classes,), the w of each.
        focal_gamma: γ ≥ 0.
    """
    if focal_gamma == 0:
        return functional.cross_entropy(logits, labels, weight=weights)
    weight = weights[labels]
    return (weight * losses(logits, labels, focal_gamma)).sum() / weight.sum()


def losses(logits: torch.Tensor, labels: torch.Tensor, focal_gamma: float) -> torch.Tensor:
    """Give (1 − p_y)^γ (−log p_y) of each example: (n,); see `mean_loss`."""
    surprise = functional.cross_entropy(logits, labels, reduction="none")
    if focal_gamma == 0:
        return surprise
    # 1 − p as −expm1(−surprise): exact also where p is nearly 1.
    return (-torch.expm1(-surprise)).clamp_min(_SMALLEST) ** focal_gamma * surprise


def build_optimizer(
    parameters: Sequence[nn.Parameter], settings: TrainingSettings
) -> torch.optim.Optimizer:
    """Give a fresh optimiser: nothing is carried from one round to the next.

    It is fused: models are small here, and a step for each tensor cost a fifth of all training.

    Raises:
        ConfigurationError: Unknown name, or momentum where there is none.
    """
    rate, decay = settings["learning_rate"], settings["weight_decay"]
    if settings["optimizer"] == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=rate,
            momentum=settings["momentum"],
            weight_decay=decay,
            fused=True,
        )
    if settings["optimizer"] == "adam":
        if settings["momentum"]:
            raise ConfigurationError("training.momentum belongs to sgd; with adam leave it out")
        return torch.optim.Adam(parameters, lr=rate, weight_decay=decay, fused=True)
    raise ConfigurationError(
        f"training.optimizer {settings['optimizer']!r} is unknown; available: sgd, adam"
    )
