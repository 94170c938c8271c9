"""What an account of a site is, and what can be done with the accounts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from datasite.caller import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """An account of the site.

    Attributes:
        email: What it logs in with.
        name: Whose it is.
        role: What it may do; None when it is disabled.
    """

    email: str
    name: str
    role: Role | None


class Accounts(Protocol):
    """The accounts of a running site.

    What is changed holds for the next call, on every channel: sessions of an account that is
    disabled, or has another password, are ended.
    """

    def all(self) -> Sequence[Account]:
        """Give every account, by e-mail."""

    def has(self, email: str) -> bool:
        """Tell whether there is an account with this e-mail, a disabled one included."""

    def create(self, *, email: str, name: str, password: str, role: Role) -> Account:
        """Open an account.

        Raises:
            ConfigurationError: The e-mail or the password will not do.
            DataSiteError: There is an account with this e-mail.
        """

    def disable(self, email: str) -> Account:
        """Take everything that the account may do from it; disabling again changes nothing.

        Raises:
            DataSiteError: There is no such account.
            ConfigurationError: It is the one that site.yaml names as the operator's.
        """

    def enable(self, email: str, *, role: Role) -> Account:
        """Let an account that is disabled do again what `role` may.

        Raises:
            DataSiteError: There is no such account, or it is not disabled.
        """

    def set_password(self, email: str, password: str) -> Account:
        """Give the account another password and another signing key.

        Who logged in with the old password can sign nothing any more, and must log in again.

        Raises:
            DataSiteError: There is no such account.
            ConfigurationError: The password will not do, or site.yaml says it.
        """
