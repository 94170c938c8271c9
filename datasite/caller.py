"""Who is asking: what the carrier has established about the other side of a request."""

from dataclasses import dataclass
from enum import Enum


class Role(Enum):
    """What an account of a site may do."""

    OPERATOR = "operator"
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
