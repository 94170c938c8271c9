"""What is asked for and not answered yet: it can be called off while it waits or is worked on."""

import threading
from typing import Self

from core.exceptions import CalledOffError, SiteBusyError
from datasite.consent import WorkRequest, is_of_a_round


class UnderWay:
    """The requests for work of one site that are not answered yet; they take turns at the trainer.

    A request whose connection has ended is not called off by that: its reply is stored, and waits
    for whoever asks again.

    Args:
        site_id: Named in errors.
    """

    def __init__(self, *, site_id: str) -> None:
        self._site_id = site_id
        self._working = threading.Lock()
        self._turns: set[Turn] = set()
        self._changing = threading.Lock()

    @property
    def is_busy(self) -> bool:
        """Whether somebody has their turn."""
        return self._working.locked()

    def turn(self, request: WorkRequest | None, deadline_s: float) -> "Turn":
        """Give the turn of a request; to enter it is to wait for it, at most `deadline_s`.

        From then on the request can be called off, unless it is the site's own, which is None.
        """
        return Turn(self, request, deadline_s)

    def call_off(self, plan_id: str, round_num: int) -> int:
        """Call off what is asked for in a round of a plan; how many requests that were."""
        with self._changing:
            named = [t for t in self._turns if (t.plan_id, t.round_num) == (plan_id, round_num)]
            for turn in named:
                turn.is_called_off = True
        return len(named)

    def begin(self, turn: "Turn", deadline_s: float) -> bool:
        """Wait for a turn; whether it had to be waited for.

        Raises:
            SiteBusyError: Another request had the trainer for all of `deadline_s`.
        """
        with self._changing:
            self._turns.add(turn)
        is_free = self._working.acquire(blocking=False)
        if not is_free and not self._working.acquire(timeout=deadline_s):
            self._forget(turn)
            raise SiteBusyError(
                f"{self._site_id}: busy with another request for {deadline_s:g} s; try again later",
                site_id=self._site_id,
            )
        return not is_free

    def end(self, turn: "Turn") -> None:
        """Let the next have its turn."""
        self._working.release()
        self._forget(turn)

    def called_off(self, turn: "Turn") -> CalledOffError:
        """Give the error of a turn that nobody wants any more."""
        return CalledOffError(
            f"{self._site_id}: round {turn.round_num} was called off by who had asked for it",
            site_id=self._site_id,
            round_num=turn.round_num,
        )

    def _forget(self, turn: "Turn") -> None:
        with self._changing:
            self._turns.discard(turn)


class Turn:
    """A request's turn at the trainer, of which a site has one: it does one thing at a time.

    Attributes:
        has_waited: Whether it had to be waited for; known once it is entered.
        is_called_off: Whether nobody waits for the answer any more.
    """

    def __init__(self, under_way: UnderWay, request: WorkRequest | None, deadline_s: float) -> None:
        self.plan_id = None if request is None else request["plan_id"]
        self.round_num = (
            request["round_num"] if request is not None and is_of_a_round(request) else None
        )
        self.has_waited = False
        self.is_called_off = False
        self._under_way = under_way
        self._deadline_s = deadline_s

    def __enter__(self) -> Self:
        """Wait for it.

        Raises:
            SiteBusyError: See `UnderWay.begin`.
        """
        self.has_waited = self._under_way.begin(self, self._deadline_s)
        return self

    def __exit__(self, *_error: object) -> None:
        self._under_way.end(self)

    def require_wanted(self) -> None:
        """Do nothing while the work is wanted.

        Raises:
            CalledOffError: It is not.
        """
        if self.is_called_off:
            raise self._under_way.called_off(self)
