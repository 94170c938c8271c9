"""Residual convolutions along the steps of a window, and a recurrence over what they find."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn
from torch.nn import functional

from core.models.base import Option, TorchModel
from core.models.blocks import (
    BINS,
    CENTRED,
    Encoding,
    Recurrence,
    ResidualConvolution,
    StepConvolution,
    StepNorm,
    open_forget_gates,
)

if TYPE_CHECKING:
    from collections.abc import Mapping


class Hybrid(TorchModel):
    """The CNN's convolutions, one LSTM layer over their steps, and a linear head.

    Convolutions see shapes of a few steps, the recurrence what they add up to. The head sees the
    hidden state after the last step, whose label is asked for, beside the mean over the window.
    Kernels are cut to `window_steps - 1` steps of reach, as in the CNN; at a window of 1 there are
    no recurrent weights, as in the LSTM.

    Args:
        sensors: Features of one step.
        window_steps: Steps of one window.
        classes: Logits of one window.
        channels: Features of one step in the convolutions.
        blocks: Residual blocks.
        reach: Steps that each convolution sees to either side of its own.
        hidden: Features of the recurrence's state.
        bins: Bins of each sensor's encoding; see `Encoding`.
        centred: 1 when they are counted from 0 deviations.

    Source: Hochreiter & Schmidhuber, Neural Computation 9(8), 1997, for the recurrence.
    """

    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "channels": Option(default=64, minimum=2, maximum=1024),
        "blocks": Option(default=1, minimum=1, maximum=32),
        "reach": Option(default=1, minimum=0, maximum=32),
        "hidden": Option(default=64, minimum=2, maximum=1024),
        "bins": BINS,
        "centred": CENTRED,
    }

    def __init__(
        self,
        *,
        sensors: int,
        window_steps: int,
        classes: int,
        channels: int,
        blocks: int,
        reach: int,
        hidden: int,
        bins: int,
        centred: int,
    ) -> None:
        super().__init__()
        reach = min(reach, window_steps - 1)
        self.encoding = Encoding(bins, centred)
        self.stem = StepConvolution(sensors * (1 + bins), channels, reach)
        self.blocks = nn.Sequential(*(ResidualConvolution(channels, reach) for _ in range(blocks)))
        self.norm = StepNorm(channels)
        self.recurrence = Recurrence(channels, hidden, window_steps)
        self.head = nn.Linear(2 * hidden, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `x: (batch, window, sensors) float32, z-scored per sensor` to logits.

        Returns:
            `(batch, classes)` float32, before any softmax.
        """
        found = functional.silu(self.norm(self.blocks(self.stem(self.encoding(x).transpose(1, 2)))))
        h = self.recurrence(found.transpose(1, 2))
        logits: torch.Tensor = self.head(torch.cat([h[:, -1], h.mean(dim=1)], dim=1))
        return logits

    def initialise(self, generator: torch.Generator) -> None:
        """Draw as `TorchModel` says; the forget gate starts open."""
        super().initialise(generator)
        open_forget_gates(self)
