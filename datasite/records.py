"""A site's kept records: enough for the operator's commands, beside a running site or without it.

Opening them imports neither PyTorch nor pandas, so that a command answers at once.
"""

from dataclasses import dataclass
from typing import Self

from datasite.budgets import Budgets
from datasite.configuration import SiteConfig, open_state
from datasite.ledger import Ledger
from datasite.plans import Plans
from datasite.registry import Registry

OPERATOR = "operator"
"""Who did it, in the audit log, when it was somebody with access to the site's files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """The open records of one site."""

    config: SiteConfig
    ledger: Ledger
    registry: Registry
    plans: Plans
    budgets: Budgets

    @classmethod
    def open(cls, config: SiteConfig) -> Self:
        """Open what the site keeps; it is made, private to its owner, when it is not there.

        Raises:
            ConfigurationError: The state folder cannot be made.
            DataSiteError: The ledger cannot be used.
        """
        state = open_state(config)
        ledger = Ledger(state / "ledger.db", site_id=config.site_id)
        return cls(
            config=config,
            ledger=ledger,
            registry=Registry(ledger, state / "data", site_id=config.site_id),
            plans=Plans(
                ledger,
                policy=config.policy,
                plan_days=config.plan_days,
                approvals=config.approvals,
                approvers=[approver.name for approver in config.approvers],
                site_id=config.site_id,
            ),
            budgets=Budgets(ledger, default=config.budget, site_id=config.site_id),
        )
