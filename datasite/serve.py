"""A site from its configuration to its last request: the parts, put together."""

from collections.abc import Mapping, Sequence

import yaml
from loguru import logger
from pydantic import JsonValue

from core.exceptions import ConfigurationError
from core.plans import PlanStatus
from datasite import audit
from datasite.caller import Role
from datasite.certificates import SiteTls
from datasite.configuration import SiteConfig, Tls, open_state, password_of, require_private
from datasite.data.mock import make_mock
from datasite.data.table import load_table
from datasite.holding import held
from datasite.identity import require_strong_password
from datasite.operator_door import DoorActions, open_door
from datasite.publishing import PublishedDataset
from datasite.registry import Dataset
from datasite.serving import PySyftServer
from datasite.site import FactoryDataSite


def serve(config: SiteConfig) -> None:
    """Serve the site until it is told to stop.

    Raises:
        ConfigurationError: An account's password will not do, the state cannot be opened, or
            others could read what the site keeps secret.
        DataSiteError: The port is taken, or the site runs already.
    """
    require_private(config)
    passwords = _researchers_passwords(config)
    tls = _open_tls(config.listen.tls)
    site = FactoryDataSite()
    server = PySyftServer(
        site_id=config.site_id,
        state=config.state,
        host=config.listen.host,
        port=config.listen.port,
        operator_email=config.operator.email,
        operator_password=password_of(config.operator, entry="operator"),
        handle=site.handle,
        tls=tls,
        on_refused=lambda email, path: _note_refusal(site, email, path),
        allocate=site.allocate,
    )
    with held(open_state(config), site_id=config.site_id):
        try:
            site.open(config)
            server.open()
            _open_accounts(server, passwords)
            _publish_registered(site, server)
            with open_door(_actions(site, server, tls), config.state):
                server.run()
        finally:
            server.close()
            site.close()


def _researchers_passwords(config: SiteConfig) -> dict[str, str]:
    """Give the passwords by e-mail; one that will not do is found before the slow start."""
    passwords = {}
    for index, researcher in enumerate(config.researchers):
        entry = f"researchers[{index}]"
        password = password_of(researcher, entry=entry)
        try:
            require_strong_password(password, email=researcher.email)
        except ConfigurationError as exc:
            raise ConfigurationError(f"{entry}: {exc}") from exc
        passwords[researcher.email] = password
    return passwords


def _open_accounts(server: PySyftServer, passwords: Mapping[str, str]) -> None:
    """Open the researchers' accounts that are not there; the others stay as they are."""
    for email, password in passwords.items():
        if not server.has_account(email):
            server.create_user(email=email, name=email, password=password, role=Role.RESEARCHER)
            logger.bind(site_id=server.site_id).info(
                "{} has an account now, as site.yaml says", email
            )


def _open_tls(settings: Tls | None) -> SiteTls | None:
    if settings is None:
        return None
    return SiteTls(certificate=settings.certificate, key=settings.key)


def _actions(site: FactoryDataSite, server: PySyftServer, tls: SiteTls | None) -> DoorActions:
    return DoorActions(
        status=lambda: _status(site, server, tls),
        users=server.list_users,
        create_user=server.create_user,
        publish=lambda: _publish_registered(site, server),
    )


def _status(
    site: FactoryDataSite, server: PySyftServer, tls: SiteTls | None
) -> dict[str, JsonValue]:
    described = site.describe()
    secured: dict[str, JsonValue] = (
        {} if tls is None else {"certificate_valid_until": tls.valid_until.isoformat()}
    )
    waiting = sum(plan.status is PlanStatus.WAITING for plan in site.plans.all())
    return {
        "site_id": described["datasite_id"],
        "status": described["status"],
        "url": server.url,
        **secured,
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
