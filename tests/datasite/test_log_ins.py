"""How often somebody may try to log in, by a clock that the test moves."""

import pytest

from datasite import log_ins
from datasite.log_ins import FREE_TRIES, FREE_TRIES_OF_MANY, LONGEST_WAIT_S, LogInLimits, source_of

OWNER = "researcher@lab.example.com"
HOME, ELSEWHERE = "192.0.2.1", "198.51.100.7"


class Door:
    """The limits, under a clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0
        self.limits = LogInLimits(lambda: self.now)

    def fail(self, times: int, email: str = OWNER, host: str = HOME) -> list[int]:
        """Try with a wrong password; what had to be waited for each."""
        return [self.limits.begin(email, host) for _ in range(times)]

    def log_in(self, email: str = OWNER, host: str = HOME) -> int:
        """Try with the right one; what had to be waited."""
        wait_s = self.limits.begin(email, host)
        if not wait_s:
            self.limits.succeed(email, host)
        return wait_s

    def wear_out(self, email: str, *, sources: int) -> None:
        """Fail as often as is free from each of many addresses."""
        for number in range(sources):
            assert self.fail(FREE_TRIES, email, f"198.51.100.{number}") == [0] * FREE_TRIES


@pytest.fixture
def door() -> Door:
    """Give limits that have counted nothing."""
    return Door()


def test_five_tries_fail_before_there_is_a_wait(door: Door) -> None:
    """The sixth is refused unseen, right or wrong."""
    assert door.fail(FREE_TRIES) == [0, 0, 0, 0, 0]
    assert door.log_in() == 1


def test_each_further_failure_doubles_the_wait(door: Door) -> None:
    """1, 2, 4 ... and five minutes at most."""
    door.fail(FREE_TRIES)
    waits = []
    for _ in range(11):
        waits.append(door.log_in())
        door.now += waits[-1]
        assert door.fail(1) == [0]
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]


def test_a_try_within_a_wait_does_not_make_it_longer(door: Door) -> None:
    """A thousand of them, and the wait is over when it was to be over: nobody locks an account."""
    door.fail(FREE_TRIES)
    assert set(door.fail(1000)) == {1}
    door.now += 1
    assert door.log_in() == 0


def test_a_success_forgets_the_failures_from_there(door: Door) -> None:
    """All five are free again."""
    door.fail(FREE_TRIES - 1)
    assert door.log_in() == 0
    assert door.fail(FREE_TRIES) == [0] * FREE_TRIES


def test_a_stranger_elsewhere_does_not_touch_the_owners_address(door: Door) -> None:
    """However many addresses: where the owner has logged in before, no wait is due to others."""
    assert door.log_in() == 0
    door.wear_out(OWNER, sources=FREE_TRIES_OF_MANY // FREE_TRIES)
    assert door.fail(1, host=ELSEWHERE) == [1]
    assert door.log_in() == 0


def test_an_account_is_limited_over_all_addresses(door: Door) -> None:
    """Fifty failures from ten addresses: an eleventh must wait, and an hour later it need not."""
    door.wear_out(OWNER, sources=FREE_TRIES_OF_MANY // FREE_TRIES)
    assert door.fail(1, host=ELSEWHERE) == [1]
    assert door.fail(1, email="another@lab.example.com", host=ELSEWHERE) == [0]
    door.now += log_ins.FORGET_S
    assert door.fail(FREE_TRIES, host=ELSEWHERE) == [0] * FREE_TRIES


def test_an_address_that_tries_many_accounts_has_one_try_a_minute_for_each(door: Door) -> None:
    """Fifty failures; whether the next account has logged in there makes no difference."""
    assert door.log_in() == 0
    for number in range(FREE_TRIES_OF_MANY):
        assert door.fail(1, email=f"guess-{number}@lab.example.com") == [0]
    for email in (OWNER, "nobody@lab.example.com"):
        assert door.fail(2, email=email) == [0, 60]
    assert door.fail(2, host=ELSEWHERE) == [0, 0]
    door.now += 60
    assert door.log_in() == 0


def test_capital_letters_are_no_other_account(door: Door) -> None:
    """An account cannot be tried anew under another spelling."""
    assert door.fail(FREE_TRIES, email=OWNER.upper()) == [0] * FREE_TRIES
    assert door.fail(1) == [1]


@pytest.mark.parametrize(
    ("host", "source"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("", ""),
    ],
)
def test_one_subscriber_is_one_address(host: str, source: str) -> None:
    """Of IPv6 everybody has 2^64."""
    assert source_of(host) == source


def test_the_tables_do_not_grow_without_end(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of too many names and addresses those are forgotten whose failures are the oldest."""
    monkeypatch.setattr(log_ins, "_MOST_ENTRIES", 100)
    for number in range(1000):
        door.fail(1, email=f"guess-{number}@lab.example.com", host=f"host-{number}")
        door.log_in(email=f"owner-{number}@lab.example.com", host=f"host-{number}")
    limits = door.limits
    tables = (limits._of_pair, limits._of_account, limits._of_source, limits._at_home)
    assert [len(table) <= 100 for table in tables] == [True] * 4


def test_no_wait_is_longer_than_five_minutes(door: Door) -> None:
    """After a thousand failures an owner at the same address waits no longer than that."""
    for _ in range(1000):
        door.now += LONGEST_WAIT_S
        door.fail(1)
    assert door.log_in() == LONGEST_WAIT_S
