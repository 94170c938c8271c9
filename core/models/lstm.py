"""A residual network of recurrences along the steps of a window."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn
from torch.nn import functional

from core.models.base import Option, TorchModel
from core.models.blocks import BINS, CENTRED, Encoding, Recurrence, open_forget_gates

if TYPE_CHECKING:
    from collections.abc import Mapping


class _Layer(nn.Module):
    """h + recurrence(silu(norm(h))), for `h: (batch, window, hidden)`."""

    def __init__(self, hidden: int, window_steps: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.recurrence = Recurrence(hidden, hidden, window_steps)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        change: torch.Tensor = self.recurrence(functional.silu(self.norm(h)))
        return h + change


class LSTM(TorchModel):
    """A linear map into hidden features, residual LSTM layers, and a linear head.

    The head sees the last step, whose label is asked for, beside the mean over the window. Sums
    around the layers and a norm before each let gradients through from the first round on. At a
    window of 1 nothing recurs: a layer is then a gated one, without recurrent weights; beyond, the
    layout is the same for all windows.

    Args:
        sensors: Features of one step.
        window_steps: Steps of one window.
        classes: Logits of one window.
        hidden: Features of one step inside the network, and of each layer's state.
        layers: LSTM layers.
        bins: Bins of each sensor's encoding; see `Encoding`.
        centred: 1 when they are counted from 0 deviations.

    Source: Hochreiter & Schmidhuber, Neural Computation 9(8), 1997; see `Recurrence`.
    """

    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "hidden": Option(default=64, minimum=2, maximum=1024),
        "layers": Option(default=2, minimum=1, maximum=8),
        "bins": BINS,
        "centred": CENTRED,
    }

    def __init__(
        self,
        *,
        sensors: int,
        window_steps: int,
        classes: int,
        hidden: int,
        layers: int,
        bins: int,
        centred: int,
    ) -> None:
        super().__init__()
        self.encoding = Encoding(bins, centred)
        self.stem = nn.Linear(sensors * (1 + bins), hidden)
        self.layers = nn.Sequential(*(_Layer(hidden, window_steps) for _ in range(layers)))
        self.head = nn.Linear(2 * hidden, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `x: (batch, window, sensors) float32, z-scored per sensor` to logits.

        Returns:
            `(batch, classes)` float32, before any softmax.
        """
        h = functional.silu(self.layers(self.stem(self.encoding(x))))
        logits: torch.Tensor = self.head(torch.cat([h[:, -1], h.mean(dim=1)], dim=1))
        return logits

    def initialise(self, generator: torch.Generator) -> None:
        """Draw as `TorchModel` says; forget gates start open."""
        super().initialise(generator)
        open_forget_gates(self)
