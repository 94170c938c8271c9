"""Which methods there are, and how `experiment.yaml` chooses one.

aggregation: median
aggregation: {method: trimmed_mean, trim: 0.2, clip_norm: 5.0}
"""

from typing import Annotated

from pydantic import BeforeValidator, SerializeAsAny

from orchestrator.aggregation.base import Aggregator
from orchestrator.aggregation.geometric_median import GeometricMedian
from orchestrator.aggregation.krum import Krum, MultiKrum
from orchestrator.aggregation.means import SimpleAverage, WeightedAverage
from orchestrator.aggregation.trimmed import Median, TrimmedMean
from orchestrator.choices import parse_choice

AGGREGATORS: dict[str, type[Aggregator]] = {
    aggregator.method: aggregator
    for aggregator in (
        WeightedAverage,
        SimpleAverage,
        Median,
        TrimmedMean,
        Krum,
        MultiKrum,
        GeometricMedian,
    )
}


def parse_aggregator(value: object) -> Aggregator:
    """Read a choice: a method's name, a mapping of `method` and its options, or what is one.

    Raises:
        ValueError: See `parse_choice`.
    """
    return parse_choice(value, AGGREGATORS, tag="method", noun="method")


AggregationChoice = Annotated[SerializeAsAny[Aggregator], BeforeValidator(parse_aggregator)]
"""A pydantic field's type; it is stored as a mapping with every option, and reads that back."""
