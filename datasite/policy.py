"""Which of the site's rules decides a proposal: the first of `policy` that fits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from core.enums import PrivacyLevel

if TYPE_CHECKING:  # at run time they would bring PyTorch with them, which a command can do without
    from collections.abc import Sequence

    from core.messages import PlanProposal
    from datasite.configuration import Rule


class Asked(NamedTuple):
    """What rules look at.

    Attributes:
        proposal: What is asked.
        researcher: Who asks.
        rows: How many rows the dataset has.
    """

    proposal: PlanProposal
    researcher: str
    rows: int


def deciding_rule(policy: Sequence[Rule], asked: Asked) -> Rule | None:
    """Give the first rule each of whose conditions holds, if one is there."""
    return next((rule for rule in policy if _fits(rule, asked)), None)


def _fits(rule: Rule, asked: Asked) -> bool:
    proposal = asked.proposal
    return (
        rule.researcher in {None, asked.researcher}
        and rule.dataset in {None, proposal["dataset"]}
        and rule.model in {None, proposal["model"]["type"]}
        and rule.algorithm in {None, proposal["algorithm"]["name"]}
        and (
            rule.min_privacy_level is None
            or PrivacyLevel(proposal["privacy_level"]) in _SATISFIES[rule.min_privacy_level]
        )
        and (rule.max_rounds is None or proposal["rounds"] <= rule.max_rounds)
        and (rule.min_rows is None or asked.rows >= rule.min_rows)
    )


_SATISFIES: Final = {
    PrivacyLevel.NONE: frozenset(PrivacyLevel),
    PrivacyLevel.BASIC: frozenset({PrivacyLevel.BASIC, PrivacyLevel.DIFFERENTIAL_PRIVACY}),
    PrivacyLevel.DIFFERENTIAL_PRIVACY: frozenset({PrivacyLevel.DIFFERENTIAL_PRIVACY}),
    PrivacyLevel.SECURE_AGGREGATION: frozenset({PrivacyLevel.SECURE_AGGREGATION}),
}
"""The levels that are at least as much as another: none, basic, differential privacy, in order.

Secure aggregation is on another axis. It hides single updates from the orchestrator and says
nothing of what the sum tells; differential privacy bounds what is told and hides nothing from the
orchestrator. So each is at least `none`, and neither stands in for the other.
"""
