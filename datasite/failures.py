"""Errors as answers: a refused or failed request gets a `Failure`, never a traceback."""

from core.exceptions import FederatedLearningError
from core.messages import Failure


def as_failure(error: FederatedLearningError, *, site_id: str) -> Failure:
    """Give what the caller is told of `error`: its class, and its message, which is ours."""
    failure = Failure(
        kind="failure", error=type(error).__name__, message=str(error), datasite_id=site_id
    )
    if error.round_num is not None:
        failure["round_num"] = error.round_num
    return failure
