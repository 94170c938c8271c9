"""Where each site of a run stands; nowhere else does that change.

OFFLINE  not reached, or no answer in time: brought back before it is asked again
ONLINE   answered last
BUSY     at work on a request of this run, or it says that it works for somebody else
ERROR    answers, and cannot do what is asked: somebody must look; it is asked again all the same
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Final, NamedTuple

from loguru import logger

from core.enums import DataSiteStatus
from core.exceptions import (
    CalledOffError,
    CommunicationError,
    FederatedLearningError,
    PlanError,
    PrivacyBudgetError,
    SiteBusyError,
    WaitExpiredError,
)

_ANSWERS: Final = (CalledOffError, PlanError, PrivacyBudgetError, WaitExpiredError)
"""What a site in good order may answer: a person's decision, and nothing to be mended."""


class Standing(NamedTuple):
    """Where a site stands.

    Attributes:
        since: When it came to stand so.
        error: Why, if it is neither ONLINE nor at work for this run.
        requests: How many of this run it is at work on.
    """

    status: DataSiteStatus
    since: datetime
    error: FederatedLearningError | None = None
    requests: int = 0

    @property
    def is_away(self) -> bool:
        """Whether it was found to be OFFLINE; who was never asked may be there."""
        return self.status is DataSiteStatus.OFFLINE and self.error is not None


def again(error: FederatedLearningError | None) -> FederatedLearningError:
    """Give an equal error without its traceback, which holds on to the request that failed."""
    if error is None:
        return CommunicationError("it was never asked")
    return type(error)(str(error), site_id=error.site_id, round_num=error.round_num)


Told = Callable[[str, Standing], None]
"""Called with a site's name and its standing when its status has changed."""


class Circuits:
    """The standings of a run's sites; every method may be called by any thread.

    Args:
        site_ids: The sites; before they are asked they are OFFLINE.

    Attributes:
        listeners: Told of each change of a status.
        version: Grows with each change.
    """

    def __init__(self, site_ids: Sequence[str]) -> None:
        start = Standing(status=DataSiteStatus.OFFLINE, since=datetime.now(UTC))
        self._standings = dict.fromkeys(sorted(site_ids), start)
        self._changed = threading.Condition()
        self.listeners: list[Told] = [_log]
        self.version = 0

    def __getitem__(self, site_id: str) -> Standing:
        return self._standings.get(site_id, _UNKNOWN)

    @property
    def standings(self) -> Mapping[str, Standing]:
        """Every site's, by name, as they are now."""
        with self._changed:
            return MappingProxyType(dict(self._standings))

    @contextmanager
    def request(self, site_id: str) -> Iterator[None]:
        """Have what comes of a request, made within the context, change where the site stands."""
        self._change(site_id, self._begun)
        try:
            yield
        except FederatedLearningError as exc:
            error = exc
            self._change(site_id, lambda standing: _failed(_ended(standing), error))
            raise
        except BaseException:
            self._change(site_id, _ended)
            raise
        self._change(site_id, lambda standing: _answered(_ended(standing)))

    def failed(self, site_id: str, error: FederatedLearningError) -> None:
        """Take note of what went wrong, beside requests."""
        self._change(site_id, lambda standing: _failed(standing, error))

    def wait(self, claim: Callable[[], bool], *, limit_s: float) -> bool:
        """Wait for a change after which `claim` holds; whether it does."""
        with self._changed:
            return self._changed.wait_for(claim, timeout=limit_s)

    @staticmethod
    def _begun(standing: Standing) -> Standing:
        is_fine = standing.status in {DataSiteStatus.ONLINE, DataSiteStatus.BUSY}
        status = DataSiteStatus.BUSY if is_fine else standing.status
        return standing._replace(status=status, requests=standing.requests + 1)

    def _change(self, site_id: str, step: Callable[[Standing], Standing]) -> None:
        with self._changed:
            before = self[site_id]
            after = step(before)
            has_moved = after.status is not before.status
            if has_moved:
                after = after._replace(since=datetime.now(UTC))
            self._standings[site_id] = after
            self.version += 1
            self._changed.notify_all()
        if has_moved:
            for told in self.listeners:
                told(site_id, after)


def _ended(standing: Standing) -> Standing:
    requests = standing.requests - 1
    is_free = standing.status is DataSiteStatus.BUSY and not requests and standing.error is None
    status = DataSiteStatus.ONLINE if is_free else standing.status
    return standing._replace(status=status, requests=requests)


def _answered(standing: Standing) -> Standing:
    status = DataSiteStatus.BUSY if standing.requests else DataSiteStatus.ONLINE
    return standing._replace(status=status, error=None)


def _failed(standing: Standing, error: FederatedLearningError) -> Standing:
    if isinstance(error, _ANSWERS):
        return _answered(standing)
    if isinstance(error, SiteBusyError):
        return standing._replace(status=DataSiteStatus.BUSY, error=again(error))
    status = DataSiteStatus.OFFLINE if error.retryable else DataSiteStatus.ERROR
    return standing._replace(status=status, error=again(error))


def _log(site_id: str, standing: Standing) -> None:
    if standing.status is DataSiteStatus.ONLINE:
        logger.debug("{} is ONLINE", site_id)
    elif standing.status is not DataSiteStatus.BUSY:
        name, error = standing.status.name, standing.error
        logger.bind(site_id=site_id).warning("{} is {}: {}", site_id, name, error)


_UNKNOWN: Final = Standing(status=DataSiteStatus.OFFLINE, since=datetime.min.replace(tzinfo=UTC))
