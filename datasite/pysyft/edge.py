"""`PySyftSite`: one hardened PySyft datasite that carries bytes to the site's `handle`.

PySyft does identity, log-in, roles, signed calls, and datasets with mock data. Of its API only the
calls that `datasite.doors` names are served. Nothing of PySyft leaves this module: it speaks bytes
and our own types.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from syft import serialize
from syft.server.credentials import SyftVerifyKey
from syft.service.context import AuthedServiceContext
from syft.service.metadata.server_metadata import ServerMetadataJSON
from syft.service.user.user_roles import ServiceRole

from core.exceptions import ProtocolError
from core.pysyft_patches import deserialize_only
from datasite.accounts import Accounts
from datasite.caller import Caller
from datasite.changes import DatabaseChanges
from datasite.identity import Identity
from datasite.modes import private_directory
from datasite.publishing import PublishedDataset
from datasite.pysyft.accounts import PySyftAccounts
from datasite.pysyft.datasets import Datasets
from datasite.pysyft.opening import DATABASE, open_datasite, settle_settings
from datasite.sessions import Sessions

ENVELOPE: Final = frozenset({"SyftVerifyKey", "nacl_verify_key", "bytes"})
"""All that a signed call consists of before its content is looked at."""


class PySyftSite:
    """A running datasite's PySyft half: its database, accounts, datasets and HTTP routes.

    Args:
        site_id: The name under which PySyft shows the site.
        state: The site's private directory; database and blobs are kept in it.
        identity: Who the site is.
        operator_email: The root account's e-mail; changing it here changes the account.
        operator_password: Likewise.
        handle: Answers requests; called from several threads at once.
        on_refused: Told of each refused call: the caller's e-mail ("" for a stranger), the path.

    Raises:
        ConfigurationError: The environment overrides the identity, or another account has the
            operator's e-mail.
    """

    def __init__(
        self,
        *,
        site_id: str,
        state: Path,
        identity: Identity,
        operator_email: str,
        operator_password: str,
        handle: Callable[[bytes, Caller], bytes],
        on_refused: Callable[[str, str], None],
    ) -> None:
        kept = private_directory(state / "pysyft")
        is_new = not (kept / DATABASE).exists()
        self._datasite = open_datasite(
            site_id, kept, identity, email=operator_email, password=operator_password
        )
        self.sessions = Sessions(str(self._datasite.verify_key))
        self._datasite.sessions = self.sessions
        self._datasite.changes = DatabaseChanges(kept / DATABASE)
        self._datasite.known_signers = {}
        self._datasite.answer = handle
        self._datasite.on_refused = on_refused
        root = AuthedServiceContext(
            server=self._datasite, credentials=self._datasite.verify_key, role=ServiceRole.ADMIN
        )
        self._accounts = PySyftAccounts(self._datasite, root, self.sessions)
        self._datasite.accounts = self._accounts
        self.datasets = Datasets(self._datasite, root)
        if not is_new:  # a new one has just been given both
            self._accounts.settle_operator(operator_email, operator_password)
        settle_settings(self._datasite, root, site_id)
        # What PySyft computes anew for each log-in, at half a second, cannot change any more.
        self._metadata: dict[str, object] = self._datasite.metadata.to(
            ServerMetadataJSON
        ).model_dump()

    def close(self) -> None:
        """Stop PySyft's part; the database is consistent at every moment anyway."""
        self._datasite.stop()
        self._datasite.changes.close()
        self._datasite.db.engine.dispose()

    @property
    def accounts(self) -> Accounts:
        """The accounts."""
        return self._accounts

    def caller_of(self, key: str) -> Caller | None:
        """Give the account that signs with `key`, as it is now; None when it may do nothing."""
        return self._datasite.caller_of(key)

    def metadata(self) -> dict[str, object]:
        """Say who the site is, as PySyft's clients ask before they log in."""
        return self._metadata

    def api(self, verify_key: str, protocol: int | str) -> bytes | None:
        """Give the signatures that a PySyft client shows its user; None for strangers."""
        key = SyftVerifyKey.from_string(verify_key)
        if self._datasite.signer(key) is None:
            self._datasite.note_outsider(key, "signatures")
            return None
        return _encode(self._datasite.get_api(key, protocol))

    def log_in(self, email: str, password: str) -> tuple[bytes, str | None]:
        """See `PySyftAccounts.log_in`."""
        answer, refused = self._accounts.log_in(email, password)
        return _encode(answer), refused

    def call(self, blob: bytes) -> bytes:
        """Answer one signed call.

        Raises:
            ProtocolError: `blob` is no signed call.
        """
        try:
            signed = deserialize_only(blob, "SignedSyftAPICall", parts=ENVELOPE)
        except ValueError as exc:
            raise ProtocolError("not a signed PySyft call") from exc
        return _encode(self._datasite.handle_api_call(signed))

    def publish(self, dataset: PublishedDataset) -> None:
        """See `Datasets.publish`."""
        self.datasets.publish(dataset)

    def unpublish(self, name: str) -> None:
        """See `Datasets.unpublish`."""
        self.datasets.unpublish(name)

    def published_names(self) -> list[str]:
        """See `Datasets.names`."""
        return self.datasets.names()


def _encode(value: Any) -> bytes:  # noqa: ANN401  PySyft's values
    encoded: bytes = serialize(value, to_bytes=True)
    return encoded
