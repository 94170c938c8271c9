"""The accounts of a site: who may log in, and as what."""

from typing import Final

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
from datasite.caller import Role
from datasite.identity import require_email, require_strong_password
from datasite.operator_door import Account
from datasite.pysyft.roles import PYSYFT_ROLES, ROLES

_ROUNDS: Final = 12
"""PySyft's own: 2^12 rounds of bcrypt, a quarter of a second."""

NO_ACCOUNT_HASH: Final = f"$2b${_ROUNDS}$ODWwQlhBDBAxAcnpvzSqlO54goF6KUl5JYmldwsCIkMnuh2KFrxcC"
"""Checked when there is no account; it matches no known password, and would open nothing."""

_LOG_IN_REFUSED: Final = (
    f"{REFUSED}no account has this e-mail and password, or it is disabled; ask the operator"
)


class Accounts:
    """The accounts kept in PySyft's database.

    Args:
        datasite: The open datasite.
        root: Its root account's authority.
    """

    def __init__(self, datasite: Datasite, root: AuthedServiceContext) -> None:
        self._service = datasite.services.user
        self._root = root

    def log_in(self, email: str, password: str) -> UserPrivateKey | SyftError:
        """Give the account's signing key, or one refusal for every reason there may be.

        A password is checked even when there is no account, so that the time an answer takes does
        not tell which e-mails have one.
        """
        user = self._find(email)
        try:
            matches = check_pwd(password, user.hashed_password if user else NO_ACCOUNT_HASH)
        except ValueError:  # bcrypt on a NUL
            matches = False
        if user is None or user.role not in ROLES or not matches:
            return SyftError(message=_LOG_IN_REFUSED)
        return user.to(UserPrivateKey)

    def create(self, *, email: str, name: str, password: str, role: Role) -> Account:
        """Open an account.

        Raises:
            ConfigurationError: The e-mail or the password will not do.
            DataSiteError: There is an account with this e-mail.
        """
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
        """Tell whether there is an account with this e-mail, a disabled one included."""
        return self._find(require_email(email)) is not None

    def all(self) -> list[Account]:
        """Give every account that can do something, by e-mail."""
        users = self._service.stash.get_all(self._root.credentials).unwrap()
        return sorted(
            (
                Account(email=user.email, name=user.name, role=ROLES[user.role])
                for user in users
                if user.role in ROLES
            ),
            key=lambda account: account.email,
        )

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
