"""Cut the rows of each machine into windows, and divide these into train, validation and test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from core.exceptions import ConfigurationError, DataError
from core.seeds import derive_seed
from datasite.data.features import Floats32, Integers, make_features

if TYPE_CHECKING:
    import pandas as pd

    from core.messages import SplitSettings
    from core.schema import DataSchema
    from datasite.data.features import FeatureRows

MINIMUM_WINDOWS = 50
"""Fewest windows of a table: a test part of a fifth then has ten, below which a score is chance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Windows and their labels. A window is known by its first row, so that it takes no memory.

    Attributes:
        rows: (rows, features) float32, within the schema's ranges, not standardised; those of the
            whole table, which the parts share.
        starts: (n,) int64, the first row of each window.
        window_steps: Rows of a window.
        y: (n,) int64, 0 or 1: the label of each window's last row.
        machine: (n,) int64, whose each window is.
    """

    rows: Floats32
    starts: Integers
    window_steps: int
    y: Integers
    machine: Integers

    @property
    def x(self) -> Floats32:
        """The windows themselves, copied: (n, window_steps, features), of a table that is small."""
        x: Floats32 = self.rows[self.starts[:, None] + np.arange(self.window_steps)]
        return x


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The three parts of a site's windows; no row is in windows of two of them."""

    train: Part
    validation: Part
    test: Part


class Starts(NamedTuple):
    """Which windows each part has, by the number of their first row in the `FeatureRows`."""

    train: Integers
    validation: Integers
    test: Integers


def prepare_parts(
    table: pd.DataFrame, schema: DataSchema, split: SplitSettings, site_id: str
) -> Parts:
    """Turn a table that `load_table` gave into the parts of training; see `cut_parts`."""
    return cut_parts(make_features(table, schema), schema, split, site_id)


def cut_parts(rows: FeatureRows, schema: DataSchema, split: SplitSettings, site_id: str) -> Parts:
    """Cut the rows of a table into the windows of the three parts.

    The same arguments give the same parts, wherever and whenever. With one step a window the split
    is random within each label, drawn from (seed, site_id); with more it is by time within each
    machine: its first rows train, the next validate, the last test.

    Raises:
        ConfigurationError: The fractions leave nothing for training.
        DataError: A part is empty or has one class only.
    """
    starts = split_windows(rows, schema.window_steps, split, site_id)
    parts = [
        Part(
            rows=rows.x,
            starts=first,
            window_steps=schema.window_steps,
            y=rows.y[first + schema.window_steps - 1],
            machine=rows.machine[first],
        )
        for first in starts
    ]
    for name, part in zip(Starts._fields, parts, strict=True):
        _require_both_classes(name, part, schema, site_id)
    return Parts(train=parts[0], validation=parts[1], test=parts[2])


def count_windows(machine_sizes: Integers, window_steps: int) -> int:
    """Count the windows of machines with so many rows, all overlapping ones included."""
    return int(np.maximum(machine_sizes - window_steps + 1, 0).sum())


def split_windows(
    rows: FeatureRows, window_steps: int, split: SplitSettings, site_id: str
) -> Starts:
    """Decide which windows are in which part.

    Windows whose rows fall on both sides of a cut are in none, so that no row is in two parts.

    Raises:
        ConfigurationError: The fractions leave nothing for training.
    """
    if split["test"] + split["validation"] >= 1.0:
        raise ConfigurationError(
            f"split: test {split['test']:g} and validation {split['validation']:g} leave nothing "
            "for training; choose fractions whose sum is below 1"
        )
    if window_steps == 1:
        return _split_at_random(rows.y, split, site_id)
    return _split_by_time(rows.machine, window_steps, split)


def _split_at_random(y: Integers, split: SplitSettings, site_id: str) -> Starts:
    random = np.random.default_rng(derive_seed(split["seed"], "split", site_id))
    parts: list[list[Integers]] = [[], [], []]
    for label in (0, 1):
        shuffled = random.permutation(np.flatnonzero(y == label))
        cuts = _cuts(np.array(len(shuffled)), split)
        for part, chosen in zip(parts, np.split(shuffled, cuts), strict=True):
            part.append(chosen)
    return Starts(*(np.sort(np.concatenate(part)) for part in parts))


def _split_by_time(machine: Integers, window_steps: int, split: SplitSettings) -> Starts:
    """Give each row its machine's part by its rank in time, then keep windows of one part only."""
    if len(machine) < window_steps:
        return Starts(*(np.empty(0, dtype=np.int64) for _ in Starts._fields))
    _, first, code, sizes = np.unique(
        machine, return_index=True, return_inverse=True, return_counts=True
    )
    rank = np.arange(len(machine)) - first[code]
    validation_from, test_from = _cuts(sizes, split)
    part = (rank >= validation_from[code]).astype(np.int64) + (rank >= test_from[code])
    segment = 3 * code + part  # never decreases, so equal ends mean equal throughout
    whole = segment[: len(segment) - window_steps + 1] == segment[window_steps - 1 :]
    return Starts(*(np.flatnonzero(whole & (part[: len(whole)] == i)) for i in range(3)))


def _cuts(sizes: Integers, split: SplitSettings) -> Integers:
    """Give where validation and test begin among `sizes` ordered rows, to the nearest row."""
    validation_from = np.rint(sizes * (1.0 - split["test"] - split["validation"]))
    test_from = np.rint(sizes * (1.0 - split["test"]))
    cuts: Integers = np.stack([validation_from, test_from]).astype(np.int64)
    return cuts


def _require_both_classes(name: str, part: Part, schema: DataSchema, site_id: str) -> None:
    count, positives = len(part.y), int(part.y.sum())
    if 0 < positives < count:
        return
    found = f"has {count} windows, all with label {int(part.y[0])}" if count else "has no windows"
    what = "fraction" if name != "train" else "share left by test and validation"
    whose = f"{site_id}: the {name} part of {schema.name!r}"
    needed = (
        "it needs windows with label 0 and with label 1: "
        f"raise its {what} in the split, or register more rows"
    )
    raise DataError(
        f"{whose} {found}; {needed}",
        site_id=site_id,
        outside=f"{whose} has too few windows; {needed}",
    )
