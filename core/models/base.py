"""What every model here shares: its state goes in and out whole, and its start comes from a seed.

A new architecture is one file with a subclass of `TorchModel`, and one line in the table of
`core.models.registry`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from core.interfaces import ModelInterface
from core.parameters import Laid, copied, require_same_layout

if TYPE_CHECKING:
    from collections.abc import Mapping

    from core.messages import Parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One whole-numbered option of an architecture; both ends of its range are included."""

    default: int
    minimum: int
    maximum: int


class TorchModel(nn.Module, ModelInterface):
    """A PyTorch model that keeps the laws of `ModelInterface`.

    Its constructor takes `sensors`, `window_steps`, `classes` and each of its `OPTIONS`, by name.
    An architecture keeps three more laws, so that averaging, per-example gradients and equal
    results from equal seeds all work: nothing mixes the examples of a batch (GroupNorm, never
    BatchNorm), nothing is drawn at random in `forward` (no dropout: sites that train in threads of
    one process share PyTorch's generator), and no module runs twice in one `forward`.

    Attributes:
        OPTIONS: The options a `ModelSpec` may set, by name.
    """

    OPTIONS: ClassVar[Mapping[str, Option]] = {}

    _lying: Laid | None = None

    @abstractmethod
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `x: (batch, window, sensors) float32, z-scored per sensor` to logits.

        Returns:
            `(batch, classes)` float32, before any softmax.
        """

    def get_parameters(self) -> Parameters:
        """Give the full state, name to tensor, as copies on the CPU."""
        return dict(copied(self.state_dict()))  # PyTorch's own functions know no kinds of dict

    def remember(self, lying: Laid | None) -> None:
        """Take note that the state lies in this memory, of whose tensors it is made."""
        self._lying = lying

    def given_up(self) -> Parameters:
        """Give the full state of a model that nobody uses any more: in its own memory, or copies.

        It lies one after the other if it did when the model was loaded, and then is no copy.
        """
        state, lying = self.state_dict(), self._lying
        if lying is None or any(not state[n].is_set_to(own) for n, own in lying.items()):
            return self.get_parameters()
        return lying

    def set_parameters(self, parameters: Parameters) -> None:
        """Replace the full state, or raise and change nothing.

        Layout alone is judged; whether the values are finite is for whoever received them.

        Raises:
            ModelError: A name is missing or unknown, or a shape or dtype differs.
        """
        # `load_state_dict` copies the tensors that fit before it complains of one that does not.
        require_same_layout(parameters, self.state_dict(), whose=type(self).__name__)
        self.load_state_dict(parameters)

    def hold(self, parameters: Parameters) -> None:
        """Replace the full state by these very tensors, or raise and change nothing.

        For a model that is not trained, and tensors that are not changed: nothing is copied.

        Raises:
            ModelError: As `set_parameters`.
        """
        require_same_layout(parameters, self.state_dict(), whose=type(self).__name__)
        self.load_state_dict(parameters, assign=True)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draw every starting value from `generator`, parameter by parameter in their fixed order.

        Weights are uniform within ±1/√fan_in, biases 0, gains of norms 1. An architecture for which
        that is wrong, or that has buffers, overrides this.
        """
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                bound = 1.0 / math.sqrt(parameter[0].numel())
                parameter.uniform_(-bound, bound, generator=generator)
            else:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
