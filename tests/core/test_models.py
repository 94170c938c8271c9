"""Building models from a `ModelSpec`, and what our own architectures are made of."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from core import ConfigurationError
from core.models import available_models, build_model, initial_parameters
from core.models.registry import MODELS
from core.parameters import count, digest

if TYPE_CHECKING:
    from core.enums import ModelType
    from core.messages import ModelSpec

CNN: ModelSpec = {"type": "cnn", "options": {}}


def layout(*, sensors: int, window_steps: int, **options: int) -> dict[str, tuple[int, ...]]:
    """Name to shape of a CNN."""
    model = build_model(
        {"type": "cnn", "options": options}, sensors=sensors, window_steps=window_steps
    )
    return {name: tuple(tensor.shape) for name, tensor in model.get_parameters().items()}


def test_an_unknown_type_is_refused_with_what_exists() -> None:
    """A misspelt type is answered with the list of types."""
    with pytest.raises(ConfigurationError, match=r"unknown model type 'cnm'; available: cnn"):
        build_model({"type": "cnm", "options": {}}, sensors=3, window_steps=1)


@pytest.mark.parametrize("name", ["lstm", "hybrid"])
def test_a_type_of_a_later_version_is_refused_as_such(name: str) -> None:
    """A type that is specified but not written yet is not called unknown."""
    with pytest.raises(ConfigurationError, match=r"not available in this version; available: cnn"):
        build_model({"type": name, "options": {}}, sensors=3, window_steps=1)


def test_every_mistake_of_a_spec_is_reported_at_once() -> None:
    """Sizes, unknown options and numbers out of range all stand in one message."""
    spec: ModelSpec = {
        "type": "cnn",
        "options": {"blocks": 0, "channels": 4096, "chanels": 8},
    }
    with pytest.raises(ConfigurationError) as caught:
        build_model(spec, sensors=0, window_steps=0, classes=1)
    for mistake in (
        "sensors is 0, expected at least 1",
        "window_steps is 0, expected at least 1",
        "classes is 1, expected at least 2",
        "unknown option 'chanels'; options: blocks, channels, reach",
        "option 'blocks' is 0, expected a whole number from 1 to 32",
        "option 'channels' is 4096, expected a whole number from 2 to 1024",
    ):
        assert mistake in str(caught.value)


@pytest.mark.parametrize("value", [True, 8.0, "8"])
def test_an_option_that_is_no_whole_number_is_refused(value: int) -> None:
    """Neither a truth value nor a float nor a text counts as a whole number."""
    spec: ModelSpec = {"type": "cnn", "options": {"channels": value}}
    with pytest.raises(ConfigurationError, match=r"'channels' is .*, expected a whole number"):
        build_model(spec, sensors=3, window_steps=1)


@pytest.mark.parametrize("model_type", MODELS, ids=lambda model_type: model_type.value)
def test_defaults_lie_within_their_ranges(model_type: ModelType) -> None:
    """An option that is left out is as valid as one that is given."""
    for option in MODELS[model_type].OPTIONS.values():
        assert option.minimum <= option.default <= option.maximum


def test_options_reach_the_architecture() -> None:
    """Channels and blocks decide the shapes; reach decides the kernels."""
    small = layout(sensors=3, window_steps=9, channels=4, blocks=1, reach=2)
    assert small["stem.weight"] == (4, 3, 5)
    assert small["head.weight"] == (2, 8)
    assert sum(name.endswith("convolution.weight") for name in small) == 1


def test_the_default_has_about_ten_thousand_parameters() -> None:
    """Eleven features of single rows: the size that the round benchmark speaks of."""
    # stem 11 * 64 + 64; two blocks of 64 * 64 + 64 and norm 2 * 64; head 2 * 64 * 2 + 2
    model = build_model(CNN, sensors=11, window_steps=1)
    assert count(model.parameters()) == 768 + 2 * (4160 + 128) + 258


def test_the_layout_is_one_for_all_windows_beyond_the_reach() -> None:
    """A longer window takes no more parameters."""
    assert layout(sensors=3, window_steps=2) == layout(sensors=3, window_steps=500)


def test_a_window_of_one_has_kernels_of_one() -> None:
    """No parameter exists that could only ever meet padding."""
    single = layout(sensors=3, window_steps=1)
    assert single["stem.weight"] == (64, 3, 1)
    assert layout(sensors=3, window_steps=2)["stem.weight"] == (64, 3, 3)
    assert single == layout(sensors=3, window_steps=500, reach=0)


def test_only_the_stem_depends_on_the_sensors() -> None:
    """Another number of sensors changes the stem's weight and nothing else."""
    three, four = layout(sensors=3, window_steps=12), layout(sensors=4, window_steps=12)
    assert {name for name in three if three[name] != four[name]} == {"stem.weight"}


@pytest.mark.parametrize("window_steps", [1, 2, 3, 500])
def test_any_window_gives_logits(window_steps: int) -> None:
    """From single rows to five hundred steps, and with a reach beyond the window."""
    for reach in (0, 1, 8):
        spec: ModelSpec = {"type": "cnn", "options": {"channels": 4, "reach": reach}}
        model = build_model(spec, sensors=3, window_steps=window_steps)
        assert model(torch.zeros(2, window_steps, 3)).shape == (2, 2)


def test_the_head_sees_the_last_step_for_itself() -> None:
    """Even where convolutions see single steps only, a window read backwards is another window."""
    x = torch.randn(1, 12, 3, generator=torch.Generator().manual_seed(0))
    model = build_model({"type": "cnn", "options": {"reach": 0}}, sensors=3, window_steps=12)
    assert not torch.allclose(model(x), model(x.flip(1)))
    assert not torch.allclose(model(x), model(x[:, -1:]))


@pytest.mark.parametrize("name", available_models())
def test_no_model_has_batch_norm_or_dropout(name: str) -> None:
    """Running statistics cannot be averaged, and dropout draws from all threads' generator."""
    batch_norm = nn.modules.batchnorm._NormBase
    dropout = nn.modules.dropout._DropoutNd
    model = build_model({"type": name, "options": {}}, sensors=3, window_steps=12)
    assert not [m for m in model.modules() if isinstance(m, (batch_norm, dropout))]
    assert not list(model.buffers())


@pytest.mark.parametrize("window_steps", [1, 12])
@pytest.mark.parametrize("name", available_models())
def test_gradients_can_be_taken_example_by_example(name: str, window_steps: int) -> None:
    """Per-example gradients exist, and their mean is the gradient of the mean loss."""
    model = build_model({"type": name, "options": {}}, sensors=3, window_steps=window_steps)
    x = torch.randn(6, window_steps, 3, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 1, 0, 0, 1, 1])

    def loss(
        parameters: dict[str, torch.Tensor], window: torch.Tensor, label: torch.Tensor
    ) -> torch.Tensor:
        logits = functional_call(model, parameters, (window.unsqueeze(0),))
        return functional.cross_entropy(logits, label.unsqueeze(0))

    each = vmap(grad(loss), in_dims=(None, 0, 0))(model.get_parameters(), x, y)
    names = [key for key, _ in model.named_parameters()]
    whole = torch.autograd.grad(functional.cross_entropy(model(x), y), list(model.parameters()))
    for key, expected in zip(names, whole, strict=True):
        assert each[key].shape == (6, *expected.shape)
        torch.testing.assert_close(each[key].mean(dim=0), expected, rtol=1e-4, atol=1e-6)


def test_initial_parameters_are_those_of_a_model_with_that_seed() -> None:
    """There is one way to start, under two names."""
    start = initial_parameters(CNN, sensors=3, window_steps=1, seed=5)
    model = build_model(CNN, sensors=3, window_steps=1, seed=5)
    assert digest(start) == digest(model.get_parameters())


def test_threads_that_build_and_draw_do_not_disturb_each_other() -> None:
    """Sites of one process may build models while others draw from the global generator."""

    def start(seed: int) -> str:
        torch.rand(3)
        return digest(initial_parameters(CNN, sensors=3, window_steps=1, seed=seed))

    seeds = [0, 1, 2, 3] * 8
    alone = [start(seed) for seed in seeds]
    with ThreadPoolExecutor(max_workers=4) as pool:
        assert list(pool.map(start, seeds)) == alone


def test_initial_weights_keep_within_their_bound() -> None:
    """Weights are within 1/√fan_in and spread over it, biases are zero, gains one."""
    start = initial_parameters(CNN, sensors=4, window_steps=12, seed=0)
    bound = (4 * 3) ** -0.5
    assert 0.95 * bound < float(start["stem.weight"].abs().max()) <= bound
    assert abs(float(start["stem.weight"].mean())) < 0.1 * bound
    assert not start["stem.bias"].any()
    assert bool((start["blocks.0.norm.weight"] == 1).all())
