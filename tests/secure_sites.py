"""Sites of secure aggregation without a network: identities, settings, and sessions in memory."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from nacl.signing import SigningKey

from core.privacy import SecureAggregation
from core.secure.context import Context
from core.secure.masks import Vector
from datasite.identity import Identity
from datasite.secure.participant import Participant
from orchestrator.masked_sum import MaskedSum

if TYPE_CHECKING:
    from core.secure_messages import Keys

STEPS = ("shares", "mask", "confirm", "unmask")
"""Before which a site may be lost once its keys are there."""


def identity_of(site_id: str) -> Identity:
    """Give a site's identity, the same each time."""
    seed = site_id.encode().ljust(32, b".")
    return Identity(
        uid="00000000000040008000000000000000", private_key=bytes(SigningKey(seed)).hex()
    )


def settings_for(sites: int, threshold: int, **changes: object) -> SecureAggregation:
    """Give what a plan says, for sites `factory-1` and on."""
    names = [f"factory-{number}" for number in range(1, sites + 1)]
    settings = {
        "level": "secure_aggregation",
        "roster": {name: identity_of(name).public_key for name in names},
        "sites_per_round": sites,
        "threshold": threshold,
        "max_change": 16.0,
        "max_samples": 1000,
        "weighting": "samples",
        **changes,
    }
    return cast("SecureAggregation", settings)


def context_of(settings: SecureAggregation, **changes: Any) -> Context:
    """Give what a session is bound to."""
    said: dict[str, Any] = {
        "run_id": "run-1",
        "settings": settings,
        "round_num": 0,
        "trained_on": "0" * 64,
        "session_id": "a" * 32,
        **changes,
    }
    return Context(**said)


class Table:
    """All sites of a session around one table, and an orchestrator that relays honestly.

    Args:
        context: What the session is bound to.
        numbers: How many each addend has.
        seed: Of the addends, which fill the whole ring.
    """

    def __init__(self, context: Context, *, numbers: int = 5, seed: int = 0) -> None:
        self.context = context
        self.names = sorted(context.settings["roster"])
        self.sites = {
            name: Participant(name, context, identity_of(name).sign) for name in self.names
        }
        draw = np.random.default_rng(seed)
        self.addends: dict[str, Vector] = {
            name: draw.integers(0, 2**64, numbers, dtype=np.uint64) for name in self.names
        }
        self.keys: dict[str, Keys] = {}
        self.sealed: dict[str, dict[str, str]] = {}
        self.masked: dict[str, Vector] = {}
        self.confirmations: dict[str, str] = {}

    def advertise(self) -> None:
        """Have every site give its keys."""
        self.keys = {name: site.keys() for name, site in self.sites.items()}

    def share(self, names: list[str]) -> None:
        """Have these share their seeds."""
        self.sealed = {name: self.sites[name].shares(self.keys) for name in names}

    def for_site(self, name: str) -> dict[str, str]:
        """Give what all others have shared with a site."""
        return {peer: sealed[name] for peer, sealed in self.sealed.items() if peer != name}

    def mask(self, names: list[str]) -> None:
        """Have these send their masked addends."""
        self.masked = {
            name: self.sites[name].masked(self.for_site(name), self.addends[name]) for name in names
        }

    def confirm(self, names: list[str]) -> None:
        """Have these confirm whose masked addends are there."""
        survivors = sorted(self.masked)
        self.confirmations = {name: self.sites[name].confirmed(survivors) for name in names}

    def opened(self, names: list[str]) -> Vector:
        """Have these give their shares; the sum."""
        shares = {name: self.sites[name].unmasked(self.confirmations) for name in names}
        numbers = len(self.addends[self.names[0]])
        masked = MaskedSum(self.context, self.keys, numbers)
        for name, vector in self.masked.items():
            masked.add(name, vector)
        return masked.opened(self.sealed, shares)

    def run(self, lost: Mapping[str, str]) -> Vector:
        """Run the whole session without each site of `lost` from the step on that it names."""

        def left(step: str) -> list[str]:
            return [
                name
                for name in self.names
                if name not in lost or STEPS.index(lost[name]) > STEPS.index(step)
            ]

        self.advertise()
        self.share(left("shares"))
        self.mask(left("mask"))
        self.confirm(left("confirm"))
        return self.opened(left("unmask"))

    def plain(self) -> Vector:
        """Give the sum of those whose masked addends came, without any mask."""
        total = np.zeros_like(self.addends[self.names[0]])
        for name in self.masked:
            total += self.addends[name]
        return total
