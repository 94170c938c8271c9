"""The sites of a run, asked all at once: one thread a site, retries where another try may help."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Thread
from typing import Any, Generic, TypeVar

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
from orchestrator.federation import SiteAddress

T = TypeVar("T")

_Errand = tuple[Future[Any], Callable[[], Any]]
"""What a site's thread is to do, and where what came of it goes."""

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
    """

    def __init__(
        self, communication: SiteCommunication, sites: Sequence[SiteAddress], *, attempts: int
    ) -> None:
        self.communication = communication
        self._addresses = {site.site_id: site for site in sites}
        self._attempts = attempts
        self._errands: dict[str, SimpleQueue[_Errand | None]] = {}

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
        """Put `question` to each site in a thread of its own, and wait for all."""
        futures = {site_id: self._put(question, site_id) for site_id in sorted(set(site_ids))}
        while wait(futures.values(), timeout=_SIGNALS_S).not_done:
            pass
        ok: dict[str, T] = {}
        failed: dict[str, FederatedLearningError] = {}
        for site_id, future in futures.items():
            try:
                ok[site_id] = future.result()
            except FederatedLearningError as exc:
                failed[site_id] = exc
        return Answers(ok=ok, failed=failed)

    def close(self) -> None:
        """Disconnect from every site; requests under way are not waited for."""
        for errands in self._errands.values():
            errands.put(None)
        self._errands.clear()
        for site_id in self.communication.connected:
            self.communication.disconnect_from_datasite(site_id)

    def _put(self, question: Callable[[str], T], site_id: str) -> Future[T]:
        """Hand `question` to the site's own thread, which is started with the first."""
        if site_id not in self._errands:
            self._errands[site_id] = SimpleQueue()
            # A pool's threads are waited for at the end of the process: after Ctrl-C, for as long
            # as the slowest site takes. A daemon is not.
            Thread(
                target=_run_errands, args=(self._errands[site_id],), name=site_id, daemon=True
            ).start()
        future: Future[T] = Future()
        self._errands[site_id].put((future, lambda: self._persistently(question, site_id)))
        return future

    def _persistently(self, question: Callable[[str], T], site_id: str) -> T:
        attempts = Retrying(
            retry=retry_if_exception(_is_retryable),
            stop=stop_after_attempt(self._attempts),
            wait=wait_exponential_jitter(initial=_FIRST_WAIT_S, max=_LONGEST_WAIT_S),
            reraise=True,
            before_sleep=lambda state: logger.bind(site_id=site_id).warning(
                "{}: attempt {} failed ({}); trying again",
                site_id,
                state.attempt_number,
                state.outcome.exception() if state.outcome else "",
            ),
        )
        return attempts(question, site_id)


def _run_errands(errands: SimpleQueue[_Errand | None]) -> None:
    while (errand := errands.get()) is not None:
        future, work = errand
        try:
            future.set_result(work())
        except BaseException as exc:  # noqa: BLE001 - raised where the answer is read
            future.set_exception(exc)


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
