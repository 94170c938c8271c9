"""The orchestrator's half of secure aggregation: masked updates in, their sum out."""

from collections.abc import Collection, Mapping

import numpy as np

from core.exceptions import AggregationError
from core.secure.context import Context, public_of
from core.secure.masks import Vector, add_mask, sign_of
from core.secure.shares import combine
from core.secure_messages import Keys

Shares = Mapping[str, str]
"""One site's share of each site's seed, by that site; hexadecimal digits."""


class MaskedSum:
    """The masked updates of one session, added as they come.

    Args:
        context: What the session is bound to.
        keys: The list of keys that all sites were given.
        numbers: How many each update has.
    """

    def __init__(self, context: Context, keys: Mapping[str, Keys], numbers: int) -> None:
        self._context = context
        self._keys = keys
        self._total = np.zeros(numbers, dtype=np.uint64)
        self.survivors: list[str] = []

    def add(self, site_id: str, masked: Vector) -> None:
        """Add the masked update of a site."""
        self.survivors.append(site_id)
        np.add(self._total, masked, out=self._total)

    def opened(self, sharing: Collection[str], shares: Mapping[str, Shares]) -> Vector:
        """Give the sum of the survivors' updates.

        Args:
            sharing: The sites that had shared their seeds, whose masks are in the updates.
            shares: Of each site that answered at last, its share of the seed of every one of them.

        Raises:
            AggregationError: Shares do not give a seed back: one of these sites gave a wrong one.
        """
        total = self._total.copy()
        for site_id in self.survivors:
            seed = self._seed(site_id, shares)
            if self._context.commitment(seed, site_id) != self._keys[site_id]["commitment"]:
                raise self._wrong(site_id, shares)
            add_mask(total, self._context.derive(seed, "own mask", site_id), -1)
        for lost in sorted(set(sharing) - set(self.survivors)):
            key = self._context.masking_key(self._seed(lost, shares), lost)
            if public_of(key) != self._keys[lost]["masking"]:
                raise self._wrong(lost, shares)
            for site_id in self.survivors:
                public, pair = self._keys[site_id]["masking"], sorted((site_id, lost))
                mask = self._context.agreed(key, public, "mask", *pair)
                add_mask(total, mask, -1 if sign_of(site_id, lost) == 1 else 1)
        return total

    def _seed(self, site_id: str, shares: Mapping[str, Shares]) -> bytes:
        given = {holder: bytes.fromhex(each[site_id]) for holder, each in shares.items()}
        return combine(given, sorted(self._keys), self._context.settings["threshold"])

    def _wrong(self, site_id: str, shares: Mapping[str, Shares]) -> AggregationError:
        return AggregationError(
            f"the shares of {', '.join(sorted(shares))} do not give the seed of {site_id}: one of "
            "these sites gave a wrong one; leave out the site whose code was changed",
            site_id=site_id,
            round_num=self._context.round_num,
        )
