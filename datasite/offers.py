"""What every site with this release offers, whatever its data."""

from core.enums import PrivacyLevel
from core.exceptions import PlanError
from core.messages import PlanProposal
from core.models import available_models
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
