"""How the updates of one round are combined into one set of parameters, one idea a file."""

from orchestrator.aggregation.base import Aggregator, Combined, Contribution, SiteShare
from orchestrator.aggregation.choice import AGGREGATORS, AggregationChoice, parse_aggregator
from orchestrator.aggregation.geometric_median import GeometricMedian
from orchestrator.aggregation.krum import Krum, MultiKrum
from orchestrator.aggregation.means import SimpleAverage, WeightedAverage
from orchestrator.aggregation.trimmed import Median, TrimmedMean

__all__ = [
    "AGGREGATORS",
    "AggregationChoice",
    "Aggregator",
    "Combined",
    "Contribution",
    "GeometricMedian",
    "Krum",
    "Median",
    "MultiKrum",
    "SimpleAverage",
    "SiteShare",
    "TrimmedMean",
    "WeightedAverage",
    "parse_aggregator",
]
