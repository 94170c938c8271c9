"""Ways of combining the updates of a round, on numbers that can be checked by hand."""

import itertools
import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loguru import logger
from pydantic import BaseModel

from core.configuration import parse
from core.enums import AggregationMethod
from core.exceptions import AggregationError, ConfigurationError
from core.messages import Parameters
from core.parameters import cast_like, digest
from orchestrator.aggregation import (
    AGGREGATORS,
    AggregationChoice,
    Aggregator,
    Combined,
    Contribution,
    GeometricMedian,
    Krum,
    Median,
    MultiKrum,
    SimpleAverage,
    TrimmedMean,
    WeightedAverage,
    parse_aggregator,
)

EVERY = [aggregator() for aggregator in AGGREGATORS.values()]
ENOUGH_WITH_ONE = [aggregator for aggregator in EVERY if aggregator.fewest_sites() == 1]
ROBUST = [Median(), TrimmedMean(), Krum(), MultiKrum(), GeometricMedian()]


def named(aggregator: Aggregator) -> str:
    """Give a test's id."""
    return aggregator.method


def received(size: int = 1) -> Parameters:
    """Give the global parameters that every site started from: zeros, and a counter."""
    return {"w": torch.zeros(size), "steps": torch.tensor(0)}


def site(number: int, *values: float, weight: float = 1.0, steps: int = 0) -> Contribution:
    """Give the contribution of `factory-<number>`, with these numbers in `w`."""
    return Contribution(
        site_id=f"factory-{number}",
        parameters={"w": torch.tensor(values), "steps": torch.tensor(steps)},
        weight=weight,
    )


def sites(*values: float) -> list[Contribution]:
    """Give one contribution a number."""
    return [site(number, value) for number, value in enumerate(values)]


def combine(aggregator: Aggregator, contributions: Sequence[Contribution]) -> Combined:
    """Combine, starting from zeros."""
    return aggregator.combine(contributions, received(len(contributions[0].parameters["w"])))


def numbers(combined: Combined) -> list[float]:
    """Give the numbers of `w`."""
    values: list[float] = combined.parameters["w"].tolist()
    return values


def shares(combined: Combined) -> list[float]:
    """Give the shares in the order of the sites."""
    return [combined.sites[site_id]["share"] for site_id in sorted(combined.sites)]


def test_the_weighted_average_is_worked_by_hand() -> None:
    """Three samples of four count three quarters."""
    # (1 * 2 + 3 * 6) / 4 = 5
    combined = combine(WeightedAverage(), [site(1, 2.0, weight=1), site(2, 6.0, weight=3)])
    assert (numbers(combined), shares(combined)) == ([5.0], [0.25, 0.75])


def test_the_simple_average_does_not_look_at_samples() -> None:
    """Two sites count half each."""
    # (2 + 6) / 2 = 4
    combined = combine(SimpleAverage(), [site(1, 2.0, weight=1), site(2, 6.0, weight=3)])
    assert (numbers(combined), shares(combined)) == ([4.0], [0.5, 0.5])


def test_the_median_of_an_odd_count_is_the_middle_number() -> None:
    """In each coordinate another site may be in the middle."""
    # sorted: 1 2 9 and -5 0 3
    contributions = [site(1, 9.0, -5.0), site(2, 1.0, 0.0), site(3, 2.0, 3.0)]
    combined = combine(Median(), contributions)
    assert (numbers(combined), shares(combined)) == ([2.0, 0.0], [0.0, 0.5, 0.5])


def test_the_median_of_an_even_count_is_the_mean_of_the_middle_two() -> None:
    """Both of them count half."""
    # sorted: 1 2 4 100; (2 + 4) / 2
    combined = combine(Median(), sites(4.0, 100.0, 1.0, 2.0))
    assert (numbers(combined), shares(combined)) == ([3.0], [0.5, 0.0, 0.0, 0.5])


def test_sites_that_tie_for_the_middle_divide_its_share() -> None:
    """Two of three sites say 2: each is half of it. All say 2: each is a third of it."""
    assert shares(combine(Median(), sites(2.0, 2.0, 7.0))) == [0.5, 0.5, 0.0]
    assert shares(combine(Median(), sites(2.0, 2.0, 2.0))) == [1 / 3, 1 / 3, 1 / 3]


def test_the_trimmed_mean_cuts_one_of_five_at_each_end() -> None:
    """By default a fifth."""
    # sorted: -90 1 2 6 90; (1 + 2 + 6) / 3
    combined = combine(TrimmedMean(), sites(90.0, 1.0, 6.0, 2.0, -90.0))
    assert numbers(combined) == [3.0]
    assert shares(combined) == [0.0, 1 / 3, 1 / 3, 1 / 3, 0.0]


def test_sites_that_tie_at_the_cut_divide_the_places_that_are_left() -> None:
    """Sorted 1 1 1 4 9: two of the three ones are kept, so each counts two thirds of a place."""
    # kept: 1 1 4, so (1 + 1 + 4) / 3; a one's share is 2/3 of 1/3
    combined = combine(TrimmedMean(), sites(1.0, 1.0, 1.0, 4.0, 9.0))
    assert numbers(combined) == [2.0]
    assert shares(combined) == pytest.approx([2 / 9, 2 / 9, 2 / 9, 1 / 3, 0.0])


@pytest.mark.parametrize(
    ("trim", "count", "cut"),
    [(0.2, 5, 1), (0.2, 9, 1), (0.2, 10, 2), (0.29, 100, 29), (0.49, 3, 1), (0.1, 10, 1)],
)
def test_the_trimmed_mean_cuts_whole_sites(trim: float, count: int, cut: int) -> None:
    """Rounded down, and exactly: the float 0.29 * 100 is 28.999999999999996."""
    combined = combine(TrimmedMean(trim=trim), sites(*map(float, range(count))))
    by_value = [combined.sites[f"factory-{number}"]["share"] for number in range(count)]
    assert [number for number, share in enumerate(by_value) if share] == [*range(cut, count - cut)]


def test_the_middle_never_leaves_the_numbers_that_are_kept() -> None:
    """0.1 + 0.1 + 0.1 is 0.30000000000000004 in float64, a third of which is more than 0.1."""
    tenth = torch.tensor([0.1], dtype=torch.float64)
    contributions = [
        Contribution(site_id=str(number), parameters={"w": tenth}, weight=1) for number in range(5)
    ]
    combined = TrimmedMean().combine(contributions, {"w": torch.zeros(1, dtype=torch.float64)})
    assert numbers(combined) == [0.1]


def test_krum_takes_the_site_closest_to_its_neighbours() -> None:
    """Each score is over the n - f - 2 = 2 closest of the other four."""
    # 0: 1 + 9 = 10   1: 1 + 4 = 5   3: 4 + 1 = 5   4: 1 + 9 = 10   100: 96^2 + 97^2
    # 1 and 3 tie; the site that said 3 comes first by name.
    contributions = sites(3.0, 100.0, 0.0, 1.0, 4.0)
    combined = combine(Krum(), contributions)
    assert (numbers(combined), shares(combined)) == ([3.0], [1.0, 0.0, 0.0, 0.0, 0.0])


def test_krum_squares_distances() -> None:
    """It minds one far neighbour more than two that are half as far."""
    # 0: 1 + 36 = 37   1: 1 + 25 = 26   6: 9 + 25 = 34   9: 9 + 16 = 25   13: 16 + 49 = 65
    # Plain distances would choose 1 (1 + 5), and three neighbours 6 (9 + 25 + 36).
    assert numbers(combine(Krum(), sites(0.0, 1.0, 6.0, 9.0, 13.0))) == [9.0]


def test_krum_measures_over_all_tensors() -> None:
    """Sites that are close in one tensor and far in another are far."""
    # (0, 2): 2 + 4   (0, 0): 2 + 4   (1, 1): 2 + 2   (3, 0), twice: 0 + 5
    # By x alone the first would be chosen, by y alone the second.
    points = [(0.0, 2.0), (0.0, 0.0), (1.0, 1.0), (3.0, 0.0), (3.0, 0.0)]
    contributions = [
        Contribution(
            site_id=str(number),
            parameters={"x": torch.tensor(x), "none": torch.zeros(0, 2), "y": torch.tensor([[y]])},
            weight=1,
        )
        for number, (x, y) in enumerate(points)
    ]
    combined = Krum().combine(contributions, contributions[0].parameters)
    assert shares(combined) == [0.0, 0.0, 1.0, 0.0, 0.0]


def test_multi_krum_averages_the_best() -> None:
    """By default n - f = 4 of 5; `keep` may ask for fewer."""
    # scores as for krum above: 1 and 3 are best (5 each), then 0 and 4 (10 each)
    contributions = sites(0.0, 1.0, 3.0, 4.0, 100.0)
    combined = combine(MultiKrum(), contributions)
    assert (numbers(combined), shares(combined)) == ([2.0], [0.25, 0.25, 0.25, 0.25, 0.0])
    two = combine(MultiKrum(keep=2), contributions)
    assert (numbers(two), shares(two)) == ([2.0], [0.0, 0.5, 0.5, 0.0, 0.0])


@pytest.mark.parametrize("keep", [1, None], ids=["krum", "multi_krum"])
def test_a_site_that_krum_rejects_does_not_set_the_counters(keep: int | None) -> None:
    """A liar's counter would else be the maximum."""
    honest = [site(number, 1.0, steps=number) for number in range(4)]
    liar = site(9, 1e6, steps=2**60)
    combined = combine(MultiKrum(keep=keep), [*honest, liar])
    assert combined.parameters["steps"].item() == (0 if keep == 1 else 3)


def test_the_geometric_median_of_a_quadrilateral_is_where_its_diagonals_cross() -> None:
    """Each pair of opposite corners pulls evenly there, and only there."""
    corners = [site(1, -1.0, 0.0), site(2, 3.0, 0.0), site(3, 0.0, -2.0), site(4, 0.0, 5.0)]
    # the mean is (0.5, 0.75)
    combined = combine(GeometricMedian(tolerance=1e-9), corners)
    assert numbers(combined) == pytest.approx([0.0, 0.0], abs=1e-8)
    # Weiszfeld's weights there are 1/1, 1/3, 1/2, 1/5 over their sum, 61/30
    assert shares(combined) == pytest.approx([30 / 61, 10 / 61, 15 / 61, 6 / 61])


def test_the_geometric_median_weighs_sites_by_their_samples() -> None:
    """On a line it is the weighted median: more than half of the samples decide."""
    contributions = [site(1, 0.0, weight=3), site(2, 1.0, weight=1), site(3, 9.0, weight=1)]
    assert numbers(combine(GeometricMedian(), contributions)) == pytest.approx([0.0], abs=1e-5)
    assert numbers(combine(GeometricMedian(), sites(0.0, 1.0, 9.0))) == pytest.approx([1.0])


def test_the_geometric_median_scales_with_its_points() -> None:
    """One tolerance fits models of any size."""
    for scale in (1e-3, 1.0, 1e30):
        corners = [(-1.0, 0.0), (3.0, 0.0), (0.0, -2.0), (0.0, 5.0)]
        contributions = [site(i, x * scale, y * scale) for i, (x, y) in enumerate(corners)]
        combined = combine(GeometricMedian(), contributions)
        assert numbers(combined) == pytest.approx([0.0, 0.0], abs=1e-4 * scale)


def test_a_geometric_median_that_does_not_settle_says_so() -> None:
    """Its last point is still nearer than the mean."""
    warnings: list[str] = []
    sink = logger.add(warnings.append, level="WARNING", format="{message}")
    try:
        combined = combine(GeometricMedian(iterations=1), sites(0.0, 1.0, 1.0, 98.0))
    finally:
        logger.remove(sink)
    assert 1.0 < numbers(combined)[0] < 25.0
    assert len(warnings) == 1
    assert warnings[0].startswith("geometric_median: imbalance")


def test_a_delta_that_is_too_long_is_scaled_down_to_the_bound() -> None:
    """From (1, 1) to (4, 5) is 5; half of it stays. One within the bound stays as it is."""
    start = {"w": torch.tensor([1.0, 1.0]), "steps": torch.tensor(3)}
    far, near = site(1, 4.0, 5.0, steps=7), site(2, 1.0, 2.0, steps=4)
    # ((1, 1) + (1.5, 2) + (1, 2)) / 2 = (3.5, 5) / 2
    combined = SimpleAverage(clip_norm=2.5).combine([far, near], start)
    assert numbers(combined) == [1.75, 2.5]
    assert combined.parameters["steps"].item() == 7
    assert combined.sites["factory-1"] == {"share": 0.5, "delta_norm": 5.0, "clip_factor": 0.5}
    assert combined.sites["factory-2"] == {"share": 0.5, "delta_norm": 1.0, "clip_factor": 1.0}


@pytest.mark.parametrize("aggregator", EVERY, ids=named)
def test_clipping_bounds_what_every_method_gives(aggregator: Aggregator) -> None:
    """When each site moves by at most 2, their combination does."""
    clipping = aggregator.model_copy(update={"clip_norm": 2.0})
    combined = combine(clipping, sites(3.0, 30.0, 300.0, 3e38, 5.0))
    assert numbers(combined) == pytest.approx([2.0])
    assert combined.sites["factory-1"]["clip_factor"] == pytest.approx(2 / 30)


@pytest.mark.parametrize("aggregator", EVERY, ids=named)
def test_the_order_of_the_contributions_does_not_matter(aggregator: Aggregator) -> None:
    """All orders give the same bits and shares, with numbers that do not add up exactly."""
    contributions = [
        site(1, 0.1, 1e8, weight=3),
        site(2, 0.7, -1e8, weight=5),
        site(3, -0.3, 1.0, weight=11),
        site(4, 0.3, 0.1, weight=2),
        site(5, 0.7, 1e-9, weight=7),
    ]
    results = [combine(aggregator, order) for order in itertools.permutations(contributions)]
    assert len({digest(result.parameters) for result in results}) == 1
    assert all(result.sites == results[0].sites for result in results)


@pytest.mark.parametrize("aggregator", EVERY, ids=named)
def test_the_result_has_the_layout_of_the_model(aggregator: Aggregator) -> None:
    """Floating tensors come in float64, counters in their dtype: their maximum."""
    start = {
        "matrix": torch.ones(2, 3, dtype=torch.float16),
        "number": torch.tensor(1.0),
        "none": torch.zeros(0, 4),
        "steps": torch.tensor([1, 2], dtype=torch.int32),
        "seen": torch.tensor(True),  # noqa: FBT003 - a buffer of one truth value
    }
    contributions = [
        Contribution(site_id=str(number), parameters=start, weight=1) for number in range(5)
    ]
    result = aggregator.combine(contributions, start).parameters
    assert list(result) == list(start)
    assert {name: tensor.shape for name, tensor in result.items()} == {
        name: tensor.shape for name, tensor in start.items()
    }
    assert [tensor.dtype for tensor in result.values()] == [
        *[torch.float64] * 3,
        torch.int32,
        torch.bool,
    ]
    assert digest(cast_like(result, start)) == digest(start)


@pytest.mark.parametrize(
    "aggregator", [WeightedAverage(), SimpleAverage(), Median(), TrimmedMean()], ids=named
)
def test_counters_give_their_maximum(aggregator: Aggregator) -> None:
    """Whoever said it."""
    contributions = [site(number, float(number), steps=number) for number in range(5)]
    assert combine(aggregator, contributions).parameters["steps"].item() == 4


@pytest.mark.parametrize("aggregator", EVERY, ids=named)
def test_a_model_of_counters_alone_has_shares(aggregator: Aggregator) -> None:
    """There is nothing to measure by, and nothing to divide by."""
    contributions = [
        Contribution(site_id=str(number), parameters={"steps": torch.tensor(number)}, weight=1)
        for number in range(5)
    ]
    combined = aggregator.combine(contributions, {"steps": torch.tensor(0)})
    assert sum(shares(combined)) == pytest.approx(1.0)


@pytest.mark.parametrize("aggregator", ENOUGH_WITH_ONE, ids=named)
def test_one_site_alone_is_that_site(aggregator: Aggregator) -> None:
    """Bit by bit, minus zero included, however many samples it has."""
    alone = site(1, -0.0, 0.1, -3e38, 1e-45, weight=7, steps=3)
    combined = combine(aggregator, [alone])
    assert digest(cast_like(combined.parameters, alone.parameters)) == digest(alone.parameters)
    assert shares(combined) == [1.0]


@pytest.mark.parametrize("aggregator", EVERY, ids=named)
def test_nothing_given_is_modified(aggregator: Aggregator) -> None:
    """Neither by combining nor by changing the result, also where all is float64 already."""
    start = {"w": torch.zeros(2, dtype=torch.float64), "steps": torch.tensor(0)}
    contributions = [
        Contribution(
            site_id=str(number),
            parameters={
                "w": torch.tensor([1.0, -float(number)], dtype=torch.float64),
                "steps": torch.tensor(number),
            },
            weight=1,
        )
        for number in range(5)
    ]
    given = [start, *(contribution.parameters for contribution in contributions)]
    before = [digest(parameters) for parameters in given]
    for tensor in aggregator.combine(contributions, start).parameters.values():
        tensor.fill_(99)
    assert [digest(parameters) for parameters in given] == before


@pytest.mark.parametrize("aggregator", EVERY, ids=named)
def test_the_record_of_a_round_is_json(aggregator: Aggregator) -> None:
    """Shares are plain numbers and add up to 1."""
    combined = combine(aggregator, sites(1.0, 2.0, 4.0, 8.0, -16.0))
    assert json.loads(json.dumps(combined.sites)) == combined.sites
    assert sum(shares(combined)) == pytest.approx(1.0)
    assert combined.sites["factory-4"]["delta_norm"] == 16.0


LIES = {
    "scaled": lambda value: 1000 * value,
    "sign flipped": lambda value: -value,
    "constant": lambda _: -1e6,
    "huge": lambda _: 3e38,
}


@st.composite
def honest_sites(draw: st.DrawFn) -> list[Contribution]:
    """Give five sites whose numbers lie from 1 to 2, as do those of honest training."""
    size = draw(st.integers(min_value=1, max_value=4))
    value = st.floats(min_value=1.0, max_value=2.0, width=32)
    rows = draw(st.lists(st.lists(value, min_size=size, max_size=size), min_size=5, max_size=5))
    weights = draw(st.lists(st.integers(min_value=1, max_value=4), min_size=5, max_size=5))
    return [
        site(number, *row, weight=weight)
        for number, (row, weight) in enumerate(zip(rows, weights, strict=True))
    ]


def add_liar(honest: Sequence[Contribution], lie: str, name: int) -> list[Contribution]:
    """Give the honest sites and one that has changed the numbers of the first."""
    told = [LIES[lie](value) for value in honest[0].parameters["w"].tolist()]
    return [*honest, site(name, *told)]


@pytest.mark.parametrize("lie", LIES)
@given(honest=honest_sites(), name=st.sampled_from([7, 42]))
@settings(max_examples=25, deadline=None)
def test_a_liar_does_not_move_median_and_trimmed_mean_out_of_the_honest_range(
    lie: str, honest: list[Contribution], name: int
) -> None:
    """Coordinate by coordinate, one liar among six; it has no part in the result."""
    stack = torch.stack([contribution.parameters["w"] for contribution in honest])
    for aggregator in (Median(), TrimmedMean()):
        combined = combine(aggregator, add_liar(honest, lie, name))
        result = combined.parameters["w"]
        assert bool(((stack.amin(dim=0) <= result) & (result <= stack.amax(dim=0))).all())
        assert combined.sites[f"factory-{name}"]["share"] == 0.0


@pytest.mark.parametrize("lie", LIES)
@given(honest=honest_sites())
@settings(max_examples=25, deadline=None)
def test_krum_picks_an_honest_site(lie: str, honest: list[Contribution]) -> None:
    """Multi-Krum picks all of them."""
    contributions = add_liar(honest, lie, 7)
    picked = combine(Krum(), contributions)
    digests = {digest(contribution.parameters) for contribution in honest}
    assert digest(cast_like(picked.parameters, honest[0].parameters)) in digests
    assert picked.sites["factory-7"]["share"] == 0.0
    assert shares(combine(MultiKrum(), contributions)) == [*[1 / 5] * 5, 0.0]


@pytest.mark.parametrize("lie", LIES)
@given(honest=honest_sites())
@settings(max_examples=25, deadline=None)
def test_a_liar_moves_the_geometric_median_by_a_bounded_distance(
    lie: str, honest: list[Contribution]
) -> None:
    """With a part κ < 1/2 of the samples: (1 - κ) / sqrt(1 - 2κ) honest radii (Minsker 2015)."""
    result = combine(GeometricMedian(), add_liar(honest, lie, 7)).parameters["w"]
    stack = torch.stack([contribution.parameters["w"] for contribution in honest]).double()
    radii = (stack - stack.mean(dim=0)).norm(dim=1)
    liar = 1 / (1 + sum(contribution.weight for contribution in honest))
    bound = (1 - liar) / math.sqrt(1 - 2 * liar) * float(radii.max())
    assert float((result - stack.mean(dim=0)).norm()) <= bound + 1e-3


@pytest.mark.parametrize("aggregator", [WeightedAverage(), SimpleAverage()], ids=named)
def test_a_liar_moves_a_mean_as_far_as_it_likes(aggregator: Aggregator) -> None:
    """Five sites say 1 and one says 1000."""
    # (5 * 1 + 1000) / 6 = 167.5; with clipping at 2: (5 * 1 + 2) / 6
    contributions = sites(1.0, 1.0, 1.0, 1.0, 1.0, 1000.0)
    assert numbers(combine(aggregator, contributions)) == pytest.approx([167.5])
    clipping = aggregator.model_copy(update={"clip_norm": 2.0})
    assert numbers(combine(clipping, contributions)) == pytest.approx([7 / 6])


@pytest.mark.parametrize("aggregator", ROBUST, ids=named)
def test_the_robust_methods_do_not_move_with_the_liar(aggregator: Aggregator) -> None:
    """Five sites say 1: the sixth may say anything."""
    for lie in (1000.0, -1.0, 3e38):
        combined = combine(aggregator, sites(1.0, 1.0, 1.0, 1.0, 1.0, lie))
        assert numbers(combined) == pytest.approx([1.0], abs=1e-5)


@pytest.mark.parametrize(
    ("aggregator", "fewest"),
    [
        (WeightedAverage(), 1),
        (SimpleAverage(), 1),
        (Median(), 1),
        (GeometricMedian(), 1),
        (TrimmedMean(), 5),
        (TrimmedMean(trim=0.1), 10),
        (TrimmedMean(trim=0.3), 4),
        (TrimmedMean(trim=0.499), 3),
        (Krum(), 5),
        (Krum(byzantine=2), 7),
        (MultiKrum(), 5),
        (MultiKrum(keep=4), 5),
        (MultiKrum(keep=6), 7),
    ],
    ids=str,
)
def test_each_method_knows_how_few_sites_are_enough(aggregator: Aggregator, fewest: int) -> None:
    """The trimmed mean cuts at least one at each end; krum needs 2f + 3 and no liar kept."""
    assert aggregator.fewest_sites() == fewest
    aggregator.require_enough(fewest)
    assert math.isfinite(numbers(combine(aggregator, sites(*map(float, range(fewest)))))[0])
    with pytest.raises(ConfigurationError, match=f"let at least {fewest} take part"):
        aggregator.require_enough(fewest - 1)
    if fewest > 1:
        with pytest.raises(AggregationError, match=f"{fewest - 1} sent one"):
            combine(aggregator, sites(*map(float, range(fewest - 1))))


def test_too_few_sites_are_told_what_to_change() -> None:
    """The method, its options, both numbers, and three ways out."""
    with pytest.raises(ConfigurationError) as caught:
        TrimmedMean(clip_norm=1.0).require_enough(4)
    assert str(caught.value) == (
        "aggregation trimmed_mean (clip_norm=1.0, trim=0.2) needs the updates of 5 sites, "
        "but a round may have only 4: let at least 5 take part (participants, min_sites), "
        "raise trim (0.34 is enough for 3), or choose another method"
    )


@pytest.mark.parametrize("aggregator", EVERY, ids=named)
def test_no_updates_are_refused(aggregator: Aggregator) -> None:
    """There is nothing to combine."""
    with pytest.raises(AggregationError, match="no updates"):
        aggregator.combine([], received())


class Settings(BaseModel):
    """A section that has the choice in it, as `experiment.yaml` does."""

    aggregation: AggregationChoice = WeightedAverage()


class Experiment(BaseModel):
    """A file with that section."""

    algorithm: Settings = Settings()


LISTED = f"there are: {', '.join(AGGREGATORS)}"


def read(choice: Any) -> Aggregator:
    """Give what a file with this choice means."""
    file = {"algorithm": {"aggregation": choice}}
    return parse(file, Experiment, source="experiment.yaml", env={}).algorithm.aggregation


def test_every_method_of_the_contract_is_there() -> None:
    """Under its name in `AggregationMethod`, which is as good as the name."""
    for method in AggregationMethod:
        assert parse_aggregator(method) == parse_aggregator(method.value)
        assert parse_aggregator(method).method == method.value
    assert list(AGGREGATORS) == [
        "weighted_average",
        "simple_average",
        "median",
        "trimmed_mean",
        "krum",
        "multi_krum",
        "geometric_median",
    ]


def test_a_choice_is_a_name_or_a_name_with_options() -> None:
    """Both forms of the file, and none at all; a number may come from a variable."""
    assert read("median") == read({"method": "median"}) == Median()
    chosen = read({"method": "trimmed_mean", "trim": "${TRIM:-0.25}", "clip_norm": 5})
    assert chosen == TrimmedMean(trim=0.25, clip_norm=5.0)
    assert Experiment().algorithm.aggregation == WeightedAverage()


@pytest.mark.parametrize("aggregator", [*EVERY, TrimmedMean(trim=0.1, clip_norm=5.0)], ids=str)
def test_a_choice_survives_storage(aggregator: Aggregator) -> None:
    """With every option, so that a later default does not change an old run."""
    config = Experiment(algorithm=Settings(aggregation=aggregator))
    stored = config.model_dump_json()
    again = Experiment.model_validate_json(stored)
    assert again == config
    assert type(again.algorithm.aggregation) is type(aggregator)
    written = json.loads(stored)["algorithm"]["aggregation"]
    assert written.keys() == {"method", *type(aggregator).model_fields}
    assert parse_aggregator(config.model_dump()["algorithm"]["aggregation"]) == aggregator


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (
            "medain",
            f"aggregation: there is no method 'medain'; did you mean 'median'? {LISTED}",
        ),
        (
            {"method": "bulyan"},
            "algorithm.aggregation: there is no method 'bulyan'; there are: weighted_average",
        ),
        ({"method": ["krum"]}, "there is no method ['krum']; did you mean 'krum'?"),
        (
            {"trim": 0.2},
            f"write a name, or {{method: the name, ...}} with its options; {LISTED}",
        ),
        (None, "algorithm.aggregation: write a name, or {method"),
        (["median"], "algorithm.aggregation: write a name, or {method"),
        (
            {"method": "krum", "f": 1},
            "algorithm.aggregation.f: krum has no such option; there are: byzantine, clip_norm",
        ),
        (
            {"method": "trimmed_mean", "trin": 0.2},
            "trin: trimmed_mean has no such option; did you mean 'trim'? there are: clip_norm",
        ),
        (
            {"method": "trimmed_mean", "trim": 0.5},
            "algorithm.aggregation.trim: Input should be less than 0.5 (found 0.5)",
        ),
        ({"method": "trimmed_mean", "trim": 0}, "trim: Input should be greater than 0 (found 0)"),
        ({"method": "krum", "byzantine": 0}, "byzantine: Input should be greater than or equal"),
        ({"method": "multi_krum", "keep": 0}, "keep: Input should be greater than or equal to 1"),
        ({"method": "median", "clip_norm": 0}, "clip_norm: Input should be greater than 0"),
        ({"method": "median", "clip_norm": math.inf}, "clip_norm: Input should be a finite"),
        ({"method": "geometric_median", "nu": 0}, "nu: Input should be greater than 0"),
        ({"method": "median", 3: 1}, "algorithm.aggregation[3]: Keys should be strings"),
    ],
    ids=str,
)
def test_a_wrong_choice_is_told_what_there_is(choice: Any, message: str) -> None:
    """The path in the file, what was found, and what may stand there."""
    with pytest.raises(ConfigurationError) as caught:
        read(choice)
    assert message in str(caught.value)


def test_all_mistakes_of_a_choice_are_told_at_once() -> None:
    """Also when one of them is an option that does not exist."""
    with pytest.raises(ConfigurationError, match=r"2 mistake\(s\)") as caught:
        read({"method": "trimmed_mean", "trin": 0.2, "trim": 0.7})
    assert "aggregation.trin: " in str(caught.value)
    assert "aggregation.trim: " in str(caught.value)


@pytest.mark.parametrize("aggregator", AGGREGATORS.values(), ids=lambda kind: kind.method)
def test_every_option_is_described(aggregator: type[Aggregator]) -> None:
    """For whoever reads the schema."""
    assert all(field.description for field in aggregator.model_fields.values())
