"""The server halves, on numbers small enough to check by hand."""

import math
from typing import Any, cast

import pytest
import torch
from algorithms import TRAINING, build, settings_of, update
from torch import nn

from core import AggregationError
from core.messages import Parameters, TrainingSettings
from core.normalising import normaliser
from core.parameters import largest_difference
from orchestrator.algorithms import ALGORITHMS, Algorithm, build_algorithm
from orchestrator.schedule import LocalTraining, Step


def start() -> Parameters:
    """Give the global parameters that a run starts from: a tensor and an integer buffer."""
    return {"w": torch.tensor([1.0, 2.0]), "steps": torch.tensor(0)}


def after(algorithm: Algorithm, *updates: dict[str, Any]) -> list[float]:
    """Commit a round; the numbers of `w` after it."""
    algorithm.update_algorithm_state(list(updates))
    return cast("list[float]", algorithm.parameters["w"].tolist())


def numbers(algorithm: Algorithm, symbol: str) -> list[float]:
    """Give the numbers of `w` in the algorithm's state."""
    return cast("list[float]", algorithm.state[symbol]["w"].tolist())


def test_fedavgm_moves_with_momentum_over_two_rounds() -> None:
    """It keeps v ← β v + Δ, w ← w − η v, with Δ = w − Σ p_k w_k, β = 0.5, η = 0.1."""
    fedavgm = build("fedavgm", start(), beta=0.5, server_learning_rate=0.1)
    # ([3, 2] + 3 [7, 6]) / 4 = [6, 5];  v = [1, 2] − [6, 5] = [−5, −3];  w = [1.5, 2.3]
    first = after(fedavgm, update("a", 3.0, 2.0, samples=1), update("b", 7.0, 6.0, samples=3))
    assert first == pytest.approx([1.5, 2.3])
    assert numbers(fedavgm, "v") == [-5.0, -3.0]
    # v = 0.5 [−5, −3] + [1.5, 2.3] − [0.5, 1.3] = [−1.5, −0.5];  w = [1.65, 2.35]
    assert after(fedavgm, update("a", 0.5, 1.3)) == pytest.approx([1.65, 2.35])
    assert numbers(fedavgm, "v") == pytest.approx([-1.5, -0.5])


def test_fedavgm_without_momentum_at_rate_1_is_fedavg() -> None:
    """β = 0 and η = 1, in two rounds."""
    fedavgm = build("fedavgm", start(), beta=0.0, server_learning_rate=1.0)
    fedavg = build("fedavg", start())
    for shift in (0.0, 1.5):
        updates = [
            update("a", 3.0 + shift, 2.0, samples=1),
            update("b", 7.0, 6.0 - shift, samples=3),
        ]
        assert after(fedavgm, *updates) == pytest.approx(after(fedavg, *updates))


def test_fedadam_adapts_over_two_rounds() -> None:
    """It keeps m ← β₁ m + (1 − β₁) Δ, v ← β₂ v + (1 − β₂) Δ²; w ← w + η m / (√v + τ).

    At first v = τ². β₁ = 0.25, β₂ = 0.5, η = 0.6, τ = 1.
    """
    fedadam = build("fedadam", start(), beta1=0.25, beta2=0.5, server_learning_rate=0.6, tau=1.0)
    assert numbers(fedadam, "v") == [1.0, 1.0]
    # Δ = [8, 3] − [1, 2] = [7, 1];  m = 0.75 Δ = [5.25, 0.75];  v = (1 + Δ²) / 2 = [25, 1]
    # w = [1, 2] + 0.6 [5.25 / 6, 0.75 / 2] = [1.525, 2.225]
    first = after(fedadam, update("a", 4.0, 3.0, samples=1), update("b", 12.0, 3.0, samples=1))
    assert first == pytest.approx([1.525, 2.225])
    assert (numbers(fedadam, "m"), numbers(fedadam, "v")) == ([5.25, 0.75], [25.0, 1.0])
    # Δ = [−5, −1];  m = 0.25 [5.25, 0.75] + 0.75 Δ = [−2.4375, −0.5625]
    # v = ([25, 1] + [25, 1]) / 2 = [25, 1];  w = [1.525, 2.225] − [0.24375, 0.16875]
    second = after(fedadam, update("a", 1.525 - 5, 2.225 - 1))
    assert second == pytest.approx([1.28125, 2.05625], abs=1e-6)
    assert numbers(fedadam, "m") == pytest.approx([-2.4375, -0.5625], abs=1e-6)
    assert numbers(fedadam, "v") == pytest.approx([25.0, 1.0], abs=1e-5)


def test_feddyn_over_two_rounds_in_which_half_and_three_of_four_take_part() -> None:
    """It keeps h ← h − (α/m) Σ (θ_k − θ), and θ ← mean θ_k − h/α; m = 4 in all, α = 0.5."""
    feddyn = build("feddyn", start(), num_sites=4, alpha=0.5)
    # θ_k − θ = [2, 0] and [0, 4];  h = −0.125 [2, 4] = [−0.25, −0.5]
    # θ = [2, 4] + 2 [0.25, 0.5] = [2.5, 5]; samples do not count
    first = after(feddyn, update("a", 3.0, 2.0, samples=1), update("b", 1.0, 6.0, samples=9))
    assert numbers(feddyn, "h") == [-0.25, -0.5]
    assert first == [2.5, 5.0]
    # θ_k − θ = [1, 0], [0, 3], [0.5, 0];  h = [−0.25, −0.5] − 0.125 [1.5, 3] = [−0.4375, −0.875]
    # θ = [3, 6] + 2 [0.4375, 0.875] = [3.875, 7.75]
    second = after(
        feddyn, update("a", 3.5, 5.0), update("c", 2.5, 8.0, samples=9), update("d", 3.0, 5.0)
    )
    assert numbers(feddyn, "h") == pytest.approx([-0.4375, -0.875], abs=1e-12)
    assert second == pytest.approx([3.875, 7.75])


def test_feddyn_over_two_rounds_in_which_all_take_part() -> None:
    """With m = |P| = 2 the sum becomes a mean, and h is as large as α times the mean change."""
    feddyn = build("feddyn", start(), num_sites=2, alpha=0.5)
    # h = −0.25 [2, 4] = [−0.5, −1];  θ = [2, 4] + 2 [0.5, 1] = [3, 6]
    assert after(feddyn, update("a", 3.0, 2.0), update("b", 1.0, 6.0)) == [3.0, 6.0]
    # θ_k − θ = [−1, 0] and [0, −2];  h = [−0.5, −1] + 0.25 [1, 2] = [−0.25, −0.5]
    # θ = [2.5, 5] + 2 [0.25, 0.5] = [3, 6]
    assert after(feddyn, update("a", 2.0, 6.0), update("b", 3.0, 4.0)) == [3.0, 6.0]
    assert numbers(feddyn, "h") == [-0.25, -0.5]


def test_fednova_divides_a_change_by_its_steps() -> None:
    """One step by a quarter of the samples, three steps by the rest."""
    fednova = build("fednova", start())
    # τ_eff = 0.25 x 1 + 0.75 x 3 = 2.5
    # [1, 2] + 2.5 (0.25 [1, 0] / 1 + 0.75 [0, 6] / 3) = [1, 2] + 2.5 [0.25, 1.5]
    found = after(
        fednova,
        update("a", 2.0, 2.0, samples=1, num_steps=1),
        update("b", 1.0, 8.0, samples=3, num_steps=3),
    )
    assert found == [1.625, 5.75]


def test_fednova_counts_steps_with_momentum_by_their_weights() -> None:
    """ρ = 0.5: one step weighs 1, two weigh (2 − 0.5 (1 − 0.25) / 0.5) / 0.5 = 2.5."""
    fednova = build("fednova", start(), training={"momentum": 0.5})
    # τ_eff = (1 + 2.5) / 2 = 1.75;  [1, 2] + 1.75 ([1, 0] / 1 + [0, 5] / 2.5) / 2
    found = after(fednova, update("a", 2.0, 2.0, num_steps=1), update("b", 1.0, 7.0, num_steps=2))
    assert found == [1.875, 3.75]


def test_fednova_normalises_by_the_learning_rate_of_the_round() -> None:
    """μ = 5 at η = 0.1 and then 0.05: two steps weigh 2 − ημ, which is 1.5 and then 1.75."""
    fednova = build_algorithm(
        settings_of("fednova", mu=5.0),
        start(),
        training=LocalTraining(
            settings=cast("TrainingSettings", TRAINING),
            schedule=Step(every=1, by=0.5),
            rounds=2,
        ),
        num_sites=2,
    )
    # τ_eff = (1 + 1.5) / 2 = 1.25;  [1, 2] + 1.25 ([1, 0] / 1 + [0, 1.5] / 1.5) / 2
    first = after(fednova, update("a", 2.0, 2.0, num_steps=1), update("b", 1.0, 3.5, num_steps=2))
    assert first == [1.625, 2.625]
    # τ_eff = (1 + 1.75) / 2 = 1.375;  + 1.375 ([1, 0] / 1 + [0, 1.75] / 1.75) / 2
    second = after(
        fednova,
        update("a", 2.625, 2.625, num_steps=1, round_num=1),
        update("b", 1.625, 4.375, num_steps=2, round_num=1),
    )
    assert second == [2.3125, 3.3125]


@pytest.mark.parametrize(
    ("steps", "momentum", "eta_mu", "expected"),
    [
        (7, 0.0, 0.0, 7.0),
        (7, 0.9, 0.0, 23.0467),  # (7 − 0.9 (1 − 0.9⁷) / 0.1) / 0.1
        (7, 0.0, 0.05, 6.0333),  # (1 − 0.95⁷) / 0.05
        (1, 0.9, 0.05, 1.0),
    ],
    ids=["plain", "momentum", "proximal", "one step"],
)
def test_the_normaliser_has_its_golden_numbers(
    steps: int, momentum: float, eta_mu: float, expected: float
) -> None:
    """Of seven steps, to all places that are known."""
    found = normaliser(steps, momentum=momentum, eta_mu=eta_mu)
    assert found == pytest.approx(expected, abs=5e-5)


def moved_by_one_gradient(
    at: int, steps: int, *, momentum: float, learning_rate: float, mu: float
) -> float:
    """Give how far SGD with a proximal term is led in `steps` steps by a gradient of 1 at one."""
    w = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.SGD([w], lr=learning_rate, momentum=momentum)
    for step in range(steps):
        w.grad = mu * w.detach() + float(step == at)
        optimizer.step()
    return abs(w.item())


@pytest.mark.parametrize("steps", [1, 7, 40])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("mu", [0.0, 0.5, 3.0])
def test_the_normaliser_is_what_pytorch_does(steps: int, momentum: float, mu: float) -> None:
    """Σ_j |a_j|, each a_j found by running SGD with a unit gradient at step j alone; η = 0.1.

    With ρ = 0.9 and ημ = 0.05 the recursion swings: of forty weights some are negative.
    """
    brute = math.fsum(
        moved_by_one_gradient(at, steps, momentum=momentum, learning_rate=0.1, mu=mu)
        for at in range(steps)
    )
    found = normaliser(steps, momentum=momentum, eta_mu=0.1 * mu)
    assert found == pytest.approx(brute / 0.1, rel=1e-9)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("mu", [0.0, 0.5])
def test_fednova_with_equal_steps_is_fedavg(momentum: float, mu: float) -> None:
    """In float64, so that nothing but the equations can differ."""
    random = torch.Generator().manual_seed(5)
    doubles = {"w": torch.randn(50, dtype=torch.float64, generator=random)}
    updates = [
        update(
            site_id,
            samples=samples,
            num_steps=7,
            parameters={"w": torch.randn(50, dtype=torch.float64, generator=random)},
        )
        for site_id, samples in (("a", 3), ("b", 50), ("c", 11))
    ]
    fednova = build("fednova", doubles, training={"momentum": momentum}, mu=mu)
    found = fednova.aggregate(updates)
    assert largest_difference(found, build("fedavg", doubles).aggregate(updates)) < 1e-12
    updates[1]["num_steps"] = 8
    assert largest_difference(found, fednova.aggregate(updates)) > 1e-3


def test_scaffold_moves_by_its_rate_and_keeps_the_mean_control() -> None:
    """To x + η_g mean(y_k − x) with η_g = 0.5, and c + (1/N) Σ (c_k⁺ − c_k) with N = 4."""
    scaffold = build("scaffold", start(), num_sites=4, server_learning_rate=0.5)
    assert scaffold.configure_client_training(0)["control"]["w"].tolist() == [0.0, 0.0]
    # x = [1, 2] + 0.5 ([2, 4] − [1, 2]);  c = ([1, 0] + [0, 2]) / 4; samples do not count
    first = after(
        scaffold,
        update("a", 3.0, 2.0, samples=1, control={"w": torch.tensor([1.0, 0.0])}),
        update("b", 1.0, 6.0, samples=9, control={"w": torch.tensor([0.0, 2.0])}),
    )
    assert first == [1.5, 3.0]
    assert numbers(scaffold, "c") == [0.25, 0.5]
    control = scaffold.configure_client_training(1)["control"]
    assert (control["w"].tolist(), control["w"].dtype) == ([0.25, 0.5], torch.float32)
    assert control.keys() == {"w"}  # and no counter
    # x = [1.5, 3] + 0.5 ([3.5, 2] − [1.5, 3]);  c = [0.25, 0.5] + [−1, 2] / 4
    second = after(scaffold, update("c", 3.5, 2.0, control={"w": torch.tensor([-1.0, 2.0])}))
    assert second == [2.5, 2.5]
    assert numbers(scaffold, "c") == [0.0, 1.0]


BAD_CONTROLS = {
    "none": ({}, r"missing \['w'\]"),
    "another name": ({"v": torch.zeros(2)}, r"unknown \['v'\]"),
    "a counter beside it": (start(), r"unknown \['steps'\]"),
    "another shape": ({"w": torch.zeros(3)}, r"'w' is torch.float32 \(3,\)"),
    "another dtype": ({"w": torch.zeros(2, dtype=torch.float64)}, "'w' is torch.float64"),
    "not finite": ({"w": torch.tensor([0.0, math.nan])}, "'w' holds values that are not finite"),
}


@pytest.mark.parametrize("fault", BAD_CONTROLS)
def test_scaffold_refuses_a_control_that_does_not_fit_by_name(fault: str) -> None:
    """The error names the site, that it is about the control, and the tensor."""
    control, message = BAD_CONTROLS[fault]
    scaffold = build("scaffold", start())
    updates = [update("factory-1", 1.0, 1.0), update("factory-2", 1.0, 1.0, control=control)]
    with pytest.raises(AggregationError, match=rf"^factory-2: control.*{message}") as caught:
        scaffold.update_algorithm_state(updates)
    assert caught.value.site_id == "factory-2"
    assert numbers(scaffold, "c") == [0.0, 0.0]
    assert scaffold.counted == {}


def test_scaffold_refuses_an_update_without_a_control_by_name() -> None:
    """A site that trained otherwise would leave c untrue without a word."""
    silent = update("factory-2", 1.0, 1.0)
    del silent["control"]
    with pytest.raises(AggregationError, match=r"^factory-2: control: .*missing \['w'\]"):
        build("scaffold", start()).aggregate([update("factory-1", 1.0, 1.0), silent])


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_integer_buffer_takes_the_maximum(name: str) -> None:
    """A counter is no mean, is not corrected, and keeps its type; the next round likewise."""
    algorithm = build(name, start())
    for counts, expected in (((3, 9, 5), 9), ((12, 9, 10), 12)):
        updates = [
            update(
                f"factory-{count}",
                parameters={"w": torch.tensor([float(count), 1.0]), "steps": torch.tensor(count)},
            )
            for count in counts
        ]
        algorithm.update_algorithm_state(updates)
        steps = algorithm.parameters["steps"]
        assert (steps.item(), steps.dtype) == (expected, torch.int64)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_state_has_no_integer_buffers(name: str) -> None:
    """Momentum, duals and controls are of trained numbers, in float64."""
    algorithm = build(name, start())
    algorithm.update_algorithm_state([update("a", 3.0, 2.0), update("b", 1.0, 6.0)])
    for values in algorithm.state.values():
        assert {tensor_name: t.dtype for tensor_name, t in values.items()} == {"w": torch.float64}


H_IS_A_MEAN = (
    "its state h is the plain mean of the sites' duals, and any other combination breaks that; "
    "choose simple_average (its default) or another algorithm"
)
WEIGHTED = (
    "its normalised mean is weighted by construction; choose weighted_average (its default) or "
    "another algorithm"
)
CONTROLS_ARE_MEANS = (
    "its control variates are plain means over the sites; choose simple_average (its default) or "
    "another algorithm"
)
PLAIN_SGD = (
    "training.optimizer: scaffold's control variates are means of gradients, which only plain sgd "
    "shows; choose sgd with momentum 0, or another algorithm"
)
COUNTABLE = (
    "training.optimizer: fednova with adam: its steps cannot be normalised; choose sgd, with or "
    "without momentum, or another algorithm"
)
PART_OF_THE_OBJECTIVE = (
    "training.weight_decay: feddyn counts it as part of each site's objective, which it is under "
    "sgd and not under adam; choose sgd, or weight_decay 0"
)
CLIPPED = {"clip_norm": 1.0}


@pytest.mark.parametrize(
    ("name", "aggregation", "training", "expected"),
    [
        ("feddyn", "median", {}, [f"feddyn with median: {H_IS_A_MEAN}"]),
        ("feddyn", "weighted_average", {}, [f"feddyn with weighted_average: {H_IS_A_MEAN}"]),
        (
            "feddyn",
            {"method": "simple_average", **CLIPPED},
            {},
            [f"feddyn with simple_average with clip_norm: {H_IS_A_MEAN}"],
        ),
        ("fednova", "krum", {}, [f"fednova with krum: {WEIGHTED}"]),
        ("fednova", "simple_average", {}, [f"fednova with simple_average: {WEIGHTED}"]),
        (
            "fednova",
            {"method": "weighted_average", **CLIPPED},
            {},
            [f"fednova with weighted_average with clip_norm: {WEIGHTED}"],
        ),
        (
            "scaffold",
            "trimmed_mean",
            {},
            [f"scaffold with trimmed_mean: {CONTROLS_ARE_MEANS}"],
        ),
        (
            "scaffold",
            {"method": "simple_average", **CLIPPED},
            {},
            [f"scaffold with simple_average with clip_norm: {CONTROLS_ARE_MEANS}"],
        ),
        ("fednova", None, {"optimizer": "adam"}, [COUNTABLE]),
        ("scaffold", None, {"optimizer": "adam"}, [PLAIN_SGD]),
        ("scaffold", None, {"momentum": 0.9}, [PLAIN_SGD]),
        ("feddyn", None, {"optimizer": "adam", "weight_decay": 0.1}, [PART_OF_THE_OBJECTIVE]),
        (
            "scaffold",
            "median",
            {"momentum": 0.9},
            [f"scaffold with median: {CONTROLS_ARE_MEANS}", PLAIN_SGD],
        ),
    ],
    ids=[
        "feddyn, median",
        "feddyn, weighted",
        "feddyn, clipped",
        "fednova, krum",
        "fednova, unweighted",
        "fednova, clipped",
        "scaffold, trimmed mean",
        "scaffold, clipped",
        "fednova, adam",
        "scaffold, adam",
        "scaffold, momentum",
        "feddyn, adam with decay",
        "scaffold, two mistakes",
    ],
)
def test_what_means_nothing_is_refused_with_what_to_choose(
    name: str, aggregation: object, training: dict[str, Any], expected: list[str]
) -> None:
    """Each text names the setting, gives the reason and says what will do."""
    texts = [
        text if text.startswith("training.") else f"algorithm.aggregation: {text}"
        for text in expected
    ]
    asked = cast("TrainingSettings", {**TRAINING, **training})
    assert ALGORITHMS[name].refusals(settings_of(name, aggregation=aggregation), asked) == texts


@pytest.mark.parametrize(
    ("name", "aggregation", "training"),
    [
        *((name, None, {}) for name in ALGORITHMS),
        ("feddyn", "simple_average", {"momentum": 0.9}),
        ("feddyn", None, {"optimizer": "adam"}),
        ("feddyn", None, {"weight_decay": 0.1}),
        ("fednova", "weighted_average", {"momentum": 0.9}),
        ("scaffold", "simple_average", {"weight_decay": 0.1}),
        ("fedavg", {"method": "median", **CLIPPED}, {"optimizer": "adam"}),
        ("fedprox", "krum", {"momentum": 0.9}),
        ("fedavgm", "trimmed_mean", {}),
        ("fedadam", "geometric_median", {}),
    ],
    ids=[
        *ALGORITHMS,
        "feddyn, momentum",
        "feddyn, adam",
        "feddyn, sgd with decay",
        "fednova, momentum",
        "scaffold, decay",
        "fedavg, median and adam",
        "fedprox, krum",
        "fedavgm, trimmed mean",
        "fedadam, geometric median",
    ],
)
def test_what_can_be_run_is_not_refused(
    name: str, aggregation: object, training: dict[str, Any]
) -> None:
    """The defaults of every algorithm, and what its equations allow beside them."""
    asked = cast("TrainingSettings", {**TRAINING, **training})
    assert ALGORITHMS[name].refusals(settings_of(name, aggregation=aggregation), asked) == []
