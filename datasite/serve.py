"""A site from its configuration to its last request: the parts, put together."""

from collections.abc import Sequence
from contextlib import closing

import pandas as pd
import yaml
from loguru import logger
from pydantic import JsonValue

from core.plans import PlanStatus
from datasite import audit
from datasite.account_desk import AccountDesk, configured_accounts
from datasite.certificates import SiteTls
from datasite.configuration import SiteConfig, Tls, open_state, password_of, require_private
from datasite.data.mock import make_mock
from datasite.data.reading import file_columns
from datasite.holding import held
from datasite.identity import require_email, require_strong_password
from datasite.operator_door import DoorActions, open_door
from datasite.private_log import private_log
from datasite.publishing import PublishedDataset
from datasite.refusals import Refusals
from datasite.registry import Dataset
from datasite.serving import PySyftServer
from datasite.site import FactoryDataSite
from datasite.trainer import Trainer, TrainerProcess


def serve(config: SiteConfig) -> None:
    """Serve the site until it is told to stop.

    Raises:
        ConfigurationError: An account's password will not do, the state cannot be opened, or
            others could read what the site keeps secret.
        DataSiteError: The port is taken, the site runs already, or what `private_log` says.
    """
    require_private(config)
    # What will not do is said before a state is made. It is read again when the trainer is there,
    # which begins as a copy of this process and need not hold what was read.
    _require_operator(config)
    configured_accounts(config)
    _open_tls(config.listen.tls)
    state = open_state(config)
    with held(state, site_id=config.site_id), private_log(state, site_id=config.site_id):
        threads = config.training.threads
        trainer = TrainerProcess(site_id=config.site_id, threads=threads, is_copy=True)
        with closing(trainer):
            _serve(config, trainer)


def _serve(config: SiteConfig, trainer: Trainer) -> None:
    accounts = configured_accounts(config)
    tls = _open_tls(config.listen.tls)
    site = FactoryDataSite(lambda _: trainer)
    refusals = Refusals(lambda entry: audit.write(site.ledger, entry))
    server = PySyftServer(
        site_id=config.site_id,
        state=config.state,
        host=config.listen.host,
        port=config.listen.port,
        operator_email=config.operator.email,
        operator_password=password_of(config.operator, entry="operator"),
        handle=site.handle,
        tls=tls,
        on_refused=refusals.note,
        allocate=site.allocate,
    )
    with closing(site), closing(refusals), closing(server):
        site.open(config)
        server.open()
        desk = AccountDesk(
            accounts=server.accounts, write=lambda entry: audit.write(site.ledger, entry)
        )
        desk.open_configured(accounts)
        _publish_registered(site, server)
        with open_door(_actions(site, server, desk, tls), config.state):
            server.run()


def _require_operator(config: SiteConfig) -> None:
    password = password_of(config.operator, entry="operator")
    require_strong_password(password, email=require_email(config.operator.email))


def _open_tls(settings: Tls | None) -> SiteTls | None:
    if settings is None:
        return None
    return SiteTls(certificate=settings.certificate, key=settings.key)


def _actions(
    site: FactoryDataSite, server: PySyftServer, desk: AccountDesk, tls: SiteTls | None
) -> DoorActions:
    return DoorActions(
        status=lambda: _status(site, server, tls),
        accounts=desk,
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
        private=_manifest(dataset),
    )


def _manifest(dataset: Dataset) -> pd.DataFrame:
    """Say which rows a dataset has, in their place; PySyft is given no private row at all.

    Nothing reads rows from PySyft: what trains is the site's own copy, whose hash is checked. In
    PySyft they would be a second copy in a server that the network reaches, whose known weakness
    is that approved code runs in it (CVE-2026-31220), and a million of them would have to fit into
    its memory. Whoever gets behind its doors finds where the rows lie, and what they hash to.
    """
    return pd.DataFrame(
        {
            "file": [dataset.file.name],
            "rows": [dataset.rows],
            "columns": [len(file_columns(dataset.schema))],
            "sha256": [dataset.sha256],
        }
    )
