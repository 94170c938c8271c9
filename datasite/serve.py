"""A site from its configuration to its last request: the parts, put together."""

from collections.abc import Sequence

import yaml
from loguru import logger
from pydantic import JsonValue

from core.plans import PlanStatus
from datasite import audit
from datasite.configuration import SiteConfig, operator_password
from datasite.data.mock import make_mock
from datasite.data.table import load_table
from datasite.operator_door import DoorActions, open_door
from datasite.publishing import PublishedDataset
from datasite.registry import Dataset
from datasite.serving import PySyftServer
from datasite.site import FactoryDataSite


def serve(config: SiteConfig) -> None:
    """Serve the site until it is told to stop.

    Raises:
        ConfigurationError: The operator's account will not do, or the state cannot be opened.
        DataSiteError: The port is taken, or the site runs already.
    """
    site = FactoryDataSite()
    server = PySyftServer(
        site_id=config.site_id,
        state=config.state,
        host=config.listen.host,
        port=config.listen.port,
        operator_email=config.operator.email,
        operator_password=operator_password(config),
        handle=site.handle,
        on_refused=lambda email, path: _note_refusal(site, email, path),
    )
    try:
        site.open(config)
        server.open()
        _publish_registered(site, server)
        with open_door(_actions(site, server), config.state):
            server.run()
    finally:
        server.close()
        site.close()


def _actions(site: FactoryDataSite, server: PySyftServer) -> DoorActions:
    return DoorActions(
        status=lambda: _status(site, server),
        users=server.list_users,
        create_user=server.create_user,
        publish=lambda: _publish_registered(site, server),
    )


def _status(site: FactoryDataSite, server: PySyftServer) -> dict[str, JsonValue]:
    described = site.describe()
    waiting = sum(plan.status is PlanStatus.WAITING for plan in site.plans.all())
    return {
        "site_id": described["datasite_id"],
        "status": described["status"],
        "url": f"http://{site.config.listen.host}:{server.port}",
        "version": described["version"],
        "code_hash": described["code_hash"],
        "datasets": [
            {"name": d["name"], "version": d["version"], "rows": d["rows"]}
            for d in described["datasets"]
        ],
        "waiting_plans": waiting,
    }


def _publish_registered(site: FactoryDataSite, server: PySyftServer) -> Sequence[str]:
    """Make PySyft show exactly what is registered; the names of what it shows."""
    current = {dataset.name: dataset for dataset in site.registry.current()}
    for name in server.published_names():
        if name not in current:
            server.unpublish(name)
    for dataset in current.values():
        server.publish(_as_published(dataset))
        logger.bind(site_id=site.config.site_id).debug("{} is published", dataset.name)
    return sorted(current)


def _as_published(dataset: Dataset) -> PublishedDataset:
    schema = dataset.schema
    return PublishedDataset(
        name=dataset.name,
        version=dataset.version,
        description=schema.description or schema.name,
        schema_text=yaml.safe_dump(schema.model_dump(mode="json"), sort_keys=False),
        mock=make_mock(schema),
        private=load_table(dataset.file, schema),
    )


def _note_refusal(site: FactoryDataSite, email: str, path: str) -> None:
    """Write down what an account was refused; a stranger, who could fill the ledger, is logged."""
    if not email:
        logger.warning("refused {} to a stranger", path)
        return
    entry = audit.Entry(
        who=email,
        action="call refused",
        outcome="SecurityError",
        detail={"path": path},
    )
    with site.ledger.transaction() as connection:
        audit.append(connection, entry)
