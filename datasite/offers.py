"""What every site with this release offers, whatever its data."""

from collections.abc import Sequence
from typing import Final

from core.enums import Compression, PrivacyLevel
from core.exceptions import ConfigurationError, PlanError
from core.messages import PlanProposal
from core.models import available_models
from core.schema import DataSchema
from datasite.configuration import Rule
from datasite.mechanism import privately
from datasite.training.objectives import available_algorithms

LEVELS: Final = (
    PrivacyLevel.NONE.value,
    PrivacyLevel.BASIC.value,
    PrivacyLevel.DIFFERENTIAL_PRIVACY.value,
    PrivacyLevel.SECURE_AGGREGATION.value,
)
"""The privacy levels that a plan may name."""

_PRIVATE_ALGORITHMS: Final = ("fedavg", "fedprox")
"""What can be trained with differential privacy: what they add to a gradient looks at no data."""


def require_offered(proposal: PlanProposal, *, site_id: str) -> None:
    """Do nothing when a site could do what is proposed, if it were approved.

    Raises:
        PlanError: A model, an algorithm or a privacy level that there is not.
    """
    offers = {
        "model": (proposal["model"]["type"], available_models()),
        "algorithm": (proposal["algorithm"]["name"], available_algorithms()),
        "privacy level": (proposal["privacy_level"], LEVELS),
    }
    for what, (asked, offered) in offers.items():
        if asked not in offered:
            raise PlanError(
                f"{site_id}: the {what} {asked!r} is not offered here; "
                f"offered: {', '.join(offered)}",
                site_id=site_id,
            )
    level = PrivacyLevel.NONE.value if "privacy" not in proposal else proposal["privacy"]["level"]
    if level != proposal["privacy_level"]:
        raise PlanError(
            f"{site_id}: the plan's privacy level is {proposal['privacy_level']!r}, and its "
            f"settings are for {level!r}; send the settings of its level",
            site_id=site_id,
        )
    how = Compression(proposal.get("compression", Compression.NONE.value))
    if level == PrivacyLevel.BASIC.value and how.is_lossy:
        raise PlanError(
            f"{site_id}: compression {how.value} with basic would send changes longer than "
            "clip_norm; choose none or zstd",
            site_id=site_id,
        )


def require_private(proposal: PlanProposal, schema: DataSchema, *, site_id: str) -> None:
    """Do nothing when differential privacy, if it is asked for, can be kept with such data.

    Raises:
        PlanError: By the algorithm, the settings or the schema it cannot.
    """
    settings = privately(proposal)
    if settings is None:
        return
    algorithm = proposal["algorithm"]["name"]
    if algorithm not in _PRIVATE_ALGORITHMS:
        why = f"is not proven for {algorithm!r}; choose {' or '.join(_PRIVATE_ALGORITHMS)}"
    elif proposal["training"]["gradient_clip"] is not None:
        why = "shortens gradients to its own clip_norm; leave out gradient_clip"
    elif settings["unit"] == "machine" and schema.machine is None:
        why = f"cannot protect each machine, for {schema.name!r} names no column of machines"
    else:
        return
    raise PlanError(f"{site_id}: differential_privacy {why}", site_id=site_id)


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
