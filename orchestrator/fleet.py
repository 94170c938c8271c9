"""The sites of a run, asked all at once, with retries where another try may help."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

from loguru import logger
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from core.exceptions import (
    CommunicationError,
    ConfigurationError,
    ExperimentError,
    FederatedLearningError,
    WaitExpiredError,
)
from orchestrator.communication.base import SiteCommunication
from orchestrator.crew import Crew
from orchestrator.federation import SiteAddress
from orchestrator.room import Room

T = TypeVar("T")
K = TypeVar("K")

_FIRST_WAIT_S = 0.2
_LONGEST_WAIT_S = 5.0
_SIGNALS_S = 0.5
"""Ctrl-C that comes just before a wait without end would not be seen, so none is longer."""


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

    Attributes:
        attempts: Likewise.
    """

    def __init__(
        self, communication: SiteCommunication, sites: Sequence[SiteAddress], *, attempts: int
    ) -> None:
        self.communication = communication
        self.attempts = attempts
        self._addresses = {site.site_id: site for site in sites}
        self._retrying = Retrying(
            retry=retry_if_exception(_is_retryable),
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
        """Log in to every site."""

        def log_in(site_id: str) -> bool:
            site = self._addresses[site_id]
            return self.communication.connect_to_datasite(site.url, site.credentials())

        return self.ask(self.site_ids, log_in)

    def ask(self, site_ids: Iterable[str], question: Callable[[str], T]) -> Answers[T]:
        """Put `question` to each site, to all at once, and wait for all."""
        return self.take(site_ids, question, lambda _site_id, answer: answer)

    def take(
        self,
        site_ids: Iterable[str],
        question: Callable[[str], T],
        taken: Callable[[str, T], K],
    ) -> Answers[K]:
        """Put `question` to each site, to all at once, and take the answers in one by one.

        Args:
            site_ids: Whom to ask.
            question: Asks one site; called in a thread.
            taken: Given each answer in the order of the sites' names, by the caller's thread; what
                it gives is kept in the answer's place, which then is let go of.
        """
        ordered = sorted(set(site_ids))
        self._room.expect(ordered)
        futures = {
            site_id: self._crew.put(partial(self._persistently, question, site_id))
            for site_id in ordered
        }
        ok: dict[str, K] = {}
        failed: dict[str, FederatedLearningError] = {}
        try:
            for turn, site_id in enumerate(ordered):
                self._room.call(site_id)
                try:
                    answer = _result(futures.pop(site_id))
                except FederatedLearningError as exc:
                    failed[site_id] = exc
                    continue
                for following in ordered[turn + 1 : turn + 2]:  # is read while this one is taken in
                    self._room.call(following)
                ok[site_id] = taken(site_id, answer)
                del answer
        finally:
            self._room.expect(())  # nobody waits for a turn that does not come
        return Answers(ok=ok, failed=failed)

    def close(self) -> None:
        """Disconnect from every site; requests under way are not waited for."""
        self._crew.close()
        for site_id in self.communication.connected:
            self.communication.disconnect_from_datasite(site_id)

    def _persistently(self, question: Callable[[str], T], site_id: str) -> T:
        attempts = self._retrying.copy(
            before_sleep=lambda state: logger.bind(site_id=site_id).warning(
                "{}: attempt {} failed ({}); trying again",
                site_id,
                state.attempt_number,
                state.outcome.exception() if state.outcome else "",
            ),
        )
        return attempts(question, site_id)


def _result(future: Future[T]) -> T:
    """Wait for the result, in steps, so that Ctrl-C is seen whenever it comes."""
    while True:
        try:
            return future.result(timeout=_SIGNALS_S)
        except TimeoutError:
            if future.done():
                raise


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
