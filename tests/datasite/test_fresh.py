"""What was read of the ledger: kept while nobody changes it, read anew as soon as somebody has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from datasite import audit
from datasite.fresh import Fresh
from datasite.ledger import Ledger, PlanRow, now

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """The ledger of a site."""
    opened = Ledger(tmp_path / "ledger.db", site_id="factory-1")
    yield opened
    opened.close()


class Read:
    """Reads a value, and counts how often."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> int:
        """Read once more."""
        self.times += 1
        return self.times


def decide(ledger: Ledger, plan_id: str = "plan") -> None:
    """Write a plan, as proposals and an operator's commands do."""
    with ledger.write() as session:
        session.add(
            PlanRow(
                plan_id=plan_id,
                researcher="researcher@lab.example.com",
                proposal={},
                status="WAITING",
                reason="",
                decided_by="",
                proposed_at=now(),
                expires_at=now(),
            )
        )


def test_a_value_is_read_once_while_nothing_changes(ledger: Ledger) -> None:
    """Each key has its own."""
    fresh, read, other = Fresh[int](ledger), Read(), Read()
    assert [fresh.get("one", read), fresh.get("one", read), fresh.get("two", other)] == [1, 1, 1]
    assert (read.times, other.times) == (1, 1)


def test_a_change_by_the_site_itself_is_seen(ledger: Ledger) -> None:
    """A plan that is proposed or decided in this process."""
    fresh, read = Fresh[int](ledger), Read()
    fresh.get("one", read)
    decide(ledger)
    assert fresh.get("one", read) == 2


def test_a_change_by_another_process_is_seen(ledger: Ledger, tmp_path: Path) -> None:
    """An operator's command opens the same file."""
    fresh, read = Fresh[int](ledger), Read()
    fresh.get("one", read)
    other = Ledger(tmp_path / "ledger.db", site_id="factory-1")
    decide(other)
    other.close()
    assert fresh.get("one", read) == 2


def test_what_a_round_writes_changes_nothing(ledger: Ledger) -> None:
    """Else each round's audit row would have everything read again."""
    fresh, read = Fresh[int](ledger), Read()
    fresh.get("one", read)
    audit.write(ledger, audit.Entry(who="researcher", action="train", detail={}))
    assert fresh.get("one", read) == 1


def test_within_a_transaction_its_own_mark_counts(ledger: Ledger) -> None:
    """What was decided before it began is seen in it."""
    fresh, read = Fresh[int](ledger), Read()
    fresh.get("one", read)
    with ledger.transaction() as connection:
        assert fresh.get("one", read, connection.mark) == 1
    decide(ledger)
    with ledger.transaction() as connection:
        assert fresh.get("one", read, connection.mark) == 2


def test_while_a_transaction_is_under_way_all_is_read_anew(ledger: Ledger) -> None:
    """It may be waiting for another process, and nobody is to wait for it."""
    fresh, read = Fresh[int](ledger), Read()
    fresh.get("one", read)
    with ledger.transaction():
        assert [fresh.get("one", read), fresh.get("one", read)] == [2, 3]
    assert fresh.get("one", read) == 1, "what was kept before is still right"


def test_only_so_many_are_kept(ledger: Ledger) -> None:
    """Researchers name plans in any number."""
    fresh, read = Fresh[int](ledger), Read()
    for number in range(100):
        fresh.get(number, read)
    fresh.get(99, read)
    assert read.times == 100
    fresh.get(0, read)
    assert read.times == 101
