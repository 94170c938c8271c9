"""Models that are copied from a pattern: as good as constructed ones, and nobody else's."""

from typing import Any

import pytest
import torch
from torch import nn

from core.models import TorchModel, build_model, load_model
from core.models.pattern import Pattern
from core.parameters import copied, digest, laid

SIZES = {"sensors": 3, "window_steps": 4}


@pytest.mark.parametrize("name", ["cnn", "lstm", "hybrid"])
def test_a_copied_model_is_the_constructed_one(name: str) -> None:
    """Same names, same logits, same gradients, bit for bit."""
    spec: Any = {"type": name, "options": {}}
    built = build_model(spec, **SIZES, seed=1)
    loaded = load_model(spec, built.get_parameters(), **SIZES)
    assert repr(loaded) == repr(built)
    x = torch.randn((5, 4, 3), generator=torch.Generator().manual_seed(0))
    for model in (built, loaded):
        model(x).square().sum().backward()
    assert torch.equal(loaded(x), built(x))
    expected = dict(built.named_parameters())
    assert expected.keys() == dict(loaded.named_parameters()).keys()
    for parameter_name, parameter in loaded.named_parameters():
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, expected[parameter_name].grad)


@pytest.mark.parametrize("name", ["cnn", "lstm", "hybrid"])
def test_models_of_one_pattern_share_nothing(name: str) -> None:
    """To train one, or to switch its mode, leaves the other and what it was loaded from alone."""
    spec: Any = {"type": name, "options": {}}
    parameters = build_model(spec, **SIZES).get_parameters()
    before = {key: tensor.clone() for key, tensor in parameters.items()}
    first, second = (load_model(spec, parameters, **SIZES) for _ in range(2))
    first.eval()
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(1.0)
    assert all(module.training for module in second.modules())
    for values in (second.state_dict(), parameters):
        assert all(torch.equal(values[key], before[key]) for key in before)


@pytest.mark.parametrize("name", ["cnn", "lstm", "hybrid"])
def test_a_model_of_lying_parameters_lies_too(name: str) -> None:
    """What it was trained to is there at once, in its own memory."""
    spec: Any = {"type": name, "options": {}}
    received = copied(build_model(spec, **SIZES).get_parameters())
    before = digest(received)
    model = load_model(spec, received, **SIZES)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    trained = laid(model.given_up())
    assert trained is not None
    assert trained.flat.data_ptr() == min(p.data_ptr() for p in model.parameters())
    assert digest(trained) == digest(model.get_parameters())
    assert digest(received) == before


def test_a_model_that_does_not_lie_any_more_is_copied() -> None:
    """Somebody put another tensor in place of one."""
    spec: Any = {"type": "cnn", "options": {}}
    model = load_model(spec, copied(build_model(spec, **SIZES).get_parameters()), **SIZES)
    next(model.parameters()).data = torch.full_like(next(model.parameters()), 7.0)
    assert digest(model.given_up()) == digest(model.get_parameters())


class Tied(TorchModel):
    """One layer under two names."""

    def __init__(self, **_sizes: int) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.second = self.first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Use the second."""
        return self.second(x)


class Closed(TorchModel):
    """Keeps a function that holds one of its layers."""

    def __init__(self, **_sizes: int) -> None:
        super().__init__()
        self.layer = layer = nn.Linear(2, 2)
        self.apply_layer = lambda x: layer(x) * 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Go through the function."""
        return self.apply_layer(x)


@pytest.mark.parametrize("kind", [Tied, Closed])
def test_models_of_other_people_work_too(kind: type[TorchModel]) -> None:
    """What is more than a tree of modules is constructed; a layer with two names stays one."""

    def construct() -> TorchModel:
        with torch.device("meta"):
            return kind()

    pattern = Pattern(construct)
    ones = {name: torch.ones(t.shape) for name, t in pattern.layout.items()}
    x = torch.tensor([[1.0, 2.0]])
    for parameters in (ones, ones, copied(ones)):  # 1 * 1 + 1 * 2 + 1
        model = pattern.filled(parameters)
        assert model(x).tolist() == [[4.0, 4.0]]
        with torch.no_grad():
            next(model.parameters()).zero_()
        assert model(x).tolist() == [[1.0, 1.0]]
        assert digest(model.given_up()) == digest(model.get_parameters())
