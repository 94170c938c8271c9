"""A round of which only the sum is known: what secure aggregation gives an algorithm."""

from collections.abc import Iterable
from fractions import Fraction

from core.messages import Parameters
from core.parameters import add
from core.secure.addends import Sum
from orchestrator.aggregation import Combined, SiteShare
from orchestrator.algorithms.base import Gathered


class Summed(Gathered):
    """The updates of one round, added up at nobody's in particular.

    Args:
        total: What the sites did together.
        received: The parameters that they started from.
        site_ids: The sites.
        round_num: The round.

    Attributes:
        loss: Mean training loss by samples.
    """

    def __init__(
        self, total: Sum, received: Parameters, site_ids: Iterable[str], round_num: int
    ) -> None:
        super().__init__()
        self._total = total
        self._received = received
        self.counted = dict.fromkeys(sorted(site_ids), round_num)
        self.samples = total.samples
        self.effective = Fraction(total.effective)
        self.normalised = Fraction(total.weight)
        self.loss = total.loss / total.samples

    def combined(self) -> Combined:
        """See `Gathered.combined`; nobody knows by how much each site counted."""
        parameters = add(self._received, self._total.change)
        return Combined(
            parameters=parameters, sites={site_id: SiteShare() for site_id in self.counted}
        )
