"""From a `ModelSpec` to a model, and to the parameters that a run starts from."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import torch

from core.enums import ModelType
from core.exceptions import ConfigurationError
from core.models.cnn import CNN
from core.models.hybrid import Hybrid
from core.models.lstm import LSTM
from core.models.pattern import Pattern
from core.models.plugins import installed_plugins

if TYPE_CHECKING:
    from collections.abc import Mapping

    from core.messages import ModelSpec, Parameters
    from core.models.base import Option, TorchModel
    from core.schema import DataSchema

MODELS: Final[Mapping[str, type[TorchModel]]] = {
    ModelType.CNN.value: CNN,
    ModelType.LSTM.value: LSTM,
    ModelType.HYBRID.value: Hybrid,
}
"""The built-in architectures. Third parties' are no lines here; see `core.models.plugins`."""

BUILT_IN: Final = "built in"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDescription:
    """What a person should know to choose a model.

    Attributes:
        name: What `model.type` says.
        summary: The first line of the architecture's docstring; may be empty.
        options: What `model.options` may set.
        source: `built in`, or the package that registered it with its version.
    """

    name: str
    summary: str
    options: Mapping[str, Option]
    source: str


def available_models() -> list[str]:
    """Give the names of the models that can be built, built-in and third parties', sorted."""
    return sorted([*MODELS, *installed_plugins().usable])


def describe_models() -> list[ModelDescription]:
    """Describe the models that can be built, built-in ones first, each group sorted by name."""
    built_in = [_describe(name, MODELS[name], BUILT_IN) for name in sorted(MODELS)]
    plugins = installed_plugins().usable
    return [
        *built_in,
        *(
            _describe(name, plugins[name].architecture, plugins[name].distribution)
            for name in sorted(plugins)
        ),
    ]


def broken_models() -> dict[str, str]:
    """Give the third parties' models that are registered and cannot be used: name to why."""
    return dict(installed_plugins().broken)


def _describe(name: str, architecture: type[TorchModel], source: str) -> ModelDescription:
    lines = inspect.cleandoc(architecture.__doc__ or "").splitlines()
    return ModelDescription(
        name=name,
        summary=lines[0] if lines else "",
        options=dict(architecture.OPTIONS),
        source=source,
    )


def create_model(
    model_type: ModelType | str, schema: DataSchema, *, seed: int = 0, **options: int
) -> TorchModel:
    """Build a model for the windows of `schema`, with the starting values of `seed`.

        create_model(ModelType.LSTM, schema, hidden=32)

    The same as `build_model` with the schema's features and window, for its two classes.

    Raises:
        ConfigurationError: As `build_model`.
    """
    name = model_type.value if isinstance(model_type, ModelType) else model_type
    return build_model(
        {"type": name, "options": options},
        sensors=len(schema.features),
        window_steps=schema.window_steps,
        seed=seed,
    )


def build_model(
    spec: ModelSpec, *, sensors: int, window_steps: int, classes: int = 2, seed: int = 0
) -> TorchModel:
    """Build the model that `spec` names, with the starting values of `seed`.

    Equal arguments give bit-equal values. PyTorch's global generator is neither read nor moved: the
    layers are made without values, then filled from a generator of their own. To fork the global
    one around the layers' own initialisation would not do: it is one for all threads, and another
    thread may draw from it meanwhile.

    Args:
        spec: The architecture and its options; an option left out takes its default.
        sensors: Features of one step, at least 1.
        window_steps: Steps of one window, at least 1.
        classes: Logits of one window, at least 2.
        seed: Where the starting values are drawn from.

    Raises:
        ConfigurationError: An unknown type or option, or a number out of range; every mistake is
            listed with what is possible.
    """
    architecture = _possible(spec, sensors, window_steps, classes)
    model = _without_values(architecture, spec["options"], sensors, window_steps, classes)
    model.to_empty(device="cpu")
    model.initialise(torch.Generator().manual_seed(seed))
    return model


def load_model(
    spec: ModelSpec, parameters: Parameters, *, sensors: int, window_steps: int, classes: int = 2
) -> TorchModel:
    """Build the model that `spec` names, with copies of `parameters` for its values.

    The layout is compared before memory is taken: options of another size cost nothing.

    Raises:
        ConfigurationError: As `build_model`.
        ModelError: `parameters` do not fit; the message names the tensor.
    """
    architecture = _possible(spec, sensors, window_steps, classes)
    pattern = _pattern_of(architecture, spec, sensors, window_steps, classes)
    pattern.require_fitting(parameters)
    return pattern.filled(parameters)


def model_layout(
    spec: ModelSpec, *, sensors: int, window_steps: int, classes: int = 2
) -> Parameters:
    """Give the parameters of the model that `spec` names, without values: they take no memory.

    Raises:
        ConfigurationError: As `build_model`.
    """
    architecture = _possible(spec, sensors, window_steps, classes)
    return _pattern_of(architecture, spec, sensors, window_steps, classes).layout


def _pattern_of(architecture: type[TorchModel], spec: ModelSpec, *sizes: int) -> Pattern:
    return _pattern(architecture, tuple(sorted(spec["options"].items())), *sizes)


@lru_cache(maxsize=32)
def _pattern(
    architecture: type[TorchModel],
    options: tuple[tuple[str, int], ...],
    sensors: int,
    window_steps: int,
    classes: int,
) -> Pattern:
    return Pattern(
        lambda: _without_values(architecture, dict(options), sensors, window_steps, classes)
    )


def _possible(spec: ModelSpec, sensors: int, window_steps: int, classes: int) -> type[TorchModel]:
    """Give the architecture, where there is one and it takes these sizes and options.

    Raises:
        ConfigurationError: As `build_model`.
    """
    architecture = _architecture(spec["type"])
    mistakes = [
        *_size_mistakes(sensors=(sensors, 1), window_steps=(window_steps, 1), classes=(classes, 2)),
        *_option_mistakes(spec["options"], architecture.OPTIONS),
    ]
    if mistakes:
        raise ConfigurationError(f"model {spec['type']!r}: {'; '.join(mistakes)}")
    return architecture


def _without_values(
    architecture: type[TorchModel],
    options: Mapping[str, int],
    sensors: int,
    window_steps: int,
    classes: int,
) -> TorchModel:
    """Give the model on PyTorch's `meta` device, where tensors have a layout and no memory."""
    defaults = {name: option.default for name, option in architecture.OPTIONS.items()}
    with torch.device("meta"):
        return architecture(
            sensors=sensors, window_steps=window_steps, classes=classes, **defaults | dict(options)
        )


def initial_parameters(
    spec: ModelSpec, *, sensors: int, window_steps: int, classes: int = 2, seed: int
) -> Parameters:
    """Give the parameters that a run with `seed` starts from; see `build_model`."""
    return build_model(
        spec, sensors=sensors, window_steps=window_steps, classes=classes, seed=seed
    ).get_parameters()


def _architecture(name: str) -> type[TorchModel]:
    if name in MODELS:  # without a look at third parties
        return MODELS[name]
    plugins = installed_plugins()
    if name in plugins.usable:
        return plugins.usable[name].architecture
    if name in plugins.broken:
        raise ConfigurationError(
            f"model type {name!r} is registered and cannot be used: {plugins.broken[name]}"
        )
    raise ConfigurationError(
        f"unknown model type {name!r}; available: {', '.join(available_models())}"
    )


def _size_mistakes(**sizes: tuple[int, int]) -> list[str]:
    return [
        f"{name} is {value}, expected at least {minimum}"
        for name, (value, minimum) in sizes.items()
        if value < minimum
    ]


def _option_mistakes(found: Mapping[str, int], known: Mapping[str, Option]) -> list[str]:
    mistakes = [
        f"unknown option {name!r}; options: {', '.join(sorted(known))}"
        for name in sorted(found.keys() - known.keys())
    ]
    for name in sorted(found.keys() & known.keys()):
        value, option = found[name], known[name]
        if type(value) is not int or not option.minimum <= value <= option.maximum:
            mistakes.append(
                f"option {name!r} is {value!r}, "
                f"expected a whole number from {option.minimum} to {option.maximum}"
            )
    return mistakes
