"""The datasite whose doors are shut: whose call it is, which are served, what answers them."""

import json
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from loguru import logger
from syft.client.api import SignedSyftAPICall, SyftAPICall, SyftAPIData
from syft.server import server as server_module
from syft.server.credentials import SyftVerifyKey
from syft.server.datasite import Datasite
from syft.server.service_registry import ServiceRegistry
from syft.service import response as response_module
from syft.service.context import AuthedServiceContext
from syft.service.response import SyftError, SyftSuccess
from syft.service.service import AbstractService, service_method
from syft.service.user.user import User
from syft.service.user.user_roles import DATA_SCIENTIST_ROLE_LEVEL, ServiceRole
from syft.store.document_store_errors import NotFoundException
from syft.types.errors import SyftException
from syft.types.uid import UID

from core.exceptions import SecurityError
from core.pysyft_patches import REFUSED, deserialize_only
from datasite.caller import Caller
from datasite.changes import DatabaseChanges
from datasite.doors import HANDLE_PATH, SESSION_PATH, changes_password, reason_to_refuse
from datasite.pysyft.accounts import PySyftAccounts
from datasite.pysyft.roles import ROLES
from datasite.sessions import Sessions


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
    accounts: PySyftAccounts
    sessions: Sessions
    changes: DatabaseChanges
    known_signers: dict[str, tuple[int, _Signer]]

    def signer(self, key: SyftVerifyKey) -> _Signer | None:
        """Give the account that signs with `key`; None for strangers and disabled accounts.

        It is read again whenever anything in the database has changed since.
        """
        seen, name = self.changes.version(), str(key)
        signer = self._remembered(name, seen)
        if signer is None:
            signer = self._read_signer(key)
            if signer is not None:  # strangers are not remembered: they come in any number
                self.known_signers[name] = (seen, signer)
        return signer

    def _remembered(self, key: str, seen: int) -> _Signer | None:
        """Give what was read of the account that signs with `key`, if nothing changed since."""
        known = self.known_signers.get(key)
        return known[1] if known is not None and known[0] == seen else None

    def _read_signer(self, key: SyftVerifyKey) -> _Signer | None:
        user = self._user_with(key)
        role = ROLES.get(user.role) if user else None
        return _Signer(key, user, Caller(email=user.email, role=role)) if user and role else None

    def _user_with(self, key: SyftVerifyKey) -> User | None:
        try:
            return self.services.user.stash.get_one(
                credentials=self.verify_key,
                filters={"verify_key": key},
                has_permission=True,  # saves looking up the root's own role each time
            ).unwrap()
        except NotFoundException:
            return None

    def note_outsider(self, key: SyftVerifyKey, what: str) -> None:
        """Write down that one was refused who may do nothing: a disabled account, or a stranger."""
        user = self._user_with(key)
        self.on_refused(user.email if user else "", what)

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
        if not _is_signed(api_call):
            self.on_refused("", "invalid signature")
            return SyftError(message=f"{REFUSED}the signature is not valid")
        signer = self.signer(api_call.credentials)
        if signer is None:
            self.note_outsider(api_call.credentials, "unknown or disabled account")
            return SyftError(
                message=f"{REFUSED}the account is unknown or disabled; ask the operator for one"
            )
        try:
            call = deserialize_only(api_call.serialized_message, "SyftAPICall")
        except ValueError:
            self.on_refused(signer.caller.email, "unreadable call")
            return SyftError(message=f"{REFUSED}what was signed is no call that can be read")
        # A message may bring its own "decoded" form, which nobody signed.
        api_call.cached_deseralized_message = call
        reason = self._reason_to_refuse(call, signer)
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
            result = super().handle_api_call_with_unsigned_result(api_call)
            if isinstance(result, SyftError):
                self.on_refused(signer.caller.email, call.path)
            elif changes_password(call.path, call.kwargs):
                self._renew_key(call.kwargs["uid"])
            return result  # noqa: TRY300
        except SyftException as exc:
            self.on_refused(signer.caller.email, call.path)
            return SyftError.from_public_exception(exc)
        except Exception as exc:  # noqa: BLE001  a factory must answer; the text may hold data
            logger.opt(exception=exc).error("call of {} failed", call.path)
            return SyftError(message=f"the site failed with {type(exc).__name__}; see its log")
        finally:
            _SIGNER.reset(token)

    def _renew_key(self, uid: UID) -> None:
        """End what was begun with an account's last password; the root's key is the site's."""
        user = self.services.user.stash.get_by_uid(
            self.verify_key, uid, has_permission=True
        ).unwrap()
        if user.verify_key != self.verify_key:
            self.accounts.renew_key(user.email)

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
        signer = self._remembered(key, self.changes.version())
        if signer is None:
            signer = self.signer(SyftVerifyKey.from_string(key))
        return signer.caller if signer else None

    def _reason_to_refuse(self, call: SyftAPICall, signer: _Signer) -> str | None:
        if call.server_uid != self.id:
            return "the call is for another site; log in again"
        if not call.blocking:
            return "there are no jobs here; call with blocking=True"
        return reason_to_refuse(
            call.path,
            signer.caller.role,
            args=call.args,
            kwargs=call.kwargs,
            own_uid=signer.user.id,
        )


def _is_signed(api_call: SignedSyftAPICall) -> bool:
    """Tell whether the account's key signed the call; a signature of another length is none."""
    try:
        return bool(api_call.is_valid)
    except ValueError:
        return False
