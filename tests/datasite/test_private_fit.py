"""DP-SGD: exact gradients by example, a bound on each unit's share, noise that nobody can guess."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional

from core.models import TorchModel, initial_parameters, load_model
from core.parameters import distance, require_finite
from core.privacy import Unit
from datasite.mechanism import Mechanism
from datasite.training.fit import Fitted
from datasite.training.noise import SecretRandom
from datasite.training.objectives.base import Task
from datasite.training.objectives.fedavg import FedAvg
from datasite.training.private_fit import Machines, Windows, fit_privately
from datasite.training.tensors import Tensors

MODELS: list[dict[str, Any]] = [
    {"type": "cnn", "options": {"channels": 4, "blocks": 2}},
    {"type": "lstm", "options": {"hidden": 4, "layers": 2}},
    {"type": "hybrid", "options": {}},
]
LARGE: dict[str, Any] = {"type": "cnn", "options": {"channels": 256, "blocks": 4}}
"""Of its gradients by example not all find room at once."""

SENSORS = 3
NO_NOISE = 1e-12
SETTINGS: Any = {
    "local_epochs": 1,
    "batch_size": 8,
    "learning_rate": 1.0,
    "optimizer": "sgd",
    "momentum": 0.0,
    "weight_decay": 0.0,
    "gradient_clip": None,
    "focal_gamma": 0.0,
}


def model_of(spec: Any, window_steps: int) -> TorchModel:
    """Build a model with starting values."""
    sizes = {"sensors": SENSORS, "window_steps": window_steps}
    return load_model(spec, initial_parameters(spec, **sizes, seed=1), **sizes)


def data_of(count: int, window_steps: int, machines: int = 1) -> Tensors:
    """Give windows of noise; every third fails, and machines take turns."""
    inputs = torch.randn(count, window_steps, SENSORS, generator=torch.Generator().manual_seed(2))
    data = Tensors.of(inputs, (torch.arange(count) % 3 == 0).long())
    return Tensors(
        rows=data.rows,
        starts=data.starts,
        labels=data.labels,
        machines=torch.arange(count) % machines,
        window_steps=window_steps,
    )


def fit(
    model: TorchModel,
    data: Tensors,
    *,
    clip_norm: float = 1.0,
    unit: Unit = "window",
    rate: float = 1.0,
    steps: int = 1,
    noise: float = NO_NOISE,
    settings: Any = SETTINGS,
) -> Fitted:
    """Fit privately; failures weigh three times as much."""
    units = len(data.labels) if unit == "window" else len(data.machines.unique())
    task = Task(hyperparameters={}, received=model.get_parameters(), learning_rate=1.0)
    return fit_privately(
        model,
        data,
        settings=settings,
        positive_weight=3.0,
        objective=FedAvg(task),
        privacy={
            "level": "differential_privacy",
            "epsilon": 1.0,
            "delta": 1e-5,
            "clip_norm": clip_norm,
            "unit": unit,
        },
        mechanism=Mechanism(units=units, sample_rate=rate, steps=steps, noise_multiplier=noise),
    )


def gradients(model: TorchModel, data: Tensors) -> torch.Tensor:
    """Give each window's gradient, one at a time: (n, parameters)."""
    rows = []
    for start, label in zip(data.starts, data.labels, strict=True):
        model.zero_grad()
        logits = model(data.windows(start[None]))
        weight = 3.0 if label == 1 else 1.0
        (weight * functional.cross_entropy(logits, label[None])).backward()
        rows.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    model.zero_grad()
    return torch.stack(rows)


def shortened(rows: torch.Tensor, norm: float) -> torch.Tensor:
    """Give the sum of gradients, each no longer than `norm`."""
    lengths = rows.norm(dim=1, keepdim=True)
    return (rows * (norm / lengths).clamp(max=1.0)).sum(dim=0)


def flat(model: TorchModel) -> torch.Tensor:
    """Give the parameters as one vector, copied."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("window_steps", [1, 30])
@pytest.mark.parametrize("spec", MODELS, ids=lambda spec: spec["type"])
def test_a_step_is_made_of_each_windows_shortened_gradient(spec: Any, window_steps: int) -> None:
    """As a loop over the windows gives it, for layers of Opacus' own and for ours."""
    model, data = model_of(spec, window_steps), data_of(9, window_steps)
    each = gradients(model, data)
    norm = float(each.norm(dim=1).median())  # so that some are shortened, and some are not
    before = flat(model)
    fitted = fit(model, data, clip_norm=norm)
    torch.testing.assert_close(
        before - flat(model), shortened(each, norm) / 9, rtol=1e-3, atol=1e-5
    )
    assert (fitted.num_samples, fitted.num_steps, fitted.train_loss) == (9, 1, None)


def test_gradients_that_find_no_room_at_once_are_taken_in_pieces() -> None:
    """The sum is the same."""
    model, data = model_of(LARGE, 1), data_of(70, 1)
    each = gradients(model, data)
    before = flat(model)
    fit(model, data)
    torch.testing.assert_close(
        before - flat(model), shortened(each, 1.0) / 70, rtol=1e-3, atol=1e-5
    )


def test_the_gradient_of_a_machine_is_shortened_as_a_whole() -> None:
    """It is the mean over the machine's windows."""
    model, data = model_of(MODELS[0], 1), data_of(12, 1, machines=3)
    by_machine = gradients(model, data).reshape(4, 3, -1).mean(dim=0)
    norm = float(by_machine.norm(dim=1).median())
    before = flat(model)
    fit(model, data, clip_norm=norm, unit="machine")
    torch.testing.assert_close(
        before - flat(model), shortened(by_machine, norm) / 3, rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize("unit", ["window", "machine"])
def test_no_unit_moves_the_model_by_more_than_the_clipping_norm(unit: Unit) -> None:
    """However large its loss: the step with one unit and the step without differ by C at most."""
    data = data_of(8, 1, machines=4)
    rows = data.rows.clone()
    rows[3::4] *= 1e3
    moved = model_of({"type": "lstm", "options": {"hidden": 4, "bins": 0}}, 1)
    before = moved.get_parameters()
    alone = data.machines == 3 if unit == "machine" else torch.arange(8) == 7
    one = Tensors(
        rows=rows,
        starts=data.starts[alone],
        labels=data.labels[alone],
        machines=data.machines[alone],
        window_steps=1,
    )
    fit(moved, one, clip_norm=0.5, unit=unit)
    assert 0.4 < distance(moved.get_parameters(), before) <= 0.5


def test_each_chosen_unit_is_taken_once() -> None:
    """In pieces that have room, by window and by machine; of a machine no more than there is."""
    pieces = list(Windows().batches(torch.arange(10), 4))
    assert [piece.units for piece in pieces] == [4, 4, 2]
    assert torch.cat([piece.windows for piece in pieces]).tolist() == list(range(10))
    machines = Machines(torch.tensor([5, 7, 5, 5] + [9] * 100), SecretRandom())
    (piece,) = machines.batches(torch.tensor([0, 2]), 1000)
    assert piece.windows[:3].tolist() == [0, 2, 3]
    assert piece.owners.tolist() == [0] * 3 + [1] * 64
    assert len(piece.windows.unique()) == 67
    assert list(machines.batches(torch.tensor([], dtype=torch.int64), 1000)) == []


def test_a_step_in_which_nobody_is_taken_has_noise_alone() -> None:
    """And nothing else betrays that it was one."""
    model, data = model_of(MODELS[0], 1), data_of(9, 1)
    before = model.get_parameters()
    fitted = fit(model, data, rate=1e-12, steps=3, noise=1e-12)
    assert fitted.num_steps == 3
    assert distance(model.get_parameters(), before) > 0


def test_a_window_whose_gradient_is_not_finite_counts_as_nothing() -> None:
    """Parameters that are not finite would tell of it."""
    model, data = model_of(MODELS[0], 1), data_of(9, 1)
    data.rows[4] = float("nan")
    fit(model, data, steps=2)
    require_finite(model.get_parameters(), whose="the model")


def test_noise_is_as_large_as_the_mechanism_says() -> None:
    """Two fits differ by noise alone: by √2 σ C / n in each number, and n is 9 here."""
    data, fits = data_of(9, 1), []
    for _ in range(2):
        model = model_of({"type": "lstm", "options": {"hidden": 32}}, 1)
        fit(model, data, clip_norm=0.7, noise=3.0)
        fits.append(flat(model))
    difference = (fits[0] - fits[1]).double()
    expected = 2**0.5 * 3.0 * 0.7 / 9
    assert len(difference) > 10_000
    assert float(difference.std()) == pytest.approx(expected, rel=0.05)
    assert stats.kstest(difference.numpy() / expected, "norm").pvalue > 1e-9


def test_draws_are_gaussian() -> None:
    """By Kolmogorov and Smirnov, and by χ² over bins of equal weight; and draws are independent."""
    draws = SecretRandom().gaussian(torch.Size([100_000]), 2.5).numpy() / 2.5
    assert stats.kstest(draws, "norm").pvalue > 1e-9
    counts, _ = np.histogram(stats.norm.cdf(draws), bins=100, range=(0, 1))
    assert stats.chisquare(counts).pvalue > 1e-9
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.03


def test_bits_are_even() -> None:
    """Of 10^5 numbers in (0, 1)."""
    drawn = SecretRandom().uniform(100_000)
    assert drawn.min() > 0.0
    assert drawn.max() < 1.0
    counts, _ = np.histogram(drawn, bins=256, range=(0, 1))
    assert stats.chisquare(counts).pvalue > 1e-9


def test_units_are_chosen_each_for_itself() -> None:
    """How many are taken varies as by tosses of a coin, and each is as likely as another."""
    secret = SecretRandom()
    taken = np.zeros(50)
    sizes = []
    for _ in range(2000):
        chosen = secret.chosen(50, 0.2)
        taken[chosen.numpy()] += 1
        sizes.append(len(chosen))
    assert np.mean(sizes) == pytest.approx(10, abs=0.5)
    assert np.var(sizes) == pytest.approx(50 * 0.2 * 0.8, rel=0.25)
    assert stats.chisquare(taken).pvalue > 1e-9
    assert len(secret.chosen(50, 1.0)) == 50


def test_nobody_draws_the_same_twice() -> None:
    """Neither two sites nor two rounds: there is no seed to know."""
    first, second = (SecretRandom().gaussian(torch.Size([64]), 1.0) for _ in range(2))
    assert not (first == second).any()
