"""Pumps whose failures show in the trend of their vibration, and in nothing else.

A data set for asking whether a model uses the order of a window. Each pump runs at an operating
point of its own, about which its readings scatter independently from minute to minute, so that all
orders of the same readings are equally likely. The label depends on that order alone: it is 1 where
the overall vibration has risen, by rank, over the `TREND_MINUTES` before the row. Hence

* a row tells nothing of its own label, for it is independent of the rows before it;
* the rows of a window tell nothing without their order, for the rank correlation of independent
  readings with time has the same distribution whatever the readings are (but for equal ones);
* the pump tells nothing, for all fail equally often;
* the window in order tells everything. The slope of its readings alone reaches a ROC-AUC of 0.97.

`deploy/schemas/vibration.yaml` describes the table.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

MACHINE = "pump_id"
LABEL = "failure"

TREND_MINUTES = 11
"""The rows that decide a label: all of the schema's window of twelve but its last."""

TREND_LIMIT = 0.4
"""Rank correlation with time (Spearman's rho) above which a trend is one: 11 % of all rows."""

_START = pd.Timestamp("2026-01-01T00:00:00Z")
_SCATTER_MM_S = 0.4

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def generate_vibration(machines: int = 12, minutes: int = 1440, seed: int = 0) -> pd.DataFrame:
    """Generate the readings of `machines` pumps over the same `minutes`, pump after pump.

    Columns: `pump_id`; `timestamp` (ISO 8601); `vibration_x` and `vibration_y` (mm/s, RMS),
    `bearing_temperature` (°C, one in fifty empty), `speed` (rpm), `pressure_in` and `pressure_out`
    (bar), `lubricant`; `failure`. Faster pumps are warmer and shake more. The first
    `TREND_MINUTES` rows of a pump have label 0.

    Args:
        machines: At least 1.
        minutes: Rows of each, at least 1.
        seed: The same arguments give the same table.
    """
    random = np.random.default_rng(seed)
    digits = max(2, len(str(machines)))
    pumps = [
        _generate_pump(f"pump-{number:0{digits}}", minutes, random)
        for number in range(1, machines + 1)
    ]
    return pd.concat(pumps, ignore_index=True)


def label_trends(vibration: Floats) -> Integers:
    """Give (rows,) the labels that follow from one machine's overall vibration.

    Row t has 1 where Spearman's rho of the readings t - TREND_MINUTES to t - 1 with time is above
    `TREND_LIMIT`. Rows with fewer readings before them have 0.

    Args:
        vibration: (rows,) the mean of both directions in mm/s, in the order of time.
    """
    labels = np.zeros(len(vibration), dtype=np.int64)
    if len(vibration) > TREND_MINUTES:
        before = np.lib.stride_tricks.sliding_window_view(vibration[:-1], TREND_MINUTES)
        labels[TREND_MINUTES:] = _rank_correlation(before) > TREND_LIMIT
    return labels


def _rank_correlation(windows: Floats) -> Floats:
    """Give (windows,) Spearman's rho of (windows, steps) readings with the number of the step.

    rho = 12 / (n^3 - n) * sum over the n steps of (rank - mean rank) (step - mean step). Equal
    readings have the mean of their ranks, and n stays: so rho is 0 where all are equal.
    """
    n = windows.shape[1]
    step = np.arange(n) - (n - 1) / 2
    rank = np.sign(windows[:, :, np.newaxis] - windows[:, np.newaxis, :]).sum(axis=2) / 2
    rho: Floats = 12 / (n**3 - n) * (rank @ step)
    return rho


def _generate_pump(name: str, minutes: int, random: np.random.Generator) -> pd.DataFrame:
    speed_rpm = random.uniform(1450.0, 2900.0)
    load = speed_rpm / 2900.0
    vibration = random.normal(2.0 + 2.0 * load, _SCATTER_MM_S, minutes)
    apart = random.normal(random.normal(0.0, 0.2), 0.05, minutes)
    temperature = random.normal(random.normal(40.0 + 25.0 * load, 4.0), 0.8, minutes).round(1)
    temperature[random.choice(minutes, size=minutes // 50, replace=False)] = np.nan
    pressure_in = random.normal(random.uniform(1.5, 3.0), 0.05, minutes)
    head = random.normal(30.0 * load**2, 0.1, minutes)  # affinity law: with the speed squared
    x, y = _positive(vibration + apart), _positive(vibration - apart)
    return pd.DataFrame(
        {
            MACHINE: name,
            "timestamp": _minutes_from_start(minutes),
            "vibration_x": x,
            "vibration_y": y,
            "bearing_temperature": temperature,
            "speed": np.rint(random.normal(speed_rpm, 4.0, minutes)).astype(np.int64),
            "pressure_in": pressure_in.round(2),
            "pressure_out": (pressure_in + head).round(2),
            "lubricant": str(random.choice(["mineral", "synthetic"])),
            LABEL: label_trends((x + y) / 2),
        }
    )


def _positive(vibration_mm_s: Floats) -> Floats:
    """Round to what a sensor resolves; the one in a million below zero is mirrored."""
    return np.abs(vibration_mm_s).round(3)


def _minutes_from_start(minutes: int) -> list[str]:
    times = pd.date_range(_START, periods=minutes, freq="min")
    return times.strftime("%Y-%m-%dT%H:%M:%SZ").tolist()
