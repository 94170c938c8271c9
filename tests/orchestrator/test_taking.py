"""Answers taken in one by one: in what order, how many wait for how long, and who does the work."""

import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import pytest

from core.exceptions import CommunicationError, FederatedLearningError
from orchestrator import crew
from orchestrator.communication.memory import MemoryCommunication
from orchestrator.crew import Crew
from orchestrator.federation import SiteAddress
from orchestrator.fleet import Fleet
from orchestrator.room import EARLY_BYTES, Room

_LONG_S: Final = 20.0
"""By when something has happened; no test waits for it to pass."""

NAMES: Final = [f"factory-{number}" for number in range(6)]
HALF: Final = EARLY_BYTES // 2


class InMemory(MemoryCommunication):
    """A way to sites that nobody goes; so many are asked at once."""

    def __init__(self, most_at_once: int | None = None) -> None:
        super().__init__({})
        self.most_at_once = most_at_once


def fleet_of(sites: Iterable[str] = (), *, most_at_once: int | None = None) -> Fleet:
    """Give a fleet that asks each site once."""
    addresses = [
        SiteAddress.model_validate(
            {"site_id": site_id, "url": "memory://x", "email": "a@b.example", "password": "x"}
        )
        for site_id in sites
    ]
    return Fleet(InMemory(most_at_once), addresses, attempts=1)


class Site:
    """Answers when it is let, and has its answer read when there is room for it.

    Attributes:
        answered: Its answer is there, and may be read.
        read: Its answer has been read.
    """

    def __init__(self) -> None:
        self.may_answer = threading.Event()
        self.answered = threading.Event()
        self.read = threading.Event()


class Sites:
    """Those of `NAMES`, whose answers have a size.

    Args:
        fleet: Asks them.
        size_bytes: Of each answer.
        failing: Who fails instead, when its turn to answer has come.
    """

    def __init__(self, fleet: Fleet, size_bytes: int, failing: Iterable[str] = ()) -> None:
        self.named = {name: Site() for name in NAMES}
        self._fleet = fleet
        self._size_bytes = size_bytes
        self._failing = set(failing)

    def __call__(self, site_id: str) -> str:
        """Answer for one."""
        site = self.named[site_id]
        assert site.may_answer.wait(_LONG_S)
        if site_id in self._failing:
            raise CommunicationError("broken", site_id=site_id)
        site.answered.set()
        self._fleet.communication.admit(site_id, self._size_bytes)
        site.read.set()
        return site_id

    def let(self, *names: str) -> None:
        """Have these answer."""
        for name in names:
            self.named[name].may_answer.set()

    def have_answered(self, *names: str) -> None:
        """Wait until these have."""
        assert all(self.named[name].answered.wait(_LONG_S) for name in names)

    def are_read(self, *names: str) -> None:
        """Wait until the answers of these have been read."""
        assert all(self.named[name].read.wait(_LONG_S) for name in names)

    def read(self) -> list[str]:
        """Give whose answers have been read."""
        return [name for name, site in self.named.items() if site.read.is_set()]


def beside(work: Callable[[], object]) -> threading.Thread:
    """Have something done in a thread, which does not outlive the test."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_answers_are_taken_in_the_order_of_the_names() -> None:
    """Each comes only after the next one's, and they are taken the other way round."""
    fleet = fleet_of()
    sites = Sites(fleet, 1)
    taken: list[str] = []

    def in_reverse() -> None:
        for name in reversed(NAMES):
            sites.let(name)
            sites.have_answered(name)

    beside(in_reverse)
    answers = fleet.take(reversed(NAMES), sites, lambda site_id, _answer: taken.append(site_id))
    assert taken == list(answers.ok) == NAMES


def test_what_is_made_of_an_answer_takes_its_place() -> None:
    """It is given the site's name and its answer, in the caller's own thread."""
    caller = threading.current_thread()

    def taken(site_id: str, answer: int) -> str:
        assert threading.current_thread() is caller
        return f"{site_id}: {answer}"

    answers = fleet_of().take(["b", "a"], len, taken)
    assert list(answers.ok.items()) == [("a", "a: 1"), ("b", "b: 1")]


def test_early_answers_beyond_the_room_wait_unread() -> None:
    """Room is for two halves: of five that are early two are read, until the first one comes."""
    fleet = fleet_of()
    sites = Sites(fleet, HALF)
    results: list[object] = []
    asking = beside(
        lambda: results.append(fleet.take(NAMES, sites, lambda _site_id, answer: answer))
    )
    early = NAMES[1:]
    for name in early:
        sites.let(name)
        sites.have_answered(name)
        if len(sites.read()) < 2:
            sites.are_read(name)
    assert sites.read() == early[:2]
    sites.let(NAMES[0])
    sites.are_read(*NAMES)
    asking.join(_LONG_S)
    assert len(results) == 1


def test_an_answer_whose_turn_has_come_is_read_however_large_it_is() -> None:
    """Larger than all of the room: one after the other gets in."""
    fleet = fleet_of()
    sites = Sites(fleet, 100 * EARLY_BYTES)
    sites.let(*NAMES)
    assert list(fleet.take(NAMES, sites, lambda _site_id, answer: answer).ok) == NAMES


@pytest.mark.parametrize(
    "failing",
    [NAMES[:1], NAMES[2:3], NAMES[-1:], NAMES[:-1], NAMES],
    ids=["first", "one", "last", "all but the last", "all"],
)
def test_a_site_that_fails_does_not_hold_up_those_after_it(failing: list[str]) -> None:
    """Though their answers have no room before its turn is over."""
    fleet = fleet_of()
    sites = Sites(fleet, 2 * EARLY_BYTES, failing)
    sites.let(*NAMES)
    answers = fleet.take(NAMES, sites, lambda _site_id, answer: answer)
    assert list(answers.failed) == failing
    assert list(answers.ok) == [name for name in NAMES if name not in failing]


def test_the_next_answer_is_read_while_one_is_taken_in() -> None:
    """And none after it, for which there is no room."""
    fleet = fleet_of()
    sites = Sites(fleet, 2 * EARLY_BYTES)
    sites.let(*NAMES)
    seen: list[list[str]] = []

    def taken(site_id: str, _answer: str) -> None:
        following = NAMES[NAMES.index(site_id) + 1 :][:1]
        sites.are_read(*following)
        seen.append(sites.read())

    fleet.take(NAMES, sites, taken)
    assert seen == [NAMES[: turn + 2] for turn in range(len(NAMES))]


class UnexpectedError(Exception):
    """What nobody reckoned with."""


@pytest.mark.parametrize("error", [UnexpectedError, KeyboardInterrupt], ids=lambda e: e.__name__)
def test_whoever_waits_for_room_is_freed_when_taking_breaks_off(
    error: type[BaseException],
) -> None:
    """Every thread ends its reading, and the next questions are asked and answered as before."""
    fleet = fleet_of()
    sites = Sites(fleet, 2 * EARLY_BYTES)
    sites.let(*NAMES)
    sites_before = Sites(fleet, 1)
    sites_before.let(*NAMES)

    def taken(site_id: str, _answer: str) -> None:
        sites.have_answered(*NAMES)
        raise error(site_id)

    with pytest.raises(error, match=NAMES[0]):
        fleet.take(NAMES, sites, taken)
    sites.are_read(*NAMES)
    assert list(fleet.ask(NAMES, sites_before).ok) == NAMES


class Answer:
    """Large, elsewhere."""


def test_an_answer_is_let_go_of_as_soon_as_it_has_been_taken() -> None:
    """Only what is made of it is held: it is gone before the next one has come."""
    first_is_taken = threading.Event()
    held: list[weakref.ref[Answer]] = []
    gone: list[bool] = []

    def ask(site_id: str) -> Answer:
        if site_id == NAMES[1]:
            assert first_is_taken.wait(_LONG_S)
            end = time.monotonic() + _LONG_S
            while held[0]() is not None and time.monotonic() < end:
                threading.Event().wait(0.001)
            gone.append(held[0]() is None)
        return Answer()

    def taken(site_id: str, answer: Answer) -> None:
        held.append(weakref.ref(answer))
        if site_id == NAMES[0]:
            first_is_taken.set()

    fleet_of().take(NAMES[:2], ask, taken)
    assert gone == [True]


def test_room_that_was_used_is_there_again_in_the_next_round() -> None:
    """What a round left unread does not count in the next."""
    room = Room(early_bytes=10)
    for _ in range(3):
        room.expect(["a", "b", "c"])
        room.enter("b", 10)
    room.expect(["a", "b", "c"])
    room.enter("c", 10)
    waiting = beside(lambda: room.enter("b", 1))
    room.call("b")
    waiting.join(_LONG_S)
    assert not waiting.is_alive()


def test_an_answer_whose_turn_has_come_is_no_longer_an_early_one() -> None:
    """Its room is there for one that is early now."""
    room = Room(early_bytes=10)
    room.expect(["a", "b", "c"])
    room.enter("b", 10)
    waiting = beside(lambda: room.enter("c", 10))
    room.call("b")
    waiting.join(_LONG_S)
    assert not waiting.is_alive()


def test_a_stranger_to_the_round_need_not_wait() -> None:
    """An answer that nobody ordered by turns is read at once, whatever its size."""
    room = Room(early_bytes=10)
    room.enter("a", 1000)
    room.expect(["a", "b"])
    room.enter("b", 10)
    room.enter("elsewhere", 1000)
    room.enter("a", 1000)


class Crowd:
    """Counts how many are at work at once, and who ever was."""

    def __init__(self) -> None:
        self.at_once = 0
        self.most = 0
        self.threads: set[int] = set()
        self._counting = threading.Lock()

    def __call__(self, site_id: str) -> str:
        """Work for a moment."""
        with self._counting:
            self.at_once += 1
            self.most = max(self.most, self.at_once)
            self.threads.add(threading.get_ident())
        threading.Event().wait(0.0001)  # so that others may come in between
        with self._counting:
            self.at_once -= 1
        return site_id


def crew_threads() -> set[threading.Thread]:
    """Give the threads of all crews that are alive."""
    return {thread for thread in threading.enumerate() if thread.name == "crew"}


def test_a_thousand_sites_are_asked_by_as_many_threads_as_may_ask_at_once() -> None:
    """Two threads for all of them, each site once, in the order of their names."""
    names = [f"factory-{number:04}" for number in range(1000)]
    crowd = Crowd()
    before = crew_threads()
    fleet = fleet_of(names, most_at_once=2)
    answers = fleet.ask(names, crowd)
    assert list(answers.ok) == names
    assert (crowd.most, len(crowd.threads)) == (2, 2)
    assert len(crew_threads() - before) <= 2


def test_threads_are_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Questions one after the other take one thread, however many there are."""
    monkeypatch.setattr(crew, "_IDLE_S", _LONG_S)
    before = crew_threads()
    hands = Crew()
    for number in range(50):
        asked = hands.put(lambda number=number: number)  # type: ignore[misc]
        assert asked.result(_LONG_S) == number
    # A thread that has set a result may not be back yet when the next errand is there.
    assert len(crew_threads() - before) <= 2


def test_threads_that_have_nothing_to_do_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them; and the next errand is done by a new one."""
    monkeypatch.setattr(crew, "_IDLE_S", 0.01)
    before = crew_threads()
    hands = Crew()
    meeting = threading.Barrier(5)
    futures = [hands.put(lambda: meeting.wait(_LONG_S)) for _ in range(5)]
    assert sorted(future.result(_LONG_S) for future in futures) == list(range(5))
    for thread in crew_threads() - before:
        thread.join(_LONG_S)
        assert not thread.is_alive()
    assert hands.put(lambda: "again").result(_LONG_S) == "again"


def test_an_errand_that_comes_as_a_thread_ends_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many that come about when idle threads give up none is left lying."""
    monkeypatch.setattr(crew, "_IDLE_S", 0.0005)
    hands = Crew(2)
    pause = threading.Event()
    for number in range(300):
        assert hands.put(lambda number=number: number).result(_LONG_S) == number  # type: ignore[misc]
        pause.wait(0.0005)


def test_what_an_errand_raises_is_raised_to_who_asks() -> None:
    """Whatever it is; its thread goes on to the next."""

    def exits() -> None:
        raise SystemExit("3")

    hands = Crew(1)
    first, second = hands.put(exits), hands.put(lambda: 2)
    with pytest.raises(SystemExit, match="3"):
        first.result(_LONG_S)
    assert second.result(_LONG_S) == 2


def test_a_closed_crew_begins_nothing_more() -> None:
    """What is under way is done; what waits is dropped; a later errand is done as ever."""
    hands = Crew(1)
    begun, go_on = threading.Event(), threading.Event()
    done: list[str] = []

    def first() -> None:
        begun.set()
        assert go_on.wait(_LONG_S)
        done.append("first")

    under_way = hands.put(first)
    assert begun.wait(_LONG_S)
    dropped = hands.put(lambda: done.append("second"))
    hands.close()
    go_on.set()
    under_way.result(_LONG_S)
    hands.put(lambda: done.append("third")).result(_LONG_S)
    assert done == ["first", "third"]
    assert not dropped.done()


def test_an_errors_answer_frees_its_room() -> None:
    """A site whose answer was read early and then broke off leaves its room to others in turn."""
    fleet = fleet_of()
    read: list[str] = []

    def ask(site_id: str) -> str:
        fleet.communication.admit(site_id, EARLY_BYTES)
        read.append(site_id)
        if site_id == NAMES[1]:
            raise CommunicationError("broke off", site_id=site_id)
        return site_id

    answers = fleet.take(NAMES, ask, lambda _site_id, answer: answer)
    assert sorted(read) == NAMES
    failures: list[FederatedLearningError] = list(answers.failed.values())
    assert [str(failure) for failure in failures] == ["broke off"]


INTERRUPTED = """
import os, signal, sys, threading
from orchestrator.communication.memory import MemoryCommunication
from orchestrator.fleet import Fleet

fleet = Fleet(MemoryCommunication({}), [], attempts=1)
waiting = threading.Semaphore(0)

def question(site_id):
    if site_id > "b":
        waiting.release()
    fleet.communication.admit(site_id, 1 << 30)
    return site_id

def taken(site_id, answer):
    for _ in "cd":
        waiting.acquire()
    os.kill(os.getpid(), signal.SIGINT)
    threading.Event().wait()

try:
    fleet.take(["a", "b", "c", "d"], question, taken)
finally:
    fleet.close()
"""


def test_ctrl_c_while_an_answer_is_taken_in_ends_the_process() -> None:
    """At once, though answers wait for their turn."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == -signal.SIGINT, done.stderr
    assert "KeyboardInterrupt" in done.stderr
