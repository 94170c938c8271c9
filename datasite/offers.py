"""What every site with this release offers, whatever its data."""

from collections.abc import Sequence

from core.enums import PrivacyLevel
from core.exceptions import ConfigurationError, PlanError
from core.messages import PlanProposal
from core.models import available_models
from datasite.configuration import Rule
from datasite.training.objectives import available_algorithms


def require_offered(proposal: PlanProposal, *, site_id: str) -> None:
    """Do nothing when a site could do what is proposed, if it were approved.

    Raises:
        PlanError: A model, an algorithm or a privacy level that there is not.
    """
    offers = {
        "model": (proposal["model"]["type"], available_models()),
        "algorithm": (proposal["algorithm"]["name"], available_algorithms()),
        "privacy level": (proposal["privacy_level"], [PrivacyLevel.NONE.value]),
    }
    for what, (asked, offered) in offers.items():
        if asked not in offered:
            raise PlanError(
                f"{site_id}: the {what} {asked!r} is not offered here; "
                f"offered: {', '.join(offered)}",
                site_id=site_id,
            )


def require_known(policy: Sequence[Rule]) -> None:
    """Do nothing when the rules name models and algorithms that there are.

    A rule with a slip in a name would never fit, and the next one would decide.

    Raises:
        ConfigurationError: With every name that there is not, and where it stands in site.yaml.
    """
    offered = {"model": available_models(), "algorithm": available_algorithms()}
    mistakes = [
        f"policy[{index}].{what}: {name!r} is not offered here; offered: {', '.join(names)}"
        for index, rule in enumerate(policy)
        for what, names in offered.items()
        if (name := getattr(rule, what)) is not None and name not in names
    ]
    if mistakes:
        raise ConfigurationError("\n".join(mistakes))
