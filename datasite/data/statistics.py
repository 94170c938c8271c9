"""Sums over windows, from which the orchestrator agrees one scaler for all sites."""

from dataclasses import dataclass

import numpy as np

from datasite.data.features import Floats32, Integers


@dataclass(frozen=True, slots=True, kw_only=True)
class SensorSums:
    """The sums of `core.messages.SensorStatistics`, one number for each feature.

    Attributes:
        count: How many rows were summed.
        total: Sum of the values.
        total_of_squares: Sum of the squared values.
        label_counts: Windows with label 0, windows with label 1.
    """

    count: int
    total: list[float]
    total_of_squares: list[float]
    label_counts: list[int]


def sum_statistics(x: Floats32, y: Integers) -> SensorSums:
    """Sum windows in float64, so that the sums of sites add up to the sum over all sites.

    Only the last step of each window is counted: consecutive windows overlap, and the sum over all
    their steps would count most rows `window_steps` times.

    Args:
        x: (n, window_steps, features), already within the schema's ranges.
        y: (n,), 0 or 1.
    """
    last = x[:, -1, :].astype(np.float64)
    return SensorSums(
        count=len(last),
        total=last.sum(axis=0).tolist(),
        total_of_squares=np.square(last).sum(axis=0).tolist(),
        label_counts=np.bincount(y, minlength=2).tolist(),
    )
