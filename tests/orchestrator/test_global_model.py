"""The global model: what it was given last, whoever uses it and however late."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

import pytest
import torch

from core.exceptions import ModelError
from core.models import build_model, initial_parameters
from orchestrator.global_model import GlobalModel

if TYPE_CHECKING:
    from core.messages import ModelSpec, Parameters

SPEC: ModelSpec = {"type": "cnn", "options": {}}


def parameters(seed: int) -> Parameters:
    """Parameters of the model, drawn with this seed."""
    return initial_parameters(SPEC, sensors=3, window_steps=1, seed=seed)


@pytest.fixture
def model() -> GlobalModel:
    """One with the parameters of seed 0."""
    return GlobalModel(build_model(SPEC, sensors=3, window_steps=1), parameters(0))


def test_it_computes_with_what_it_was_given_last(model: GlobalModel) -> None:
    """Before its first use, after one, and after several rounds in between."""
    x = torch.linspace(-1, 1, 12).reshape(4, 1, 3)
    for seeds in ([], [1], [2, 3]):
        for seed in seeds:
            model.hold(parameters(seed))
        newest = build_model(SPEC, sensors=3, window_steps=1)
        newest.set_parameters(parameters([0, *seeds][-1]))
        assert torch.equal(model.forward(x), newest(x))
        held = model.get_parameters()
        assert all(torch.equal(held[name], t) for name, t in newest.get_parameters().items())


def test_what_it_gives_is_a_copy(model: GlobalModel) -> None:
    """Who changes what was given changes nothing of the model."""
    for tensor in model.get_parameters().values():
        tensor.zero_()
    assert any(tensor.any() for tensor in model.get_parameters().values())


def test_it_takes_parameters_of_its_layout_alone(model: GlobalModel) -> None:
    """Others change nothing, and the error names the tensor."""
    model.set_parameters(parameters(1))
    bent = {name: tensor[:1] for name, tensor in parameters(2).items()}
    with pytest.raises(ModelError, match="CNN"):
        model.set_parameters(bent)
    held = model.get_parameters()
    assert all(torch.equal(held[name], tensor) for name, tensor in parameters(1).items())


def test_it_lets_go_of_the_round_before(model: GlobalModel) -> None:
    """Also when the model was used: a run holds one global model and not two."""
    model.forward(torch.zeros(1, 1, 3))
    first = parameters(1)
    tensor = weakref.ref(next(iter(first.values())))
    model.hold(first)
    model.forward(torch.zeros(1, 1, 3))
    model.hold(parameters(2))
    del first
    assert tensor() is None
