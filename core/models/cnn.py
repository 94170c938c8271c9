"""A residual convolutional network along the steps of a window."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn
from torch.nn import functional

from core.models.base import Option, TorchModel
from core.models.blocks import BINS, CENTRED, Encoding, ResidualConvolution, StepConvolution

if TYPE_CHECKING:
    from collections.abc import Mapping


class CNN(TorchModel):
    """A convolution into channels, residual blocks, and a linear head.

    The head sees the last step, whose label is asked for, beside the mean over the window. Kernels
    are cut where they could only meet padding: `reach` is at most `window_steps - 1`. At a window
    of 1 the network works row by row; above `reach` steps the layout is the same for all windows.

    Args:
        sensors: Features of one step.
        window_steps: Steps of one window.
        classes: Logits of one window.
        channels: Features of one step inside the network.
        blocks: Residual blocks.
        reach: Steps that each convolution sees to either side of its own.
        bins: Bins of each sensor's encoding; see `Encoding`.
        centred: 1 when they are counted from 0 deviations.
    """

    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "channels": Option(default=64, minimum=2, maximum=1024),
        "blocks": Option(default=2, minimum=1, maximum=32),
        "reach": Option(default=1, minimum=0, maximum=32),
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
        bins: int,
        centred: int,
    ) -> None:
        super().__init__()
        reach = min(reach, window_steps - 1)
        self.encoding = Encoding(bins, centred)
        self.stem = StepConvolution(sensors * (1 + bins), channels, reach)
        self.blocks = nn.Sequential(*(ResidualConvolution(channels, reach) for _ in range(blocks)))
        self.head = nn.Linear(2 * channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `x: (batch, window, sensors) float32, z-scored per sensor` to logits.

        Returns:
            `(batch, classes)` float32, before any softmax.
        """
        h = functional.silu(self.blocks(self.stem(self.encoding(x).transpose(1, 2))))
        logits: torch.Tensor = self.head(torch.cat([h[:, :, -1], h.mean(dim=2)], dim=1))
        return logits
