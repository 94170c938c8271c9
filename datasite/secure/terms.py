"""What a site asks of a plan under secure aggregation before it takes part in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.exceptions import ConfigurationError, PlanError
from core.secure.addends import require_room

if TYPE_CHECKING:
    from core.messages import PlanProposal
    from core.privacy import SecureAggregation
    from datasite.configuration import SecureAggregation as Policy

_FEWEST_SITES = 3


def settings_of(proposal: PlanProposal) -> SecureAggregation | None:
    """Give the plan's settings; None at another level."""
    privacy = proposal.get("privacy")
    return privacy if privacy is not None and privacy["level"] == "secure_aggregation" else None


def require_sound(proposal: PlanProposal, policy: Policy, *, site_id: str, own_key: str) -> None:
    """Do nothing when the plan hides this site's update from all that the operator distrusts.

    A site outside the roster only evaluates under the plan. At another level nothing is asked.

    Raises:
        PlanError: The threshold is too low, a key is not the one that the operator knows, or the
            ranges leave no room.
    """
    settings = settings_of(proposal)
    if settings is None:
        return
    mistake = (
        _mismatch(settings, proposal)
        or _weakness(settings, policy)
        or _stranger(settings, policy, {**policy.peers, site_id: own_key})
        or _shortage(settings)
    )
    if mistake:
        raise PlanError(f"{site_id}: privacy: {mistake}", site_id=site_id)


def _mismatch(settings: SecureAggregation, proposal: PlanProposal) -> str:
    normalises = proposal["algorithm"]["name"] == "fednova"
    if (settings["weighting"] == "normalised") != normalises:
        return (
            f"weighting {settings['weighting']!r} with {proposal['algorithm']['name']}; "
            "'normalised' is fednova's, and its only one"
        )
    if "compression" in proposal:
        return "masked updates do not compress; choose compression none"
    return ""


def _weakness(settings: SecureAggregation, policy: Policy) -> str:
    sites, threshold = settings["sites_per_round"], settings["threshold"]
    if not _FEWEST_SITES <= sites <= len(settings["roster"]):
        return (
            f"{sites} sites in a round of {len(settings['roster'])} in the roster; a sum hides an "
            f"update among {_FEWEST_SITES} or more"
        )
    lowest = sites // 2 + 1 if policy.trusts_orchestrator else 2 * sites // 3 + 1
    if not lowest <= threshold <= sites:
        return f"threshold {threshold} of {sites} sites; this site asks for {lowest} or more" + (
            ""
            if policy.trusts_orchestrator
            else ", safe against an orchestrator that lies. An operator who trusts it to relay "
            "honestly sets secure_aggregation.trusts_orchestrator in site.yaml"
        )
    return ""


def _stranger(settings: SecureAggregation, policy: Policy, known: dict[str, str]) -> str:
    for name, key in sorted(settings["roster"].items()):
        if name in known and known[name] != key:
            return (
                f"the roster has the key {key[:16]}… for {name}, and its identity key is "
                f"{known[name][:16]}…; propose again, with the keys that the sites give"
            )
        if policy.peers and name not in known:
            return f"{name} of the roster is not among secure_aggregation.peers of site.yaml"
    return ""


def _shortage(settings: SecureAggregation) -> str:
    try:
        require_room(settings)
    except ConfigurationError as exc:
        return str(exc)
    return ""
