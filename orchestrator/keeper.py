"""Keeps the sites of a run together: brings back who is away, notices who leaves unasked.

One thread looks after all of them a few times a second. What takes time, a log-in or a look at a
site, is done in a few others, so that a site that does not answer holds up no other.
"""

import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final

from loguru import logger

from core.enums import DataSiteStatus
from core.exceptions import CommunicationError, DeadlineError, FederatedLearningError
from orchestrator.circuit import Circuits, again
from orchestrator.crew import Crew

_BEAT_S: Final = 0.25
_LOOK_S: Final = 1.0
_FIRST_WAIT_S: Final = 0.25
_LONGEST_WAIT_S: Final = 2.0
_IN_VAIN_S: Final = 60.0
"""Until it is tried again what will fail again, until a person mends it: a refused log-in."""

_MOMENT_S: Final = 1.0
"""How long somebody else's try is waited for."""

_AT_ONCE: Final = 8

_random = random.SystemRandom()


class Keeper:
    """Has the sites of one run join it, at the start and whenever they were away.

    Args:
        circuits: Where the sites stand.
        join: Logs in to a site, and makes it part of the run; raises why it cannot be.
        look: Finds out cheaply whether a site is there; raises why it is not. None where that
            cannot change unnoticed.

    Attributes:
        join: May be replaced when more is known of the run.
        chores: What else is done at each beat.
    """

    def __init__(
        self,
        circuits: Circuits,
        join: Callable[[str], object],
        look: Callable[[str], None] | None = None,
    ) -> None:
        self.join = join
        self.chores: list[Callable[[], None]] = []
        self._circuits = circuits
        self._look = look
        self._joined: set[str] = set()
        self._outside: dict[str, FederatedLearningError] = {}
        self._at_work: set[str] = set()
        self._tries: defaultdict[str, _Tries] = defaultdict(_Tries)
        self._entering: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._crew = Crew(_AT_ONCE)
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Look after the sites from now on."""
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Leave them alone; tries under way are not waited for, the chores are done once more."""
        self._closed.set()
        self._crew.close()
        if self._thread is not None:
            self._thread.join()
            self._do_chores()

    def enter(self, site_id: str) -> bool:
        """Have the site join, unless it has and is there; True.

        Raises:
            FederatedLearningError: Why it cannot.
        """
        with self._entering[site_id]:
            if site_id not in self._joined or self._circuits[site_id].is_away:
                self._try(site_id)
        return True

    def require_hope(self, site_id: str) -> None:
        """Do nothing when the site is there, or when it is time to try whether it is.

        Raises:
            FederatedLearningError: Why it was away a moment ago.
        """
        if not self.has_left(site_id):
            return
        door = self._entering[site_id]
        if door.acquire(timeout=_MOMENT_S):
            door.release()
            if not self.has_left(site_id) or self._tries[site_id].is_due:
                return
        raise again(self._outside.get(site_id) or self._circuits[site_id].error)

    def has_left(self, site_id: str) -> bool:
        """Tell whether the site must join again before it is asked; others need not."""
        return site_id in self._outside or self._circuits[site_id].is_away

    def send_out(self, site_id: str, error: FederatedLearningError) -> None:
        """Have a site join again before it is asked; `error` says why."""
        self._joined.discard(site_id)
        self._outside[site_id] = again(error)

    def _try(self, site_id: str) -> None:
        tries = self._tries[site_id]
        try:
            with self._circuits.request(site_id):
                self.join(site_id)
        except FederatedLearningError as exc:
            tries.put_off(exc)
            self.send_out(site_id, exc)
            raise
        tries.have_succeeded()
        self._joined.add(site_id)
        self._outside.pop(site_id, None)

    def _run(self) -> None:
        next_look = time.monotonic()
        while not self._closed.wait(_BEAT_S):
            for site_id in self._circuits.standings:
                if self.has_left(site_id) and self._tries[site_id].is_due:
                    self._have_done(site_id, partial(self.enter, site_id))
            if self._look is not None and time.monotonic() >= next_look:
                next_look = time.monotonic() + _LOOK_S
                for site_id, standing in self._circuits.standings.items():
                    if standing.status is DataSiteStatus.ONLINE:
                        self._have_done(site_id, partial(self._look_at, site_id, self._look))
            self._do_chores()

    def _have_done(self, site_id: str, errand: Callable[[], object]) -> None:
        """Have it done by another thread, unless one is at work for that site."""
        if site_id in self._at_work:
            return
        self._at_work.add(site_id)

        def work() -> None:
            try:
                with suppress(FederatedLearningError):  # the circuit has it
                    errand()
            finally:
                self._at_work.discard(site_id)

        self._crew.put(work)

    def _look_at(self, site_id: str, look: Callable[[str], None]) -> None:
        try:
            look(site_id)
        except DeadlineError:
            pass  # it is there, and perhaps only slow: the next request has its own deadline
        except CommunicationError as exc:
            self._circuits.failed(site_id, exc)

    def _do_chores(self) -> None:
        for chore in self.chores:
            try:
                chore()
            except FederatedLearningError as exc:
                logger.warning("{}", exc)


class _Tries:
    """When to try again: soon at first, with jitter, so that not all come at once."""

    def __init__(self) -> None:
        self._in_a_row = 0
        self._due = 0.0

    @property
    def is_due(self) -> bool:
        return time.monotonic() >= self._due

    def have_succeeded(self) -> None:
        self._in_a_row, self._due = 0, 0.0

    def put_off(self, error: FederatedLearningError) -> None:
        longest_s = min(_FIRST_WAIT_S * 2**self._in_a_row, _LONGEST_WAIT_S)
        self._in_a_row = min(self._in_a_row + 1, 16)
        wait_s = _random.uniform(longest_s / 2, longest_s) if error.retryable else _IN_VAIN_S
        self._due = time.monotonic() + wait_s
