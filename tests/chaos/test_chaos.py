"""Kill anything, at any moment: the run ends as if nothing had happened, and nothing is left over.

There are two hundred scenarios, each drawn from its number. All of them are `make chaos`; ten are
always played.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Final

import pytest
from course import Course
from live_federation import LiveFederation
from proof import final_parameters, require_proven
from scenario import ORCHESTRATOR, SITES, Scenario, at_random, of_the_network, setting_of
from site_process import wait_until

pytestmark = pytest.mark.live

_NEVER: Final = 1 << 30

SCENARIOS: Final = {"orchestrator-writes": 96, "site-writes": 48, "network": 24, "signals": 32}
"""How many of each kind: every moment of a run at which somebody writes, and every way to cut."""

ALWAYS: Final = {
    "orchestrator-writes": {5, 21, 36},
    "site-writes": {12, 18, 40},
    "network": {9, 20},
    "signals": {0, 4},
}

_LARGE_REPLIES: Final = 32
"""Of the sites' writes; the others are of small ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Undisturbed:
    """What a run comes to that nothing happens to.

    Attributes:
        parameters: The digest of its final parameters.
        moments: How many each process had at which it wrote.
    """

    parameters: str
    moments: dict[str, int]


@pytest.fixture(scope="session")
def undisturbed(live: LiveFederation) -> Callable[[str], Undisturbed]:
    """Give what a run of some setting comes to; each is run once."""

    def run(setting: str) -> Undisturbed:
        everybody = (ORCHESTRATOR, *SITES)
        for whom in everybody:
            live.fuse_of(whom).light(_NEVER)
        course = Course(live, Scenario(name=f"undisturbed-{setting}", setting=setting))
        course.play()
        moments = {whom: _NEVER - live.fuse_of(whom).left for whom in everybody}
        for whom in everybody:
            live.fuse_of(whom).put_out()
        parameters = final_parameters(live, course.scenario.name)
        require_proven(course, parameters)
        return Undisturbed(parameters=parameters, moments=moments)

    return cache(run)


def scenarios() -> Iterator[object]:
    """Give every kind with every number."""
    for kind, many in SCENARIOS.items():
        for number in range(many):
            marks = () if number in ALWAYS[kind] else pytest.mark.chaos
            yield pytest.param(kind, number, id=f"{kind}-{number}", marks=marks)


def drawn(kind: str, number: int, undisturbed: Callable[[str], Undisturbed]) -> Scenario:
    """Draw the scenario of a number; moments beyond the last begin with the first again."""
    match kind:
        case "network":
            return of_the_network(number)
        case "signals":
            return at_random(number)
        case "orchestrator-writes":
            whom, setting = ORCHESTRATOR, setting_of(number)
        case _:
            whom = SITES[number % len(SITES)]
            setting = "large-replies" if number < _LARGE_REPLIES else "duals"
    nth = number if whom == ORCHESTRATOR else number % _LARGE_REPLIES
    moment = 1 + nth % undisturbed(setting).moments[whom]
    return Scenario(name=f"{kind}-{number}", setting=setting, fuse=(whom, moment))


@pytest.mark.parametrize(("kind", "number"), scenarios())
def test_a_run_ends_as_if_nothing_had_happened(
    live: LiveFederation, undisturbed: Callable[[str], Undisturbed], kind: str, number: int
) -> None:
    """COMPLETED, the same bits, each round trained once at each site; nothing is left over."""
    scenario = drawn(kind, number, undisturbed)
    expected = undisturbed(scenario.setting).parameters
    course = Course(live, scenario)
    course.play()
    require_proven(course, expected)
    if course.moments_left:
        course = Course(live, scenario.again(course.moments_left))
        course.play()
        require_proven(course, expected)
    if scenario.fuse is not None:
        assert live.fuse_of(scenario.fuse[0]).last_moment, f"it never burned down: {course}"
    if scenario.strikes:
        assert course.struck, f"nobody was struck: {course}"
    assert all(course.cuts_made.values()), f"the network was never cut: {course}"


def test_there_is_a_scenario_for_every_write(undisturbed: Callable[[str], Undisturbed]) -> None:
    """Whoever adds a write adds scenarios: what is counted here is what runs really do."""
    large, small = (undisturbed(name).moments for name in ("large-replies", "duals"))
    assert max(large[ORCHESTRATOR], small[ORCHESTRATOR]) <= SCENARIOS["orchestrator-writes"]
    assert max(large[site] for site in SITES) <= _LARGE_REPLIES
    assert max(small[site] for site in SITES) <= SCENARIOS["site-writes"] - _LARGE_REPLIES


def test_a_full_disk_is_said_and_the_run_goes_on_when_there_is_room(
    live: LiveFederation, undisturbed: Callable[[str], Undisturbed]
) -> None:
    """The site's error says so and the run fails; what was done before is not done again."""
    expected = undisturbed("duals").parameters
    course = Course(live, Scenario(name="full-disk", setting="duals"))
    site = live.sites["factory-2"]
    orchestrator = live.orchestrate(course.scenario)
    wait_until(
        lambda: site.rows() - course.before["factory-2"] >= 4,
        limit_s=60,
        what="factory-2 has trained a round",
    )
    with site.without_room():
        orchestrator.wait(60)
    assert orchestrator.exit_code == 1, orchestrator.said
    assert "factory-2: the ledger cannot be used" in orchestrator.said
    assert "is the disk full?" in orchestrator.said
    course.play()
    require_proven(course, expected)
