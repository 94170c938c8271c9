"""The section `privacy` of an experiment: what is done to updates before they leave a site."""

from typing import Annotated, Final, Literal, NotRequired, TypedDict

from pydantic import BeforeValidator, Field

from core.privacy import Basic, PrivacySettings, Unit, Weighting
from core.privacy import DifferentialPrivacy as PlanOfDifferentialPrivacy
from core.privacy import SecureAggregation as SecureSettings
from orchestrator.choices import parse_choice
from orchestrator.section import Section


class NoPrivacy(Section):
    """Updates leave a site as they are."""

    level: Literal["none"] = "none"


class BasicPrivacy(Section):
    """Updates are shortened and small groups are not told of; no formal guarantee.

    Attributes:
        clip_norm: Longest change of the parameters that a site sends (l2 norm).
        minimum_count: The fewest rows that a count may be over.
    """

    level: Literal["basic"]
    clip_norm: float = Field(default=1.0, gt=0)
    minimum_count: int = Field(default=10, ge=1, le=50)


class DifferentialPrivacy(Section):
    """Sites train with DP-SGD; the noise follows from the guarantee and each site's data.

    Attributes:
        epsilon: ε of all rounds together, for one unit at one site.
        delta: δ likewise: well below one over the units of a site.
        clip_norm: Longest gradient of one unit (l2 norm).
        unit: Whose presence is hidden: one training window, or all those of one machine. A batch
            then has so many machines.
    """

    level: Literal["differential_privacy"]
    epsilon: float = Field(gt=0)
    delta: float = Field(default=1e-5, gt=0, lt=1)
    clip_norm: float = Field(default=1.0, gt=0)
    unit: Unit = "window"


class SecureAggregation(Section):
    """The orchestrator learns the sum of the updates and no single one.

    Attributes:
        threshold: How many of a round's sites must last to its end; by default ⌊2n/3⌋ + 1 of n,
            safe against an orchestrator that lies. Fewer, but more than half, only where every
            site's operator allows it.
        max_change: Largest change of one parameter in a round.
        max_samples: Most windows that a site trains on.
    """

    level: Literal["secure_aggregation"]
    threshold: int | None = Field(default=None, ge=2)
    max_change: float = Field(default=16.0, gt=0)
    max_samples: int = Field(default=2**20, ge=1)


FEWEST_SITES: Final = 3
"""In a sum of two, each site knows the other's update."""

_LEVELS: Final[dict[str, type[Section]]] = {
    "none": NoPrivacy,
    "basic": BasicPrivacy,
    "differential_privacy": DifferentialPrivacy,
    "secure_aggregation": SecureAggregation,
}

LEVELS_IN_WORDS: Final = {
    "none": "none: updates leave the sites as they are",
    "basic": "basic: updates are shortened; no formal guarantee",
    "differential_privacy": "differential_privacy: (ε, δ) for each unit of a site's training part",
    "secure_aggregation": "secure_aggregation: only the sum of the updates of a round is seen",
}
"""What each level comes to, for who reads results."""


def _settings(value: object) -> Section:
    if isinstance(value, dict):
        value = {"level": "none", **value}
    return parse_choice(value, _LEVELS, tag="level", noun="level")


Privacy = Annotated[
    NoPrivacy | BasicPrivacy | DifferentialPrivacy | SecureAggregation, BeforeValidator(_settings)
]
"""The section `privacy`: a level, and the settings that go with it."""


class PlanSettings(TypedDict):
    """What a plan says of privacy beyond its level; nothing where there is nothing to say."""

    privacy: NotRequired[PrivacySettings]


def secure_settings(
    privacy: SecureAggregation, *, roster: dict[str, str], drawn: int, weighting: Weighting
) -> SecureSettings:
    """Give the section as a plan has it.

    Args:
        privacy: The section.
        roster: The identity keys of all sites that may train.
        drawn: How many of them do in a round.
        weighting: What a site counts its update by.
    """
    return SecureSettings(
        level="secure_aggregation",
        roster=roster,
        sites_per_round=drawn,
        threshold=privacy.threshold or safe_threshold(drawn),
        max_change=privacy.max_change,
        max_samples=privacy.max_samples,
        weighting=weighting,
    )


def safe_threshold(sites: int) -> int:
    """Give how many of a round's sites must last for an orchestrator that lies to learn nothing."""
    return 2 * sites // 3 + 1


def secure_refusals(privacy: Privacy, drawn: int) -> list[str]:
    """Say why a round of so many sites cannot be added up under the section."""
    if not isinstance(privacy, SecureAggregation):
        return []
    if drawn < FEWEST_SITES:
        return [
            (
                f"privacy.level: secure_aggregation of {drawn} sites in a round: each would know "
                f"the other's update from the sum; let {FEWEST_SITES} or more take part"
            )
        ]
    threshold = privacy.threshold or safe_threshold(drawn)
    if not drawn // 2 < threshold <= drawn:
        return [
            (
                f"privacy.threshold: {threshold} of the {drawn} sites in a round; choose "
                f"{drawn // 2 + 1} to {drawn}, or leave it out for {safe_threshold(drawn)}"
            )
        ]
    return []


def plan_settings(privacy: Privacy, secure: SecureSettings | None = None) -> PlanSettings:
    """Give the section as a plan has it; under secure aggregation, `secure_settings`'s."""
    if secure is not None:
        return PlanSettings(privacy=secure)
    if isinstance(privacy, BasicPrivacy):
        settings = Basic(
            level="basic", clip_norm=privacy.clip_norm, minimum_count=privacy.minimum_count
        )
        return PlanSettings(privacy=settings)
    if isinstance(privacy, DifferentialPrivacy):
        private = PlanOfDifferentialPrivacy(
            level="differential_privacy",
            epsilon=privacy.epsilon,
            delta=privacy.delta,
            clip_norm=privacy.clip_norm,
            unit=privacy.unit,
        )
        return PlanSettings(privacy=private)
    return PlanSettings()
