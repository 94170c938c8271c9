"""Which sites of the federation train, and which of them in a round."""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from core.exceptions import ConfigurationError
from core.seeds import derive_seed
from orchestrator.federation import SiteAddress
from orchestrator.naming import listed
from orchestrator.section import Section


def _names(value: Any) -> Any:  # noqa: ANN401 - a YAML value, judged by the field's type
    return None if value == "all" else value


def _each_once(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if names is not None and (not names or len(set(names)) != len(names)):
        message = "name each once, and at least one"
        raise ValueError(message)
    return names


class Participation(Section):
    """Which sites train, and how many of them in a round. All sites of the federation evaluate.

    Attributes:
        sites: Names of sites, or `all`; by default all, unless tags are given.
        tags: Sites with any of these tags, beside those that are named.
        fraction: Share of them that trains in a round, drawn anew each time from the run's seed.
        minimum: Fewest that are drawn.
    """

    sites: Annotated[
        tuple[str, ...] | None, BeforeValidator(_names), AfterValidator(_each_once)
    ] = None
    tags: Annotated[tuple[str, ...] | None, AfterValidator(_each_once)] = None
    fraction: float = Field(default=1.0, gt=0, le=1)
    minimum: int = Field(default=1, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _all_or_tagged(cls, given: Any) -> Any:  # noqa: ANN401 - a YAML value, judged below
        if isinstance(given, Mapping) and given.get("sites") == "all" and given.get("tags"):
            message = "with `sites: all` no tag is left to choose by; leave out one of the two"
            raise ValueError(message)
        return given

    def choose(self, sites: Sequence[SiteAddress]) -> tuple[str, ...]:
        """Give the names of the sites that may train, sorted.

        Raises:
            ConfigurationError: A name or a tag fits no site.
        """
        known, tags = {site.site_id for site in sites}, {tag for site in sites for tag in site.tags}
        for what, asked, there in (("sites", self.sites, known), ("tags", self.tags, tags)):
            unknown = sorted(set(asked or ()) - there)
            if unknown:
                raise ConfigurationError(
                    f"participation.{what}: {listed(unknown)} not among the sites; "
                    f"there are: {listed(sorted(there))}"
                )
        if self.sites is None and self.tags is None:
            return tuple(sorted(known))
        tagged = {site.site_id for site in sites if set(site.tags) & set(self.tags or ())}
        return tuple(sorted(tagged | set(self.sites or ())))

    def draw_size(self, sites: int) -> int:
        """Give how many of `sites` sites train in a round; a part of a site is a whole one."""
        if self.fraction == 1.0:
            return sites
        # As it is written: the float 0.07 * 100 is a little more than 7.
        share = math.ceil(Fraction(str(self.fraction)) * sites)
        return min(sites, max(self.minimum, share))

    def draw(self, site_ids: Sequence[str], *, seed: int, round_num: int) -> tuple[str, ...]:
        """Give those of `site_ids` that train in a round, sorted; the same whenever asked."""
        size = self.draw_size(len(site_ids))
        if size == len(site_ids):
            return tuple(sorted(site_ids))
        generator = np.random.default_rng(derive_seed(seed, round_num, "participation"))
        drawn = generator.permutation(sorted(site_ids))[:size]
        return tuple(sorted(drawn.tolist()))
