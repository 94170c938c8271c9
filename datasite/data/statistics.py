"""Sums over a dataset's rows, from which the orchestrator agrees one scaler for all sites.

Over all rows, whatever the split: if the sums followed a plan's split, two plans whose training
parts differ by one row would tell that row exactly.
"""

from dataclasses import dataclass

import numpy as np

from core.messages import SensorStatistics
from datasite.data.features import FeatureRows, Floats32, Integers

_AT_A_TIME = 8
"""Features; never one alone of several, which NumPy would sum in another order, hence otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SensorSums:
    """The sums of `core.messages.SensorStatistics`, one number for each feature.

    Attributes:
        count: How many rows were summed.
        total: Sum of the values.
        total_of_squares: Sum of the squared values.
        label_counts: Rows with label 0, rows with label 1.
    """

    count: int
    total: list[float]
    total_of_squares: list[float]
    label_counts: list[int]


def sum_statistics(x: Floats32, y: Integers) -> SensorSums:
    """Sum rows in float64, so that the sums of sites add up to the sum over all sites.

    A few features at a time: as float64, all of a large table would be three times what it is.

    Args:
        x: (rows, features), already within the schema's ranges.
        y: (rows,), 0 or 1.
    """
    total: list[float] = []
    total_of_squares: list[float] = []
    for block in np.array_split(np.arange(x.shape[1]), -(-x.shape[1] // _AT_A_TIME)):
        values = x[:, block[0] : block[-1] + 1].astype(np.float64)
        total += values.sum(axis=0).tolist()
        total_of_squares += np.square(values).sum(axis=0).tolist()
    return SensorSums(
        count=len(x),
        total=total,
        total_of_squares=total_of_squares,
        label_counts=np.bincount(y, minlength=2).tolist(),
    )


def describe_rows(rows: FeatureRows, site_id: str) -> SensorStatistics:
    """Give the sums of a site's rows as a message."""
    sums = sum_statistics(rows.x, rows.y)
    return SensorStatistics(
        kind="sensor_statistics",
        datasite_id=site_id,
        count=sums.count,
        total=sums.total,
        total_of_squares=sums.total_of_squares,
        label_counts=sums.label_counts,
    )
