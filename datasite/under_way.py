"""What is asked for and not answered yet: it can be called off while it waits or is worked on."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from core.exceptions import CalledOffError, SiteBusyError
from datasite.consent import WorkRequest, is_of_a_round

StillWanted = Callable[[], None]
"""Does nothing while the work is wanted; else raises `CalledOffError`."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Piece:
    plan_id: str
    round_num: int | None
    is_called_off: bool = False


class UnderWay:
    """The requests for work of one site that are not answered yet.

    A request whose connection has ended is not called off by that: its reply is stored, and waits
    for whoever asks again.

    Args:
        site_id: Named in errors.
    """

    def __init__(self, *, site_id: str) -> None:
        self._site_id = site_id
        self._working = threading.Lock()
        self._pieces: set[_Piece] = set()
        self._changing = threading.Lock()

    @property
    def is_busy(self) -> bool:
        """Whether somebody has their turn."""
        return self._working.locked()

    @contextmanager
    def turn(self, deadline_s: float) -> Iterator[bool]:
        """Have the trainer to oneself: a site does one piece of work at a time.

        Returns:
            Whether it had to be waited for.

        Raises:
            SiteBusyError: Another request had it for all of `deadline_s`.
        """
        is_free = self._working.acquire(blocking=False)
        if not is_free and not self._working.acquire(timeout=deadline_s):
            raise SiteBusyError(
                f"{self._site_id}: busy with another request for {deadline_s:g} s; try again later",
                site_id=self._site_id,
            )
        try:
            yield not is_free
        finally:
            self._working.release()

    @contextmanager
    def entered(self, request: WorkRequest) -> Iterator[StillWanted]:
        """Have `request` among them for as long as the context lasts."""
        round_num = request["round_num"] if is_of_a_round(request) else None
        piece = _Piece(plan_id=request["plan_id"], round_num=round_num)
        with self._changing:
            self._pieces.add(piece)
        try:
            yield partial(self._require_wanted, piece)
        finally:
            with self._changing:
                self._pieces.remove(piece)

    def call_off(self, plan_id: str, round_num: int) -> int:
        """Call off what is asked for in a round of a plan; how many requests that were."""
        with self._changing:
            named = [p for p in self._pieces if (p.plan_id, p.round_num) == (plan_id, round_num)]
            for piece in named:
                piece.is_called_off = True
        return len(named)

    def _require_wanted(self, piece: _Piece) -> None:
        if piece.is_called_off:
            raise CalledOffError(
                f"{self._site_id}: round {piece.round_num} was called off by who had asked for it",
                site_id=self._site_id,
                round_num=piece.round_num,
            )
