"""Where the algorithms end, on four quadratics whose optimum is known.

    F_k(w) = ½ (w − e_k)ᵀ A_k (w − e_k),  Σ p_k F_k is least at (Σ p_k A_k)⁻¹ Σ p_k A_k e_k

The client and server halves are the real ones; only the loop over steps is the test's. FedAvg ends
where the p_k τ_k and not the p_k decide: 0.99 away, as sites that step more pull more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from algorithms import build
from torch import nn

from core.messages import Parameters
from core.seeds import derive_seed
from datasite.training.objectives import Task, build_objective
from orchestrator.algorithms import Algorithm

CENTRES = torch.tensor([[2.0, 0.0], [0.0, 2.0], [-1.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
CURVATURES = torch.tensor(
    [
        [[2.0, 0.0], [0.0, 1.0]],
        [[1.0, 0.0], [0.0, 2.0]],
        [[1.0, 0.5], [0.5, 1.0]],
        [[1.5, -0.5], [-0.5, 1.0]],
    ],
    dtype=torch.float64,
)
SAMPLES = (10, 30, 5, 55)
"""The p_k in hundredths."""

UNEQUAL = (1, 2, 10, 40)
EQUAL = (10, 10, 10, 10)


def optimum(weights: Sequence[float]) -> torch.Tensor:
    """Give the minimum of Σ `weights[k]` F_k."""
    given = torch.tensor(weights, dtype=torch.float64)
    curvature = torch.einsum("k,kij->ij", given, CURVATURES)
    return torch.linalg.solve(curvature, torch.einsum("k,kij,kj->i", given, CURVATURES, CENTRES))


class Point(nn.Module):
    """The place of one site: two numbers."""

    def __init__(self, w: torch.Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(w.clone())


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run over the four sites; each keeps its state as a site would.

    Attributes:
        taking_part: Sites drawn for each round.
    """

    steps: Sequence[int]
    learning_rate: float
    momentum: float = 0.0
    taking_part: int = 4
    states: dict[int, Parameters] = field(default_factory=dict)

    def end(self, name: str, *, rounds: int, **settings: object) -> torch.Tensor:
        """Give where the algorithm ends that starts at 0."""
        training = {"learning_rate": self.learning_rate, "momentum": self.momentum}
        start = {"w": torch.zeros(2, dtype=torch.float64)}
        algorithm = build(name, start, num_sites=4, training=training, **settings)
        for round_num in range(rounds):
            random = np.random.default_rng(derive_seed(1, round_num, "participation"))
            drawn = random.permutation(4)[: self.taking_part].tolist()
            config = algorithm.configure_client_training(round_num)
            updates = [self._update(site, algorithm, config) for site in drawn]
            algorithm.update_algorithm_state(updates)
        return algorithm.parameters["w"]

    def _update(self, site: int, algorithm: Algorithm, config: Mapping[str, Any]) -> dict[str, Any]:
        objective = build_objective(
            config["algorithm"],
            config["training"],
            Task(
                hyperparameters=config["algorithm"]["hyperparameters"],
                received=algorithm.parameters,
                learning_rate=self.learning_rate,
                control=config.get("control", {}),
                state=self.states.get(site, {}),
            ),
        )
        model = Point(algorithm.parameters["w"])
        optimizer = torch.optim.SGD(
            model.parameters(), lr=self.learning_rate, momentum=self.momentum
        )
        for _ in range(self.steps[site]):
            model.w.grad = CURVATURES[site] @ (model.w.detach() - CENTRES[site])
            objective.correct_gradients(model)
            optimizer.step()
        fitted = {"w": model.w.detach()}
        control = objective.control(fitted, self.steps[site])
        if state := objective.state(fitted, control):
            self.states[site] = state
        return {
            "datasite_id": f"factory-{site}",
            "round_num": config["round_num"],
            "num_samples": SAMPLES[site],
            "num_steps": self.steps[site],
            "metrics": {},
            "parameters": fitted,
            **({"control": control} if control else {}),
        }


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Give the distance of two places."""
    return float(torch.linalg.vector_norm(found - wanted))


def test_fednova_ends_at_the_optimum_where_fedavg_does_not() -> None:
    """At η = 0.002 FedNova is 0.0114 away, a bias that goes with η; FedAvg stays 0.986 away."""
    # FedAvg's own end is the optimum of the weights p_k τ_k, and 0.990 away.
    wanted = optimum(SAMPLES)
    pulled = optimum([p * tau for p, tau in zip(SAMPLES, UNEQUAL, strict=True)])
    assert distance(pulled, wanted) == pytest.approx(0.99, abs=0.005)
    run = Run(steps=UNEQUAL, learning_rate=0.002)
    assert distance(run.end("fedavg", rounds=250), wanted) == pytest.approx(0.98, abs=0.02)
    assert distance(run.end("fednova", rounds=250), wanted) == pytest.approx(0.0114, abs=5e-4)


def test_fednova_counts_momentum_into_its_steps() -> None:
    """At η = 0.001 and ρ = 0.9 it is 0.031 away, and FedAvg 1.1; divided by τ it would be 0.69."""
    wanted = optimum(SAMPLES)
    run = Run(steps=UNEQUAL, learning_rate=0.001, momentum=0.9)
    assert distance(run.end("fednova", rounds=150), wanted) == pytest.approx(0.031, abs=2e-3)
    assert distance(run.end("fedavg", rounds=150), wanted) > 1.0


@pytest.mark.parametrize("steps", [UNEQUAL, EQUAL], ids=["unequal steps", "equal steps"])
@pytest.mark.parametrize("taking_part", [4, 2], ids=["all", "half"])
@pytest.mark.parametrize(("name", "within"), [("feddyn", 1e-4), ("scaffold", 1e-9)])
def test_a_corrected_drift_ends_at_the_optimum_of_the_plain_mean(
    name: str, within: float, taking_part: int, steps: Sequence[int]
) -> None:
    """However many steps a site makes and however seldom it is drawn; η = 0.05, FedDyn's α = 1."""
    run = Run(steps=steps, learning_rate=0.05, taking_part=taking_part)
    settings = {"alpha": 1.0} if name == "feddyn" else {}
    found = run.end(name, rounds=300, **settings)
    assert distance(found, optimum([1, 1, 1, 1])) < within


@pytest.mark.parametrize(
    ("steps", "at_least"),
    [(UNEQUAL, 0.5), (EQUAL, 0.05)],
    ids=["unequal steps", "equal steps"],
)
@pytest.mark.parametrize("taking_part", [4, 2], ids=["all", "half"])
def test_fedavg_ends_elsewhere(steps: Sequence[int], at_least: float, taking_part: int) -> None:
    """Its plain mean too, under the very conditions in which FedDyn and SCAFFOLD arrive."""
    run = Run(steps=steps, learning_rate=0.05, taking_part=taking_part)
    found = run.end("fedavg", rounds=100, aggregation="simple_average")
    assert distance(found, optimum([1, 1, 1, 1])) > at_least
