"""A site's windows as a model sees them: standardised rows, and which of them a window is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from core.exceptions import DataSiteError
from datasite.data.windows import Part, Parts, cut_parts

if TYPE_CHECKING:
    from core.messages import Preprocessing, SplitSettings
    from core.schema import DataSchema
    from datasite.data.features import FeatureRows, Floats32

_ROWS_AT_A_TIME: Final = 2**16


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensors:
    """One part of a site's data. Its windows overlap, and are put together batch by batch.

    Attributes:
        rows: (rows, sensors) float32, standardised; the parts of a site share them.
        starts: (n,) int64, the first row of each window.
        labels: (n,) int64 in {0, 1}.
        machines: (n,) int64, whose each window is.
        window_steps: Rows of a window.
    """

    rows: torch.Tensor
    starts: torch.Tensor
    labels: torch.Tensor
    machines: torch.Tensor
    window_steps: int

    @classmethod
    def of(cls, inputs: torch.Tensor, labels: torch.Tensor) -> Tensors:
        """Take windows that are there already, (n, window, sensors), of one machine."""
        count, steps, sensors = inputs.shape
        return cls(
            rows=inputs.reshape(count * steps, sensors),
            starts=torch.arange(count) * steps,
            labels=labels,
            machines=torch.zeros(count, dtype=torch.int64),
            window_steps=steps,
        )

    @property
    def sensors(self) -> int:
        """How many numbers a row has."""
        return self.rows.shape[1]

    def windows(self, starts: torch.Tensor) -> torch.Tensor:
        """Give the windows that begin at these rows: (len(starts), window, sensors), copied."""
        count, sensors = self.rows.shape
        steps = self.window_steps
        # Every window there is, without one being copied; of these, the ones that are asked for.
        every = self.rows.as_strided((count - steps + 1, steps, sensors), (sensors, sensors, 1))
        return every.index_select(0, starts)


def prepare(
    rows: FeatureRows,
    schema: DataSchema,
    split: SplitSettings,
    preprocessing: Preprocessing,
    *,
    site_id: str,
) -> dict[str, Tensors]:
    """Give the three parts of a site's rows, by their names in `Parts`.

    Raises:
        ConfigurationError: The fractions leave nothing for training.
        DataError: A part is empty or has one class only.
        DataSiteError: The preprocessing is for another number of features.
    """
    parts = cut_parts(rows, schema, split, site_id)
    standardised = torch.from_numpy(standardise(rows.x, preprocessing))
    return {
        name: _as_tensors(getattr(parts, name), standardised) for name in Parts.__dataclass_fields__
    }


def _as_tensors(part: Part, standardised: torch.Tensor) -> Tensors:
    return Tensors(
        rows=standardised,
        starts=torch.from_numpy(part.starts),
        labels=torch.from_numpy(part.y),
        machines=torch.from_numpy(part.machine),
        window_steps=part.window_steps,
    )


def standardise(x: Floats32, preprocessing: Preprocessing) -> Floats32:
    """Give (x - mean) / scale, computed in float64.

    Raises:
        DataSiteError: The preprocessing is for another number of features.
    """
    mean, scale = np.asarray(preprocessing["mean"]), np.asarray(preprocessing["scale"])
    if not len(mean) == len(scale) == x.shape[-1]:
        raise DataSiteError(
            f"the preprocessing is for {len(mean)} features, the data have {x.shape[-1]}"
        )
    result = np.empty_like(x)
    for begin in range(0, len(x), _ROWS_AT_A_TIME):
        part = slice(begin, begin + _ROWS_AT_A_TIME)
        result[part] = (x[part] - mean) / scale
    return result
