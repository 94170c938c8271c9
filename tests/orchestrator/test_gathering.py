"""Updates added as they come: the same result as all of them at once, and nothing of them kept."""

import gc
import itertools
import math
import weakref
from typing import Any, Final, cast

import pytest
import torch
from algorithms import build, update
from hypothesis import given, settings
from hypothesis import strategies as st

from core import wire
from core.exceptions import AggregationError
from core.messages import ClientUpdate, Message, Parameters
from core.parameters import as_float64, digest, distance, weighted_sum
from orchestrator.aggregation import (
    AGGREGATORS,
    Aggregator,
    Combined,
    Contribution,
    SimpleAverage,
    WeightedAverage,
)
from orchestrator.algorithms import ALGORITHMS, Algorithm

SITES: Final = 5
"""Enough for every method in the catalogue."""

CLIPPED: Final = [None, 1.5]

deterministic = settings(max_examples=25, derandomize=True, deadline=None, database=None)
numbers = st.floats(-100, 100, width=32)
samples = st.integers(1, 50)


@st.composite
def models(draw: st.DrawFn) -> list[Parameters]:
    """Models of some sites: a tensor of two numbers, and a counter."""
    found: list[Parameters] = []
    for _ in range(SITES):
        w = torch.tensor(draw(st.lists(numbers, min_size=2, max_size=2)))
        found.append({"w": w, "steps": torch.tensor(draw(st.integers(0, 9)))})
    return found


def received() -> Parameters:
    """Give what all sites started from."""
    return {"w": torch.tensor([0.5, -0.25]), "steps": torch.tensor(0)}


def contributions(given: list[Parameters], weights: list[int]) -> list[Contribution]:
    """Give those of the sites, in order."""
    return [
        Contribution(site_id=f"factory-{number}", parameters=model, weight=float(weights[number]))
        for number, model in enumerate(given)
    ]


def result(combined: Combined) -> tuple[str, dict[str, Any]]:
    """Give what makes two results the same."""
    return digest(combined.parameters), {**combined.sites}


@pytest.mark.parametrize("clip_norm", CLIPPED, ids=["not clipped", "clipped"])
@pytest.mark.parametrize("method", AGGREGATORS)
def test_adding_one_by_one_is_combining_all(method: str, clip_norm: float | None) -> None:
    """For each aggregator, bit for bit; with the norms given or found out, in any order given."""
    aggregator = AGGREGATORS[method].model_validate({"clip_norm": clip_norm})

    @deterministic
    @given(
        given_models=models(),
        weights=st.lists(samples, min_size=SITES, max_size=SITES),
        order=st.permutations(range(SITES)),
    )
    def holds(given_models: list[Parameters], weights: list[int], order: list[int]) -> None:
        all_of_them = contributions(given_models, weights)
        before = [digest(model) for model in given_models]
        expected = result(aggregator.combine([all_of_them[place] for place in order], received()))
        round_of, told_of = aggregator.start(received()), aggregator.start(received())
        for one in all_of_them:
            round_of.add(one)
            norm = distance(one.parameters, received())
            told_of.add(
                Contribution(
                    site_id=one.site_id,
                    parameters=one.parameters,
                    weight=one.weight,
                    delta_norm=norm,
                )
            )
        assert result(round_of.combined()) == expected
        assert result(told_of.combined()) == expected
        assert [digest(model) for model in given_models] == before
        assert math.isclose(sum(share["share"] for share in expected[1].values()), 1.0)

    holds()


@deterministic
@given(given_models=models(), weights=st.lists(samples, min_size=SITES, max_size=SITES))
def test_the_means_are_what_their_equation_says(
    given_models: list[Parameters], weights: list[int]
) -> None:
    """Against the sum written down tensor by tensor, in float64 and to its rounding."""
    for mean, counted in ((WeightedAverage(), weights), (SimpleAverage(), [1] * SITES)):
        found = mean.combine(contributions(given_models, weights), received()).parameters
        shares = [weight / sum(counted) for weight in counted]
        expected = weighted_sum([as_float64(model) for model in given_models], shares)
        torch.testing.assert_close(found["w"], expected["w"], rtol=1e-12, atol=1e-12)
        assert found["steps"].item() == expected["steps"].item()


@pytest.mark.parametrize("method", AGGREGATORS)
def test_too_few_added_are_too_few_combined(method: str) -> None:
    """None at all, or fewer than the method needs, is the same error in both ways."""
    aggregator = AGGREGATORS[method]()
    given_models = [received() for _ in range(aggregator.fewest_sites() - 1)]
    all_of_them = contributions(given_models, [1] * len(given_models))
    round_of = aggregator.start(received())
    for one in all_of_them:
        round_of.add(one)
    with pytest.raises(AggregationError) as streamed:
        round_of.combined()
    with pytest.raises(AggregationError) as at_once:
        aggregator.combine(all_of_them, received())
    assert str(streamed.value) == str(at_once.value)


def refers(parameters: Parameters) -> list[weakref.ref[torch.Tensor]]:
    """Give what tells whether anything holds the tensors still."""
    return [weakref.ref(tensor) for tensor in parameters.values()]


@pytest.mark.parametrize("clip_norm", CLIPPED, ids=["not clipped", "clipped"])
@pytest.mark.parametrize("mean", [WeightedAverage, SimpleAverage], ids=lambda mean: mean.method)
def test_a_mean_keeps_nothing_of_what_was_added(
    mean: type[Aggregator], clip_norm: float | None
) -> None:
    """Not the first one either, on which the sum begins: its tensors die as they are let go of."""
    round_of = mean.model_validate({"clip_norm": clip_norm}).start(received())
    for number in range(3):
        model = {"w": torch.full((2,), float(number)), "steps": torch.tensor(number)}
        held = refers(model)
        one = Contribution(site_id=f"factory-{number}", parameters=model, weight=1.0)
        round_of.add(one)
        del model, one
        gc.collect()
        assert [ref() for ref in held] == [None, None]
    assert list(round_of.combined().sites) == ["factory-0", "factory-1", "factory-2"]


def start() -> Parameters:
    """Give the global parameters that a run starts from: a tensor and an integer buffer."""
    return {"w": torch.tensor([1.0, 2.0]), "steps": torch.tensor(0)}


def arrived(message: dict[str, Any]) -> dict[str, Any]:
    """Give an update as it comes from the wire."""
    said = cast("Message", {"kind": "update", **message})
    return cast("dict[str, Any]", wire.decode(wire.encode(said)))


@st.composite
def updates(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Updates of three sites, with what SCAFFOLD's bring beside their models."""
    pair = st.lists(numbers, min_size=2, max_size=2)
    return [
        update(
            f"factory-{number}",
            *draw(pair),
            samples=draw(samples),
            num_steps=draw(st.integers(1, 9)),
            control={"w": torch.tensor(draw(pair))},
        )
        for number in range(3)
    ]


def gathered(algorithm: Algorithm, given_updates: list[dict[str, Any]]) -> Algorithm:
    """Make a step of updates that come in one after the other."""
    gathering = algorithm.gather()
    for one in given_updates:
        valid = cast("ClientUpdate", one)
        gathering.add(valid, algorithm.require_valid(valid))
    algorithm.commit(gathering)
    return algorithm


def stands(algorithm: Algorithm) -> dict[str, Any]:
    """Give where an algorithm stands after a round."""
    return {
        "parameters": digest(algorithm.parameters),
        "state": {symbol: digest(tensors) for symbol, tensors in algorithm.state.items()},
        "shares": {**algorithm.last_shares},
        "counted": algorithm.counted,
    }


@pytest.mark.parametrize("name", ALGORITHMS)
def test_gathering_one_by_one_is_aggregating_all(name: str) -> None:
    """For each algorithm: two rounds, the same parameters, state and shares, bit for bit."""

    @deterministic
    @given(first=updates(), second=updates(), order=st.permutations(range(3)))
    def holds(first: list[dict[str, Any]], second: list[dict[str, Any]], order: list[int]) -> None:
        at_once, streamed, over_wire = (build(name, start()) for _ in range(3))
        for given_updates in (first, second):
            shuffled = [given_updates[place] for place in order]
            announced = digest(at_once.aggregate(shuffled))
            at_once.update_algorithm_state(shuffled)
            gathered(streamed, given_updates)
            over_wire.broadcast()
            gathered(over_wire, [arrived(one) for one in given_updates])
            assert stands(streamed) == stands(at_once) == stands(over_wire)
            assert digest(streamed.parameters) == announced

    holds()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_round_that_gathers_changes_nothing_before_its_step(name: str) -> None:
    """Two rounds may be gathered at once, and one given up, with no trace in the algorithm."""
    algorithm = build(name, start())
    before = stands(algorithm)
    given_up = algorithm.gather()
    given_up.add(cast("ClientUpdate", update("factory-1", 1e6, -1e6)))
    assert stands(algorithm) == before
    ours = [update("factory-1", 3.0, 4.0), update("factory-2", 5.0, 6.0)]
    assert stands(gathered(algorithm, ours)) == stands(gathered(build(name, start()), ours))


MEANS: Final = [name for name in ALGORITHMS if "average" in ALGORITHMS[name].default_aggregation]


def test_every_algorithm_sums_by_default() -> None:
    """So that a round takes the memory of two models, however many sites there are."""
    assert set(MEANS) == ALGORITHMS.keys()


@pytest.mark.parametrize("name", MEANS)
def test_nothing_is_held_of_a_gathered_update(name: str) -> None:
    """Neither its model nor what it brought beside it, of the first site or of a later one."""
    gathering = build(name, start()).gather()
    for number in range(3):
        one = update(f"factory-{number}", 1.0, float(number))
        held = refers(one["parameters"]) + refers(one["control"])
        gathering.add(cast("ClientUpdate", one))
        del one
        gc.collect()
        assert [ref() for ref in held] == [None, None, None]
    assert list(gathering.counted) == [f"factory-{n}" for n in range(3)]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_second_update_of_a_site_is_refused(name: str) -> None:
    """The error names the site, and what was gathered counts once: as if it had not come."""
    algorithm, other = build(name, start()), build(name, start())
    ours = [cast("ClientUpdate", update(f"factory-{n}", float(n), 1.0)) for n in (1, 2)]
    gathering = algorithm.gather()
    for one in ours:
        gathering.add(one)
        with pytest.raises(AggregationError, match="sent two updates for one round") as caught:
            gathering.add(one)
        assert caught.value.site_id == one["datasite_id"]
    algorithm.commit(gathering)
    gathered(other, cast("list[dict[str, Any]]", ours))
    assert stands(algorithm) == stands(other)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_updates_that_come_out_of_turn_are_not_added(name: str) -> None:
    """A sum depends on its order, so that of the sites is the only one: all others are refused."""
    in_order = [update(f"factory-{number}", 0.1, 1e8 * number) for number in range(3)]

    def add_all(order: tuple[int, ...]) -> None:
        gathering = build(name, start()).gather()
        for number in order:
            gathering.add(cast("ClientUpdate", in_order[number]))

    first, *others = itertools.permutations(range(3))
    add_all(first)
    for order in others:
        with pytest.raises(AggregationError):
            add_all(order)
