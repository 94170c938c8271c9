"""The client halves, worked out by hand on a model of two numbers."""

import itertools
from typing import Any, cast

import pytest
import torch
from sites import TRAINING, ask, parameters, planned, train_request
from torch import nn

from core.exceptions import ConfigurationError
from core.messages import AlgorithmSpec, Parameters, TrainingSettings
from core.parameters import largest_difference
from datasite.site import FactoryDataSite
from datasite.training.fit import fit
from datasite.training.objectives import OBJECTIVES, Objective, Task, build_objective
from datasite.training.objectives.scaffold import Scaffold
from datasite.training.tensors import Tensors

HYPERPARAMETERS = {
    "fedavg": {},
    "fedprox": {"mu": 0.1},
    "feddyn": {"alpha": 0.1},
    "fednova": {"mu": 0.1},
    "scaffold": {},
}


class Line(nn.Module):
    """Logits (a x, b x) of a window of one step and one sensor."""

    def __init__(self, a: float = 0.0, b: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([a, b]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, 1, 1) to (batch, 2)."""
        return x[:, 0] * self.weight


def pair(a: float, b: float) -> Parameters:
    """Give the parameters of a `Line`."""
    return {"weight": torch.tensor([a, b])}


def task(received: Parameters, *, learning_rate: float = 0.1, **given: Any) -> Task:
    """Give a round that starts from `received`."""
    return Task(
        hyperparameters=given.pop("hyperparameters", {}),
        received=received,
        learning_rate=learning_rate,
        **given,
    )


def objective(name: str, a_task: Task, **training: object) -> Objective:
    """Give the objective of the catalogue, as the trainer does."""
    spec = AlgorithmSpec(name=name, hyperparameters=dict(a_task.hyperparameters))
    return build_objective(spec, cast("TrainingSettings", {**TRAINING, **training}), a_task)


def corrected(
    asked: Objective, *, at: tuple[float, float], gradient: tuple[float, float]
) -> list[float]:
    """Give what becomes of the data's `gradient` where the model is `at`."""
    model = Line(*at)
    model.weight.grad = torch.tensor(gradient)
    asked.correct_gradients(model)
    return cast("list[float]", model.weight.grad.tolist())


def trained(asked: Objective, **changes: object) -> Line:
    """Fit a model that starts from what the round received, on four different rows."""
    model = Line(*asked.task.received["weight"].tolist())
    settings = {"local_epochs": 2, "batch_size": 2, **changes}
    fit(
        model,
        Tensors.of(
            torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(-1, 1, 1), torch.tensor([1, 0, 1, 0])
        ),
        settings=cast("TrainingSettings", {**TRAINING, **settings}),
        positive_weight=1.0,
        objective=asked,
        seed=0,
    )
    return model


def test_fedavg_leaves_the_gradient_alone() -> None:
    """And keeps and sends nothing."""
    fedavg = objective("fedavg", task(pair(1.0, 2.0)))
    assert corrected(fedavg, at=(3.0, 1.0), gradient=(0.5, 0.25)) == [0.5, 0.25]
    assert fedavg.control(pair(3.0, 1.0), 2) == {}
    assert fedavg.state(pair(3.0, 1.0), {}) == {}


@pytest.mark.parametrize("name", ["fedprox", "fednova"])
def test_the_proximal_term_pulls_to_the_received_model(name: str) -> None:
    """(0.5, 0.5) + 0.1 ((3, 1) − (1, 2)) = (0.7, 0.4); nothing is kept or sent."""
    proximal = objective(name, task(pair(1.0, 2.0), hyperparameters={"mu": 0.1}))
    assert corrected(proximal, at=(3.0, 1.0), gradient=(0.5, 0.5)) == pytest.approx([0.7, 0.4])
    assert proximal.control(pair(3.0, 1.0), 2) == {}
    assert proximal.state(pair(3.0, 1.0), {}) == {}


def test_the_anchor_does_not_move_during_the_round() -> None:
    """Three steps on one failing row, μ = 1: each is pulled to (0, 0), where the round began."""
    # gradient p (1, −1) with p = 1/(1 + e^(b − a)); the model stays of the form (−s, s)
    # s = 0:         p = 0.5                 s' = 0.1 x 0.5                     = 0.05
    # s = 0.05:      p = 1/(1 + e^0.1)       s' = 0.05 + 0.1 (0.47502 − 0.05)   = 0.0925021
    # s = 0.0925021: p = 1/(1 + e^0.1850042) = 0.4538804
    #                s' = 0.0925021 + 0.1 (0.4538804 − 0.0925021)               = 0.1286399
    fedprox = objective("fedprox", task(pair(0.0, 0.0), hyperparameters={"mu": 1.0}))
    model = Line()
    fit(
        model,
        Tensors.of(torch.ones(1, 1, 1), torch.tensor([1])),
        settings=cast("TrainingSettings", TRAINING | {"local_epochs": 3}),
        positive_weight=1.0,
        objective=fedprox,
        seed=0,
    )
    assert model.weight.tolist() == pytest.approx([-0.1286399, 0.1286399], abs=1e-6)
    assert fedprox.task.received["weight"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("name", ["fedprox", "fednova"])
def test_without_mu_it_is_fedavg_to_the_bit(name: str) -> None:
    """FedProx(μ=0) = FedAvg, and a μ of a tenth is not."""
    plain = trained(objective("fedavg", task(pair(0.3, -0.7))))
    without, with_mu = (
        trained(objective(name, task(pair(0.3, -0.7), hyperparameters={"mu": mu})))
        for mu in (0.0, 0.1)
    )
    assert torch.equal(without.weight, plain.weight)
    assert not torch.equal(with_mu.weight, plain.weight)


def test_fednova_trains_as_fedprox_to_the_bit() -> None:
    """What is new is at the server; with momentum and decay as well."""
    fedprox, fednova = (
        trained(
            objective(name, task(pair(0.3, -0.7), hyperparameters={"mu": 0.1})),
            momentum=0.9,
            weight_decay=0.01,
        )
        for name in ("fedprox", "fednova")
    )
    assert torch.equal(fedprox.weight, fednova.weight)


def test_feddyn_bends_the_gradient_by_its_dual_over_two_rounds() -> None:
    """∇F − g + α (θ − θ^{t−1}), then g − α (θ_k − θ^{t−1}); α = 0.1, and g = 0 at first."""
    alpha = {"alpha": 0.1}
    first = objective("feddyn", task(pair(1.0, 2.0), hyperparameters=alpha))
    # (0.5, 0.5) − 0 + 0.1 ((2, 0) − (1, 2)) = (0.6, 0.3)
    assert corrected(first, at=(2.0, 0.0), gradient=(0.5, 0.5)) == pytest.approx([0.6, 0.3])
    # 0 − 0.1 (1, −2) = (−0.1, 0.2)
    after_first = first.state(pair(2.0, 0.0), {})
    assert after_first["weight"].tolist() == pytest.approx([-0.1, 0.2])

    second = objective("feddyn", task(pair(1.5, 1.0), hyperparameters=alpha, state=after_first))
    # (1, 1) − (−0.1, 0.2) + 0.1 ((0, 2) − (1.5, 1)) = (0.95, 0.9)
    assert corrected(second, at=(0.0, 2.0), gradient=(1.0, 1.0)) == pytest.approx([0.95, 0.9])
    # (−0.1, 0.2) − 0.1 (−1.5, 1) = (0.05, 0.1)
    after_second = second.state(pair(0.0, 2.0), {})
    assert after_second["weight"].tolist() == pytest.approx([0.05, 0.1])


def test_feddyns_dual_is_kept_exactly_and_not_sent() -> None:
    """In float64, and of it nothing is given to the orchestrator."""
    feddyn = objective("feddyn", task(pair(1.0, 2.0), hyperparameters={"alpha": 0.1}))
    assert feddyn.control(pair(2.0, 0.0), 7) == {}
    assert feddyn.state(pair(2.0, 0.0), {})["weight"].dtype == torch.float64


def test_scaffold_shifts_the_gradient_by_c_minus_the_sites_own() -> None:
    """(1, 1) + (0.5, −0.5) − (0.1, 0.3) = (1.4, 0.2)."""
    scaffold = objective(
        "scaffold", task(pair(1.0, 2.0), control=pair(0.5, -0.5), state=pair(0.1, 0.3))
    )
    assert corrected(scaffold, at=(3.0, 1.0), gradient=(1.0, 1.0)) == pytest.approx([1.4, 0.2])


def test_scaffold_without_controls_leaves_the_gradient_alone() -> None:
    """In its first round, as c and c_k are 0."""
    scaffold = objective("scaffold", task(pair(1.0, 2.0), control=pair(0.0, 0.0)))
    assert corrected(scaffold, at=(3.0, 1.0), gradient=(0.5, 0.25)) == [0.5, 0.25]


def test_scaffold_sends_the_change_of_its_control() -> None:
    """c_k⁺ − c_k = (x − y) / (K η) − c, with K = 2 steps at η = 0.1."""
    scaffold = objective(
        "scaffold", task(pair(1.0, 2.0), control=pair(0.5, -0.5), state=pair(0.1, 0.3))
    )
    control = scaffold.control(pair(0.8, 2.2), 2)
    # ((1, 2) − (0.8, 2.2)) / 0.2 = (1, −1);  (1, −1) − (0.5, −0.5) = (0.5, −0.5)
    assert control["weight"].tolist() == pytest.approx([0.5, -0.5], abs=1e-6)
    # (0.1, 0.3) + (0.5, −0.5)
    state = scaffold.state(pair(0.8, 2.2), control)
    assert state["weight"].tolist() == pytest.approx([0.6, -0.2], abs=1e-6)


def test_what_scaffold_sends_is_exactly_what_it_kept() -> None:
    """It travels in float32; the site adds that, and not what it was before it was rounded."""
    state = {"weight": torch.tensor([0.1, 0.3], dtype=torch.float64)}
    received, fitted = pair(0.1, 0.7), pair(0.123456, 0.654321)
    scaffold = objective("scaffold", task(received, control=pair(0.3, -0.1), state=state))
    change = scaffold.control(fitted, 3)
    sent, kept = change["weight"], scaffold.state(fitted, change)["weight"]
    assert (sent.dtype, kept.dtype) == (torch.float32, torch.float64)
    assert torch.equal(kept, state["weight"] + sent.double())
    before_rounding = (
        received["weight"].double() - fitted["weight"].double()
    ) / 0.3 - scaffold.task.control["weight"].double()
    assert not torch.equal(sent.double(), before_rounding)


class Recorder(Scaffold):
    """SCAFFOLD that remembers the data's gradients on its way."""

    def __init__(self, a_task: Task) -> None:
        super().__init__(a_task)
        self.met: list[torch.Tensor] = []

    def correct_gradients(self, model: nn.Module) -> None:
        """Remember, then correct."""
        self.met += [cast("torch.Tensor", p.grad).clone() for p in model.parameters()]
        super().correct_gradients(model)


@pytest.mark.parametrize(
    ("control", "state"),
    [
        (pair(0.0, 0.0), {}),
        (pair(0.5, -0.5), pair(0.1, 0.3)),
    ],
    ids=["at first", "later"],
)
def test_scaffolds_new_control_is_the_mean_gradient_met(
    control: Parameters, state: Parameters
) -> None:
    """Of the data alone, over all steps of the round: two epochs of two batches."""
    recorder = Recorder(task(pair(0.3, -0.7), control=control, state=state))
    model = trained(recorder)
    fitted = {"weight": model.weight.detach()}
    kept = recorder.state(fitted, recorder.control(fitted, len(recorder.met)))
    assert len(recorder.met) == 4
    mean = torch.stack(recorder.met).mean(dim=0)
    assert kept["weight"].tolist() == pytest.approx(mean.tolist(), abs=1e-5)


def test_no_objective_changes_what_it_was_given() -> None:
    """The received model, c and the state are as before when the round is over."""
    for name in OBJECTIVES:
        given = task(
            pair(0.3, -0.7),
            hyperparameters=HYPERPARAMETERS[name],
            control=pair(0.5, -0.5),
            state=pair(0.1, 0.3),
        )
        asked = objective(name, given)
        model = trained(asked)
        fitted = {"weight": model.weight.detach()}
        asked.state(fitted, asked.control(fitted, 4))
        assert given.received["weight"].tolist() == pair(0.3, -0.7)["weight"].tolist()
        assert given.control["weight"].tolist() == pair(0.5, -0.5)["weight"].tolist()
        assert given.state["weight"].tolist() == pair(0.1, 0.3)["weight"].tolist()


def test_a_parameter_that_took_no_part_gets_no_gradient() -> None:
    """What the loss does not reach is not moved by a correction either."""
    for name in OBJECTIVES:
        given = task(
            pair(0.3, -0.7),
            hyperparameters=HYPERPARAMETERS[name],
            control=pair(0.5, -0.5),
            state=pair(0.1, 0.3),
        )
        model = Line(3.0, 1.0)
        objective(name, given).correct_gradients(model)
        assert model.weight.grad is None


def test_an_unknown_algorithm_is_refused_with_the_catalogue() -> None:
    """The researcher is told what there is."""
    with pytest.raises(
        ConfigurationError,
        match="'fedmagic' is not in this site's catalogue: fedavg, fedprox, feddyn, fednova, scaf",
    ):
        objective("fedmagic", task(pair(0.0, 0.0)))


@pytest.mark.parametrize(
    ("name", "hyperparameters", "message"),
    [
        ("fedavg", {"mu": 0.1}, r"'fedavg' takes the hyper-parameters \[\], got \['mu'\]"),
        ("fedprox", {}, r"'fedprox' takes the hyper-parameters \['mu'\], got \[\]"),
        ("fedprox", {"mu": 0.1, "nu": 1.0}, r"takes .* \['mu'\], got \['mu', 'nu'\]"),
        ("feddyn", {"mu": 0.1}, r"'feddyn' takes .* \['alpha'\], got \['mu'\]"),
        ("fednova", {}, r"'fednova' takes .* \['mu'\], got \[\]"),
        ("scaffold", {"alpha": 0.1}, r"'scaffold' takes .* \[\], got \['alpha'\]"),
    ],
    ids=["one too many", "missing", "one beside it", "another's", "missing mu", "none there"],
)
def test_wrong_hyperparameters_are_refused(
    name: str, hyperparameters: dict[str, float], message: str
) -> None:
    """Each is required and none is ignored."""
    with pytest.raises(ConfigurationError, match=message):
        objective(name, task(pair(0.0, 0.0), hyperparameters=hyperparameters))


@pytest.mark.parametrize(
    ("name", "optimizer"), itertools.product(OBJECTIVES, ["sgd", "adam", "lion"])
)
def test_an_optimizer_for_which_the_equations_do_not_hold_is_refused(
    name: str, optimizer: str
) -> None:
    """Adam serves where a gradient is all that is asked; the steps of FedNova must be countable."""
    fits = {"fednova": {"sgd"}, "scaffold": {"sgd"}}.get(name, {"sgd", "adam"})
    given = task(pair(0.0, 0.0), hyperparameters=HYPERPARAMETERS[name])
    if optimizer in fits:
        assert isinstance(objective(name, given, optimizer=optimizer), OBJECTIVES[name])
    else:
        with pytest.raises(
            ConfigurationError, match=f"'{name}' works with .*, not with '{optimizer}'"
        ):
            objective(name, given, optimizer=optimizer)


def test_at_a_site_the_anchor_is_what_it_received(site: FactoryDataSite) -> None:
    """Two steps over all rows with ημ = 1: the second takes back what the first has moved.

    FedAvg goes w₁ = w₀ − η g(w₀) and a = w₁ − η g(w₁), FedProx p = a − (w₁ − w₀).
    """

    def trained_with(mu: float, epochs: int) -> Parameters:
        algorithm = {"name": "fedprox", "hyperparameters": {"mu": mu}}
        settings = TRAINING | {"batch_size": 60, "local_epochs": epochs}
        plan_id = planned(site, algorithm=algorithm, training=settings)
        reply = ask(site, train_request(plan_id, algorithm=algorithm, training=settings))
        assert reply["num_steps"] == epochs
        return cast("Parameters", reply["parameters"])

    start, one, two = parameters(), trained_with(0.0, 1), trained_with(0.0, 2)
    expected = {name: two[name] - (one[name] - start[name]) for name in start}
    assert largest_difference(trained_with(10.0, 2), expected) < 1e-6
    assert largest_difference(two, expected) > 1e-3


def test_at_a_site_the_control_is_by_the_rate_of_the_round(site: FactoryDataSite) -> None:
    """A schedule halves 0.1 to 0.05: 4 steps, so (x − y) / (4 x 0.05) − c."""
    algorithm = {"name": "scaffold", "hyperparameters": {}}
    start = parameters()
    control = {name: torch.full_like(tensor, 0.01) for name, tensor in start.items()}
    request = train_request(
        planned(site, algorithm=algorithm),
        algorithm=algorithm,
        training=TRAINING | {"learning_rate": 0.05},
        control=control,
    )
    reply = ask(site, request)
    assert reply["num_steps"] == 4
    assert reply["control"].keys() == start.keys()
    for name, sent in reply["control"].items():
        expected = (start[name] - reply["parameters"][name]).double() / 0.2 - 0.01
        assert torch.allclose(sent.double(), expected, rtol=0, atol=1e-5)
