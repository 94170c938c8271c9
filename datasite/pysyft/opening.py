"""How a PySyft datasite is opened: its identity, its database, its settings, and no noise."""

import contextlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path

from syft.server.credentials import SyftSigningKey
from syft.service.context import AuthedServiceContext
from syft.store.blob_storage.on_disk import OnDiskBlobStorageClientConfig, OnDiskBlobStorageConfig
from syft.store.db.sqlite import SQLiteDBConfig
from syft.types.uid import UID

from core.exceptions import ConfigurationError
from datasite.identity import Identity
from datasite.pysyft.hardened import HardenedDatasite

DATABASE = "site.db"


def open_datasite(
    site_id: str, kept: Path, identity: Identity, *, email: str, password: str
) -> HardenedDatasite:
    """Open the datasite kept in the folder `kept`, or make a new one there.

    Args:
        site_id: The name under which PySyft shows it.
        kept: Holds its database and blobs.
        identity: Who it is.
        email: The root account's, when it is made.
        password: Likewise.

    Raises:
        ConfigurationError: The environment overrides the identity.
    """
    with _quiet():
        datasite = HardenedDatasite(
            name=site_id,
            id=UID.from_string(identity.uid),
            signing_key=SyftSigningKey.from_string(identity.private_key),
            root_email=email,
            root_username="Operator",
            root_password=password,
            db_config=SQLiteDBConfig(filename=DATABASE, path=kept),
            blob_storage_config=OnDiskBlobStorageConfig(
                client_config=OnDiskBlobStorageClientConfig(base_directory=kept / "blobs"),
                min_blob_size=1,  # MB; smaller objects stay in the database
            ),
            deployment_type="remote",
            create_producer=False,
            n_consumers=0,
            background_tasks=False,
        )
    if datasite.id.no_dash != identity.uid or datasite.dev_mode:
        message = (
            "PySyft took another identity, or its developer mode, from the environment; unset "
            "SERVER_UID, SERVER_PRIVATE_KEY and DEV_MODE"
        )
        raise ConfigurationError(message)
    return datasite


def settle_settings(datasite: HardenedDatasite, root: AuthedServiceContext, site_id: str) -> None:
    """Forbid guests and sign-up, and name the site, from the first answer on.

    PySyft reads its settings once and keeps them until it is restarted, so what it has read is
    dropped. Shown to clients; what holds the doors shut is `HardenedDatasite`.
    """
    settings_stash = datasite.services.settings.stash
    settings = settings_stash.get_all(root.credentials).unwrap()[0]
    settings.name = datasite.name = site_id
    settings.allow_guest_sessions = False
    settings.signup_enabled = False
    settings_stash.update(root.credentials, obj=settings).unwrap()
    datasite._settings = None  # noqa: SLF001  PySyft has no way to read them again


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what PySyft prints and logs while it starts to itself.

    It prints the database's address, logs part of a hash of the key as critical, and raises the
    level of the root logger for the whole process.
    """
    logging.getLogger("syft").setLevel(logging.CRITICAL + 1)
    root_level = logging.getLogger().level
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.getLogger().setLevel(root_level)
