"""How parameters come to a site and leave it, in the form that the plan says."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self, TypeVar

import safetensors.torch
import torch

from core.compression import Sent, decompress, send
from core.enums import Compression
from core.messages import ClientUpdate, EvaluateRequest, Parameters, TrainRequest
from core.models import model_layout
from core.schema import DataSchema

_PARAMETERS = ".left/parameters/"
_CONTROL = ".left/control/"
"""Before the names of what was rounded off; no tensor of an algorithm's state has such a name."""

R = TypeVar("R", TrainRequest, EvaluateRequest)


def opened(request: R, schema: Mapping[str, object]) -> R:
    """Give the request with its tensors as they were before they were compressed.

    Args:
        request: As it came.
        schema: The JSON form of that of the plan's data, which decides the layers' sizes.

    Raises:
        ProtocolError: They are not those of the model that it names.
    """
    if "compression" not in request:
        return request
    columns = DataSchema.model_validate(schema)
    layout = model_layout(
        request["model"], sensors=len(columns.features), window_steps=columns.window_steps
    )
    plain = request.copy()
    plain["parameters"] = decompress(request["parameters"], layout)
    if request["kind"] == "train" and "control" in request:
        plain["control"] = decompress(request["control"], _floating(layout))
    return plain


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What a site keeps of a plan from round to round.

    Attributes:
        state: The algorithm's.
        parameters: What was rounded off the parameters that were sent, to be sent later.
        control: Likewise of what went beside them.
    """

    state: Parameters = field(default_factory=dict)
    parameters: Parameters = field(default_factory=dict)
    control: Parameters = field(default_factory=dict)

    @classmethod
    def read(cls, kept: bytes) -> Self:
        """Read what `Sending.memory` gave; nothing is nothing."""
        tensors = safetensors.torch.load(kept) if kept else {}
        return cls(
            state={name: t for name, t in tensors.items() if not name.startswith(".")},
            parameters=_of(tensors, _PARAMETERS),
            control=_of(tensors, _CONTROL),
        )


class Sending:
    """What one update carries, and what it leaves behind.

    Args:
        request: The opened request that it answers.
        memory: What was kept after the round that it follows.
    """

    def __init__(self, request: TrainRequest, memory: Memory) -> None:
        self._name = request.get("compression")
        self._how = Compression(self._name or Compression.NONE.value)
        self._received = request["parameters"]
        self._memory = memory
        self._parameters = self._control = Sent({}, {}, {})

    def parameters(self, fitted: Parameters) -> Parameters:
        """Take these in; gives what the orchestrator will make of them."""
        self._parameters = send(fitted, self._received, self._how, self._memory.parameters)
        return self._parameters.arrives

    def control(self, beside: Parameters) -> Parameters:
        """Take in what goes beside them, if anything; gives what will be made of it."""
        if beside:
            zeros = {name: torch.zeros_like(tensor) for name, tensor in beside.items()}
            self._control = send(beside, zeros, self._how, self._memory.control)
        return self._control.arrives

    def put_into(self, update: ClientUpdate) -> ClientUpdate:
        """Give `update` with the tensors as they travel."""
        full = update.copy()
        full["parameters"] = self._parameters.travels
        if self._control.travels:
            full["control"] = self._control.travels
        if self._name is not None:
            full["compression"] = self._name
        return full

    def memory(self, state: Parameters) -> bytes:
        """Give what is to be kept, the algorithm's state with it; empty for nothing."""
        tensors = {
            **state,
            **{f"{_PARAMETERS}{name}": t for name, t in self._parameters.left.items()},
            **{f"{_CONTROL}{name}": t for name, t in self._control.left.items()},
        }
        return safetensors.torch.save(tensors) if tensors else b""


def _floating(layout: Parameters) -> Parameters:
    return {name: tensor for name, tensor in layout.items() if tensor.is_floating_point()}


def _of(tensors: Parameters, prefix: str) -> Parameters:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
