"""What every `FederatedAlgorithmInterface` promises, for each algorithm that there is."""

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from algorithms import build, update

from core import AggregationError, FederatedAlgorithm, FederatedAlgorithmInterface
from core.messages import Parameters
from core.parameters import digest, largest_difference
from datasite.training.objectives import OBJECTIVES
from orchestrator.algorithms import ALGORITHMS, Algorithm


def start() -> Parameters:
    """Give the global parameters that a run starts from: a tensor and an integer buffer."""
    return {"w": torch.tensor([1.0, 2.0]), "steps": torch.tensor(0)}


def three() -> list[dict[str, Any]]:
    """Give updates of three sites of different size, with numbers that do not add up exactly."""
    return [
        update("factory-1", 0.1, 1e8, samples=3),
        update("factory-2", 0.7, -1e8, samples=5),
        update("factory-3", -0.3, 1.0, samples=11),
    ]


@pytest.fixture(params=ALGORITHMS)
def algorithm(request: pytest.FixtureRequest) -> Algorithm:
    """One algorithm after the other, at its start."""
    return build(request.param, start())


MEANS = ["fedavg", "fedprox", "fednova", "scaffold"]
"""Those whose step from a fresh start is a mean of the sites' models."""


def test_every_specified_algorithm_is_there() -> None:
    """The four of the enumeration, by the values that YAML files spell."""
    assert {name.value for name in FederatedAlgorithm} <= ALGORITHMS.keys()


def test_it_keeps_the_interface_and_has_a_client_half(algorithm: Algorithm) -> None:
    """Sites have the objective that it names, with the hyper-parameters that it sends."""
    assert isinstance(algorithm, FederatedAlgorithmInterface)
    spec = algorithm.spec(algorithm.settings)
    assert spec["hyperparameters"].keys() == OBJECTIVES[spec["name"]].hyperparameters


def test_aggregate_gives_the_layout_it_was_given(algorithm: Algorithm) -> None:
    """Same names, shapes and dtypes as each update; every number finite."""
    aggregated = algorithm.aggregate(three())
    assert {name: (t.shape, t.dtype) for name, t in aggregated.items()} == {
        name: (t.shape, t.dtype) for name, t in start().items()
    }
    assert all(bool(torch.isfinite(tensor).all()) for tensor in aggregated.values())


def test_aggregate_is_pure(algorithm: Algorithm) -> None:
    """Neither the updates nor the state change, and asking again gives the same bits."""
    updates = three()
    kept = copy.deepcopy(updates)
    before = digest(algorithm.parameters)
    first, again = algorithm.aggregate(updates), algorithm.aggregate(updates)
    assert digest(first) == digest(again)
    assert digest(algorithm.parameters) == before
    for given, copied in zip(updates, kept, strict=True):
        for tensors in ("parameters", "control"):
            assert digest(given.pop(tensors)) == digest(copied.pop(tensors))
        assert given == copied


def test_aggregate_gives_memory_of_its_own(algorithm: Algorithm) -> None:
    """Changing the result changes no site's update."""
    alone = update("factory-1", 4.0, 8.0)
    for tensor in algorithm.aggregate([alone]).values():
        tensor.zero_()
    assert alone["parameters"]["w"].tolist() == [4.0, 8.0]


def test_the_order_of_the_updates_does_not_matter(algorithm: Algorithm) -> None:
    """All six orders of three sites give the same bits."""
    digests = {
        digest(algorithm.aggregate(list(order))) for order in itertools.permutations(three())
    }
    assert len(digests) == 1


@pytest.mark.parametrize("name", MEANS)
def test_one_site_alone_is_that_site(name: str) -> None:
    """However many samples it has; where the model itself is averaged, also bit by bit."""
    alone = update("factory-1", -0.0, 0.1, samples=7)
    found = build(name, start()).aggregate([alone])
    assert largest_difference(found, alone["parameters"]) < 1e-7
    if name in {"fedavg", "fedprox"}:
        assert digest(found) == digest(alone["parameters"])


@pytest.mark.parametrize("name", MEANS)
def test_sites_that_agree_are_not_changed(name: str) -> None:
    """Three sites with the same parameters give these, whatever their sizes."""
    same = [update(f"factory-{i}", 0.1, -7.25, samples=i) for i in (1, 2, 4)]
    found = build(name, start()).aggregate(same)
    assert largest_difference(found, same[0]["parameters"]) < 1e-6


def test_an_update_that_moves_nothing_moves_nothing(algorithm: Algorithm) -> None:
    """The global parameters are a fixed point when every site returns them."""
    unmoved = [update(f"factory-{i}", parameters=start()) for i in (1, 2)]
    assert digest(algorithm.aggregate(unmoved)) == digest(start())


def test_update_algorithm_state_commits_what_aggregate_said(algorithm: Algorithm) -> None:
    """The announced parameters become the global ones."""
    announced = digest(algorithm.aggregate(three()))
    algorithm.update_algorithm_state(three())
    assert digest(algorithm.parameters) == announced != digest(start())


def test_each_round_is_configured_anew(algorithm: Algorithm) -> None:
    """The configuration names round and algorithm; changing it changes nothing later."""
    config = algorithm.configure_client_training(3)
    kept = copy.deepcopy(config)
    assert (config["round_num"], config["algorithm"]) == (3, algorithm.spec(algorithm.settings))
    config["round_num"] = 99
    config["algorithm"]["hyperparameters"]["nu"] = 1.0
    config["training"]["learning_rate"] = 9.0
    for tensor in config.get("control", {}).values():
        tensor.fill_(9.0)
    again = algorithm.configure_client_training(3)
    assert {**again, "control": None} == {**kept, "control": None}
    assert digest(again.get("control", {})) == digest(kept.get("control", {}))


def test_a_site_builds_on_the_last_round_that_counted(algorithm: Algorithm) -> None:
    """Where sites keep a state, each is told whose round it is; the others are told nothing."""
    assert algorithm.configure_site("factory-1") == {}
    algorithm.update_algorithm_state([update("factory-1", 1.0, 1.0, round_num=4)])
    expected = {"state_round": 4} if algorithm.keeps_site_state else {}
    assert algorithm.configure_site("factory-1") == expected
    assert algorithm.configure_site("factory-2") == {}


def test_updates_committed_in_any_order_give_the_same_state(algorithm: Algorithm) -> None:
    """After two rounds, whoever answered first."""
    other = build(algorithm.settings.name, start())
    for _ in range(2):
        algorithm.update_algorithm_state(three())
        other.update_algorithm_state(three()[::-1])
    assert digest(algorithm.parameters) == digest(other.parameters)
    assert {symbol: digest(values) for symbol, values in algorithm.state.items()} == {
        symbol: digest(values) for symbol, values in other.state.items()
    }


BAD = {
    "missing tensor": {"parameters": {"w": torch.zeros(2)}},
    "unknown tensor": {"parameters": {**start(), "v": torch.zeros(1)}},
    "other shape": {"parameters": {**start(), "w": torch.zeros(3)}},
    "other dtype": {"parameters": {**start(), "w": torch.zeros(2, dtype=torch.float64)}},
    "nan": {"parameters": {**start(), "w": torch.tensor([0.0, math.nan])}},
    "infinity": {"parameters": {**start(), "w": torch.tensor([0.0, math.inf])}},
    "no samples": {"num_samples": 0},
    "negative samples": {"num_samples": -1},
}


@pytest.mark.parametrize("fault", BAD)
@pytest.mark.parametrize("method", ["aggregate", "update_algorithm_state"])
def test_an_update_that_does_not_fit_is_refused_by_name(
    algorithm: Algorithm, method: str, fault: str
) -> None:
    """The error names the site, as a fact and in words, and the state is left as it was."""
    updates = [*three(), update("factory-9", 1.0, 1.0, **BAD[fault])]
    before = digest(algorithm.parameters)
    with pytest.raises(AggregationError, match=r"^factory-9: ") as caught:
        getattr(algorithm, method)(updates)
    assert caught.value.site_id == "factory-9"
    assert digest(algorithm.parameters) == before


@pytest.mark.parametrize("method", ["aggregate", "update_algorithm_state"])
def test_two_updates_of_one_site_are_refused_by_name(algorithm: Algorithm, method: str) -> None:
    """A site counts once."""
    with pytest.raises(AggregationError, match="factory-2: sent two updates") as caught:
        getattr(algorithm, method)([*three(), update("factory-2", 1.0, 1.0)])
    assert caught.value.site_id == "factory-2"
    assert digest(algorithm.parameters) == digest(start())


@pytest.mark.parametrize("method", ["aggregate", "update_algorithm_state"])
def test_no_updates_are_refused(algorithm: Algorithm, method: str) -> None:
    """There is nothing to combine, and no site to blame."""
    with pytest.raises(AggregationError, match="no updates") as caught:
        getattr(algorithm, method)([])
    assert caught.value.site_id is None
    assert digest(algorithm.parameters) == digest(start())


def test_fedavg_weighs_sites_by_their_samples() -> None:
    """Three samples of four count three quarters."""
    # (1 * [2, 4] + 3 * [6, 8]) / 4 = [20, 28] / 4
    fedavg = build("fedavg", start())
    aggregated = fedavg.aggregate(
        [update("factory-1", 2.0, 4.0, samples=1), update("factory-2", 6.0, 8.0, samples=3)]
    )
    assert aggregated["w"].tolist() == [5.0, 7.0]
    assert aggregated["steps"].item() == 3
