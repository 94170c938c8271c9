"""Models of one layout, made quickly: built once without values, then copied for each request.

To construct a small model takes longer than to train it on a batch. What is copied is the tree of
modules, where that is all there is to a model: no hook, no module that loads its state in its own
way, and no attributes but plain values. Any other model is constructed anew each time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, cast

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    from core.messages import Parameters
    from core.models.base import TorchModel

M = TypeVar("M", bound=nn.Module)

_PLAIN = (bool, int, float, str, type(None))
_TREE = frozenset({"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"})
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
        self._model = construct()
        self._tensors: dict[str, torch.Tensor] = self._model.state_dict(keep_vars=True)
        self._is_tree = all(_is_plain(module) for module in self._model.modules())
        self.layout: Parameters = self._model.state_dict()

    def filled(self, parameters: Parameters) -> TorchModel:
        """Give a new model with copies of `parameters`, which must have its layout."""
        copies = {name: tensor.detach().clone() for name, tensor in parameters.items()}
        if not self._is_tree:
            model = self._construct()
            model.load_state_dict(copies, assign=True)
            return model
        values = {id(old): _like(old, copies[name]) for name, old in self._tensors.items()}
        return _copied(self._model, values, {})


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


def _like(old: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    if isinstance(old, nn.Parameter):
        return nn.Parameter(value, requires_grad=old.requires_grad)
    return value


def _copied(module: M, values: Mapping[int, torch.Tensor], made: dict[int, nn.Module]) -> M:
    """Copy a module and its parts, each once, with other tensors.

    Args:
        module: The module.
        values: The tensor to be put in place of another, by the other's identity.
        made: The copies so far, by the identity of what was copied.
    """
    if id(module) in made:
        return cast("M", made[id(module)])
    copy = object.__new__(type(module))
    made[id(module)] = copy
    for name, value in vars(module).items():
        own: object = value
        if name in {"_parameters", "_buffers"}:
            own = {n: None if old is None else values[id(old)] for n, old in value.items()}
        elif name == "_modules":
            own = {
                n: None if old is None else _copied(old, values, made) for n, old in value.items()
            }
        elif isinstance(value, list | dict | set):
            own = value.copy()
        vars(copy)[name] = own  # `setattr` of a module would look for tensors in what is given
    return copy
