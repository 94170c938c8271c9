"""A look at every site of a sites file, before an experiment is trusted to them."""

from pathlib import Path
from typing import Any

from core.enums import DataSiteStatus
from core.exceptions import FederatedLearningError
from core.messages import SiteDescription
from orchestrator.agreement import describe_sites
from orchestrator.communication.live import PySyftCommunication
from orchestrator.federation import load_federation
from orchestrator.fleet import Fleet

_PATIENCE_S = 15.0


def survey(file: Path) -> list[dict[str, Any]]:
    """Log in to each site and give what it offers; `message` says why one could not be asked.

    Raises:
        ConfigurationError: The file has mistakes.
    """
    addresses = load_federation(file).sites
    communication = PySyftCommunication(connect_s=_PATIENCE_S, call_s=_PATIENCE_S)
    fleet = Fleet(communication, addresses, attempts=1)
    try:
        logins = fleet.connect()
        described = describe_sites(fleet, list(logins.ok))
    finally:
        fleet.close()
    failed = {**logins.failed, **described.failed}
    return [
        {
            "site_id": address.site_id,
            "url": address.url,
            **_facts(described.ok.get(address.site_id), failed.get(address.site_id)),
        }
        for address in addresses
    ]


def _facts(site: SiteDescription | None, error: FederatedLearningError | None) -> dict[str, str]:
    if site is None:
        message = str(error)
        return {
            "status": DataSiteStatus.OFFLINE.name,
            "version": "",
            "datasets": "",
            "message": message,
        }
    return {
        "status": site["status"],
        "version": site["version"],
        "datasets": ", ".join(f"{d['name']} ({d['rows']} rows)" for d in site["datasets"]),
        "message": "",
    }
