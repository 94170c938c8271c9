"""Building models from a `ModelSpec`, and what our own architectures are made of."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from core import ConfigurationError, ModelType
from core.models import (
    available_models,
    build_model,
    create_model,
    describe_models,
    initial_parameters,
)
from core.models.blocks import Encoding, Recurrence, StepConvolution, StepNorm
from core.models.registry import MODELS
from core.parameters import count, digest
from core.schema import DataSchema

if TYPE_CHECKING:
    from core.messages import ModelSpec
    from core.models import TorchModel

CNN: ModelSpec = {"type": "cnn", "options": {}}


def layout(
    name: str = "cnn", *, sensors: int, window_steps: int, **options: int
) -> dict[str, tuple[int, ...]]:
    """Name to shape of a model's parameters."""
    model = build_model(
        {"type": name, "options": options}, sensors=sensors, window_steps=window_steps
    )
    return {name: tuple(tensor.shape) for name, tensor in model.get_parameters().items()}


def test_an_unknown_type_is_refused_with_what_exists() -> None:
    """A misspelt type is answered with the list of types."""
    with pytest.raises(ConfigurationError, match=r"unknown model type 'cnm'; available: cnn, "):
        build_model({"type": "cnm", "options": {}}, sensors=3, window_steps=1)


def test_every_type_of_the_specification_is_built_in() -> None:
    """What `ModelType` names can be built, with nothing installed beside this project."""
    assert set(MODELS) == {model_type.value for model_type in ModelType}


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
        "unknown option 'chanels'; options: bins, blocks, centred, channels, reach",
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


@pytest.mark.parametrize("name", MODELS)
def test_defaults_lie_within_their_ranges(name: str) -> None:
    """An option that is left out is as valid as one that is given."""
    for option in MODELS[name].OPTIONS.values():
        assert option.minimum <= option.default <= option.maximum


def test_options_reach_the_architecture() -> None:
    """Channels, blocks and bins (3 (1 + 6) = 21) decide the shapes; reach decides the kernels."""
    small = layout(sensors=3, window_steps=9, channels=4, blocks=1, reach=2, bins=6)
    assert small["stem.weight"] == (4, 21, 5)
    assert small["head.weight"] == (2, 8)
    assert sum(name.endswith("convolution.weight") for name in small) == 1


def test_the_default_has_about_thirty_thousand_parameters() -> None:
    """Eleven features of single rows: the size that the round benchmark speaks of."""
    # stem 11 (1 + 32) * 64 + 64; two blocks of 64 * 64 + 64 and norm 2 * 64; head 2 * 64 * 2 + 2
    model = build_model(CNN, sensors=11, window_steps=1)
    assert count(model.parameters()) == 23296 + 2 * (4160 + 128) + 258


def test_the_default_lstm_has_recurrent_weights_for_windows_alone() -> None:
    """Eleven features, as above."""
    # stem 11 (1 + 32) * 64 + 64; two layers of 256 * 64 + 256 and norm 2 * 64; head 2 * 64 * 2 + 2
    rows = build_model({"type": "lstm", "options": {}}, sensors=11, window_steps=1)
    assert count(rows.parameters()) == 23296 + 2 * (16640 + 128) + 258
    windows = build_model({"type": "lstm", "options": {}}, sensors=11, window_steps=2)
    assert count(windows.parameters()) == count(rows.parameters()) + 2 * 256 * 64


def test_the_default_hybrid_is_a_block_and_a_recurrence() -> None:
    """Eleven features, as above."""
    # stem 11 (1 + 32) * 64 + 64; block 64 * 64 + 64 and norm 2 * 64; norm 2 * 64;
    # recurrence 256 * 64 + 256; head 2 * 64 * 2 + 2
    model = build_model({"type": "hybrid", "options": {}}, sensors=11, window_steps=1)
    assert count(model.parameters()) == 23296 + (4160 + 128) + 128 + 16640 + 258


@pytest.mark.parametrize("name", MODELS)
def test_the_layout_is_one_for_all_windows_beyond_the_reach(name: str) -> None:
    """A longer window takes no more parameters."""
    assert layout(name, sensors=3, window_steps=2) == layout(name, sensors=3, window_steps=500)


def test_a_window_of_one_has_kernels_of_one() -> None:
    """No parameter exists that could only ever meet padding."""
    single = layout(sensors=3, window_steps=1, bins=0)
    assert single["stem.weight"] == (64, 3, 1)
    assert layout(sensors=3, window_steps=2, bins=0)["stem.weight"] == (64, 3, 3)
    assert single == layout(sensors=3, window_steps=500, reach=0, bins=0)


@pytest.mark.parametrize("name", MODELS)
def test_only_the_stem_depends_on_the_sensors(name: str) -> None:
    """Another number of sensors changes the stem's weight and nothing else."""
    three, four = (layout(name, sensors=sensors, window_steps=12) for sensors in (3, 4))
    assert {key for key in three if three[key] != four[key]} == {"stem.weight"}


@pytest.mark.parametrize("window_steps", [1, 2, 3, 500])
@pytest.mark.parametrize("name", ["cnn", "hybrid"])
def test_any_window_gives_logits(name: str, window_steps: int) -> None:
    """From single rows to five hundred steps, and with a reach beyond the window."""
    for reach in (0, 1, 8):
        spec: ModelSpec = {"type": name, "options": {"channels": 4, "reach": reach}}
        model = build_model(spec, sensors=3, window_steps=window_steps)
        assert model(torch.zeros(2, window_steps, 3)).shape == (2, 2)


@pytest.mark.parametrize("name", MODELS)
def test_the_ends_of_each_range_can_be_built(name: str) -> None:
    """The smallest model works; the largest one is as large as is said, option by option."""
    for option, bounds in MODELS[name].OPTIONS.items():
        small = layout(name, sensors=3, window_steps=40, **{option: bounds.minimum})
        large = layout(name, sensors=3, window_steps=40, **{option: bounds.maximum})
        assert (small != large) == (option != "centred")  # which is no size
    smallest = {option: bounds.minimum for option, bounds in MODELS[name].OPTIONS.items()}
    model = build_model({"type": name, "options": smallest}, sensors=3, window_steps=4)
    assert bool(torch.isfinite(model(torch.ones(2, 4, 3))).all())


def test_the_encoding_says_how_far_a_number_came_through_each_bin() -> None:
    """Of bins from -3 to -1, 1 and 3, 0.5 fills the first and three quarters of the next."""
    found = Encoding(3)(torch.tensor([[[0.5, -7.0]]]))
    assert found[0, 0].tolist() == [0.5, -7.0, 1.0, 0.75, 0.0, 0.0, 0.0, 0.0]


def test_the_centred_encoding_says_how_far_a_number_came_from_0() -> None:
    """Of bins from -3 to -1, 1 and 3, 0.5 fills a quarter of the second; -7 empties up to 0."""
    found = Encoding(3, centred=1)(torch.tensor([[[0.5, -7.0, 0.0]]]))
    first, second, at_0 = [0.0, 0.25, 0.0], [-1.0, -0.5, 0.0], [0.0, 0.0, 0.0]
    assert found[0, 0].tolist() == [0.5, -7.0, 0.0, *first, *second, *at_0]


def test_without_bins_a_number_is_left_alone() -> None:
    """As it is, and at no cost."""
    x = torch.randn(2, 3, 4)
    assert Encoding(0)(x) is x


@pytest.mark.parametrize("window_steps", [1, 2])
def test_the_quick_way_at_a_window_of_one_gives_the_same(window_steps: int) -> None:
    """A convolution and a norm over a single step are PyTorch's own, to rounding."""
    h = torch.randn(5, 4, window_steps, generator=torch.Generator().manual_seed(0))
    convolution, norm = StepConvolution(4, 6, 0), StepNorm(4)
    expected = functional.conv1d(h, convolution.weight, convolution.bias)
    torch.testing.assert_close(convolution(h), expected)
    torch.testing.assert_close(norm(h), functional.group_norm(h, 1, norm.weight, norm.bias))


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
    """All examples' gradients at once are those of one example after the other."""
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
    for i in range(6):
        alone = functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        expected = torch.autograd.grad(alone, list(model.parameters()))
        for key, gradient in zip(names, expected, strict=True):
            torch.testing.assert_close(each[key][i], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("window_steps", [1, 2, 12])
def test_the_recurrence_is_that_of_pytorchs_lstm(window_steps: int) -> None:
    """With the same weights it gives the same states, and the same gradients of its input."""
    generator = torch.Generator().manual_seed(0)
    ours, theirs = Recurrence(5, 7, window_steps), nn.LSTM(5, 7, batch_first=True)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.uniform_(-0.5, 0.5, generator=generator)
    recurrent = ours.recurrent_weight if window_steps > 1 else torch.ones(28, 7)  # never met there
    theirs.load_state_dict(
        {
            "weight_ih_l0": ours.input_weight,
            "weight_hh_l0": recurrent,
            "bias_ih_l0": ours.bias,
            "bias_hh_l0": torch.zeros(28),
        }
    )
    x = torch.randn(4, window_steps, 5, generator=generator, requires_grad=True)
    found, expected = ours(x), theirs(x)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    gradients = [torch.autograd.grad(states.square().sum(), x)[0] for states in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["lstm", "hybrid"])
def test_forget_gates_start_open(name: str) -> None:
    """Of the four gates' biases the second starts at 1, the others at 0."""
    model = build_model({"type": name, "options": {"hidden": 4}}, sensors=3, window_steps=12)
    found = [module.bias for module in model.modules() if isinstance(module, Recurrence)]
    assert len(found) == {"lstm": 2, "hybrid": 1}[name]
    for bias in found:
        assert bias.tolist() == [0.0] * 4 + [1.0] * 4 + [0.0] * 8


def rising(n: int, window_steps: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows of noise; in those with label 1 the first of three sensors rises."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, window_steps, 3, generator=generator)
    y = torch.randint(0, 2, (n,), generator=generator)
    slope = torch.linspace(-2.0, 2.0, window_steps) if window_steps > 1 else torch.tensor([4.0])
    x[:, :, 0] += y.unsqueeze(1) * slope
    return x, y


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("window_steps", [1, 12])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_learns_what_rises(name: str, window_steps: int, optimizer: str) -> None:
    """Three short epochs from the start, with common settings, are enough for an easy question."""
    model: TorchModel = build_model(
        {"type": name, "options": {"hidden": 16} if name == "lstm" else {"channels": 16}},
        sensors=3,
        window_steps=window_steps,
    )
    descent = (
        torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        if optimizer == "sgd"
        else torch.optim.Adam(model.parameters(), lr=0.005)
    )
    x, y = rising(960, window_steps, seed=0)
    for batch in torch.split(torch.arange(960).repeat(3), 32):
        descent.zero_grad()
        loss = functional.cross_entropy(model(x[batch]), y[batch])
        loss.backward()  # type: ignore[no-untyped-call]
        descent.step()
    x, y = rising(500, window_steps, seed=1)
    right = (model(x).argmax(dim=1) == y).float().mean()
    assert float(right) > 0.93  # two standard deviations to either side of the middle: 0.977


SCHEMA = DataSchema.model_validate(
    {
        "name": "press-line",
        "label": {"column": "failure"},
        "window_steps": 12,
        "columns": [
            {"name": "vibration", "range": [0, 45]},
            {"name": "oil", "type": "category", "values": ["mineral", "synthetic"]},
        ],
    }
)


@pytest.mark.parametrize("model_type", [*ModelType, "lstm"], ids=str)
def test_a_model_is_created_for_a_schema(model_type: ModelType | str) -> None:
    """Three features in windows of twelve: the same as building it with those numbers."""
    created = create_model(model_type, SCHEMA, seed=4)
    spec: ModelSpec = {"type": ModelType(model_type).value, "options": {}}
    expected = initial_parameters(spec, sensors=3, window_steps=12, seed=4)
    assert digest(created.get_parameters()) == digest(expected)
    assert created(torch.zeros(5, 12, 3)).shape == (5, 2)


def test_a_model_is_created_with_options() -> None:
    """They are given by name, and judged as in a plan."""
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in create_model("lstm", SCHEMA, hidden=8).get_parameters().items()
    }
    assert shapes == layout("lstm", sensors=3, window_steps=12, hidden=8)
    with pytest.raises(ConfigurationError, match="unknown option 'width'"):
        create_model(ModelType.LSTM, SCHEMA, width=8)


def test_models_are_described_for_people() -> None:
    """A name, a line, the options with their ranges, and where it comes from."""
    described = {model.name: model for model in describe_models()}
    assert list(described)[:3] == ["cnn", "hybrid", "lstm"]
    lstm = described["lstm"]
    assert lstm.summary.startswith("A linear map into hidden features, ")
    assert lstm.source == "built in"
    assert {name: (o.default, o.minimum, o.maximum) for name, o in lstm.options.items()} == {
        "hidden": (64, 2, 1024),
        "layers": (2, 1, 8),
        "bins": (32, 0, 256),
        "centred": (0, 0, 1),
    }
    assert sorted(described) == available_models()


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
    spec: ModelSpec = {"type": "cnn", "options": {"bins": 0}}
    start = initial_parameters(spec, sensors=4, window_steps=12, seed=0)
    bound = (4 * 3) ** -0.5
    assert 0.95 * bound < float(start["stem.weight"].abs().max()) <= bound
    assert abs(float(start["stem.weight"].mean())) < 0.1 * bound
    assert not start["stem.bias"].any()
    assert bool((start["blocks.0.norm.weight"] == 1).all())
