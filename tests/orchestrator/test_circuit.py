"""Where a site stands: each answer and each failure moves it by one table."""

import pytest

from core.enums import DataSiteStatus
from core.exceptions import (
    AggregationError,
    AuthenticationError,
    CalledOffError,
    CertificateError,
    CommunicationError,
    DataError,
    DataSiteError,
    DeadlineError,
    FederatedLearningError,
    ModelError,
    PlanError,
    PrivacyBudgetError,
    ProtocolError,
    SecurityError,
    SiteBusyError,
)
from orchestrator.circuit import Circuits, Standing

SITE = "factory-1"


def circuits() -> Circuits:
    """Give the standings of one site."""
    return Circuits([SITE])


def fail(made: Circuits, error: FederatedLearningError) -> None:
    """Have a request fail."""
    with pytest.raises(type(error)), made.request(SITE):
        raise error


def answer(made: Circuits) -> None:
    """Have a request answered."""
    with made.request(SITE):
        pass


def test_a_site_that_was_never_asked_is_offline_and_not_away() -> None:
    """Nobody knows better, and it may be asked."""
    standing = circuits()[SITE]
    assert (standing.status, standing.is_away) == (DataSiteStatus.OFFLINE, False)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (CommunicationError, "OFFLINE"),
        (DeadlineError, "OFFLINE"),
        (SiteBusyError, "BUSY"),
        (PlanError, "ONLINE"),
        (PrivacyBudgetError, "ONLINE"),
        (CalledOffError, "ONLINE"),
        (AuthenticationError, "ERROR"),
        (CertificateError, "ERROR"),
        (ProtocolError, "ERROR"),
        (SecurityError, "ERROR"),
        (DataSiteError, "ERROR"),
        (ModelError, "ERROR"),
        (DataError, "ERROR"),
        (AggregationError, "ERROR"),
    ],
)
@pytest.mark.parametrize("before", ["unasked", "online", "error"])
def test_a_failure_moves_a_site(
    error: type[FederatedLearningError], status: str, before: str
) -> None:
    """Wherever it stood; what is not in order is kept with the reason."""
    made = circuits()
    if before == "online":
        answer(made)
    elif before == "error":
        fail(made, DataSiteError("before"))
    fail(made, error("what happened"))
    standing = made[SITE]
    assert standing.status.name == status
    assert str(standing.error or "") == ("" if status == "ONLINE" else "what happened")
    assert standing.is_away == (status == "OFFLINE")


@pytest.mark.parametrize(
    "error", [CommunicationError("a"), SiteBusyError("a"), DataSiteError("a"), ProtocolError("a")]
)
def test_an_answer_heals_whatever_was(error: FederatedLearningError) -> None:
    """It is ONLINE again, and nothing is held against it."""
    made = circuits()
    fail(made, error)
    answer(made)
    assert (made[SITE].status, made[SITE].error) == (DataSiteStatus.ONLINE, None)


def test_a_site_at_work_is_busy_until_its_last_answer() -> None:
    """Two requests at once, one after the other done."""
    made = circuits()
    answer(made)
    with made.request(SITE):
        with made.request(SITE):
            assert made[SITE].status is DataSiteStatus.BUSY
        assert made[SITE].status is DataSiteStatus.BUSY
    assert made[SITE].status is DataSiteStatus.ONLINE


def test_a_site_that_is_away_is_not_busy_while_it_is_tried() -> None:
    """It is there only when it has answered."""
    made = circuits()
    fail(made, CommunicationError("down"))
    with made.request(SITE):
        assert made[SITE].status is DataSiteStatus.OFFLINE


def test_a_mistake_in_the_program_is_not_the_sites() -> None:
    """Where it stands does not change."""
    made = circuits()
    answer(made)
    with pytest.raises(ZeroDivisionError), made.request(SITE):
        raise ZeroDivisionError
    assert made[SITE].status is DataSiteStatus.ONLINE


def test_who_listens_is_told_of_each_change_once() -> None:
    """With what it has become."""
    made = circuits()
    heard: list[tuple[str, str]] = []

    def listen(site_id: str, standing: Standing) -> None:
        heard.append((site_id, standing.status.name))

    made.listeners.append(listen)
    answer(made)
    fail(made, CommunicationError("down"))
    fail(made, CommunicationError("down"))
    fail(made, DataSiteError("broken"))
    assert [status for _, status in heard] == ["ONLINE", "BUSY", "OFFLINE", "ERROR"]


def test_an_error_that_is_kept_holds_no_request() -> None:
    """Its traceback would keep a model in memory for as long as the site is away."""
    made = circuits()
    fail(made, CommunicationError("down", site_id=SITE, round_num=3))
    error = made[SITE].error
    assert error is not None
    assert error.__traceback__ is None
    assert (error.site_id, error.round_num) == (SITE, 3)
