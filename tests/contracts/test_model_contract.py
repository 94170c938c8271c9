"""What every `ModelInterface` promises, for each model and kind of window."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from core import ModelError, ModelInterface
from core.models import available_models, build_model, initial_parameters

if TYPE_CHECKING:
    from core.messages import ModelSpec, Parameters
    from core.models import TorchModel

SENSORS = 5
CLASSES = 3


@pytest.fixture(params=available_models())
def spec(request: pytest.FixtureRequest) -> ModelSpec:
    """One model after the other, with its default options."""
    return {"type": request.param, "options": {}}


@pytest.fixture(params=[1, 12], ids=lambda steps: f"window-{steps}")
def window_steps(request: pytest.FixtureRequest) -> int:
    """A model of single rows, and one of windows."""
    steps: int = request.param
    return steps


@pytest.fixture
def model(spec: ModelSpec, window_steps: int) -> TorchModel:
    """The model under contract."""
    return build_model(spec, sensors=SENSORS, window_steps=window_steps, classes=CLASSES)


@pytest.fixture
def other(spec: ModelSpec, window_steps: int) -> Parameters:
    """Parameters that fit the model and differ from its own."""
    return initial_parameters(
        spec, sensors=SENSORS, window_steps=window_steps, classes=CLASSES, seed=1
    )


def windows(batch: int, window_steps: int) -> torch.Tensor:
    """The same standard normal windows each time."""
    shape = (batch, window_steps, SENSORS)
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


def are_equal(left: Parameters, right: Parameters) -> bool:
    """Whether both have the same names, shapes, dtypes and bits."""
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name])
        for name in left
    )


def test_it_is_a_module_and_a_model(model: TorchModel) -> None:
    """Both sides may rely on PyTorch's module and on our contract."""
    assert isinstance(model, nn.Module)
    assert isinstance(model, ModelInterface)


def test_parameters_are_the_whole_state(model: TorchModel) -> None:
    """Every parameter and buffer is given under its own name, detached and on the CPU."""
    parameters = model.get_parameters()
    assert are_equal(parameters, dict(model.state_dict()))
    assert not any(tensor.requires_grad for tensor in parameters.values())
    assert {tensor.device.type for tensor in parameters.values()} == {"cpu"}


def test_changing_what_was_given_does_not_change_the_model(model: TorchModel) -> None:
    """What `get_parameters` gives is a copy."""
    before = copy.deepcopy(model.get_parameters())
    for tensor in model.get_parameters().values():
        tensor.fill_(5)
    assert are_equal(model.get_parameters(), before)


def test_training_does_not_change_what_was_given(model: TorchModel, window_steps: int) -> None:
    """One optimiser step moves the model and leaves earlier copies alone."""
    given = model.get_parameters()
    kept = copy.deepcopy(given)
    model(windows(4, window_steps)).square().sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert are_equal(given, kept)
    assert not are_equal(model.get_parameters(), kept)


def test_set_parameters_are_given_back(model: TorchModel, other: Parameters) -> None:
    """After a set, `get_parameters` gives equal tensors."""
    assert not are_equal(model.get_parameters(), other)
    model.set_parameters(other)
    assert are_equal(model.get_parameters(), other)


def test_set_parameters_are_copied(model: TorchModel, other: Parameters) -> None:
    """Changing the tensors after a set does not change the model."""
    kept = copy.deepcopy(other)
    model.set_parameters(other)
    for tensor in other.values():
        tensor.fill_(5)
    assert are_equal(model.get_parameters(), kept)


def test_training_a_model_does_not_change_what_was_set(
    model: TorchModel, other: Parameters, window_steps: int
) -> None:
    """A site may keep the global parameters while it trains from them."""
    kept = copy.deepcopy(other)
    model.set_parameters(other)
    model(windows(4, window_steps)).square().sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert are_equal(other, kept)


def test_held_parameters_are_the_models_own(
    model: TorchModel, other: Parameters, window_steps: int
) -> None:
    """It computes with these very tensors, as if they had been set."""
    twin = copy.deepcopy(model)
    twin.set_parameters(other)
    model.hold(other)
    inputs = windows(4, window_steps)
    assert torch.equal(model(inputs), twin(inputs))
    assert {tensor.data_ptr() for tensor in model.state_dict().values()} == {
        tensor.data_ptr() for tensor in other.values()
    }


def test_equal_parameters_give_equal_logits(
    model: TorchModel, spec: ModelSpec, window_steps: int, other: Parameters
) -> None:
    """The parameters are all there is: two models with the same ones agree to the bit."""
    twin = build_model(spec, sensors=SENSORS, window_steps=window_steps, classes=CLASSES, seed=2)
    model.set_parameters(other)
    twin.set_parameters(other)
    x = windows(4, window_steps)
    assert torch.equal(model(x), twin(x))


def without_the_last(parameters: Parameters) -> Parameters:
    """All tensors but the last: copying in order would get far before it failed."""
    return dict(list(parameters.items())[:-1])


def with_another_name(parameters: Parameters) -> Parameters:
    """All tensors, and one of which the model knows nothing."""
    return parameters | {"stranger": torch.zeros(1)}


def with_another_shape(parameters: Parameters) -> Parameters:
    """The last tensor has one element too many."""
    last = list(parameters)[-1]
    return parameters | {last: torch.zeros(parameters[last].numel() + 1)}


def with_a_broadcastable_shape(parameters: Parameters) -> Parameters:
    """The last tensor has one leading dimension too many, which a plain copy would accept."""
    last = list(parameters)[-1]
    return parameters | {last: parameters[last].unsqueeze(0)}


def with_another_dtype(parameters: Parameters) -> Parameters:
    """The last tensor is in float64, which a plain copy would accept."""
    last = list(parameters)[-1]
    return parameters | {last: parameters[last].double()}


MISFITS = [
    without_the_last,
    with_another_name,
    with_another_shape,
    with_a_broadcastable_shape,
    with_another_dtype,
]


@pytest.mark.parametrize("taking", ["set_parameters", "hold"])
@pytest.mark.parametrize("spoil", MISFITS, ids=lambda spoil: spoil.__name__)
def test_parameters_that_do_not_fit_are_refused_by_name(
    model: TorchModel, other: Parameters, spoil: object, taking: str
) -> None:
    """The error names the tensor, and the model is exactly as it was."""
    assert callable(spoil)
    before = model.get_parameters()
    offender = "stranger" if spoil is with_another_name else list(other)[-1]
    with pytest.raises(ModelError, match=offender):
        getattr(model, taking)(spoil(other))
    assert are_equal(model.get_parameters(), before)


def test_a_misfit_is_described_by_what_came_and_what_was_expected(
    model: TorchModel, other: Parameters
) -> None:
    """Shapes and dtypes of both sides are in the message."""
    last = list(other)[-1]
    expected = f"float32 {tuple(other[last].shape)}"
    with pytest.raises(ModelError) as caught:
        model.set_parameters(other | {last: torch.zeros(9, 9, dtype=torch.float64)})
    assert "float64 (9, 9)" in str(caught.value)
    assert expected in str(caught.value)


@pytest.mark.parametrize("batch", [1, 4])
def test_windows_become_logits(model: TorchModel, window_steps: int, batch: int) -> None:
    """`(batch, window, sensors)` becomes `(batch, classes)` finite float32 numbers."""
    logits = model(windows(batch, window_steps))
    assert logits.shape == (batch, CLASSES)
    assert logits.dtype == torch.float32
    assert bool(torch.isfinite(logits).all())


def test_every_sensor_and_step_can_matter(model: TorchModel, window_steps: int) -> None:
    """No part of the window is cut off on its way to the logits."""
    x = windows(8, window_steps).requires_grad_()
    model(x).square().sum().backward()
    assert x.grad is not None
    assert bool((x.grad.abs().amax(dim=0) > 0).all())


def test_examples_do_not_see_each_other(model: TorchModel, window_steps: int) -> None:
    """A window's logits are the same alone and in a batch, in training mode too."""
    x = windows(4, window_steps)
    model.train()
    alone = torch.cat([model(x[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(model(x), alone)


def test_a_module_with_parameters_runs_once(model: TorchModel, window_steps: int) -> None:
    """So per-example gradients can be told apart: parameters lie in leaves, and each runs once."""
    runs: list[nn.Module] = []
    owners = [module for module in model.modules() if list(module.parameters(recurse=False))]
    for owner in owners:
        assert not list(owner.children())
        owner.register_forward_hook(lambda module, _inputs, _output: runs.append(module))
    model(windows(4, window_steps))
    assert len(runs) == len(owners)
    assert set(runs) == set(owners)


def test_forward_draws_no_random_numbers_and_changes_nothing(
    model: TorchModel, window_steps: int
) -> None:
    """Twice the same in training mode, with input, parameters and global generator untouched."""
    x, before, state = windows(4, window_steps), model.get_parameters(), torch.get_rng_state()
    model.train()
    assert torch.equal(model(x), model(x))
    assert torch.equal(x, windows(4, window_steps))
    assert are_equal(model.get_parameters(), before)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_seed_decides_the_start(spec: ModelSpec, window_steps: int) -> None:
    """Equal seeds give bit-equal finite parameters, other seeds give others."""
    first, again, third = (
        initial_parameters(spec, sensors=SENSORS, window_steps=window_steps, seed=seed)
        for seed in (3, 3, 4)
    )
    assert are_equal(first, again)
    assert not are_equal(first, third)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in first.values())


def test_building_neither_reads_nor_moves_the_global_generator(
    spec: ModelSpec, window_steps: int
) -> None:
    """What others draw is the same whether or not a model is built, and the other way round."""
    with torch.random.fork_rng(devices=[]):
        starts = []
        for global_seed in (0, 1):
            torch.manual_seed(global_seed)
            state = torch.get_rng_state()
            starts.append(
                initial_parameters(spec, sensors=SENSORS, window_steps=window_steps, seed=3)
            )
            assert torch.equal(torch.get_rng_state(), state)
    assert are_equal(*starts)


def test_a_start_is_not_saturated(model: TorchModel, window_steps: int) -> None:
    """Logits of z-scored windows start near zero, so that no class is sure of itself."""
    assert float(model(windows(64, window_steps)).detach().abs().max()) < 5.0
