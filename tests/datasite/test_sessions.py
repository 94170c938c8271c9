"""Which sessions are open at a site, and which counters one has seen."""

import gc
import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from core.exceptions import SecurityError
from core.sessions import Parties, SessionKeys, derive_keys
from datasite.sessions import LIFETIME_S, Session, Sessions

SITE_KEY = "517e"
HALF = X25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = HALF.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
WINDOW = 1024


class Clock:
    """Stands still until it is set forward."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Give the time."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Give a clock of the test's own."""
    return Clock()


@pytest.fixture
def sessions(clock: Clock) -> Sessions:
    """Give a site's sessions, of a minute each; none is open."""
    return Sessions(SITE_KEY, lifetime_s=60, clock=clock)


def open_one(sessions: Sessions, *, of: str = "ca11e4") -> str:
    """Open a session of the account with this key; its name."""
    return str(sessions.open(PUBLIC, caller_key=of, email=f"{of}@lab.example.com")["session"])


def is_open(sessions: Sessions, session_id: str) -> bool:
    """Tell whether it is."""
    return sessions.find(session_id) is not None


def a_session() -> Session:
    """Give a session for its counters alone."""
    return Session(
        "5e55",
        caller_key="ca11e4",
        email="researcher@lab.example.com",
        keys=SessionKeys(bytes(32), bytes(32)),
        ends_at=1.0,
    )


def test_an_opened_session_is_found_with_its_account_and_keys(sessions: Sessions) -> None:
    """The caller comes to the same keys by what it is told."""
    told = sessions.open(PUBLIC, caller_key="ca11e4", email="researcher@lab.example.com")
    session = sessions.find(str(told["session"]))
    assert session is not None
    assert (session.caller_key, session.email) == ("ca11e4", "researcher@lab.example.com")
    site_public = bytes.fromhex(str(told["public"]))
    parties = Parties(
        session_id=str(told["session"]),
        caller_key="ca11e4",
        site_key=SITE_KEY,
        caller_public=PUBLIC,
        site_public=site_public,
    )
    assert session.keys == derive_keys(HALF, site_public, parties)
    assert told["lifetime_s"] == 60


def test_the_same_half_sent_twice_opens_two_sessions(sessions: Sessions) -> None:
    """A signed call that somebody repeats gives them nothing of the first one's keys."""
    first, second = (sessions.find(open_one(sessions)) for _ in range(2))
    assert first is not None
    assert second is not None
    both = {first.keys.request, first.keys.reply, second.keys.request, second.keys.reply}
    assert len(both) == 4


@pytest.mark.parametrize("name", ["", "5e55", "0" * 32])
def test_a_session_that_was_never_opened_is_not_found(sessions: Sessions, name: str) -> None:
    """Nor is ending it an error."""
    open_one(sessions)
    assert not is_open(sessions, name)
    sessions.end(name)


@pytest.mark.parametrize("half", [bytes(32), bytes(31), b""], ids=["low order", "short", "none"])
def test_a_bad_half_opens_nothing(sessions: Sessions, half: bytes) -> None:
    """The refusal says what an exchange takes, and nobody loses a session to it."""
    there = [open_one(sessions) for _ in range(16)]
    with pytest.raises(SecurityError, match="32 bytes of X25519"):
        sessions.open(half, caller_key="ca11e4", email="researcher@lab.example.com")
    assert all(is_open(sessions, session_id) for session_id in there)


def test_a_session_ends_with_its_time(sessions: Sessions, clock: Clock) -> None:
    """It is there until just before, and never again from then on."""
    session_id = open_one(sessions)
    clock.now += 59.9
    assert is_open(sessions, session_id)
    clock.now += 0.1
    assert not is_open(sessions, session_id)
    clock.now -= 1
    assert not is_open(sessions, session_id)


def test_use_does_not_prolong_a_session(sessions: Sessions, clock: Clock) -> None:
    """An hour is an hour, however busy."""
    session_id = open_one(sessions)
    for _ in range(59):
        clock.now += 1
        session = sessions.find(session_id)
        assert session is not None
        assert session.take(int(clock.now))
    clock.now += 1
    assert not is_open(sessions, session_id)


def test_a_session_lasts_an_hour_unless_told_otherwise(clock: Clock) -> None:
    """The caller is told so."""
    told = Sessions(SITE_KEY, clock=clock).open(PUBLIC, caller_key="k", email="e")
    assert told["lifetime_s"] == LIFETIME_S == 3600


def test_an_ended_session_is_not_found(sessions: Sessions) -> None:
    """And the others are."""
    first, second = open_one(sessions), open_one(sessions)
    sessions.end(first)
    assert (is_open(sessions, first), is_open(sessions, second)) == (False, True)


def test_an_account_keeps_its_newest_sixteen(sessions: Sessions) -> None:
    """The seventeenth ends the account's oldest, and no one else's."""
    other = open_one(sessions, of="07e4")
    own = [open_one(sessions) for _ in range(17)]
    assert [is_open(sessions, session_id) for session_id in own] == [False] + [True] * 16
    assert is_open(sessions, other)


def test_a_site_keeps_its_newest_256(sessions: Sessions) -> None:
    """Of accounts that have a few each, the oldest of all ends."""
    all_ = [open_one(sessions, of=f"account-{number % 32}") for number in range(256)]
    assert all(is_open(sessions, session_id) for session_id in all_)
    one_more = open_one(sessions, of="newcomer")
    assert [is_open(sessions, session_id) for session_id in all_] == [False] + [True] * 255
    assert is_open(sessions, one_more)


def test_sessions_that_have_ended_make_room_first(sessions: Sessions) -> None:
    """Nobody's open session ends, however old, while one is kept that is of no use any more."""
    all_ = [open_one(sessions, of=f"account-{number % 32}") for number in range(256)]
    newest = sessions.find(all_[-1])
    assert newest is not None
    newest.refusals = 16
    one_more = open_one(sessions, of="newcomer")
    assert [is_open(sessions, session_id) for session_id in all_] == [True] * 255 + [False]
    assert is_open(sessions, one_more)


def test_a_session_ends_when_too_much_was_refused(sessions: Sessions) -> None:
    """Each refusal is written down, so there is an end to them: the sixteenth."""
    session_id = open_one(sessions)
    session = sessions.find(session_id)
    assert session is not None
    session.refusals = 15
    assert is_open(sessions, session_id)
    session.refusals += 1
    assert not is_open(sessions, session_id)


def test_counters_are_taken_once() -> None:
    """In order or not, and never again."""
    session = a_session()
    assert [session.take(counter) for counter in (1, 2, 5, 3)] == [True] * 4
    assert [session.take(counter) for counter in (1, 2, 5, 3)] == [False] * 4
    assert session.take(4)


def test_a_counter_may_be_so_far_behind_and_no_further() -> None:
    """1024 behind the highest, it may have been there before."""
    session = a_session()
    highest = 10_000
    assert session.take(highest)
    assert session.take(highest - WINDOW + 1)
    assert not session.take(highest - WINDOW)
    assert not session.take(0)


def test_a_leap_forgets_nothing() -> None:
    """What was taken before a leap is still refused, whether it is within the window or not."""
    session = a_session()
    for counter in range(1, 3 * WINDOW):
        assert session.take(counter)
    assert session.take(2**62)
    assert not any(session.take(counter) for counter in range(1, 3 * WINDOW))
    assert not session.take(2**62)


def test_a_long_session_forgets_nothing_within_the_window() -> None:
    """Memory is cleared now and then; what was taken up to 1023 ago is refused all the same."""
    session = a_session()
    for counter in range(1, 6 * WINDOW):
        assert session.take(counter)
        assert not session.take(counter)
        assert not session.take(max(counter - WINDOW + 1, 1))
        assert not session.take(max(counter - WINDOW // 2, 1))


@given(st.lists(st.one_of(st.integers(0, 20), st.integers(0, 5000), st.integers(0, 2**63 - 1))))
def test_no_order_of_counters_takes_one_twice(counters: list[int]) -> None:
    """And one is taken whenever it is new and less than 1024 behind the highest before it."""
    session = a_session()
    seen: set[int] = set()
    for counter in counters:
        is_new = counter not in seen and counter > max(seen, default=0) - WINDOW
        assert session.take(counter) is is_new
        seen |= {counter} if is_new else set()


def test_what_a_session_remembers_does_not_grow() -> None:
    """A run of a million requests takes the memory of a few thousand."""
    session = a_session()
    for counter in range(20_000):
        session.take(counter)
    assert len(session._seen) <= 2 * WINDOW + 1


@pytest.fixture
def hasty() -> Iterator[None]:
    """Have threads take turns as often as Python can."""
    kept = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(kept)


@pytest.mark.usefixtures("hasty")
def test_threads_take_each_counter_once() -> None:
    """Eight threads that present the same counters share them out between them."""
    session = a_session()
    counters = range(1, 30_000)
    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lambda _: [c for c in counters if session.take(c)], range(8)))
    times = Counter(counter for share in taken for counter in share)
    assert set(times.values()) == {1}
    assert set(times) == set(counters)


@pytest.mark.usefixtures("hasty")
def test_threads_open_sessions_within_the_limits(sessions: Sessions) -> None:
    """Of 400 opened at once by an account, sixteen are left."""
    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(lambda _: open_one(sessions), range(400)))
    assert sum(is_open(sessions, session_id) for session_id in names) == 16


def opened(sessions: Sessions) -> Session:
    """Give a new session."""
    found = sessions.find(open_one(sessions))
    assert found is not None
    return found


def holds(session: Session) -> bytes:
    """Give the body that a session has."""
    _, body = session.body
    return bytes(body)


@pytest.fixture
def _room_for_ten_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasite.sessions._MOST_BODIES_BYTES", 10)


def test_an_account_that_is_shut_out_has_no_session_left(sessions: Sessions) -> None:
    """All of its own end at once; another account's do not."""
    own = [open_one(sessions) for _ in range(3)]
    other = open_one(sessions, of="07e4")
    sessions.end_of("ca11e4")
    assert [is_open(sessions, each) for each in [*own, other]] == [False, False, False, True]


@pytest.mark.usefixtures("_room_for_ten_bytes")
def test_the_bodies_of_all_sessions_have_one_limit(sessions: Sessions) -> None:
    """Beyond it those let go of theirs that were used the longest ago, as many as it takes."""
    first, second, third, fourth = (opened(sessions) for _ in range(4))
    for session, body in ((first, b"1111"), (second, b"222"), (third, b"333")):
        sessions.keep_body(session, b"hash", body)
    assert [holds(session) for session in (first, second, third)] == [b"1111", b"222", b"333"]
    sessions.keep_body(first, b"hash", b"1")  # a smaller one in place of its last: 7 bytes of 10
    sessions.keep_body(fourth, b"hash", b"444")
    assert [holds(s) for s in (first, second, third, fourth)] == [b"1", b"222", b"333", b"444"]
    sessions.keep_body(fourth, b"hash", b"4444444")  # with 1 + 3 + 3 that is 14: two must go
    assert [holds(s) for s in (first, second, third, fourth)] == [b"1", b"", b"", b"4444444"]
    assert second.body == third.body == (b"", b"")


@pytest.mark.usefixtures("_room_for_ten_bytes")
def test_a_body_larger_than_the_limit_is_kept_alone(sessions: Sessions) -> None:
    """The last request of all can be said again without it; nobody else's can."""
    first, second = opened(sessions), opened(sessions)
    sessions.keep_body(first, b"hash", b"1")
    sessions.keep_body(second, b"hash", bytes(100))
    assert (holds(first), holds(second)) == (b"", bytes(100))


@pytest.mark.usefixtures("_room_for_ten_bytes")
def test_a_session_that_ended_keeps_nothing_and_takes_no_room(
    sessions: Sessions, clock: Clock
) -> None:
    """A body that comes in as it ends is not kept; what it had makes room for others."""
    ended, over, other = opened(sessions), opened(sessions), opened(sessions)
    sessions.keep_body(ended, b"hash", b"1111111111")
    sessions.end(ended.session_id)
    sessions.keep_body(ended, b"hash", b"2222222222")
    assert holds(ended) != b"2222222222"
    sessions.keep_body(other, b"hash", b"333333")
    sessions.keep_body(over, b"hash", b"4444")
    assert (holds(other), holds(over)) == (b"333333", b"4444")


def test_the_body_of_an_ended_session_is_freed(sessions: Sessions) -> None:
    """Whether it was ended or pushed out by the account's newer ones."""

    class Body(bytearray):
        """Can be asked whether it is there yet."""

    ended = [open_one(sessions) for _ in range(2)]
    held = []
    for session_id in ended:
        session, body = sessions.find(session_id), Body(b"body")
        assert session is not None
        sessions.keep_body(session, b"hash", body)
        held.append(weakref.ref(body))
        del session, body
    assert all(body() is not None for body in held)
    sessions.end(ended[1])
    for _ in range(16):
        open_one(sessions)
    gc.collect()
    assert [body() for body in held] == [None, None]
