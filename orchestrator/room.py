"""Room for answers: how much of a round's updates the orchestrator holds at once.

Updates are taken in one after the other, in the order of their sites, so that a sum does not depend
on who was quick. An answer whose turn has come is always read. One that is early is read while
there is room for early ones; else it waits in its connection, where it costs nothing here.
"""

import threading
from collections.abc import Sequence
from typing import Final

EARLY_BYTES: Final = 8 << 20


class Room:
    """Lets answers in; every method may be called by any thread.

    Args:
        early_bytes: How much may be held of answers that are early.
    """

    def __init__(self, *, early_bytes: int = EARLY_BYTES) -> None:
        self._early_bytes = early_bytes
        self._turns: dict[str, int] = {}
        self._next = 0
        self._early: dict[str, int] = {}
        self._outside: set[str] = set()
        self._changed = threading.Condition()

    def expect(self, site_ids: Sequence[str]) -> None:
        """Begin anew, with the sites whose answers are to come, in their order."""
        with self._changed:
            self._turns = {site_id: turn for turn, site_id in enumerate(site_ids)}
            self._next = 0
            self._early.clear()
            self._changed.notify_all()

    def enter(self, site_id: str, size_bytes: int) -> None:
        """Wait until an answer of this size may be read; who is not expected need not wait."""
        with self._changed:
            if not self._may_enter(site_id, size_bytes):
                self._outside.add(site_id)
                self._changed.wait_for(lambda: self._may_enter(site_id, size_bytes))
                self._outside.discard(site_id)
            if self._turns.get(site_id, 0) > self._next:
                self._early[site_id] = size_bytes

    def is_full_for(self, site_id: str) -> bool:
        """Tell whether an answer of the site is there and waits for its turn."""
        with self._changed:
            return site_id in self._outside

    def call(self, site_id: str) -> None:
        """Let the site's turn come: all before it have been taken in, or have failed."""
        with self._changed:
            self._next = self._turns.get(site_id, self._next)
            self._early.pop(site_id, None)
            self._changed.notify_all()

    def _may_enter(self, site_id: str, size_bytes: int) -> bool:
        is_early = self._turns.get(site_id, 0) > self._next
        return not is_early or sum(self._early.values()) + size_bytes <= self._early_bytes
