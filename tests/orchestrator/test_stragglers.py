"""Slow sites: for how long they are waited for, and that what comes late is nobody's answer."""

import threading
from collections import Counter
from collections.abc import Iterator

import pytest
from loguru import logger

from core.exceptions import CommunicationError, DataSiteError
from orchestrator.communication.memory import MemoryCommunication
from orchestrator.fleet import Fleet
from orchestrator.halting import Halt
from orchestrator.stragglers import Patience

SITES = ("factory-1", "factory-2", "factory-3")
PATIENCE_S = 20.0


class Sites:
    """Answer at once, but for those that are slow.

    Attributes:
        slow: What each of these waits for.
        called_off: Who was told that nobody waits.
    """

    def __init__(self, *slow: str) -> None:
        self.slow = {site_id: threading.Event() for site_id in slow}
        self.asked: Counter[str] = Counter()
        self.called_off: list[str] = []
        self.errors: dict[str, Exception] = {}
        self.told = threading.Event()

    def __call__(self, site_id: str) -> str:
        """Answer for one."""
        self.asked[site_id] += 1
        if site_id in self.slow:
            assert self.slow[site_id].wait(PATIENCE_S)
        if site_id in self.errors:
            raise self.errors[site_id]
        return site_id

    def call_off(self, site_id: str) -> None:
        """Be told that nobody waits for one."""
        self.called_off.append(site_id)
        self.told.set()

    def patience(self, cutoff_s: float, minimum: int) -> Patience:
        """Give how long they are waited for."""
        return Patience(what="round 3", call_off=self.call_off, cutoff_s=cutoff_s, minimum=minimum)

    def let_go(self) -> None:
        """Have the slow ones answer."""
        for event in self.slow.values():
            event.set()


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    """A fleet that asks each site three times at most."""
    made = Fleet(MemoryCommunication({}), [], attempts=3, halt=Halt())
    yield made
    made.close()


def taken(fleet: Fleet, sites: Sites, patience: Patience) -> tuple[list[str], dict[str, str]]:
    """Ask all; who answered, and why the others did not."""
    answers = fleet.take(SITES, sites, lambda _site_id, answer: answer, patience)
    return list(answers.ok), {site: str(error) for site, error in answers.failed.items()}


@pytest.mark.parametrize("slow", SITES)
def test_a_late_site_is_dropped_by_name_and_called_off(fleet: Fleet, slow: str) -> None:
    """Wherever it stands in the order: the others are there, and make the round."""
    sites = Sites(slow)
    heard: list[str] = []
    sink = logger.add(lambda message: heard.append(message.record["message"]), level="WARNING")
    try:
        ok, failed = taken(fleet, sites, sites.patience(0.01, minimum=2))
    finally:
        logger.remove(sink)
    assert ok == [site for site in SITES if site != slow]
    expected = (
        f"{slow}: its answer to round 3 was not there after the cutoff of 0.01 s, and is dropped"
    )
    assert failed == {slow: expected}
    assert heard == [expected]
    assert sites.told.wait(PATIENCE_S)
    assert sites.called_off == [slow]
    sites.let_go()


def test_the_cutoff_waits_for_the_minimum(fleet: Fleet) -> None:
    """Two of two slow ones are missing: the first is waited for, and only the other is late."""
    sites = Sites("factory-2", "factory-3")
    first = threading.Timer(0.3, sites.slow["factory-3"].set)
    first.start()
    ok, failed = taken(fleet, sites, sites.patience(0.01, minimum=2))
    assert (ok, list(failed)) == (["factory-1", "factory-3"], ["factory-2"])
    sites.let_go()


def test_a_failure_is_no_report(fleet: Fleet) -> None:
    """One answered, one failed, one is slow: two are needed, so the slow one is waited for."""
    sites = Sites("factory-3")
    sites.errors["factory-1"] = DataSiteError("broken")
    threading.Timer(0.3, sites.let_go).start()
    ok, failed = taken(fleet, sites, sites.patience(0.01, minimum=2))
    assert (ok, failed) == (["factory-2", "factory-3"], {"factory-1": "broken"})


def test_before_the_cutoff_everybody_is_waited_for(fleet: Fleet) -> None:
    """However few are needed."""
    sites = Sites("factory-1")
    threading.Timer(0.3, sites.let_go).start()
    ok, failed = taken(fleet, sites, sites.patience(PATIENCE_S, minimum=1))
    assert (ok, failed) == (list(SITES), {})


def test_what_was_dropped_is_not_tried_again(fleet: Fleet) -> None:
    """Its failure comes when nobody waits: the one attempt was the last."""
    sites = Sites("factory-2")
    sites.errors["factory-2"] = CommunicationError("reset")
    taken(fleet, sites, sites.patience(0.01, minimum=2))
    assert sites.told.wait(PATIENCE_S)
    sites.let_go()
    done = fleet.ask(["factory-9"], lambda site_id: site_id)
    assert list(done.ok) == ["factory-9"]
    assert sites.asked["factory-2"] == 1


def test_a_run_that_is_stopped_calls_every_site_off(fleet: Fleet) -> None:
    """At once, and before the process may end."""
    sites = Sites("factory-1", "factory-3")
    threading.Timer(0.1, fleet.halt.at_once).start()
    with pytest.raises(KeyboardInterrupt):
        taken(fleet, sites, sites.patience(PATIENCE_S, minimum=1))
    assert sorted(sites.called_off) == ["factory-1", "factory-3"]
    sites.let_go()


def test_without_patience_nobody_is_late(fleet: Fleet) -> None:
    """By default everybody is waited for, for as long as their deadlines allow."""
    sites = Sites("factory-2")
    threading.Timer(0.3, sites.let_go).start()
    assert list(fleet.ask(SITES, sites).ok) == list(SITES)
