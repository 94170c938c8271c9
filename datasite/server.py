"""The site's PySyft edge: one hardened PySyft datasite that carries bytes to the site's `handle`.

PySyft does identity, log-in, roles, signed calls, and datasets with mock data. Of its API only the
calls that `datasite.doors` names are served.

Nothing of PySyft leaves this module: `PySyftSite` speaks bytes and our own types. Importing it
imports PySyft, which takes seconds, so `datasite.serving` does it late.
"""

import contextlib
import io
import json
import logging
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from loguru import logger
from syft import serialize
from syft.client.api import SignedSyftAPICall, SyftAPICall, SyftAPIData
from syft.client.datasite_client import add_default_uploader
from syft.server import server as server_module
from syft.server.credentials import SyftSigningKey, SyftVerifyKey
from syft.server.datasite import Datasite
from syft.server.service_registry import ServiceRegistry
from syft.service import response as response_module
from syft.service.context import AuthedServiceContext
from syft.service.dataset.dataset import CreateAsset, CreateDataset, Dataset
from syft.service.metadata.server_metadata import ServerMetadataJSON
from syft.service.response import SyftError, SyftSuccess
from syft.service.service import AbstractService, service_method
from syft.service.user.user import (
    User,
    UserPrivateKey,
    check_pwd,
    salt_and_hash_password,
)
from syft.service.user.user_roles import DATA_SCIENTIST_ROLE_LEVEL, ServiceRole
from syft.store.blob_storage.on_disk import OnDiskBlobStorageClientConfig, OnDiskBlobStorageConfig
from syft.store.db.sqlite import SQLiteDBConfig
from syft.store.document_store_errors import NotFoundException
from syft.types.errors import SyftException
from syft.types.twin_object import TwinObject
from syft.types.uid import UID

from core.exceptions import ConfigurationError, DataSiteError, ProtocolError, SecurityError
from core.pysyft_patches import REFUSED, deserialize_only
from datasite.caller import Caller, Role
from datasite.changes import DatabaseChanges
from datasite.doors import HANDLE_PATH, SESSION_PATH, reason_to_refuse
from datasite.identity import Identity, private_directory, require_email, require_strong_password
from datasite.operator_door import Account
from datasite.publishing import PublishedDataset
from datasite.sessions import Sessions

_ROLES: Final = {
    ServiceRole.ADMIN: Role.OPERATOR,
    ServiceRole.DATA_SCIENTIST: Role.RESEARCHER,
}
"""An account with another of PySyft's roles (guest, data owner, none) is disabled here."""

_PYSYFT_ROLES: Final = {role: pysyft_role for pysyft_role, role in _ROLES.items()}
_NO_ACCOUNT_HASH: Final = salt_and_hash_password("no account has this password", 12)[1]
_LOG_IN_REFUSED: Final = (
    f"{REFUSED}no account has this e-mail and password, or it is disabled; ask the operator"
)


@dataclass(frozen=True, slots=True)
class _Signer:
    """The account that signed the call being answered."""

    key: SyftVerifyKey
    user: User
    caller: Caller


_SIGNER: ContextVar[_Signer | None] = ContextVar("signer", default=None)


class FederationService(AbstractService):
    """The native PySyft service that carries our bytes."""

    def __init__(self, store: Any) -> None:  # noqa: ANN401  how PySyft builds services
        pass

    @service_method(path=HANDLE_PATH, name="handle", roles=DATA_SCIENTIST_ROLE_LEVEL)
    def handle(self, context: AuthedServiceContext, request: dict[str, bytes]) -> dict[str, bytes]:
        """Answer one request; bytes travel inside a dict because PySyft walks bare ones one by one.

        PySyft shows this method to its clients. Their calls are answered by `carry` directly: what
        PySyft does before it comes here costs more than the rest of the call.
        """
        answer: dict[str, bytes] = context.server.carry(request)
        return answer


@dataclass
class FederationRegistry(ServiceRegistry):
    """PySyft's services and ours."""

    # PySyft reads the annotations and fills it; a default because its parent has some.
    federation: FederationService = None  # type: ignore[assignment]


# A server builds whatever registry its module names; it takes none as an argument.
server_module.ServiceRegistry = FederationRegistry


def _drop(*_printed: object) -> None:
    """Take what PySyft prints in `print`'s place."""


# PySyft prints the traceback of each error it answers an administrator with, values included; the
# administrator gets it with the answer anyway.
response_module.print = _drop


class HardenedDatasite(Datasite):
    """A PySyft datasite whose doors are shut but for the calls that are named.

    The account behind a call is looked up before anything of the message but its signature is, and
    anew when the database has changed, so a deleted or demoted account is out at once.
    """

    answer: Callable[[bytes, Caller], bytes]
    on_refused: Callable[[str, str], None]
    sessions: Sessions
    changes: DatabaseChanges
    known_signers: dict[str, tuple[int, _Signer]]

    def signer(self, key: SyftVerifyKey) -> _Signer | None:
        """Give the account that signs with `key`; None for strangers and disabled accounts.

        It is read again whenever anything in the database has changed since.
        """
        seen = self.changes.version()
        known = self.known_signers.get(str(key))
        if known is not None and known[0] == seen:
            return known[1]
        signer = self._read_signer(key)
        if signer is not None:  # strangers are not remembered: they come in any number
            self.known_signers[str(key)] = (seen, signer)
        return signer

    def _read_signer(self, key: SyftVerifyKey) -> _Signer | None:
        try:
            user = self.services.user.stash.get_one(
                credentials=self.verify_key,
                filters={"verify_key": key},
                has_permission=True,  # saves looking up the root's own role each time
            ).unwrap()
        except NotFoundException:
            return None
        role = _ROLES.get(user.role)
        return _Signer(key, user, Caller(email=user.email, role=role)) if role else None

    def get_role_for_credentials(self, credentials: SyftVerifyKey) -> ServiceRole:
        """Give the role found for the call being answered; PySyft asks for it twice a call."""
        signer = _SIGNER.get()
        if signer is not None and signer.key == credentials:
            return signer.user.role
        return super().get_role_for_credentials(credentials)

    def handle_api_call(
        self,
        api_call: SignedSyftAPICall,
        job_id: UID | None = None,  # noqa: ARG002  PySyft's signature
        check_call_location: bool = True,  # noqa: ARG002, FBT001, FBT002  likewise
    ) -> SignedSyftAPICall:
        """Answer a call of PySyft's API, signed; a refusal is an answer too."""
        return SyftAPIData(data=self._result_of(api_call)).sign(self.signing_key)

    def _result_of(self, api_call: SignedSyftAPICall) -> Any:  # noqa: ANN401  PySyft's value
        if not api_call.is_valid:
            return SyftError(message=f"{REFUSED}the signature is not valid")
        signer = self.signer(api_call.credentials)
        if signer is None:
            self.on_refused("", "unknown or disabled account")
            return SyftError(
                message=f"{REFUSED}the account is unknown or disabled; ask the operator for one"
            )
        # A message may bring its own "decoded" form, which nobody signed: have it decoded here.
        api_call.cached_deseralized_message = None
        call = api_call.message
        reason = self._reason_to_refuse(call, signer.caller.role)
        if reason:
            self.on_refused(signer.caller.email, call.path)
            return SyftError(message=f"{REFUSED}{reason}")
        return self._served(api_call, signer)

    def _served(self, api_call: SignedSyftAPICall, signer: _Signer) -> Any:  # noqa: ANN401  likewise
        call = api_call.message
        token = _SIGNER.set(signer)
        try:
            if call.path == HANDLE_PATH:
                return SyftSuccess(message="", value=self.carry(call.kwargs.get("request")))
            if call.path == SESSION_PATH:
                return SyftSuccess(message="", value=self.open_session(call.kwargs.get("request")))
            return super().handle_api_call_with_unsigned_result(api_call)
        except SyftException as exc:
            return SyftError.from_public_exception(exc)
        except Exception as exc:  # noqa: BLE001  a factory must answer; the text may hold data
            logger.opt(exception=exc).error("call of {} failed", call.path)
            return SyftError(message=f"the site failed with {type(exc).__name__}; see its log")
        finally:
            _SIGNER.reset(token)

    def carry(self, request: object) -> dict[str, bytes]:
        """Have the site answer the bytes of the signer's request.

        Raises:
            SyftException: `request` is not a dict with bytes under "x".
        """
        signer, content = self._asked(request, HANDLE_PATH)
        return {"x": self.answer(content, signer.caller)}

    def open_session(self, request: object) -> dict[str, bytes]:
        """Open a session with the signer, from the signer's half of the exchange.

        Raises:
            SyftException: `request` is not a dict with such a half under "x".
        """
        signer, content = self._asked(request, SESSION_PATH)
        try:
            offer = self.sessions.open(
                content, caller_key=str(signer.key), email=signer.caller.email
            )
        except SecurityError as exc:
            raise SyftException(public_message=str(exc)) from exc
        return {"x": json.dumps(offer).encode()}

    @staticmethod
    def _asked(request: object, path: str) -> tuple[_Signer, bytes]:
        signer = _SIGNER.get()
        content = request.get("x") if isinstance(request, dict) else None
        if signer is None or not isinstance(content, bytes):
            raise SyftException(public_message=f"{path} takes {{'x': bytes}}")
        return signer, content

    def caller_of(self, key: str) -> Caller | None:
        """Give the account that signs with `key`, as it is now; None when it may do nothing."""
        signer = self.signer(SyftVerifyKey.from_string(key))
        return signer.caller if signer else None

    def _reason_to_refuse(self, call: SyftAPICall, role: Role) -> str | None:
        if call.server_uid != self.id:
            return "the call is for another site; log in again"
        if not call.blocking:
            return "there are no jobs here; call with blocking=True"
        return reason_to_refuse(call.path, role, args=call.args, kwargs=call.kwargs)


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
        with _quiet():
            self._datasite = _open_datasite(
                site_id, kept, identity, operator_email, operator_password
            )
        self.sessions = Sessions(str(self._datasite.verify_key))
        self._datasite.sessions = self.sessions
        self._datasite.changes = DatabaseChanges(kept / "site.db")
        self._datasite.known_signers = {}
        self._datasite.answer = handle
        self._datasite.on_refused = on_refused
        self._root = AuthedServiceContext(
            server=self._datasite, credentials=self._datasite.verify_key, role=ServiceRole.ADMIN
        )
        self._services = self._datasite.services
        self._settle_operator(operator_email, operator_password)
        self._settle_settings(site_id)
        # What PySyft computes anew for each log-in, at half a second, cannot change any more.
        self._metadata: dict[str, object] = self._datasite.metadata.to(
            ServerMetadataJSON
        ).model_dump()

    def close(self) -> None:
        """Stop PySyft's part; the database is consistent at every moment anyway."""
        self._datasite.stop()
        self._datasite.changes.close()
        self._datasite.db.engine.dispose()

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
            return None
        return _encode(self._datasite.get_api(key, protocol))

    def log_in(self, email: str, password: str) -> bytes:
        """Give the account's signing key, or one refusal for every reason there may be.

        A password is checked even when there is no account, so that the time an answer takes does
        not tell which e-mails have one.
        """
        user = self._user(email)
        try:
            matches = check_pwd(password, user.hashed_password if user else _NO_ACCOUNT_HASH)
        except ValueError:  # bcrypt on a NUL
            matches = False
        if user is None or user.role not in _ROLES or not matches:
            return _encode(SyftError(message=_LOG_IN_REFUSED))
        return _encode(user.to(UserPrivateKey))

    def call(self, blob: bytes) -> bytes:
        """Answer one signed call.

        Raises:
            ProtocolError: `blob` is no signed call.
        """
        try:
            signed = deserialize_only(blob, "SignedSyftAPICall")
        except ValueError as exc:
            raise ProtocolError("not a signed PySyft call") from exc
        return _encode(self._datasite.handle_api_call(signed))

    def create_user(self, *, email: str, name: str, password: str, role: Role) -> Account:
        """Open an account.

        Raises:
            ConfigurationError: The e-mail or the password will not do.
            DataSiteError: There is an account with this e-mail.
        """
        email = require_email(email)
        require_strong_password(password, email=email)
        try:
            self._services.user.create(
                self._root,
                email=email,
                name=name,
                password=password,
                password_verify=password,
                role=_PYSYFT_ROLES[role],
            )
        except SyftException as exc:
            message = f"no account was opened for {email}: {exc.public_message}"
            raise DataSiteError(message) from exc
        return Account(email=email, name=name, role=role)

    def has_account(self, email: str) -> bool:
        """Tell whether there is an account with this e-mail, a disabled one included."""
        return self._user(require_email(email)) is not None

    def list_users(self) -> list[Account]:
        """Give every account that can do something, by e-mail."""
        users = self._services.user.stash.get_all(self._root.credentials).unwrap()
        return sorted(
            (
                Account(email=user.email, name=user.name, role=_ROLES[user.role])
                for user in users
                if user.role in _ROLES
            ),
            key=lambda account: account.email,
        )

    def publish(self, dataset: PublishedDataset) -> None:
        """Make `dataset` the PySyft dataset of its name; the same version again changes nothing.

        Raises:
            DataSiteError: PySyft could not store it; the message says why.
        """
        shown = self._datasets().get(dataset.name)
        if shown is not None and str(shown.description) == dataset.page():
            return
        if shown is not None:
            self.unpublish(dataset.name)
        try:
            self._services.dataset.add(self._root, self._draft(dataset))
        except SyftException as exc:
            message = f"dataset {dataset.name!r} was not published: {exc.public_message}"
            raise DataSiteError(message) from exc

    def unpublish(self, name: str) -> None:
        """Remove the PySyft dataset `name` with its rows and mock; nothing happens without one."""
        dataset = self._datasets().get(name)
        if dataset is None:
            return
        self._services.dataset.delete(self._root, dataset.id)
        # PySyft only marks it as deleted, and keeps the name under another.
        self._services.dataset.stash.delete_by_uid(self._root.credentials, dataset.id).unwrap()

    def published_names(self) -> list[str]:
        """Name the datasets that a PySyft client sees, in alphabetical order."""
        return sorted(self._datasets())

    def _datasets(self) -> dict[str, Dataset]:
        datasets = self._services.dataset.stash.get_all_active(self._root.credentials).unwrap()
        return {dataset.name: dataset for dataset in datasets}

    def _draft(self, dataset: PublishedDataset) -> CreateDataset:
        """Store rows and mock as one twin object, and describe it."""
        twin = TwinObject(
            private_obj=dataset.private,
            mock_obj=dataset.mock,
            syft_server_location=self._datasite.id,
            syft_client_verify_key=self._datasite.verify_key,
        )
        twin._save_to_blob_storage().unwrap()  # noqa: SLF001  PySyft's own upload does the same
        self._services.action.set(self._root, twin)
        asset = CreateAsset(
            name=dataset.name,
            data=dataset.private,
            mock=dataset.mock,
            mock_is_real=False,
            action_id=twin.id,
            server_uid=self._datasite.id,
        )
        draft = CreateDataset(name=dataset.name)
        draft.set_description(dataset.page())
        operator = self._services.user.get_current_user(self._root)
        draft.asset_list = [add_default_uploader(operator, asset)]
        return add_default_uploader(operator, draft)

    def _user(self, email: str) -> User | None:
        try:
            return self._services.user.stash.get_by_email(self._root.credentials, email).unwrap()
        except NotFoundException:
            return None

    def _settle_operator(self, email: str, password: str) -> None:
        """Give the root account the configured e-mail and password; PySyft sets them once only."""
        users = self._services.user.stash
        user = users.get_by_verify_key(self._root.credentials, self._root.credentials).unwrap()
        if user.email == email and check_pwd(password, user.hashed_password):
            return
        user.email = email
        user.salt, user.hashed_password = salt_and_hash_password(password, 12)
        try:
            users.update(self._root.credentials, obj=user, has_permission=True).unwrap()
        except SyftException as exc:
            message = f"{email} cannot become the operator's e-mail; another account has it"
            raise ConfigurationError(message) from exc

    def _settle_settings(self, site_id: str) -> None:
        """Forbid guests and sign-up, and name the site, from the first answer on.

        PySyft reads its settings once and keeps them until it is restarted, so what it has read is
        dropped. Shown to clients; what holds the doors shut is `HardenedDatasite`.
        """
        settings_stash = self._services.settings.stash
        settings = settings_stash.get_all(self._root.credentials).unwrap()[0]
        settings.name = self._datasite.name = site_id
        settings.allow_guest_sessions = False
        settings.signup_enabled = False
        settings_stash.update(self._root.credentials, obj=settings).unwrap()
        self._datasite._settings = None  # noqa: SLF001  PySyft has no way to read them again


def _open_datasite(
    site_id: str, kept: Path, identity: Identity, email: str, password: str
) -> HardenedDatasite:
    datasite = HardenedDatasite(
        name=site_id,
        id=UID.from_string(identity.uid),
        signing_key=SyftSigningKey.from_string(identity.private_key),
        root_email=email,
        root_username="Operator",
        root_password=password,
        db_config=SQLiteDBConfig(filename="site.db", path=kept),
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


def _encode(value: Any) -> bytes:  # noqa: ANN401  PySyft's values
    encoded: bytes = serialize(value, to_bytes=True)
    return encoded
