"""What was refused, on the audit log, which nobody can be made to fill with it.

In each minute, the first refusals of an account are rows at once, and the further ones together
are one row with their number when the minute is over. Strangers share one such count, and get one
row at once: they come in any number, and cost at most two rows a minute.
"""

import threading
from collections import Counter
from collections.abc import Callable
from typing import Final

from loguru import logger

from core.exceptions import FederatedLearningError
from datasite.audit import Entry

STRANGER: Final = "a stranger"
"""Who it was, on the audit log, when it was nobody who has an account."""

WINDOW_S: Final = 60.0
_ROWS_OF_ACCOUNT: Final = 60
_ROWS_OF_STRANGERS: Final = 1

_KINDS: Final = 16
"""How many different things that were refused are told apart in a row of many."""

_SHOWN: Final = 200
"""Characters: what was asked for is the caller's own text, of any length."""


class Refusals:
    """Writes down who was refused what.

    Args:
        write: Appends an entry to the audit log.
        window_s: The seconds that are counted together.
    """

    def __init__(self, write: Callable[[Entry], None], *, window_s: float = WINDOW_S) -> None:
        self._write = write
        self._window_s = window_s
        self._counting = threading.Lock()
        self._timer: threading.Timer | None = None
        self._rows: Counter[str] = Counter()
        self._held_back: dict[str, Counter[str]] = {}

    def note(self, email: str, what: str) -> None:
        """Write down that `email`, "" for a stranger, was refused `what`.

        Where that cannot be written it is logged: it is refused all the same.
        """
        who, what = email or STRANGER, what[:_SHOWN].encode(errors="backslashreplace").decode()
        most = _ROWS_OF_ACCOUNT if email else _ROWS_OF_STRANGERS
        with self._counting:
            self._open_window()
            is_row = self._rows[who] < most
            if is_row:
                self._rows[who] += 1
            else:
                self._hold_back(who, what)
        if is_row:
            self._try_to_write(who, {"path": what})

    def close(self) -> None:
        """End the minute, and write down what was held back in it."""
        with self._counting:
            timer, self._timer = self._timer, None
            held_back, self._held_back = self._held_back, {}
            self._rows.clear()
        if timer is not None:
            timer.cancel()
        for who, kinds in held_back.items():
            detail = {"path": "several", "count": kinds.total(), "of": dict(kinds)}
            self._try_to_write(who, detail)

    def _try_to_write(self, who: str, detail: dict[str, object]) -> None:
        entry = Entry(who=who, action="call refused", outcome="SecurityError", detail=detail)
        try:
            self._write(entry)
        except FederatedLearningError as exc:  # a full disk
            logger.error("no audit row of what {} was refused: {}", who, exc)

    def _open_window(self) -> None:
        if self._timer is None:
            self._timer = threading.Timer(self._window_s, self.close)
            self._timer.daemon = True
            self._timer.start()

    def _hold_back(self, who: str, what: str) -> None:
        kinds = self._held_back.setdefault(who, Counter())
        kinds[what if what in kinds or len(kinds) < _KINDS else "others"] += 1
