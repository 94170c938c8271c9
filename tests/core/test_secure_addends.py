"""Updates as whole numbers: exact in the ring, off by no more than is said, and never out of it."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from secure_sites import settings_for

from core.exceptions import ConfigurationError, DataSiteError, ModelError
from core.messages import Parameters
from core.privacy import SecureAggregation
from core.secure.addends import (
    SCALARS,
    Trained,
    addend_of,
    amount_of,
    as_sum,
    error_bound,
    fraction_bits,
    require_room,
    weight_of,
)
from core.secure.masks import Vector

START: Parameters = {"w": torch.tensor([1.0, -2.0, 0.5]), "b": torch.tensor([[0.25], [4.0]])}
ONE_STEP = Trained(samples=10, steps=3, loss=0.5, amount=1.0)


def moved(by: float) -> Parameters:
    """Give parameters that are all so far from the start."""
    return {name: tensor + by for name, tensor in START.items()}


def added(addends: list[Vector]) -> Vector:
    """Give the sum in the ring."""
    total = np.zeros_like(addends[0])
    for addend in addends:
        total += addend
    return total


def addend(fitted: Parameters, settings: SecureAggregation, trained: Trained = ONE_STEP) -> Vector:
    """Give a site's addend."""
    return addend_of(fitted, START, trained, settings, site_id="factory-1")


@pytest.mark.parametrize("weighting", ["samples", "equal", "normalised"])
@pytest.mark.parametrize("sites", [3, 5, 10, 32])
def test_the_mean_is_off_by_no_more_than_the_bound(sites: int, weighting: str) -> None:
    """Against the mean in float64, of sites with other samples and steps; and sums are exact."""
    settings = settings_for(sites, sites, weighting=weighting)
    draw = np.random.default_rng(sites)
    trained = [
        Trained(samples=int(n), steps=int(n) % 7 + 1, loss=float(n) / 100, amount=1 + float(n) % 3)
        for n in draw.integers(1, 1000, sites)
    ]
    found = [
        {name: t + torch.from_numpy(draw.normal(size=t.shape)) for name, t in START.items()}
        for _ in trained
    ]
    double = {name: tensor.double() for name, tensor in START.items()}
    addends = [
        addend_of(fitted, double, each, settings, site_id="factory-1")
        for fitted, each in zip(found, trained, strict=True)
    ]
    total = as_sum(added(addends), double, settings)
    bits = fraction_bits(settings)["weight"]
    weights = [round(weight_of(t, settings["weighting"]) * 2**bits) / 2**bits for t in trained]
    assert total.weight == math.fsum(weights)
    assert total.samples == sum(each.samples for each in trained)
    assert total.steps == sum(each.steps for each in trained)
    bound = error_bound(settings, sites=sites, weight=total.weight)
    for name, start in double.items():
        changes = [c * (f[name] - start) for c, f in zip(weights, found, strict=True)]
        exact = torch.stack(changes).sum(dim=0) / total.weight
        rounding = 2.0**-50 * float(exact.abs().max() + 1)
        assert float((total.change[name] - exact).abs().max()) <= bound + rounding


def test_the_bound_is_reached_and_no_larger_than_it_need_be() -> None:
    """Half a unit at every site: with weight 1 each, the mean is off by half a unit."""
    settings = settings_for(4, 4, weighting="equal", max_change=2.0**40)
    unit = 2.0 ** -fraction_bits(settings)["change"]
    start = {"w": torch.zeros(1, dtype=torch.float64)}
    fitted = {"w": torch.full((1,), 0.49 * unit, dtype=torch.float64)}
    addends = [addend_of(fitted, start, ONE_STEP, settings, site_id="x") for _ in range(4)]
    off = 0.49 * unit - float(as_sum(added(addends), start, settings).change["w"])
    assert 0.97 < off / error_bound(settings, sites=4, weight=4.0) <= 1.0


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("sites", [3, 10, 32, 1000])
def test_no_sum_leaves_the_ring(sites: int, sign: int) -> None:
    """All sites at the end of every range: the sum is what it should be, and no other sign."""
    settings = settings_for(3, 3, sites_per_round=sites)
    most = Trained(samples=1000, steps=2**32, loss=2.0**16, amount=2.0**20)
    one = addend({n: t + sign * 16.0 for n, t in START.items()}, settings, most)
    total = as_sum(added([one] * sites), START, settings)
    assert all(bool((change == sign * 16.0).all()) for change in total.change.values())
    assert (total.samples, total.steps) == (1000 * sites, 2**32 * sites)
    assert total.loss == 1000 * 2.0**16 * sites
    assert total.effective == 1000 * 2.0**20 * sites


@pytest.mark.parametrize(
    ("by", "changes", "said"),
    [
        (17.0, {}, "the largest change of a parameter is 17"),
        (1.0, {"samples": 1001}, "the weight is 1001"),
        (1.0, {"steps": 2**33}, "the number of steps"),
        (1.0, {"loss": math.inf}, "training diverged"),
        (1.0, {"loss": math.nan}, "training diverged"),
        (1.0, {"amount": 2.0**28}, "train less in a round"),
    ],
    ids=["change", "samples", "steps", "infinite loss", "no loss", "amount"],
)
def test_what_is_beyond_its_range_is_refused(by: float, changes: dict[str, Any], said: str) -> None:
    """The site says what it is, what the plan allows, and what to change."""
    facts = {"samples": 10, "steps": 3, "loss": 0.5, "amount": 1.0, **changes}
    with pytest.raises(DataSiteError, match=said):
        addend(moved(by), settings_for(3, 3), Trained(**facts))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    """One such number would be in every sum."""
    fitted = moved(1.0)
    fitted["w"][1] = value
    with pytest.raises(ModelError, match="not finite"):
        addend(fitted, settings_for(3, 3))


def test_whole_numbers_are_not_added() -> None:
    """Of counters the largest is taken, which a sum does not tell."""
    start = {**START, "n": torch.tensor(3)}
    with pytest.raises(DataSiteError, match="tensors of whole numbers"):
        addend_of(start, start, ONE_STEP, settings_for(3, 3), site_id="factory-1")


def test_ranges_that_leave_no_fractions_are_refused() -> None:
    """62 bits are there for sites, samples, change and fraction, at either side."""
    require_room(settings_for(3, 3, max_samples=2**30))
    with pytest.raises(ConfigurationError, match="bits for fractions, fewer than 16"):
        require_room(settings_for(3, 3, max_samples=2**43))


def test_a_vector_that_is_no_sum_is_refused() -> None:
    """Nothing was added, or the model is another."""
    settings = settings_for(3, 3)
    with pytest.raises(ValueError, match="are no sum of updates"):
        as_sum(np.zeros(5 + len(SCALARS), dtype=np.uint64), START, settings)
    with pytest.raises(ValueError, match="are no sum of updates"):
        as_sum(np.ones(6 + len(SCALARS), dtype=np.uint64), START, settings)


def test_only_fednova_asks_what_steps_amount_to() -> None:
    """Three plain steps amount to 3; with momentum ½ to (3 − ½ · (1 − ⅛) / ½) / ½ = 4.25."""
    training: Any = {"momentum": 0.5, "learning_rate": 0.1}
    nova: Any = {"name": "fednova", "hyperparameters": {"mu": 0.0}}
    assert amount_of(3, "samples", training, {"name": "fedavg", "hyperparameters": {}}) == 1.0
    assert amount_of(3, "normalised", training, nova) == 4.25
    assert amount_of(3, "normalised", {**training, "momentum": 0.0}, nova) == 3.0
