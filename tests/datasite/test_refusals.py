"""Refusals on the audit log: each is counted, and nobody can fill the disk with them."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from loguru import logger
from sqlalchemy import func, select

from core.exceptions import DataSiteError
from datasite import audit
from datasite.audit import Entry
from datasite.ledger import AuditRow, Ledger
from datasite.refusals import STRANGER, Refusals

EMAIL = "researcher@lab.example.com"


class Log:
    """An audit log in memory, and the refusals that are written into it."""

    def __init__(self, window_s: float) -> None:
        self.entries: list[Entry] = []
        self.written = threading.Event()
        self.refusals = Refusals(self.write, window_s=window_s)

    def write(self, entry: Entry) -> None:
        """Append an entry."""
        self.entries.append(entry)
        if "count" in entry.detail:
            self.written.set()

    def counted(self, who: str) -> int:
        """Give how many refusals the log tells of."""
        return sum(int(e.detail.get("count", 1)) for e in self.entries if e.who == who)


@pytest.fixture
def log() -> Iterator[Log]:
    """Give a log whose minute does not end by itself."""
    made = Log(window_s=3600)
    yield made
    made.refusals.close()


def test_an_accounts_refusals_are_rows_at_once(log: Log) -> None:
    """Who, what, and that it was refused."""
    log.refusals.note(EMAIL, "code.submit")
    assert log.entries == [
        Entry(
            who=EMAIL,
            action="call refused",
            outcome="SecurityError",
            detail={"path": "code.submit"},
        )
    ]


def test_a_flood_by_strangers_is_two_rows_a_minute(log: Log) -> None:
    """The first at once, and one with the number of all the others when the minute is over."""
    for _ in range(1000):
        log.refusals.note("", "log-in")
        log.refusals.note("", "unknown account")
    assert len(log.entries) == 1
    log.refusals.close()
    first, rest = log.entries
    assert first.who == rest.who == STRANGER
    assert rest.detail == {
        "path": "several",
        "count": 1999,
        "of": {"log-in": 999, "unknown account": 1000},
    }


def test_a_flood_by_an_account_is_bounded_too(log: Log) -> None:
    """Sixty rows, and one; another account's refusals are rows as before."""
    for _ in range(1000):
        log.refusals.note(EMAIL, "queue")
    log.refusals.note("other@lab.example.com", "queue")
    assert len(log.entries) == 61
    log.refusals.close()
    assert (len(log.entries), log.counted(EMAIL)) == (62, 1000)


def test_what_is_asked_for_does_not_make_a_row_long(log: Log) -> None:
    """The path of a call is the caller's own text: of any length and of any characters."""
    for number in range(1000):
        log.refusals.note(EMAIL, f"{number}" + "\ud800" * 100_000)
    log.refusals.close()
    assert log.counted(EMAIL) == 1000
    assert max(len(str(entry.detail)) for entry in log.entries) < 30_000
    assert all(str(entry.detail).isascii() for entry in log.entries)


def test_the_minute_ends_by_itself() -> None:
    """Nothing else need happen for the number to be written down."""
    log = Log(window_s=0.05)
    for _ in range(3):
        log.refusals.note("", "log-in")
    assert log.written.wait(10)
    assert log.counted(STRANGER) == 3


def test_after_a_minute_the_next_refusal_is_a_row_again(log: Log) -> None:
    """What was counted is forgotten with it."""
    log.refusals.note("", "log-in")
    log.refusals.close()
    log.refusals.note("", "log-in")
    assert len(log.entries) == 2


def test_none_is_lost_between_threads(log: Log) -> None:
    """Eight at once, and closing among them."""

    def note(number: int) -> None:
        log.refusals.note("", "log-in")
        if number % 50 == 0:
            log.refusals.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(note, range(2000)))
    log.refusals.close()
    assert log.counted(STRANGER) == 2000


def test_a_full_disk_is_nobodys_error() -> None:
    """What is refused is refused; the site's own log says what could not be written."""

    def full(entry: Entry) -> None:
        raise DataSiteError("the disk is full")

    said: list[str] = []
    sink = logger.add(said.append, format="{message}")
    refusals = Refusals(full)
    for _ in range(3):
        refusals.note("", "log-in")
    refusals.close()
    logger.remove(sink)
    assert said == ["no audit row of what a stranger was refused: the disk is full\n"] * 2


def test_the_rows_stand_in_the_chain(ledger: Ledger) -> None:
    """They are rows as any others."""

    def write(entry: Entry) -> None:
        with ledger.transaction() as connection:
            audit.append(connection, entry)

    refusals = Refusals(write)
    for _ in range(5):
        refusals.note("", "log-in")
    refusals.close()
    with ledger.read() as session:
        assert audit.verify(audit.written(session)).count == 2
        assert session.scalar(select(func.count()).where(AuditRow.who == STRANGER)) == 2
