"""What differential privacy costs, against published numbers and a second accountant."""

import math
import random

import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from scipy import integrate, stats

from core.accounting import (
    WHOLE_ORDERS,
    Event,
    affordable,
    epsilon,
    epsilon_at,
    epsilon_by_prv,
    epsilon_of_group,
    noise_multiplier,
)
from core.exceptions import ConfigurationError

DELTA = 1e-5

GOLDEN = [
    (Event(1.5, 0.04, 2250), 7.32911, None),  # Opacus' own tests
    (Event(1.5, 0.04, 2249), None, 6.7773957),
    (Event(1.1, 256 / 60_000, 14_100), 2.6003, 2.3953),
    (Event(4.0, 0.01, 10_000), 1.0355, 0.9569),
    (Event(1.0, 0.01, 1_000), 2.1014, 1.8384),
    (Event(1.0, 64 / 2_000, 50 * math.ceil(2_000 / 64)), 9.30, 8.53),
    (Event(1.0, 1.0, 50), 57.30, 54.39),
]
"""What is done, and ε by Rényi accounting and by privacy loss random variables."""


WHOLE = (*map(float, range(2, 20)), 24.0, 32.0, 48.0, 64.0)
"""Between them dp-accounting has an upper bound that is far from tight: there the integral decides.
"""


def by_dp_accounting(events: list[Event], delta: float) -> float:
    """Give ε by Google's accountant at whole orders."""
    accountant = RdpAccountant(orders=WHOLE)
    for event in events:
        noise = dp_event.GaussianDpEvent(event.noise_multiplier)
        step = dp_event.PoissonSampledDpEvent(event.sample_rate, noise)
        accountant.compose(step, event.steps)
    return float(accountant.get_epsilon(delta))


@pytest.mark.parametrize(("event", "rdp", "prv"), GOLDEN, ids=lambda value: str(value)[:40])
def test_published_numbers_are_reproduced(
    event: Event, rdp: float | None, prv: float | None
) -> None:
    """To a hundredth, whatever accountant they are of."""
    if rdp is not None:
        assert epsilon([event], DELTA) == pytest.approx(rdp, abs=1e-2)
    if prv is not None:
        assert epsilon_by_prv([event], DELTA) == pytest.approx(prv, abs=1e-2)


def test_the_noise_for_a_budget_is_the_published_one() -> None:
    """ε = 8 at q = 0.04 for 90 epochs takes σ = 1.41602, by Opacus' own tests."""
    steps = int(90 / 0.04)
    sigma = noise_multiplier(most=8.0, delta=DELTA, sample_rate=0.04, steps=steps)
    assert sigma == pytest.approx(1.41602, abs=1e-2)


def test_the_noise_for_a_budget_by_the_tighter_accountant_is_the_published_one() -> None:
    """Likewise σ = 1.34766 by privacy loss random variables: it costs that ε and no more."""
    spent = epsilon_by_prv([Event(1.34766, 0.04, int(90 / 0.04))], DELTA)
    assert spent == pytest.approx(8.0, abs=1e-2)


@pytest.mark.parametrize(
    ("event", "by_losses"),
    [
        (Event(1.1, 256 / 60_000, 14_100), 2.3852),
        (Event(4.0, 0.01, 10_000), 0.9470),
        (Event(1.0, 0.01, 1_000), 1.8282),
        (Event(1.0, 64 / 2_000, 50 * math.ceil(2_000 / 64)), 8.52),
        (Event(1.0, 1.0, 50), 54.38),
    ],
    ids=str,
)
def test_what_is_told_beside_the_budget_is_near_the_distribution_of_losses(
    event: Event, by_losses: float
) -> None:
    """Google's privacy loss distributions give these numbers; ours are just above, as bounds."""
    accountant = PLDAccountant()
    noise = dp_event.GaussianDpEvent(event.noise_multiplier)
    step = dp_event.PoissonSampledDpEvent(event.sample_rate, noise)
    accountant.compose(step, event.steps)
    theirs = float(accountant.get_epsilon(DELTA))
    assert theirs == pytest.approx(by_losses, abs=1e-2)
    ours = epsilon_by_prv([event], DELTA)
    assert theirs - 1e-2 <= ours <= theirs + 2e-2


def test_two_accountants_agree_on_random_schedules() -> None:
    """Opacus' and Google's, to a hundredth, on 200 schedules of up to three mechanisms."""
    draw = random.Random(0)  # noqa: S311 - schedules for a test
    for _ in range(200):
        events = [
            Event(
                round(math.exp(draw.uniform(math.log(0.6), math.log(20.0))), 3),
                draw.choice([1.0, round(math.exp(draw.uniform(-7.0, 0.0)), 4)]),
                draw.randint(1, 3000),
            )
            for _ in range(draw.randint(1, 3))
        ]
        delta = 10.0 ** -draw.randint(3, 8)
        ours, theirs = epsilon_at(events, delta, WHOLE), by_dp_accounting(events, delta)
        assert ours == pytest.approx(theirs, abs=1e-2), (events, delta)


@pytest.mark.parametrize("order", [1.1, 1.5, 2.5, 4.5, 10.5])
@pytest.mark.parametrize(("sigma", "rate"), [(3.297, 0.5642), (1.0, 0.01), (0.9, 0.9)])
def test_between_whole_orders_the_divergence_is_that_of_the_integral(
    sigma: float, rate: float, order: float
) -> None:
    """E[((1 − q) + q p₁/p₀)^α] over p₀, where p₀ and p₁ are Gaussians around 0 and 1."""

    def integrand(x: float) -> float:
        ratio = 1 - rate + rate * math.exp((2 * x - 1) / (2 * sigma**2))
        return float(stats.norm.pdf(x, scale=sigma)) * ratio**order

    ends = (-20 * sigma, 20 * sigma + order)
    total, _ = integrate.quad(integrand, *ends, limit=500, points=[0, 1, order])
    expected = math.log(total) / (order - 1) - (math.log(DELTA) + math.log(order)) / (order - 1)
    expected += math.log((order - 1) / order)
    assert epsilon_at([Event(sigma, rate, 1)], DELTA, [order]) == pytest.approx(expected, rel=1e-6)


def test_three_plans_cost_what_one_with_all_their_steps_does() -> None:
    """In whatever sequence; exactly so, and not nearly."""
    parts = [Event(1.3, 0.05, steps) for steps in (100, 250, 50)]
    other = Event(2.0, 0.1, 30)
    whole = epsilon([Event(1.3, 0.05, 400), other], DELTA)
    assert epsilon([*parts, other], DELTA) == whole
    assert epsilon([parts[2], other, parts[0], parts[1]], DELTA) == whole


def test_nothing_done_costs_nothing_and_no_noise_everything() -> None:
    """The ends of the scale."""
    assert epsilon([], DELTA) == epsilon([Event(1.0, 0.1, 0)], DELTA) == 0.0
    assert epsilon_by_prv([], DELTA) == 0.0
    assert epsilon([Event(0.0, 0.5, 1)], DELTA) == math.inf


def test_the_gaussian_alone_has_the_divergence_of_the_textbook() -> None:
    """At order α it is α / (2σ²); ε then is the least over the orders of the conversion."""
    sigma, steps = 5.0, 10
    expected = min(
        steps * order / (2 * sigma**2)
        + math.log((order - 1) / order)
        - (math.log(DELTA) + math.log(order)) / (order - 1)
        for order in [*WHOLE_ORDERS, *(1 + tenths / 10 for tenths in range(1, 100))]
    )
    assert epsilon([Event(sigma, 1.0, steps)], DELTA) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("most", [0.05, 1.0, 8.0, 100.0])
@pytest.mark.parametrize("rate", [0.001, 0.2, 1.0])
def test_the_noise_keeps_the_budget_and_is_no_more_than_needed(most: float, rate: float) -> None:
    """One per cent less would break it."""
    sigma = noise_multiplier(most=most, delta=DELTA, sample_rate=rate, steps=100)
    assert epsilon([Event(sigma, rate, 100)], DELTA) <= most
    assert epsilon([Event(0.99 * sigma, rate, 100)], DELTA) > most


def test_a_budget_that_no_noise_keeps_is_refused() -> None:
    """By what to do instead."""
    with pytest.raises(ConfigurationError, match="allow more, or train less"):
        noise_multiplier(most=1e-9, delta=1e-12, sample_rate=1.0, steps=10**6)


def test_the_rounds_that_can_be_afforded_are_counted() -> None:
    """The last one fits, the next does not; and no more than were wanted."""
    spent, round_ = [Event(1.5, 0.1, 40)], Event(1.2, 0.1, 10)
    count = affordable(spent, round_, most=4.0, delta=DELTA, wanted=1000)
    within = epsilon([*spent, round_._replace(steps=10 * count)], DELTA)
    beyond = epsilon([*spent, round_._replace(steps=10 * (count + 1))], DELTA)
    assert within <= 4.0 < beyond
    assert affordable(spent, round_, most=4.0, delta=DELTA, wanted=2) == 2
    assert affordable(spent, round_, most=0.1, delta=DELTA, wanted=2) == 0


def test_a_group_costs_more_than_its_size() -> None:
    """It is k ε' at a δ' that is smaller by k e^((k-1) ε'); one unit alone costs what it costs."""
    events = [Event(2.0, 0.05, 100)]
    assert epsilon_of_group(events, DELTA, 1) == epsilon(events, DELTA)
    found = epsilon_of_group(events, DELTA, 3)
    alone = found / 3
    assert found > 3 * epsilon(events, DELTA)
    assert epsilon(events, DELTA / (3 * math.exp(2 * alone))) <= alone
    assert epsilon_of_group([Event(0.3, 1.0, 1000)], DELTA, 60) == math.inf
