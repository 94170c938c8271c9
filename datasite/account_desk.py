"""What the operator decides on accounts, each decision with its row on the audit log."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from loguru import logger

from core.exceptions import ConfigurationError
from datasite.accounts import Account, Accounts
from datasite.audit import Entry
from datasite.caller import Role
from datasite.configuration import Credentials, SiteConfig, password_of
from datasite.identity import require_strong_password
from datasite.records import OPERATOR

CONFIGURATION = "site.yaml"
"""Who did it, on the audit log, when an account is opened because the configuration names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountDesk:
    """The accounts of the running site, on the operator's behalf; see `Accounts`.

    Attributes:
        accounts: Does it.
        write: Appends an entry to the audit log.
    """

    accounts: Accounts
    write: Callable[[Entry], None]

    def all(self) -> Sequence[Account]:
        """See `Accounts.all`."""
        return self.accounts.all()

    def has(self, email: str) -> bool:
        """See `Accounts.has`."""
        return self.accounts.has(email)

    def create(
        self, *, email: str, name: str, password: str, role: Role, by: str = OPERATOR
    ) -> Account:
        """See `Accounts.create`; `by` whom, for the audit log."""
        account = self.accounts.create(email=email, name=name, password=password, role=role)
        return self._written("account opened", account, by=by)

    def disable(self, email: str) -> Account:
        """See `Accounts.disable`."""
        return self._written("account disabled", self.accounts.disable(email))

    def enable(self, email: str, *, role: Role) -> Account:
        """See `Accounts.enable`."""
        return self._written("account enabled", self.accounts.enable(email, role=role))

    def set_password(self, email: str, password: str) -> Account:
        """See `Accounts.set_password`."""
        return self._written("password changed", self.accounts.set_password(email, password))

    def open_configured(self, wanted: "Sequence[ConfiguredAccount]") -> None:
        """Open the accounts that are not there; the others, disabled or not, stay as they are."""
        for account in wanted:
            if self.has(account.email):
                continue
            self.create(
                email=account.email,
                name=account.email,
                password=account.password,
                role=account.role,
                by=CONFIGURATION,
            )
            logger.info("{} has an account now, as site.yaml says", account.email)

    def _written(self, action: str, account: Account, *, by: str = OPERATOR) -> Account:
        role = account.role.value if account.role else None
        detail = {"account": account.email, "role": role}
        self.write(Entry(who=by, action=action, detail=detail))
        return account


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfiguredAccount:
    """An account that site.yaml names, with its password."""

    email: str
    password: str
    role: Role

    def __repr__(self) -> str:
        """Show everything but the password."""
        return f"ConfiguredAccount(email={self.email!r}, role={self.role})"


def configured_accounts(config: SiteConfig) -> list[ConfiguredAccount]:
    """Give the accounts that site.yaml names beside the operator's.

    Raises:
        ConfigurationError: A password cannot be read, or will not do; the message names its entry.
    """
    named: Mapping[str, tuple[Role, Sequence[Credentials]]] = {
        "researchers": (Role.RESEARCHER, config.researchers),
        "auditors": (Role.AUDITOR, config.auditors),
    }
    return [
        _configured(account, role, entry=f"{section}[{index}]")
        for section, (role, accounts) in named.items()
        for index, account in enumerate(accounts)
    ]


def _configured(account: Credentials, role: Role, *, entry: str) -> ConfiguredAccount:
    password = password_of(account, entry=entry)
    try:
        require_strong_password(password, email=account.email)
    except ConfigurationError as exc:
        raise ConfigurationError(f"{entry}: {exc}") from exc
    return ConfiguredAccount(email=account.email, password=password, role=role)
