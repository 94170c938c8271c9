"""The error tree. Each class says who is at fault, how a command ends, and whether to try again.

    FederatedLearningError             exit 1
    |- ModelError                      parameters or architecture do not fit
    |- DataSiteError                   the site could not do its part
    |  `- SiteBusyError                ... because it is training for someone else (retryable)
    |- CommunicationError              exit 2, retryable: the other side was not reached
    |  |- DeadlineError                exit 3, retryable: it was reached and did not answer in time
    |  |- ProtocolError                not retryable: it answered something that cannot be read
    |  |- CertificateError             not retryable: nobody vouches that it is who it should be
    |  `- AuthenticationError          not retryable; also a SecurityError
    |- AggregationError                the updates of a round cannot be combined
    |- ExperimentError                 a run cannot go on
    |  `- WaitExpiredError             exit 3: what the run waited for did not happen in time
    |- ConfigurationError              exit 4: a file or an option is wrong
    |- SecurityError                   refused: not allowed
    |  `- PlanError                    ... because the plan does not cover it
    `- DataError                       sensor data do not keep their contract

Nine of these are the public contract (`from core import ...`); the others refine them, so that
catching the nine catches everything.
"""

from typing import ClassVar


class FederatedLearningError(Exception):
    """Base of every error that this system raises on purpose.

    Args:
        message: Who, what was found, what was expected, what to do next.
        site_id: The site concerned, where one is.
        round_num: The round concerned (from 0), where one is.
        outside: What a site may tell a researcher instead of a message that stays inside.

    Attributes:
        exit_code: What a command returns to the shell when this error ends it.
        retryable: Whether the same request may succeed when sent again.
        stays_inside: Whether the message may quote data or name files, and so is the operator's
            alone. Messages of other classes speak of the request, the plan and the site's state.
    """

    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False
    stays_inside: ClassVar[bool] = True

    def __init__(
        self,
        message: str = "",
        *,
        site_id: str | None = None,
        round_num: int | None = None,
        outside: str | None = None,
    ) -> None:
        super().__init__(message)
        self.site_id = site_id
        self.round_num = round_num
        self.outside = outside


class ModelError(FederatedLearningError):
    """A model cannot be built, loaded or run: wrong names, shapes, dtypes, or values not finite."""

    stays_inside = False


class DataSiteError(FederatedLearningError):
    """A site was reached but could not do what was asked: training failed, storage full."""

    stays_inside = False


class SiteBusyError(DataSiteError):
    """The site is training for another request; ask again later."""

    retryable = True


class CalledOffError(DataSiteError):
    """The work was stopped, because who had asked for it does not want it any more."""


class CommunicationError(FederatedLearningError):
    """A site could not be reached, or the connection broke."""

    exit_code = 2
    retryable = True
    stays_inside = False


class DeadlineError(CommunicationError):
    """A site was reached and did not answer within the time allowed."""

    exit_code = 3


class ProtocolError(CommunicationError):
    """Bytes arrived that are no valid message; sending the same again will not help."""

    retryable = False


class CertificateError(CommunicationError):
    """A site's certificate is not to be trusted: unknown authority, wrong name, not valid today."""

    retryable = False


class AggregationError(FederatedLearningError):
    """The updates of a round cannot be combined; the message names the site at fault."""

    stays_inside = False


class ExperimentError(FederatedLearningError):
    """A run cannot start or go on: too few sites, a broken run folder, an unknown run."""

    stays_inside = False


class WaitExpiredError(ExperimentError):
    """What a run waited for (an approval, enough sites) did not happen within its limit."""

    exit_code = 3


class ConfigurationError(FederatedLearningError):
    """A configuration file or a command's option is wrong; the message lists every mistake."""

    exit_code = 4
    stays_inside = False


class SecurityError(FederatedLearningError):
    """Refused: the caller, the plan or the site's policy does not allow it."""

    stays_inside = False


class PlanError(SecurityError):
    """No approved plan covers the request: unknown, waiting, denied, revoked, expired, exceeded."""


class PrivacyBudgetError(SecurityError):
    """A dataset's privacy budget is spent, or would be: the work was not done."""


class AuthenticationError(CommunicationError, SecurityError):
    """A log-in was refused."""

    retryable = False


class DataError(FederatedLearningError):
    """Sensor data break their contract: columns, types, ranges, labels, or too few rows."""
