"""How a drift of a site's data is told: a population stability index a column, and its reading.

No drift below 0.1, moderate up to 0.25, large beyond; flagged is what is above `FLAGGED`. Source:
Siddiqi, Credit Risk Scorecards, Wiley 2006. How it is computed: `datasite.data.drift`.
"""

from collections.abc import Mapping
from typing import Final

PREFIX: Final = "psi."
"""Before a column's name, in the metrics of an update."""

FLAGGED: Final = 0.2
LARGE: Final = 0.25


def flagged(metrics: Mapping[str, float]) -> dict[str, float]:
    """Give the columns among `metrics` that have drifted, the furthest first, with their PSI."""
    found = {
        name.removeprefix(PREFIX): value
        for name, value in metrics.items()
        if name.startswith(PREFIX) and value > FLAGGED
    }
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))
