"""Asking all sites at once: who is asked how often, and what their silence means."""

import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from core import (
    CommunicationError,
    ConfigurationError,
    DataSiteError,
    ExperimentError,
    FederatedLearningError,
)
from core.exceptions import (
    AuthenticationError,
    DeadlineError,
    PlanError,
    ProtocolError,
    SiteBusyError,
    WaitExpiredError,
)
from orchestrator.communication.memory import MemoryCommunication
from orchestrator.federation import SiteAddress
from orchestrator.fleet import Answers, Fleet

SITES = ("factory-1", "factory-2", "factory-3")
PASSWORD = "correct"


def silent(request: bytes, email: str) -> bytes:
    """Be a site that is asked nothing."""
    raise AssertionError


def address(site_id: str, password: str = PASSWORD) -> SiteAddress:
    """Give an entry of a sites file."""
    return SiteAddress.model_validate(
        {
            "site_id": site_id,
            "url": f"memory://{site_id}",
            "email": "researcher@lab.example.com",
            "password": password,
        }
    )


def build_fleet(*addresses: SiteAddress, attempts: int = 1) -> Fleet:
    """Give a fleet of sites in memory."""
    communication = MemoryCommunication(
        dict.fromkeys(SITES, silent), passwords={"researcher@lab.example.com": PASSWORD}
    )
    return Fleet(communication, addresses or [address(s) for s in SITES], attempts=attempts)


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    """Three sites, each asked once."""
    made = build_fleet()
    yield made
    made.close()


class Flaky:
    """Fails so often at each site, then answers."""

    def __init__(self, error: FederatedLearningError, *, failures: int) -> None:
        self.asked: Counter[str] = Counter()
        self._error = error
        self._failures = failures

    def __call__(self, site_id: str) -> str:
        """Answer for one site."""
        self.asked[site_id] += 1
        if self.asked[site_id] <= self._failures:
            raise self._error
        return f"hello from {site_id}"


def test_all_sites_are_asked_at_once(fleet: Fleet) -> None:
    """Each waits until all three have been asked: one after the other would never end."""
    meeting = threading.Barrier(3, timeout=10)

    def meet(_site_id: str) -> bool:
        meeting.wait()
        return True

    assert dict(fleet.ask(SITES, meet).ok) == dict.fromkeys(SITES, True)


def test_answers_come_in_the_order_of_the_names(fleet: Fleet) -> None:
    """Whoever answers first: sums over sites are then the same in each run."""
    names = [f"factory-{number}" for number in range(8)]
    done = {name: threading.Event() for name in names}

    def in_reverse(site_id: str) -> str:
        if site_id != names[-1]:
            done[names[names.index(site_id) + 1]].wait(10)
        done[site_id].set()
        return site_id

    answers = fleet.ask(reversed(names), in_reverse)
    assert list(answers.ok.items()) == [(name, name) for name in names]


def test_a_site_named_twice_is_asked_once(fleet: Fleet) -> None:
    """It has one answer."""
    question = Flaky(DataSiteError("no"), failures=0)
    fleet.ask(["factory-1", "factory-1"], question)
    assert question.asked == {"factory-1": 1}


def test_one_failure_leaves_the_other_answers(fleet: Fleet) -> None:
    """The error is kept under the site's name."""

    def ask(site_id: str) -> int:
        if site_id == "factory-2":
            raise PlanError("denied", site_id=site_id)
        return 1

    answers = fleet.ask(SITES, ask)
    assert list(answers.ok) == ["factory-1", "factory-3"]
    assert list(answers.failed) == ["factory-2"]
    assert isinstance(answers.failed["factory-2"], PlanError)


@pytest.mark.parametrize("error", [CommunicationError, DeadlineError, SiteBusyError])
def test_what_may_pass_is_tried_again(error: type[FederatedLearningError]) -> None:
    """The second attempt succeeds and is the last."""
    fleet = build_fleet(attempts=3)
    question = Flaky(error("not now"), failures=1)
    answers = fleet.ask(["factory-1"], question)
    assert answers.ok == {"factory-1": "hello from factory-1"}
    assert question.asked == {"factory-1": 2}


def test_the_number_of_attempts_is_kept() -> None:
    """Two attempts are two requests, and then the site is missing."""
    fleet = build_fleet(attempts=2)
    question = Flaky(CommunicationError("down"), failures=99)
    answers = fleet.ask(["factory-1"], question)
    assert question.asked == {"factory-1": 2}
    assert str(answers.failed["factory-1"]) == "down"


@pytest.mark.parametrize(
    "error", [ProtocolError, AuthenticationError, PlanError, DataSiteError, WaitExpiredError]
)
def test_what_will_not_pass_is_not_tried_again(error: type[FederatedLearningError]) -> None:
    """A refusal is one, however often it is heard."""
    fleet = build_fleet(attempts=5)
    question = Flaky(error("no"), failures=99)
    assert list(fleet.ask(["factory-1"], question).failed) == ["factory-1"]
    assert question.asked == {"factory-1": 1}


def test_a_mistake_in_the_program_is_not_taken_for_a_missing_site(fleet: Fleet) -> None:
    """It ends the run with its own traceback, and is not tried again."""
    asked = []

    def wrong(site_id: str) -> None:
        asked.append(site_id)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fleet.ask(["factory-1"], wrong)
    assert asked == ["factory-1"]


def test_connecting_logs_in_everywhere_with_each_sites_password() -> None:
    """The refused site is missing, and the others are connected."""
    fleet = build_fleet(address("factory-2"), address("factory-1", password="wrong"))
    answers = fleet.connect()
    assert answers.ok == {"factory-2": True}
    assert isinstance(answers.failed["factory-1"], AuthenticationError)
    assert fleet.communication.connected == ["factory-2"]


def with_backups(site_id: str, *urls: str, password: str = PASSWORD) -> SiteAddress:
    """Give an entry whose first URL leads nowhere, with these further ones."""
    entry = address(site_id, password)
    nowhere = {"url": "memory://nowhere", "backup_urls": urls}
    return SiteAddress.model_validate({**entry.model_dump(), **nowhere})


def test_the_addresses_of_a_site_are_tried_in_their_order() -> None:
    """The first at which it is reached is the one that is used; another site is none."""
    fleet = build_fleet(
        with_backups("factory-1", "memory://elsewhere", "memory://factory-2", "memory://factory-1")
    )
    assert fleet.connect().ok == {"factory-1": True}
    assert fleet.communication.connected == ["factory-1"]


def test_a_site_that_no_address_reaches_is_missing_with_all_of_them() -> None:
    """Whoever mends it must know which were tried."""
    failed = build_fleet(with_backups("factory-1", "memory://elsewhere")).connect().failed
    assert str(failed["factory-1"]) == (
        "factory-1: memory://nowhere: there is no such site; there are: factory-1, factory-2, "
        "factory-3; memory://elsewhere: there is no such site; there are: factory-1, factory-2, "
        "factory-3"
    )


def test_a_refused_log_in_is_not_tried_at_another_address() -> None:
    """The account is the same there, and each refusal counts against it."""
    entry = with_backups("factory-1", "memory://factory-1", "memory://elsewhere", password="wrong")
    error = build_fleet(entry).connect().failed["factory-1"]
    assert isinstance(error, AuthenticationError)
    assert str(error).startswith("factory-1: log-in as researcher@lab.example.com refused")


def test_a_site_is_logged_in_to_anew_before_it_is_asked_again() -> None:
    """The second attempt comes by another way, when the first address does not answer."""
    fleet = build_fleet(address("factory-1"), attempts=2)
    fleet.connect()
    question = Flaky(CommunicationError("reset"), failures=1)
    fleet.communication.disconnect_from_datasite("factory-1")
    assert fleet.ask(["factory-1"], question).ok == {"factory-1": "hello from factory-1"}
    assert fleet.communication.connected == ["factory-1"]


def test_closing_disconnects_from_every_site(fleet: Fleet) -> None:
    """Closing again does nothing."""
    fleet.connect()
    fleet.close()
    assert fleet.communication.connected == []
    fleet.close()


def failed(*errors: FederatedLearningError) -> Answers[str]:
    """Give answers of one site, and these failures of further ones."""
    return Answers(
        ok={"factory-1": "here"},
        failed={f"factory-{number}": error for number, error in enumerate(errors, start=2)},
    )


def test_enough_answers_are_enough() -> None:
    """Whoever else is missing."""
    failed(PlanError("denied")).require(1, what="log-in")


def test_too_few_answers_are_told_with_who_and_why() -> None:
    """One line each, with the name in front exactly once."""
    answers = failed(CommunicationError("refused"), DeadlineError("factory-3: too late"))
    with pytest.raises(CommunicationError) as caught:
        answers.require(3, what="round 4", round_num=4)
    assert str(caught.value) == (
        "round 4: 1 of at least 3 sites answered; missing:\n"
        "  factory-2: refused\n"
        "  factory-3: too late"
    )
    assert caught.value.round_num == 4


@pytest.mark.parametrize(
    ("errors", "kind", "exit_code"),
    [
        ([CommunicationError("a")], CommunicationError, 2),
        ([AuthenticationError("a"), AuthenticationError("b")], AuthenticationError, 2),
        ([AuthenticationError("a"), CommunicationError("b")], CommunicationError, 2),
        ([DeadlineError("a"), DeadlineError("b")], WaitExpiredError, 3),
        ([WaitExpiredError("a")], WaitExpiredError, 3),
        ([DeadlineError("a"), CommunicationError("b")], CommunicationError, 2),
        ([ConfigurationError("a"), ConfigurationError("b")], ConfigurationError, 4),
        ([PlanError("a")], ExperimentError, 1),
        ([DataSiteError("a"), CommunicationError("b")], ExperimentError, 1),
        ([], ExperimentError, 1),
    ],
    ids=lambda value: "-".join(type(e).__name__ for e in value) if isinstance(value, list) else "",
)
def test_the_exit_code_is_that_of_what_must_be_mended(
    errors: list[FederatedLearningError], kind: type[FederatedLearningError], exit_code: int
) -> None:
    """2 not reached, 3 too late, 4 wrongly configured, and 1 for all else and for a mixture."""
    with pytest.raises(FederatedLearningError) as caught:
        failed(*errors).require(9, what="log-in")
    assert type(caught.value) is kind
    assert caught.value.exit_code == exit_code


INTERRUPTED = """
import os, signal, threading
from orchestrator.communication.memory import MemoryCommunication
from orchestrator.federation import SiteAddress
from orchestrator.fleet import Fleet

asked = threading.Event()

def question(site_id):
    if site_id == "factory-1":
        asked.set()
        threading.Event().wait()  # a site that never answers
    asked.wait()
    os.kill(os.getpid(), signal.SIGINT)

fleet = Fleet(MemoryCommunication({}), [], attempts=1)
try:
    fleet.ask(["factory-1", "factory-2"], question)
finally:
    fleet.close()
"""


def test_an_interrupted_process_does_not_wait_for_a_site() -> None:
    """Ctrl-C ends it at once, although a site has not answered yet."""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == -signal.SIGINT, done.stderr
    assert "KeyboardInterrupt" in done.stderr
