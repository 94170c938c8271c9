"""What a plan says of privacy beyond its level; a level without settings has no entry here."""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeGuard, get_args

from pydantic import Field, with_config
from typing_extensions import TypedDict

from core.fields import STRICT, Count, Positive, Text

Unit = Literal["window", "machine"]
"""Whose presence differential privacy hides: one training window, or all those of a machine."""

UNITS: Final[tuple[Unit, ...]] = get_args(Unit)

Weighting = Literal["samples", "equal", "normalised"]
"""By what a site multiplies its change before it masks it.

`samples` how many windows it trained on; `equal` 1; `normalised` the windows over what its local
steps amount to (FedNova).
"""

_DELTA = Annotated[float, Field(gt=0.0, lt=1.0)]

SITE_KEY: Final = r"^[0-9a-f]{64}$"
"""A site's Ed25519 identity key, as 64 hexadecimal digits."""


@with_config(STRICT)
class Basic(TypedDict):
    """Each update is shortened, and small groups are not told of: no formal guarantee.

    `clip_norm` is the longest change of the parameters that a site sends (l2 norm). Counts over
    fewer than `minimum_count` rows are withheld, or over fewer than the site itself asks for.
    """

    level: Literal["basic"]
    clip_norm: Positive
    minimum_count: Annotated[int, Field(ge=1, le=50)]


@with_config(STRICT)
class DifferentialPrivacy(TypedDict):
    """What all rounds of the plan together may tell of one unit: (`epsilon`, `delta`).

    `clip_norm` is the longest gradient of one unit (l2 norm); the noise follows from the rest and
    the site's own data.
    """

    level: Literal["differential_privacy"]
    epsilon: Positive
    delta: _DELTA
    clip_norm: Positive
    unit: Unit


@with_config(STRICT)
class SecureAggregation(TypedDict):
    """Whose updates are added up under masks, and what the sum is made of.

    `roster` has the identity key of each site that may take part. At most `sites_per_round` of them
    do in one round, and `threshold` of them must last to its end. No change of one parameter is
    beyond `max_change`, and no site has more than `max_samples` windows. All of it is the same at
    every site, or they would not understand each other.
    """

    level: Literal["secure_aggregation"]
    roster: Annotated[
        dict[Text, Annotated[str, Field(pattern=SITE_KEY)]], Field(min_length=2, max_length=1000)
    ]
    sites_per_round: Annotated[int, Field(ge=2, le=1000)]
    threshold: Annotated[int, Field(ge=2, le=1000)]
    max_change: Positive
    max_samples: Annotated[Count, Field(ge=1)]
    weighting: Weighting


PrivacySettings = Annotated[
    Basic | DifferentialPrivacy | SecureAggregation, Field(discriminator="level")
]


def is_private(privacy: PrivacySettings | None) -> TypeGuard[DifferentialPrivacy]:
    """Tell whether the settings are those of differential privacy."""
    return privacy is not None and privacy["level"] == "differential_privacy"


def smallest_group(privacy: PrivacySettings | None) -> int:
    """Give the fewest rows that a count under the plan may be over; 1 where it asks for nothing."""
    return privacy["minimum_count"] if privacy and privacy["level"] == "basic" else 1
