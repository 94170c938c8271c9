"""Who is asking: what the carrier has established about the other side of a request."""

from dataclasses import dataclass
from enum import Enum
from typing import Final

from core.exceptions import SecurityError


class Role(Enum):
    """What an account of a site may do."""

    OPERATOR = "operator"
    AUDITOR = "auditor"
    RESEARCHER = "researcher"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """An authenticated account of the site.

    Attributes:
        email: The account's name.
        role: What it may do.
    """

    email: str
    role: Role


_READS: Final = frozenset({"audit", "plans"})
SECURE_KINDS: Final = frozenset(
    {"secure_keys", "secure_shares", "secure_mask", "secure_confirm", "secure_unmask"}
)
"""The steps of secure aggregation."""

_WORKS: Final = SECURE_KINDS | {
    "propose",
    "plan_status",
    "statistics",
    "privacy_account",
    "train",
    "evaluate",
    "cancel",
}
_ASKS: Final = {
    Role.OPERATOR: _READS | _WORKS,
    Role.AUDITOR: _READS,
    Role.RESEARCHER: _WORKS,
}
"""The kinds of request that a role may send, beside `describe`, which everybody may."""


def require_may_ask(caller: Caller, kind: str, *, site_id: str) -> None:
    """Do nothing when requests of this kind are for the caller's role; or for nobody.

    Raises:
        SecurityError: They are for another role.
    """
    if kind in (_READS | _WORKS) - _ASKS[caller.role]:
        raise SecurityError(
            f"{site_id}: {kind!r} is not for {_WITH_ARTICLE[caller.role]}; ask the operator for an "
            "account of another role",
            site_id=site_id,
        )


_WITH_ARTICLE: Final = {
    Role.OPERATOR: "an operator",
    Role.AUDITOR: "an auditor",
    Role.RESEARCHER: "a researcher",
}
