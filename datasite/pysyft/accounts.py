"""The accounts of a site: who may log in, and as what."""

from typing import Final

from syft.server.credentials import SyftSigningKey
from syft.server.datasite import Datasite
from syft.service.context import AuthedServiceContext
from syft.service.response import SyftError
from syft.service.user.user import (
    User,
    UserPrivateKey,
    check_pwd,
    salt_and_hash_password,
)
from syft.store.document_store_errors import NotFoundException
from syft.types.errors import SyftException

from core.exceptions import ConfigurationError, DataSiteError
from core.pysyft_patches import REFUSED
from datasite.accounts import Account
from datasite.caller import Role
from datasite.identity import require_email, require_strong_password
from datasite.pysyft.roles import DISABLED, PYSYFT_ROLES, ROLES
from datasite.sessions import Sessions

_ROUNDS: Final = 12
"""PySyft's own: 2^12 rounds of bcrypt, a quarter of a second."""

NO_ACCOUNT_HASH: Final = f"$2b${_ROUNDS}$ODWwQlhBDBAxAcnpvzSqlO54goF6KUl5JYmldwsCIkMnuh2KFrxcC"
"""Checked when there is no account; it matches no known password, and would open nothing."""

_LOG_IN_REFUSED: Final = (
    f"{REFUSED}no account has this e-mail and password, or it is disabled; ask the operator"
)


class PySyftAccounts:
    """The accounts kept in PySyft's database; see `datasite.accounts.Accounts`.

    Args:
        datasite: The open datasite.
        root: Its root account's authority.
        sessions: The open sessions.
    """

    def __init__(self, datasite: Datasite, root: AuthedServiceContext, sessions: Sessions) -> None:
        self._service = datasite.services.user
        self._root = root
        self._sessions = sessions

    def log_in(self, email: str, password: str) -> tuple[UserPrivateKey | SyftError, str | None]:
        """Give the account's signing key, or one refusal for every reason there may be.

        A password is checked even when there is no account, so that the time an answer takes does
        not tell which e-mails have one.

        Returns:
            The answer; None where it is the key, else whose account it was refused to, if any's.
        """
        user = self._find(email)
        try:
            matches = check_pwd(password, user.hashed_password if user else NO_ACCOUNT_HASH)
        except ValueError:  # bcrypt on a NUL
            matches = False
        if user is None or user.role not in ROLES or not matches:
            return SyftError(message=_LOG_IN_REFUSED), user.email if user else ""
        return user.to(UserPrivateKey), None

    def create(self, *, email: str, name: str, password: str, role: Role) -> Account:
        """See `Accounts.create`."""
        email = require_email(email)
        require_strong_password(password, email=email)
        try:
            self._service.create(
                self._root,
                email=email,
                name=name,
                password=password,
                password_verify=password,
                role=PYSYFT_ROLES[role],
            )
        except SyftException as exc:
            message = f"no account was opened for {email}: {exc.public_message}"
            raise DataSiteError(message) from exc
        return Account(email=email, name=name, role=role)

    def has(self, email: str) -> bool:
        """See `Accounts.has`."""
        return self._find(require_email(email)) is not None

    def all(self) -> list[Account]:
        """See `Accounts.all`."""
        users = self._service.stash.get_all(self._root.credentials).unwrap()
        return sorted(map(_as_account, users), key=lambda account: account.email)

    def disable(self, email: str) -> Account:
        """See `Accounts.disable`."""
        user = self._require(email)
        self._require_not_root(user, "cannot be disabled")
        user.role = DISABLED
        return self._keep(user, ends=str(user.verify_key))

    def enable(self, email: str, *, role: Role) -> Account:
        """See `Accounts.enable`."""
        user = self._require(email)
        if user.role in ROLES:
            message = f"{user.email} is not disabled: it is {ROLES[user.role].value}"
            raise DataSiteError(message)
        user.role = PYSYFT_ROLES[role]
        return self._keep(user)

    def set_password(self, email: str, password: str) -> Account:
        """See `Accounts.set_password`."""
        user = self._require(email)
        self._require_not_root(user, "has the password that site.yaml says; change it there")
        require_strong_password(password, email=user.email)
        user.salt, user.hashed_password = salt_and_hash_password(password, _ROUNDS)
        return self._renew_key(user)

    def renew_key(self, email: str) -> Account:
        """Give the account another signing key; whoever has the one before signs nothing with it.

        A log-in gives the key away, so a password that somebody else knew has given it to them.
        """
        return self._renew_key(self._require(email))

    def _renew_key(self, user: User) -> Account:
        old_key = str(user.verify_key)
        user.signing_key = SyftSigningKey.generate()
        user.verify_key = user.signing_key.verify_key
        return self._keep(user, ends=old_key)

    def _keep(self, user: User, *, ends: str | None = None) -> Account:
        """Store the account as it is now, then end the sessions that its key opened, if it must."""
        users = self._service.stash
        users.update(self._root.credentials, obj=user, has_permission=True).unwrap()
        if ends is not None:
            self._sessions.end_of(ends)
        return _as_account(user)

    def _require(self, email: str) -> User:
        user = self._find(require_email(email))
        if user is None:
            message = f"no account has the e-mail {email}; see 'datasite users list'"
            raise DataSiteError(message)
        return user

    def _require_not_root(self, user: User, why: str) -> None:
        if user.verify_key == self._root.credentials:
            message = f"{user.email} is the operator that site.yaml names, and {why}"
            raise ConfigurationError(message)

    def settle_operator(self, email: str, password: str) -> None:
        """Give the root account the configured e-mail and password; PySyft sets them once only.

        Raises:
            ConfigurationError: Another account has the e-mail.
        """
        users = self._service.stash
        user = users.get_by_verify_key(self._root.credentials, self._root.credentials).unwrap()
        if user.email == email and check_pwd(password, user.hashed_password):
            return
        user.email = email
        user.salt, user.hashed_password = salt_and_hash_password(password, _ROUNDS)
        try:
            users.update(self._root.credentials, obj=user, has_permission=True).unwrap()
        except SyftException as exc:
            message = f"{email} cannot become the operator's e-mail; another account has it"
            raise ConfigurationError(message) from exc

    def _find(self, email: str) -> User | None:
        try:
            return self._service.stash.get_by_email(self._root.credentials, email).unwrap()
        except NotFoundException:
            return None


def _as_account(user: User) -> Account:
    return Account(email=user.email, name=user.name, role=ROLES.get(user.role))
