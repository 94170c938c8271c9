"""What the architectures are made of: an encoding of numbers, a residual convolution, an LSTM."""

import torch
from torch import nn
from torch.nn import functional

from core.models.base import Option

BINS = Option(default=32, minimum=0, maximum=256)
"""Bins of the `Encoding`, an option of every architecture here."""

CENTRED = Option(default=0, minimum=0, maximum=1)
"""Whether the `Encoding` counts from 0, likewise."""

_SPAN = 6.0
"""The encoding's bins divide -3 to 3 deviations."""


class Encoding(nn.Module):
    """Give each number x beside how far it has come through each of `bins` equal bins.

        e_j(x) = clip((x - t_j) / (t_{j+1} - t_j), 0, 1),  t from -3 to 3 deviations

    `(batch, window, sensors)` to `(batch, window, sensors (1 + bins))`. Failures begin at limits
    (so many kelvin, so many watts); a layer after this one sets a limit with one weight, where it
    had to bend a line before. Nothing here is learned, nor taken from data. With 0 bins x is
    unchanged.

    Centred, e_j(0) is taken from e_j(x): what is usual lies near 0, and so are its inputs, by whose
    length a window's gradient is shortened under differential privacy.

    Source: Gorishniy, Rubachev & Babenko, NeurIPS 2022, https://arxiv.org/abs/2203.05556, section
    3.2, with bins of equal width instead of quantiles, which would have to be agreed on.

    Args:
        bins: How many, for each sensor.
        centred: 1 to count from 0, 0 to count from the lowest bin.
    """

    def __init__(self, bins: int, centred: int = 0) -> None:
        super().__init__()
        self.bins = bins
        self.centred = centred

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `(batch, window, sensors)` to `(batch, window, sensors (1 + bins))`."""
        if self.bins == 0:
            return x
        place = x.unsqueeze(-1) * (self.bins / _SPAN) + self.bins / 2
        edges = torch.arange(self.bins, dtype=x.dtype, device=x.device)
        come = (place - edges).clamp(0.0, 1.0)
        if self.centred:
            come = come - (self.bins / 2 - edges).clamp(0.0, 1.0)
        return torch.cat([x, come.flatten(-2)], dim=-1)


class StepConvolution(nn.Conv1d):
    """A convolution that keeps the window's length; at a window of 1 it is a linear map, and quick.

    Args:
        reach: Steps that it sees to either side of its own.
    """

    def __init__(self, inputs: int, outputs: int, reach: int) -> None:
        super().__init__(inputs, outputs, kernel_size=2 * reach + 1, padding=reach)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """Map `(batch, inputs, window)` to `(batch, outputs, window)`."""
        if h.shape[-1] == self.weight.shape[-1] == 1:
            flat = functional.linear(h.squeeze(-1), self.weight.squeeze(-1), self.bias)
            return flat.unsqueeze(-1)
        return super().forward(h)


class StepNorm(nn.GroupNorm):
    """A norm over all channels and steps of a window; at a window of 1 it is quick."""

    def __init__(self, channels: int) -> None:
        super().__init__(1, channels)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """Map `(batch, channels, window)` to the same shape."""
        if h.shape[-1] == 1:
            flat = h.squeeze(-1)
            normed = functional.layer_norm(flat, flat.shape[1:], self.weight, self.bias, self.eps)
            return normed.unsqueeze(-1)
        return super().forward(h)


class ResidualConvolution(nn.Module):
    """h + convolution(silu(norm(h))), for `h: (batch, channels, window)`."""

    def __init__(self, channels: int, reach: int) -> None:
        super().__init__()
        self.norm = StepNorm(channels)
        self.convolution = StepConvolution(channels, channels, reach)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """Map `(batch, channels, window)` to the same shape."""
        change: torch.Tensor = self.convolution(functional.silu(self.norm(h)))
        return h + change


class Recurrence(nn.Module):
    """The LSTM's recurrence: `(batch, window, inputs)` to the hidden state after each step.

    Cell c and hidden state h start at 0, ⊙ is the product number by number, and at step t

        (i, f, g, o) = input_weight·x_t + recurrent_weight·h_{t-1} + bias
        c_t = σ(f) ⊙ c_{t-1} + σ(i) ⊙ tanh(g)
        h_t = σ(o) ⊙ tanh(c_t)

    It computes what `nn.LSTM` does, with gates in the same order and one bias for its two. It
    exists because `nn.LSTM` has no rule for `torch.func.vmap`, and so no per-example gradients:
    here is one leaf module with plain parameters, called once in a forward.

    At a window of 1 the recurrent weight could only ever meet the 0 that h starts from, so it does
    not exist there.

    Args:
        inputs: Features of one step, on the way in.
        hidden: Features of one step, on the way out.
        window_steps: Steps of one window.

    Source: Hochreiter & Schmidhuber, Neural Computation 9(8), 1997; the forget gate f is that of
    Gers, Schmidhuber & Cummins, Neural Computation 12(10), 2000.
    """

    def __init__(self, inputs: int, hidden: int, window_steps: int) -> None:
        super().__init__()
        self.input_weight = nn.Parameter(torch.empty(4 * hidden, inputs))
        if window_steps > 1:
            self.recurrent_weight = nn.Parameter(torch.empty(4 * hidden, hidden))
        self.bias = nn.Parameter(torch.empty(4 * hidden))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `(batch, window, inputs)` to `(batch, window, hidden)`."""
        # The input's share of all steps in one product; only what depends on h waits for its turn.
        first, *later = functional.linear(x, self.input_weight, self.bias).unbind(dim=1)
        i, _, g, o = first.chunk(4, dim=1)
        cell = torch.sigmoid(i) * torch.tanh(g)
        states = [torch.sigmoid(o) * torch.tanh(cell)]
        for share in later:
            gates = torch.addmm(share, states[-1], self.recurrent_weight.t())
            i, f, g, o = gates.chunk(4, dim=1)
            cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
            states.append(torch.sigmoid(o) * torch.tanh(cell))
        return torch.stack(states, dim=1)


@torch.no_grad()
def open_forget_gates(model: nn.Module) -> None:
    """Set the forget gate's bias to 1 in every `Recurrence`, so that an untrained cell remembers.

    With 0 it would halve what it holds at each step, and gradients would fade as fast.

    Source: Gers, Schmidhuber & Cummins, Neural Computation 12(10), 2000, for positive biases; 1 is
    the choice of Jozefowicz, Zaremba & Sutskever, ICML 2015.
    """
    for module in model.modules():
        if isinstance(module, Recurrence):
            module.bias.chunk(4)[1].fill_(1.0)
