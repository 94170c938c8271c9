"""What an auditor reads of one site, over the network: the whole audit log, checked, and the plans.

The chain is checked here and not there: who answers for a site cannot show a log with a row that
was changed, removed or moved, nor one that does not go on from a head that was noted before.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.auditchain import EMPTY, Head, follow
from core.exceptions import ConfigurationError, ProtocolError
from core.oversight_messages import (
    AuditEntry,
    AuditPage,
    AuditRequest,
    PlanRecord,
    PlansPage,
    PlansRequest,
)
from orchestrator.communication.base import SiteCommunication
from orchestrator.communication.live import PySyftCommunication
from orchestrator.federation import SiteAddress, load_federation
from orchestrator.naming import listed

_PATIENCE_S = 30.0


def read_log(communication: SiteCommunication, site_id: str) -> tuple[list[AuditEntry], Head]:
    """Give every row of the site's audit log, and its head.

    Raises:
        SecurityError: A row was changed, removed or moved, or the account is no auditor's.
        ProtocolError: The site does not show all the rows that it says there are.
        CommunicationError: The site was not reached.
    """
    rows: list[AuditEntry] = []
    head, newest = EMPTY, 1
    while head[0] < newest:
        request = AuditRequest(kind="audit", after=head[0])
        page = communication.request(request, AuditPage, site_id)
        if not rows:
            newest = page["newest"]  # of the first answer: each reading is a row, too
        if not page["rows"] and head[0] < newest:
            raise _incomplete(site_id, head[0], newest, "rows of its audit log")
        head = follow(page["rows"], head)
        rows += page["rows"]
    return rows, head


def read_plans(communication: SiteCommunication, site_id: str) -> list[PlanRecord]:
    """Give every plan that was proposed to the site, oldest first.

    Raises:
        SecurityError: The account is no auditor's.
        ProtocolError: The site does not show all the plans that it says there are.
        CommunicationError: The site was not reached.
    """
    plans: list[PlanRecord] = []
    total = 1
    while len(plans) < total:
        request = PlansRequest(kind="plans", after=len(plans))
        page = communication.request(request, PlansPage, site_id)
        total = page["total"]
        if not page["plans"] and len(plans) < total:
            raise _incomplete(site_id, len(plans), total, "plans")
        plans += page["plans"]
    return plans


@contextmanager
def logged_in(file: Path, site_id: str) -> Iterator[SiteCommunication]:
    """Log in to one site of a sites file, as the account that stands there.

    Raises:
        ConfigurationError: The file has mistakes, or no such site.
        CommunicationError: The site was not reached, or the log-in was refused.
    """
    address = _address(file, site_id)
    communication = PySyftCommunication(connect_s=_PATIENCE_S, call_s=_PATIENCE_S)
    communication.connect_to_datasite(address.url, address.credentials())
    try:
        yield communication
    finally:
        communication.disconnect_from_datasite(site_id)


def _address(file: Path, site_id: str) -> SiteAddress:
    sites = {site.site_id: site for site in load_federation(file).sites}
    if site_id not in sites:
        raise ConfigurationError(
            f"{file}: names no site {site_id!r}; it has: {listed(list(sites))}"
        )
    return sites[site_id]


def _incomplete(site_id: str, count: int, total: int, what: str) -> ProtocolError:
    return ProtocolError(
        f"{site_id}: shows {count} of {total} {what}; ask its operator", site_id=site_id
    )
