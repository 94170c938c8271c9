"""A look at every site of a sites file, before an experiment is trusted to them."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

from loguru import logger

from core.enums import DataSiteStatus
from core.exceptions import FederatedLearningError
from core.messages import SiteDescription
from orchestrator.agreement import describe_sites
from orchestrator.communication.channel import site_at
from orchestrator.communication.live import PySyftCommunication
from orchestrator.federation import SiteAddress, load_federation
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


def watch(file: Path, *, every_s: float) -> NoReturn:
    """Log which sites answer, and from then on each change, for ever.

    Nobody logs in: asked is who answers at each URL, which costs a site next to nothing.

    Raises:
        ConfigurationError: The file has mistakes.
    """
    addresses = load_federation(file).sites
    known: dict[str, str] = {}
    with ThreadPoolExecutor(max_workers=len(addresses)) as pool:
        while True:
            found = pool.map(_trouble, addresses)
            for address, trouble in zip(addresses, found, strict=True):
                if known.get(address.site_id) != trouble:
                    known[address.site_id] = trouble
                    logger.bind(site_id=address.site_id).log(
                        "WARNING" if trouble else "INFO",
                        "{} {}",
                        address.site_id,
                        f"is away: {trouble}" if trouble else f"answers at {address.url}",
                    )
            time.sleep(every_s)


def _trouble(address: SiteAddress) -> str:
    """Say why a site cannot be worked with; nothing when it can."""
    try:
        found = site_at(address.url, timeout_s=_PATIENCE_S, ca_file=address.ca_file)
    except FederatedLearningError as exc:
        return str(exc)
    return "" if found.name == address.site_id else f"{address.url} is {found.name!r}"


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
