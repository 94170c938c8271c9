"""How often somebody may try to log in: what is counted, and how long one then has to wait.

    of one account, from one address    5 tries fail, then there are waits of 1, 2, 4 ... 300 s
    of one account, from everywhere     50 tries fail, then likewise; not where it logged in before
    from one address                    50 tries fail, then each account has one try a minute there

A try within a wait is refused unseen, right or wrong, and does not make the wait longer. So nobody
can lock an account for good: a stranger elsewhere does not touch the address at which its owner
logs in, and one at the same address (a shared proxy) makes the owner wait five minutes at most,
and only for a log-in. Whoever is logged in goes on.

Failures are counted by the e-mail that was given, whether it has an account or not. An hour without
one forgets them. The tables have a bound, and so has what a flood can try: see
`datasite.log_in_route`.
"""

import ipaddress
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final

FREE_TRIES: Final = 5
FREE_TRIES_OF_MANY: Final = 50
LONGEST_WAIT_S: Final = 300.0
SHORT_OF_TRIES_S: Final = 60.0
FORGET_S: Final = 3600.0
_MOST_ENTRIES: Final = 10_000


@dataclass(slots=True)
class _Failures:
    count: int = 0
    last_at: float = 0.0
    free_at: float = 0.0


class _Table:
    """Failures by a key, of which the least recent are forgotten when there are too many."""

    def __init__(self) -> None:
        self._entries: OrderedDict[Hashable, _Failures] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, key: Hashable, now: float) -> _Failures:
        """Give what is known of `key`; nothing of what is too long ago."""
        found = self._entries.get(key)
        if found is None or now - found.last_at >= FORGET_S:
            return _Failures()
        return found

    def add(self, key: Hashable, now: float) -> _Failures:
        """Count a failure."""
        failures = self.find(key, now)
        failures.count += 1
        failures.last_at = now
        self._entries[key] = failures
        self._entries.move_to_end(key)
        if len(self._entries) > _MOST_ENTRIES:
            self._entries.popitem(last=False)
        return failures

    def forget(self, key: Hashable) -> None:
        self._entries.pop(key, None)


class LogInLimits:
    """Counts failed log-ins; any number of threads may ask at once.

    Args:
        clock: Gives seconds that only go forward.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counting = threading.Lock()
        self._of_pair, self._of_account, self._of_source = _Table(), _Table(), _Table()
        self._at_home: OrderedDict[Hashable, None] = OrderedDict()

    def begin(self, email: str, host: str) -> int:
        """Count a try, as failed until it is known to have succeeded; 0 when it may go on.

        Args:
            email: The account that is claimed.
            host: The address from which it is.

        Returns:
            Else the seconds to wait, and nothing was counted.
        """
        account, source = _account(email), source_of(host)
        pair = (account, source)
        with self._counting:
            now = self._clock()
            free_at = self._of_pair.find(pair, now).free_at
            if pair not in self._at_home:
                free_at = max(free_at, self._of_account.find(account, now).free_at)
            if free_at > now:
                return math.ceil(free_at - now)
            of_source = self._of_source.add(source, now)
            of_pair = self._of_pair.add(pair, now)
            of_pair.free_at = now + _wait_s(of_pair.count - FREE_TRIES)
            if of_source.count > FREE_TRIES_OF_MANY:
                of_pair.free_at = max(of_pair.free_at, now + SHORT_OF_TRIES_S)
            of_account = self._of_account.add(account, now)
            of_account.free_at = now + _wait_s(of_account.count - FREE_TRIES_OF_MANY)
            return 0

    def succeed(self, email: str, host: str) -> None:
        """Take back the failure that `begin` counted, and all of this account from there."""
        account, source = _account(email), source_of(host)
        with self._counting:
            self._of_pair.forget((account, source))
            for table, key in ((self._of_account, account), (self._of_source, source)):
                found = table.find(key, self._clock())
                found.count -= 1
                if found.count < FREE_TRIES_OF_MANY:
                    found.free_at = 0.0
            self._at_home[account, source] = None
            self._at_home.move_to_end((account, source))
            if len(self._at_home) > _MOST_ENTRIES:
                self._at_home.popitem(last=False)


def source_of(host: str) -> str:
    """Give what counts as one address: of IPv6 the network of one subscriber (/64)."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))


def _account(email: str) -> str:
    return email.casefold()


def _wait_s(too_many: int) -> float:
    return 0.0 if too_many < 0 else min(2.0 ** min(too_many, 30), LONGEST_WAIT_S)
