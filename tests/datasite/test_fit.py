"""The fit, worked out by hand: two weights, one feature, and every setting takes effect.

The logits are (a x, b x). With a = b and x = 1 both classes have probability 1/2, so for label 1
the gradient of the loss is (1/2, -1/2).
"""

import math
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from core.exceptions import ConfigurationError
from core.messages import TrainingSettings
from datasite.training.fit import Fitted, build_optimizer, fit, mean_loss
from datasite.training.objectives import Objective, Task
from datasite.training.tensors import Tensors


class Line(nn.Module):
    """Logits (a x, b x) of a window of one step and one sensor."""

    def __init__(self, a: float = 0.0, b: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([a, b]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, 1, 1) to (batch, 2)."""
        return x[:, 0] * self.weight


class Pull(Objective):
    """An objective that adds a gradient of (1, 1)."""

    def correct_gradients(self, model: nn.Module) -> None:
        """Add 1 to each."""
        for parameter in model.parameters():
            cast("torch.Tensor", parameter.grad).add_(1.0)


NOTHING = Task(hyperparameters={}, received={}, learning_rate=0.1)


def settings(**changes: object) -> TrainingSettings:
    """Give one epoch of one batch of plain descent at 0.1."""
    plain = {
        "local_epochs": 1,
        "batch_size": 8,
        "learning_rate": 0.1,
        "optimizer": "sgd",
        "momentum": 0.0,
        "weight_decay": 0.0,
        "gradient_clip": None,
        "focal_gamma": 0.0,
    }
    return cast("TrainingSettings", {**plain, **changes})


def run(
    model: Line,
    x: list[float],
    y: list[int],
    *,
    positive_weight: float = 1.0,
    objective: Objective | None = None,
    seed: int = 0,
    **changes: object,
) -> Fitted:
    """Fit `model` to the rows."""
    return fit(
        model,
        Tensors.of(torch.tensor(x).reshape(-1, 1, 1), torch.tensor(y)),
        settings=settings(**changes),
        positive_weight=positive_weight,
        objective=objective or Objective(NOTHING),
        seed=seed,
    )


def weights(model: Line) -> Any:
    """Give (a, b), to compare approximately."""
    return pytest.approx(model.weight.tolist(), abs=1e-5)


def fitted(x: list[float], y: list[int], **changes: Any) -> list[float]:
    """Give (a, b) after a fit that starts at (0, 0)."""
    model = Line()
    run(model, x, y, **changes)
    return model.weight.tolist()


def test_a_step_goes_down_the_gradient_by_the_learning_rate() -> None:
    """(0, 0) − 0.1 (1/2, −1/2), and twice as far at 0.2."""
    assert fitted([1.0], [1]) == pytest.approx([-0.05, 0.05])
    assert fitted([1.0], [1], learning_rate=0.2) == pytest.approx([-0.1, 0.1])


def test_each_epoch_is_a_step_on() -> None:
    """After (−0.05, 0.05) the failure has 1/(1+e^−0.1) = 0.52498; −0.05 − 0.1 x 0.47502."""
    assert fitted([1.0], [1], local_epochs=2) == pytest.approx([-0.0975021, 0.0975021], abs=1e-6)


def test_each_batch_is_a_step() -> None:
    """Two equal rows: one batch of two is the step of one row, two batches of one are two steps."""
    x, y = [1.0, 1.0], [1, 1]
    assert fitted(x, y, batch_size=2) == pytest.approx([-0.05, 0.05])
    assert fitted(x, y, batch_size=1) == pytest.approx([-0.0975021, 0.0975021], abs=1e-6)


@pytest.mark.parametrize(
    ("rows", "batch_size", "epochs", "steps"),
    [(10, 4, 3, 9), (8, 4, 1, 2), (3, 64, 5, 5), (5, 1, 2, 10)],
    ids=["a rest", "no rest", "one batch", "single rows"],
)
def test_steps_are_epochs_times_batches(
    rows: int, batch_size: int, epochs: int, steps: int
) -> None:
    """Epochs x ⌈rows / batch size⌉: the last, smaller batch counts too."""
    found = run(Line(), [1.0] * rows, [1] * rows, batch_size=batch_size, local_epochs=epochs)
    assert (found.num_samples, found.num_steps) == (rows, steps)


def test_momentum_carries_the_last_step_on() -> None:
    """V = 1/2 x 0.5 + 0.47502 = 0.72502; −0.05 − 0.1 v."""
    assert fitted([1.0], [1], local_epochs=2, momentum=0.5) == pytest.approx(
        [-0.1225021, 0.1225021], abs=1e-6
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_weight_decay_pulls_towards_zero(optimizer: str) -> None:
    """From (1, 1): sgd has (1/2, −1/2) + 0.1 (1, 1) = (0.6, −0.4), so (0.94, 1.04).

    Adam's first step has the gradient's sign; a decay of 1 makes it (1.5, 0.5), so (0.9, 0.9).
    """
    model = Line(1.0, 1.0)
    run(model, [1.0], [1], optimizer=optimizer, weight_decay={"sgd": 0.1, "adam": 1.0}[optimizer])
    expected = {"sgd": [0.94, 1.04], "adam": [0.9, 0.9]}[optimizer]
    assert expected == weights(model)


def test_a_gradient_is_clipped_to_its_norm() -> None:
    """|(1/2, −1/2)| = 0.70711; clipped to a tenth of it, the step is a tenth too."""
    clipped = fitted([1.0], [1], gradient_clip=math.sqrt(0.5) / 10)
    assert clipped == pytest.approx([-0.005, 0.005], abs=1e-6)


def test_a_gradient_below_the_bound_is_not_clipped() -> None:
    """Clipping never makes a step longer."""
    assert fitted([1.0], [1], gradient_clip=1.0) == pytest.approx([-0.05, 0.05])


def test_adam_takes_its_first_step_by_the_sign() -> None:
    """The learning rate itself, whatever the gradient's size."""
    assert fitted([1.0], [1], optimizer="adam") == pytest.approx([-0.1, 0.1], abs=1e-6)


def test_a_failure_counts_by_its_weight_in_a_weighted_mean() -> None:
    """One row of each label cancel; at weight 3: (3 (1/2, −1/2) + (−1/2, 1/2)) / (3 + 1)."""
    x, y = [1.0, 1.0], [1, 0]
    assert fitted(x, y) == pytest.approx([0.0, 0.0], abs=1e-7)
    assert fitted(x, y, positive_weight=3.0) == pytest.approx([-0.025, 0.025])


def test_the_objective_adds_its_part() -> None:
    """(1/2, −1/2) + (1, 1) = (1.5, 0.5)."""
    assert fitted([1.0], [1], objective=Pull(NOTHING)) == pytest.approx([-0.15, -0.05])


def test_the_objectives_part_is_not_clipped() -> None:
    """The data's gradient shrinks to a tenth, (0.05, −0.05), and (1, 1) comes whole."""
    found = fitted([1.0], [1], objective=Pull(NOTHING), gradient_clip=math.sqrt(0.5) / 10)
    assert found == pytest.approx([-0.105, -0.095], abs=1e-6)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_the_focal_loss_follows_its_formula(gamma: float) -> None:
    """Logits (0, 1), a row of each label, weights 3 and 1: p = 1/(1+e^−1), and 1 − p."""
    logits, labels = torch.tensor([[0.0, 1.0], [0.0, 1.0]]), torch.tensor([1, 0])
    p = 1 / (1 + math.exp(-1))
    expected = (3 * (1 - p) ** gamma * -math.log(p) + p**gamma * -math.log(1 - p)) / 4
    found = mean_loss(logits, labels, torch.tensor([1.0, 3.0]), gamma)
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_the_focal_loss_without_focus_is_cross_entropy() -> None:
    """As γ goes to 0 both meet; a row that is surely right still has a finite gradient."""
    logits = torch.tensor([[0.0, 40.0], [1.0, 0.0]], requires_grad=True)
    labels, weights = torch.tensor([1, 1]), torch.ones(2)
    near = mean_loss(logits, labels, weights, 1e-7)
    assert near.item() == pytest.approx(mean_loss(logits, labels, weights, 0.0).item(), rel=1e-4)
    mean_loss(logits, labels, weights, 0.5).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert bool(torch.isfinite(logits.grad).all())


def test_the_focal_loss_takes_effect() -> None:
    """At p = 1/2 and γ = 2 its slope is p (1 − p)² (−2 ln p) + (1 − p)³ = 0.29829, and not 1/2."""
    found = fitted([1.0], [1], focal_gamma=2.0)
    assert found == pytest.approx([-0.029829, 0.029829], abs=1e-6)


def test_the_seed_decides_the_order_of_the_batches() -> None:
    """The same seed gives the same bits, another seed another order of four different rows."""
    x, y = [1.0, 2.0, 3.0, 4.0], [1, 0, 1, 0]
    first = fitted(x, y, batch_size=1, seed=1)
    assert fitted(x, y, batch_size=1, seed=1) == first
    assert fitted(x, y, batch_size=1, seed=2) != first


def test_every_epoch_has_an_order_of_its_own() -> None:
    """Two epochs are not one epoch taken twice: the orders are drawn one after the other."""
    x, y = [1.0, 2.0, 3.0, 4.0], [1, 0, 1, 0]
    twice = Line()
    for _ in range(2):
        run(twice, x, y, batch_size=1, seed=1)
    assert fitted(x, y, batch_size=1, seed=1, local_epochs=2) != twice.weight.tolist()


def test_the_loss_is_the_mean_over_the_last_epoch() -> None:
    """Ln 2 at the start; after one step −ln 0.52498 = 0.64440, whatever the epochs before."""
    assert run(Line(), [1.0], [1]).train_loss == pytest.approx(math.log(2))
    assert run(Line(), [1.0], [1], local_epochs=2).train_loss == pytest.approx(0.6443967, abs=1e-6)


def test_the_loss_weighs_batches_by_their_rows() -> None:
    """Rows of zeros keep ln 2; however three rows fall into batches of two, so does their mean."""
    assert run(Line(), [0.0] * 3, [1] * 3, batch_size=2).train_loss == pytest.approx(math.log(2))


def test_the_global_generators_are_not_touched() -> None:
    """Sites that train in threads of one process share them: neither read nor moved."""
    x, y = [1.0, 2.0, 3.0, 4.0], [1, 0, 1, 0]
    torch.manual_seed(1)
    before, legacy = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002 - the global one
    first = fitted(x, y, batch_size=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], legacy[1])  # noqa: NPY002
    torch.manual_seed(2)
    assert fitted(x, y, batch_size=1) == first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "lion"}, r"training\.optimizer 'lion' is unknown; available: sgd, adam"),
        ({"optimizer": "SGD"}, r"'SGD' is unknown"),
        ({"optimizer": "adam", "momentum": 0.9}, r"training\.momentum belongs to sgd"),
    ],
    ids=["unknown", "spelt otherwise", "momentum with adam"],
)
def test_an_optimizer_that_does_not_exist_is_a_configuration_error(
    changes: dict[str, Any], message: str
) -> None:
    """Nothing is trained, and nothing is quietly left out."""
    model = Line()
    with pytest.raises(ConfigurationError, match=message):
        run(model, [1.0], [1], **changes)
    assert model.weight.tolist() == [0.0, 0.0]


def test_an_optimizer_starts_with_nothing_remembered() -> None:
    """Momentum does not cross rounds: each fit has its own."""
    model = Line()
    assert (
        build_optimizer(list(model.parameters()), settings(momentum=0.9)).state_dict()["state"]
        == {}
    )
    run(model, [1.0], [1], momentum=0.9)
    first = model.weight.detach().clone()
    fresh = Line(*first.tolist())
    run(model, [1.0], [1], momentum=0.9)
    run(fresh, [1.0], [1], momentum=0.9)
    assert torch.equal(model.weight, fresh.weight)
