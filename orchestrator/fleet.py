"""The sites of a run, asked all at once, with retries where another try may help."""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

from loguru import logger
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from core.exceptions import (
    AuthenticationError,
    CalledOffError,
    CommunicationError,
    ConfigurationError,
    DeadlineError,
    ExperimentError,
    FederatedLearningError,
    WaitExpiredError,
)
from orchestrator.circuit import Circuits
from orchestrator.communication.base import SiteCommunication
from orchestrator.crew import Crew
from orchestrator.federation import SiteAddress
from orchestrator.halting import Halt
from orchestrator.keeper import Keeper
from orchestrator.room import Room
from orchestrator.stragglers import Patience

T = TypeVar("T")
K = TypeVar("K")

_FIRST_WAIT_S = 0.2
_LONGEST_WAIT_S = 5.0
_GLANCE_S = 0.1
"""How often it is looked, in a wait for an answer, whether the run is to stop."""

_CALLED_OFF_S = 1.0
"""How long it is waited until sites have heard that nobody waits for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers(Generic[T]):
    """What came of asking several sites; both in the order of the sites' names."""

    ok: Mapping[str, T]
    failed: Mapping[str, FederatedLearningError] = field(default_factory=dict)

    def require(self, fewest: int, *, what: str, round_num: int | None = None) -> None:
        """Do nothing when at least `fewest` sites answered.

        Raises:
            FederatedLearningError: Too few did; the message says who is missing and why. When all
                failures are of one kind (not reached, too late, wrongly configured) its class is of
                that kind, so that a command's exit code tells what to mend; else `ExperimentError`.
        """
        if len(self.ok) >= fewest:
            return
        reasons = "".join(f"\n  {_named(*failure)}" for failure in self.failed.items())
        raise _common_class(self.failed.values())(
            f"{what}: {len(self.ok)} of at least {fewest} sites answered; missing:{reasons}",
            round_num=round_num,
        )


class Fleet:
    """The sites of one run.

    Args:
        communication: How they are reached.
        sites: Where they are.
        attempts: How often a request is sent at most when its failure is retryable.
        halt: Whether the run is to stop.

    Attributes:
        attempts: How often a request is sent at most.
        circuits: Where the sites stand.
        keeper: Has them join.
    """

    def __init__(
        self,
        communication: SiteCommunication,
        sites: Sequence[SiteAddress],
        *,
        attempts: int,
        halt: Halt | None = None,
    ) -> None:
        self.communication = communication
        self.attempts = attempts
        self.halt = halt or Halt()
        self.circuits = Circuits([site.site_id for site in sites])
        look = communication.look if communication.can_vanish else None
        self.keeper = Keeper(self.circuits, self.log_in, look)
        self._addresses = {site.site_id: site for site in sites}
        self._retrying = Retrying(
            stop=stop_after_attempt(attempts),
            wait=wait_exponential_jitter(initial=_FIRST_WAIT_S, max=_LONGEST_WAIT_S),
            reraise=True,
        )
        self._crew = Crew(communication.most_at_once)
        self._room = Room()
        communication.admit = self._room.enter

    @property
    def site_ids(self) -> list[str]:
        """Names of all sites, sorted."""
        return sorted(self._addresses)

    def connect(self) -> Answers[bool]:
        """Log in to every site that has not joined yet, or has left."""
        return self.ask(self.site_ids, self.keeper.enter)

    def log_in(self, site_id: str) -> None:
        """Log in to a site, at the first of its addresses where it is reached.

        Raises:
            FederatedLearningError: Why it was not logged in to; of several addresses, the last's.
        """
        site, tried = self._addresses[site_id], []
        for url in (site.url, *site.backup_urls):
            try:
                self.communication.connect_to_datasite(url, site.credentials())
            except AuthenticationError:
                raise  # the account is the same at every address
            except CommunicationError as exc:
                tried.append(exc)
            else:
                return
        *others, last = tried
        if others:
            told = "; ".join(str(error) for error in tried)
            raise type(last)(f"{site_id}: {told}", site_id=site_id) from last
        raise last

    def ask(
        self,
        site_ids: Iterable[str],
        question: Callable[[str], T],
        patience: Patience | None = None,
    ) -> Answers[T]:
        """Put `question` to each site, to all at once, and wait for all."""
        return self.take(site_ids, question, lambda _site_id, answer: answer, patience)

    def take(
        self,
        site_ids: Iterable[str],
        question: Callable[[str], T],
        taken: Callable[[str, T], K],
        patience: Patience | None = None,
    ) -> Answers[K]:
        """Put `question` to each site, to all at once, and take the answers in one by one.

        Args:
            site_ids: Whom to ask.
            question: Asks one site; called in a thread.
            taken: Given each answer in the order of the sites' names, by the caller's thread; what
                it gives is kept in the answer's place, which then is let go of.
            patience: How long slow sites are waited for; by default for as long as it takes.
        """
        ordered = sorted(set(site_ids))
        self._room.expect(ordered)
        race = _Race(patience, self._room)
        for site_id in ordered:
            errand = partial(self._persistently, question, site_id, race)
            race.futures[site_id] = self._crew.put(errand)
        ok: dict[str, K] = {}
        failed: dict[str, FederatedLearningError] = {}
        try:
            for turn, site_id in enumerate(ordered):
                self._room.call(site_id)
                try:
                    answer = self._awaited(site_id, race)
                except FederatedLearningError as exc:
                    failed[site_id] = exc
                    continue
                for following in ordered[turn + 1 : turn + 2]:  # is read while this one is taken in
                    self._room.call(following)
                ok[site_id] = taken(site_id, answer)
                del answer
        except BaseException:
            self._call_off(race, [site for site, f in race.futures.items() if not f.done()])
            wait(race.called_off, timeout=_CALLED_OFF_S)
            raise
        finally:
            self._room.expect(())  # nobody waits for a turn that does not come
        return Answers(ok=ok, failed=failed)

    def close(self) -> None:
        """Disconnect from every site; requests under way are not waited for."""
        self.keeper.close()
        self._crew.close()
        for site_id in self.communication.connected:
            self.communication.disconnect_from_datasite(site_id)

    def _awaited(self, site_id: str, race: "_Race") -> Any:  # noqa: ANN401 - as the question gives
        """Wait for an answer, in steps, so that it is seen whenever the run is to stop."""
        while not _is_done(race.futures[site_id], within_s=_GLANCE_S):
            self.halt.check()
            if race.is_late(site_id):
                self._call_off(race, [site_id])
                race.futures.pop(site_id)
                raise race.lateness(site_id)
        answer = race.futures.pop(site_id).result()
        race.answered += 1
        return answer

    def _call_off(self, race: "_Race", site_ids: Sequence[str]) -> None:
        """Have these sites stop: nobody waits for them any more."""
        race.dropped.update(site_ids)
        if race.patience is not None:
            errands = (partial(race.patience.call_off, site_id) for site_id in site_ids)
            race.called_off += [self._crew.put(errand) for errand in errands]

    def _persistently(self, question: Callable[[str], T], site_id: str, race: "_Race") -> T:
        def is_worth_it(error: BaseException) -> bool:
            return _is_retryable(error) and site_id not in race.dropped

        self.keeper.require_hope(site_id)
        try:
            return self._once(question, site_id, race)
        except FederatedLearningError as exc:
            if not is_worth_it(exc):
                raise
            failed = [exc]

        def once_more() -> T:
            if failed:
                raise failed.pop()  # as the first attempt, which was made above
            return self._once(question, site_id, race)

        attempts = self._retrying.copy(
            retry=retry_if_exception(is_worth_it),
            before_sleep=lambda state: logger.bind(site_id=site_id).warning(
                "{}: attempt {} failed ({}); trying again",
                site_id,
                state.attempt_number,
                state.outcome.exception() if state.outcome else "",
            ),
        )
        answer: T = attempts(once_more)
        return answer

    def _once(self, question: Callable[[str], T], site_id: str, race: "_Race") -> T:
        if site_id in race.dropped:
            raise CalledOffError(f"{site_id}: nobody waits for its answer", site_id=site_id)
        if self.keeper.has_left(site_id):
            self.keeper.enter(site_id)
        with self.circuits.request(site_id):
            return question(site_id)


class _Race:
    """The answers to one question that are waited for.

    Attributes:
        futures: Of the sites whose answers have not been taken in.
        answered: How many have answered, of the others.
        dropped: Who is not waited for any more.
        called_off: What tells them so.
    """

    def __init__(self, patience: Patience | None, room: Room) -> None:
        self.patience = patience
        self.futures: dict[str, Future[Any]] = {}
        self.answered = 0
        self.dropped: set[str] = set()
        self.called_off: list[Future[object]] = []
        self._room = room
        self._begin = time.monotonic()

    def is_late(self, site_id: str) -> bool:
        """Tell whether the site is no longer to be waited for."""
        patience = self.patience
        if patience is None or time.monotonic() - self._begin < patience.cutoff_s:
            return False
        if self._room.is_full_for(site_id):
            return False
        there = sum(self._is_there(*asked) for asked in list(self.futures.items()))
        return self.answered + there >= patience.minimum

    def lateness(self, site_id: str) -> DeadlineError:
        """Give the error of a site that is not waited for, and log it."""
        assert self.patience is not None  # noqa: S101 - who is not patient drops nobody
        patience = self.patience
        error = DeadlineError(
            f"{site_id}: its answer to {patience.what} was not there after the cutoff of "
            f"{patience.cutoff_s:g} s, and is dropped",
            site_id=site_id,
        )
        logger.bind(site_id=site_id).warning("{}", error)
        return error

    def _is_there(self, site_id: str, future: Future[Any]) -> bool:
        if future.done():
            return future.exception() is None
        return self._room.is_full_for(site_id)


def _is_done(future: Future[Any], *, within_s: float) -> bool:
    """Wait for what is to come of an errand; whether it is there."""
    try:
        future.exception(timeout=within_s)
    except TimeoutError:
        return False
    return True


def _is_retryable(error: BaseException) -> bool:
    return isinstance(error, FederatedLearningError) and error.retryable


def _common_class(errors: Collection[FederatedLearningError]) -> type[FederatedLearningError]:
    """Give the class to raise for several failures, so that the exit code tells what to mend."""
    if not errors:
        return ExperimentError
    if all(error.exit_code == WaitExpiredError.exit_code for error in errors):
        return WaitExpiredError
    if all(isinstance(error, CommunicationError) for error in errors):
        kinds = {type(error) for error in errors}
        return kinds.pop() if len(kinds) == 1 else CommunicationError
    if all(isinstance(error, ConfigurationError) for error in errors):
        return ConfigurationError
    return ExperimentError


def _named(site_id: str, error: FederatedLearningError) -> str:
    return str(error) if str(error).startswith(site_id) else f"{site_id}: {error}"
