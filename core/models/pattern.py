"""Models of one layout, made quickly: built once without values, then copied for each request.

To construct a small model takes longer than to train it on a batch. What is copied is the tree of
modules, where that is all there is to a model: no hook, no module that loads its state in its own
way, and no attributes but plain values. Any other model is constructed anew each time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from core.parameters import cloned, laid, require_same_layout

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch

    from core.messages import Parameters
    from core.models.base import TorchModel
    from core.parameters import Shapes

_PLAIN = (bool, int, float, str, type(None))
_TREE = frozenset({"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"})
_CHANGED_IN_PLACE = (list, dict, set)
_LOADERS = ("_load_from_state_dict", "_save_to_state_dict", "load_state_dict", "state_dict")


class Pattern:
    """Makes models of one architecture with one choice of options.

    Args:
        construct: Gives the model on PyTorch's `meta` device, where tensors have no memory.

    Attributes:
        layout: The model's state, without values.
    """

    def __init__(self, construct: Callable[[], TorchModel]) -> None:
        self._construct = construct
        model = construct()
        self.layout: Parameters = model.state_dict()
        self._kind = type(model).__name__
        self._lies = _as_it_lies(self.layout)
        is_tree = all(_is_plain(module) for module in model.modules())
        self._tree = _Tree(model) if is_tree else None

    def require_fitting(self, parameters: Parameters) -> None:
        """Do nothing when `parameters` have the model's layout.

        Raises:
            ModelError: They have not; the message names the tensor.
        """
        lying = laid(parameters)
        if lying is None or (lying.shapes, lying.flat.dtype) != self._lies:
            require_same_layout(parameters, self.layout, whose=self._kind)

    def filled(self, parameters: Parameters) -> TorchModel:
        """Give a new model with copies of `parameters`, which must have its layout.

        Where they lie one after the other, so do the model's own.
        """
        copies = cloned(parameters)
        if self._tree is None:
            model = self._construct()
            model.load_state_dict(dict(copies), assign=True)
        else:
            model = self._tree.copied(dict(copies))
            model.remember(laid(copies))
        return model


def _as_it_lies(layout: Parameters) -> tuple[Shapes, torch.dtype] | None:
    """Give the shapes and the dtype that `Laid` has for such a state; None where it has several."""
    dtypes = {tensor.dtype for tensor in layout.values()}
    if len(dtypes) != 1:
        return None
    return tuple((name, tensor.shape) for name, tensor in sorted(layout.items())), dtypes.pop()


def _is_plain(module: nn.Module) -> bool:
    """Tell whether the module is no more than its class, tensors, parts and plain values."""
    kind = type(module)
    return (
        all(getattr(kind, name) is getattr(nn.Module, name) for name in _LOADERS)
        and kind.get_extra_state is nn.Module.get_extra_state
        and not module._non_persistent_buffers_set  # noqa: SLF001 - PyTorch has no other word
        and all(
            _is_value(value) or (name.startswith("_") and isinstance(value, dict) and not value)
            for name, value in vars(module).items()
            if name not in _TREE
        )
    )


def _is_value(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(isinstance(item, _PLAIN) for item in value)
    return isinstance(value, _PLAIN)


class _Tree:
    """What a model's modules consist of, taken apart once."""

    def __init__(self, model: TorchModel) -> None:
        names = {id(tensor): name for name, tensor in model.state_dict(keep_vars=True).items()}
        self._parts: list[_Part] = []
        self._add(model, names, {})

    def copied(self, state: Parameters) -> TorchModel:
        """Give a copy of the modules, each once, around the tensors of `state`."""
        made: list[nn.Module] = []
        tensors: dict[str, torch.Tensor] = {}  # one that stands in several places stays one
        for part in self._parts:
            made.append(part.copied(made, state, tensors))
        return cast("TorchModel", made[-1])

    def _add(self, module: nn.Module, names: Mapping[int, str], places: dict[int, int]) -> int:
        """Take a module apart after those in it; its place among the parts."""
        if id(module) not in places:
            own = vars(module)
            modules = {
                name: None if below is None else self._add(below, names, places)
                for name, below in own["_modules"].items()
            }
            values = {name: value for name, value in own.items() if name not in _TREE}
            part = _Part(
                kind=type(module),
                values={n: v for n, v in values.items() if not isinstance(v, _CHANGED_IN_PLACE)},
                containers={n: v for n, v in values.items() if isinstance(v, _CHANGED_IN_PLACE)},
                parameters=_named(own["_parameters"], names),
                buffers=_named(own["_buffers"], names),
                modules=modules,
            )
            places[id(module)] = len(self._parts)
            self._parts.append(part)
        return places[id(module)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """One module: its class, its plain values, and what stands where in it.

    Attributes:
        kind: Its class.
        values: Attributes that nobody can change but by setting others.
        containers: Attributes of which each copy has its own.
        parameters: Names in the state, and whether a gradient is wanted, by the module's own names.
        buffers: Likewise.
        modules: Places of the modules in it, likewise.
    """

    kind: type[nn.Module]
    values: Mapping[str, object]
    containers: Mapping[str, Any]
    parameters: Mapping[str, tuple[str, bool] | None]
    buffers: Mapping[str, tuple[str, bool] | None]
    modules: Mapping[str, int | None]

    def copied(
        self, made: Sequence[nn.Module], state: Parameters, tensors: dict[str, torch.Tensor]
    ) -> nn.Module:
        """Give a copy around `state`; the modules in it are among those `made`.

        Args:
            made: The copies so far.
            state: The values.
            tensors: The parameters made of them so far, by their names in it.
        """
        copy = object.__new__(self.kind)
        own = vars(copy)  # `setattr` of a module would look for tensors in what is given
        own.update(self.values)
        for name, container in self.containers.items():
            own[name] = container.copy()
        own["_non_persistent_buffers_set"] = set()
        own["_parameters"] = parameters = dict.fromkeys(self.parameters)
        for name, entry in self.parameters.items():
            if entry is not None:
                full_name, has_gradient = entry
                if full_name not in tensors:
                    tensors[full_name] = nn.Parameter(state[full_name], has_gradient)
                parameters[name] = tensors[full_name]
        own["_buffers"] = {
            name: None if entry is None else state[entry[0]] for name, entry in self.buffers.items()
        }
        own["_modules"] = {
            name: None if place is None else made[place] for name, place in self.modules.items()
        }
        return copy


def _named(
    tensors: Mapping[str, torch.Tensor | None], names: Mapping[int, str]
) -> dict[str, tuple[str, bool] | None]:
    return {
        name: None if tensor is None else (names[id(tensor)], tensor.requires_grad)
        for name, tensor in tensors.items()
    }
