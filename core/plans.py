"""Where a plan can stand. A plan is what an operator consents to; the rules are the site's."""

from enum import Enum, auto


class PlanStatus(Enum):
    """The life of a plan; stored and sent by name."""

    WAITING = auto()
    APPROVED = auto()
    DENIED = auto()
    REVOKED = auto()
