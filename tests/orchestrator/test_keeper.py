"""The keeper: who is away is brought back, who leaves unasked is noticed."""

import threading
from collections import Counter
from collections.abc import Iterator

import pytest
from site_process import wait_until

from core.enums import DataSiteStatus
from core.exceptions import AuthenticationError, CommunicationError, DeadlineError, PlanError
from orchestrator.circuit import Circuits
from orchestrator.keeper import Keeper

SITES = ("factory-1", "factory-2")
PATIENCE_S = 10.0


class Door:
    """The doors of some sites: whether they open, and how often somebody knocked.

    Attributes:
        closed: Why, by site; the others open.
    """

    def __init__(self) -> None:
        self.closed: dict[str, Exception] = {}
        self.knocks: Counter[str] = Counter()
        self.looks: Counter[str] = Counter()

    def join(self, site_id: str) -> None:
        """Join the run."""
        self.knocks[site_id] += 1
        if site_id in self.closed:
            raise self.closed[site_id]

    def look(self, site_id: str) -> None:
        """Be there."""
        self.looks[site_id] += 1
        if site_id in self.closed:
            raise self.closed[site_id]


@pytest.fixture
def door() -> Door:
    """Every site opens."""
    return Door()


@pytest.fixture
def circuits() -> Circuits:
    """Nobody was asked yet."""
    return Circuits(SITES)


@pytest.fixture
def keeper(circuits: Circuits, door: Door) -> Iterator[Keeper]:
    """A keeper that does nothing by itself until it is started."""
    made = Keeper(circuits, door.join, door.look)
    yield made
    made.close()


def becomes(circuits: Circuits, site_id: str, status: DataSiteStatus) -> None:
    """Wait until a site stands so."""
    assert circuits.wait(lambda: circuits[site_id].status is status, limit_s=PATIENCE_S)


def test_a_site_joins_once(keeper: Keeper, door: Door) -> None:
    """Who is in need not come in."""
    assert keeper.enter("factory-1")
    assert keeper.enter("factory-1")
    assert door.knocks == {"factory-1": 1}


def test_a_site_that_was_lost_joins_again(keeper: Keeper, circuits: Circuits, door: Door) -> None:
    """It is away until it has."""
    keeper.enter("factory-1")
    circuits.failed("factory-1", CommunicationError("reset"))
    assert keeper.has_left("factory-1")
    keeper.enter("factory-1")
    assert not keeper.has_left("factory-1")
    assert door.knocks == {"factory-1": 2}


def test_a_site_is_tried_at_once_and_then_only_when_it_is_time(
    keeper: Keeper, circuits: Circuits, door: Door
) -> None:
    """A round does not wait for a host that did not answer a moment ago; the reason is told."""
    keeper.enter("factory-1")
    circuits.failed("factory-1", CommunicationError("reset"))
    keeper.require_hope("factory-1")
    door.closed["factory-1"] = AuthenticationError("the log-in was refused")
    with pytest.raises(AuthenticationError):
        keeper.enter("factory-1")
    with pytest.raises(AuthenticationError, match="the log-in was refused"):
        keeper.require_hope("factory-1")


def test_who_was_never_asked_may_be_asked(keeper: Keeper) -> None:
    """A fleet need not log in to what needs no log-in."""
    keeper.require_hope("factory-1")
    assert not keeper.has_left("factory-1")


def test_a_site_that_comes_back_is_online_though_nobody_asks(
    keeper: Keeper, circuits: Circuits, door: Door
) -> None:
    """It is tried again and again in the background."""
    door.closed["factory-1"] = CommunicationError("down")
    with pytest.raises(CommunicationError):
        keeper.enter("factory-1")
    keeper.start()
    wait_until(lambda: door.knocks["factory-1"] > 2, limit_s=PATIENCE_S, what="it is tried")
    del door.closed["factory-1"]
    becomes(circuits, "factory-1", DataSiteStatus.ONLINE)


def test_a_site_that_dies_unasked_is_noticed(
    keeper: Keeper, circuits: Circuits, door: Door
) -> None:
    """It is looked at while nobody asks it; and comes back."""
    keeper.enter("factory-1")
    keeper.start()
    door.closed["factory-1"] = CommunicationError("connection refused")
    becomes(circuits, "factory-1", DataSiteStatus.OFFLINE)
    assert str(circuits["factory-1"].error) == "connection refused"
    del door.closed["factory-1"]
    becomes(circuits, "factory-1", DataSiteStatus.ONLINE)


def test_a_site_that_is_slow_to_say_that_it_is_there_is_there(
    keeper: Keeper, circuits: Circuits, door: Door
) -> None:
    """Its requests have deadlines of their own."""
    keeper.enter("factory-1")
    keeper.start()
    door.closed["factory-1"] = DeadlineError("nothing yet")
    looks = door.looks["factory-1"]
    wait_until(lambda: door.looks["factory-1"] > looks + 1, limit_s=PATIENCE_S, what="looks")
    assert circuits["factory-1"].status is DataSiteStatus.ONLINE


def test_a_refused_log_in_is_not_tried_again_and_again(
    keeper: Keeper, circuits: Circuits, door: Door
) -> None:
    """The site would lock the account; meanwhile another site is brought back many times."""
    door.closed |= {
        "factory-1": AuthenticationError("wrong password"),
        "factory-2": CommunicationError("down"),
    }
    for site_id in SITES:
        with pytest.raises(CommunicationError):
            keeper.enter(site_id)
    keeper.start()
    wait_until(lambda: door.knocks["factory-2"] > 3, limit_s=PATIENCE_S, what="it is tried")
    assert door.knocks["factory-1"] == 1
    assert circuits["factory-1"].status is DataSiteStatus.ERROR


def test_a_site_whose_plan_is_not_approved_must_join_before_it_is_asked(
    keeper: Keeper, circuits: Circuits, door: Door
) -> None:
    """It answers, so it is ONLINE; and it is no part of the run."""
    door.closed["factory-1"] = PlanError("is DENIED")
    with pytest.raises(PlanError):
        keeper.enter("factory-1")
    assert circuits["factory-1"].status is DataSiteStatus.ONLINE
    with pytest.raises(PlanError, match="is DENIED"):
        keeper.require_hope("factory-1")


def test_a_site_that_does_not_answer_holds_up_no_other(
    keeper: Keeper, circuits: Circuits, door: Door
) -> None:
    """One is being tried for ever, and the other comes back."""
    never, tried = threading.Event(), threading.Event()

    def join(site_id: str) -> None:
        if site_id == "factory-1":
            tried.set()
            never.wait(PATIENCE_S)
        door.join(site_id)

    for site_id in SITES:
        keeper.enter(site_id)
        circuits.failed(site_id, CommunicationError("reset"))
    keeper.join = join
    keeper.start()
    assert tried.wait(PATIENCE_S)
    becomes(circuits, "factory-2", DataSiteStatus.ONLINE)
    assert circuits["factory-1"].is_away
    never.set()


def test_chores_are_done_at_each_beat_and_at_the_end(keeper: Keeper) -> None:
    """What the last change was is written down too."""
    done: list[int] = []
    keeper.chores.append(lambda: done.append(1))
    keeper.start()
    wait_until(lambda: len(done) > 1, limit_s=PATIENCE_S, what="beats")
    keeper.close()
    count = len(done)
    assert count > 2
