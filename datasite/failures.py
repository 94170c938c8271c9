"""Errors as answers: a refused or failed request gets a `Failure`, never a traceback.

What is told outside is decided here, and by default nothing is: a message leaves as it is when its
class says that such messages speak of no data and no file, and when it was our own code that
raised it. Of every other error the class leaves, and the site's private log has the rest.
"""

from types import TracebackType
from typing import Final

from loguru import logger

from core import exceptions
from core.exceptions import DataSiteError, FederatedLearningError
from core.messages import Failure

LONGEST_MESSAGE: Final = 4000
"""Characters; a message may name what the request brought along."""

_OURS: Final = frozenset({"core", "datasite"})


def as_failure(error: FederatedLearningError, *, site_id: str) -> Failure:
    """Give what the caller is told of `error`; what is kept back goes to the site's log."""
    is_own = _raised_by_us(error.__traceback__)
    name = _class_of(error).__name__
    if is_own and error.outside is not None:
        message = error.outside
    elif is_own and not error.stays_inside:
        message = str(error)
    else:
        message = f"{site_id}: failed with {name}; its log says why"
    if message != str(error):
        logger.opt(exception=error).bind(site_id=site_id).error("{} is not told in full", name)
    failure = Failure(
        kind="failure", error=name, message=message[:LONGEST_MESSAGE], datasite_id=site_id
    )
    if error.round_num is not None:
        failure["round_num"] = error.round_num
    return failure


def unexpected(error: Exception, *, site_id: str) -> DataSiteError:
    """Give the error that stands for one that nobody thought of; the site's log has that one."""
    logger.opt(exception=error).bind(site_id=site_id).error("request failed")
    return DataSiteError(f"{site_id}: failed with {type(error).__name__}; its log says why")


def _raised_by_us(trace: TracebackType | None) -> bool:
    """Tell whether the last frame is of our own code: a third party's model may raise our errors.

    What was never raised was made where it is answered.
    """
    if trace is None:
        return True
    while trace.tb_next is not None:
        trace = trace.tb_next
    return str(trace.tb_frame.f_globals.get("__name__")).partition(".")[0] in _OURS


def _class_of(error: FederatedLearningError) -> type[FederatedLearningError]:
    """Give the class of ours that it is of; a third party's own class may have any name."""
    return next(
        kind
        for kind in type(error).__mro__
        if kind.__module__ == exceptions.__name__ and issubclass(kind, FederatedLearningError)
    )
