"""Models of other people's packages: found by their entry points, refused when they are broken.

A package registers `name = "module:Class"` in the group `federated_maintenance.models`; `name` is
what a plan and an experiment's `model.type` then say. See `docs/models.md`.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from loguru import logger

from core.codehash import model_entry_points, source_files, top_module
from core.enums import ModelType
from core.exceptions import ConfigurationError
from core.models.base import Option, TorchModel

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """One third-party model that can be built.

    Attributes:
        architecture: Its class.
        distribution: The installed package that registered it, with its version.
    """

    architecture: type[TorchModel]
    distribution: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugins:
    """All third-party models that are registered.

    Attributes:
        usable: Those that can be built, by name.
        broken: Why each of the others cannot, by name. A built-in model of the same name is not
            affected.
    """

    usable: Mapping[str, Plugin]
    broken: Mapping[str, str]


@cache
def installed_plugins() -> Plugins:
    """Import every registered model, once a process; a broken one is logged and set aside."""
    entries = model_entry_points()
    times = Counter(entry.name for entry in entries)
    usable: dict[str, Plugin] = {}
    broken: dict[str, str] = {}
    for entry in entries:
        try:
            _require_own_name(entry, times[entry.name])
            plugin = Plugin(architecture=_load(entry), distribution=_distribution(entry))
        except ConfigurationError as exc:
            broken[entry.name] = f"{exc} ({entry.value!r} of {_distribution(entry)})"
            logger.warning("model {!r} cannot be used: {}", entry.name, broken[entry.name])
        else:
            usable[entry.name] = plugin
    return Plugins(usable=usable, broken=broken)


def _require_own_name(entry: EntryPoint, times: int) -> None:
    """Do nothing when no built-in model and no other entry point has the name.

    Raises:
        ConfigurationError: Another has.
    """
    if entry.name in {model_type.value for model_type in ModelType}:
        raise ConfigurationError("the name is a built-in model's; register it by another")
    if times > 1:
        raise ConfigurationError(f"{times} models are registered by this name")


def _load(entry: EntryPoint) -> type[TorchModel]:
    """Import the class of `entry`.

    Raises:
        ConfigurationError: It cannot be imported, is no architecture, or its source is not covered
            by the code hash.
    """
    if not source_files(entry):
        raise ConfigurationError(
            f"no source of module {top_module(entry)!r} is found, for the code hash to cover"
        )
    try:
        found = entry.load()
    except (Exception, SystemExit) as exc:  # a stranger's module may fail in any way
        raise ConfigurationError(f"importing it failed: {type(exc).__name__}: {exc}") from exc
    if not (isinstance(found, type) and issubclass(found, TorchModel)):
        raise ConfigurationError("it is no subclass of core.models.TorchModel")
    if found.__module__.partition(".")[0] != top_module(entry):
        raise ConfigurationError(
            f"its class is defined in {found.__module__!r}, which the code hash does not cover; "
            "register it from where it is defined"
        )
    _require_buildable(found)
    return found


def _require_buildable(architecture: type[TorchModel]) -> None:
    """Do nothing when the class has all methods, sound options, and a constructor that takes them.

    Raises:
        ConfigurationError: It has not.
    """
    if missing := sorted(architecture.__abstractmethods__):
        raise ConfigurationError(f"it lacks the method(s) {', '.join(missing)}")
    options = architecture.OPTIONS
    if not isinstance(options, Mapping) or not all(isinstance(o, Option) for o in options.values()):
        raise ConfigurationError("its OPTIONS are no mapping of names to core.models.Option")
    for name, option in options.items():
        if not option.minimum <= option.default <= option.maximum:
            raise ConfigurationError(f"the default of its option {name!r} is out of range")
    expected = ["sensors", "window_steps", "classes", *options]
    try:
        inspect.signature(architecture).bind(**dict.fromkeys(expected))
    except TypeError as exc:
        raise ConfigurationError(
            f"its constructor must take {', '.join(expected)} by name: {exc}"
        ) from exc


def _distribution(entry: EntryPoint) -> str:
    if entry.dist is None or not entry.dist.name:
        return "an unnamed package"
    return f"{entry.dist.name} {entry.dist.version}"
