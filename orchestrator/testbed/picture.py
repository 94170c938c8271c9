"""A picture of a division: what each site got."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")
"""Okabe and Ito's palette: https://jfly.uni-koeln.de/color/, told apart by the colour-blind too."""

_INK, _FAINT = "#333333", "#999999"
_BINS = 40
_ROW_INCHES = 0.34
_DPI = 130


def draw_split(
    parts: Sequence[pd.DataFrame], *, title: str, label: str, column: str | None = None
) -> bytes:
    """Draw a PNG picture of the rows and the failure rate of each site, and of one column there.

    Args:
        parts: One table a site.
        title: What division it is.
        label: The column of 0 and 1.
        column: Where given, a third panel shows its distribution at each site: shares of
            categories, or histograms of numbers, each as high as the others at its peak.
    """
    panels = 2 if column is None else 3
    height = 1.7 + _ROW_INCHES * max(len(parts), 3)
    figure = Figure(figsize=(1.2 + 3.6 * panels, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold", color=_INK)
    axes: list[Axes] = list(figure.subplots(1, panels, sharey=True, squeeze=False).flat)
    _draw_rows(axes[0], [len(part) for part in parts])
    _draw_rates(axes[1], parts, label)
    if column is not None:
        _draw_column(axes[2], [part[column] for part in parts], column)
    names = [f"factory-{number}" for number in range(1, len(parts) + 1)]
    axes[0].set_yticks(range(len(parts)), names)
    axes[0].set_ylim(len(parts) - 0.4, -0.6)  # the first site on top
    for panel in axes:
        _tidy(panel)
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()


def _draw_rows(axes: Axes, rows: list[int]) -> None:
    bars = axes.barh(range(len(rows)), rows, height=0.7, color=_COLOURS[0])
    axes.bar_label(bars, [f"{count:,}" for count in rows], padding=4, fontsize=9, color=_INK)
    axes.set_title("rows", loc="left", fontsize=10, color=_INK)
    axes.set_xlim(0, 1.2 * max(rows))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _draw_rates(axes: Axes, parts: Sequence[pd.DataFrame], label: str) -> None:
    failures = np.array([int(part[label].sum()) for part in parts])
    rows = np.array([len(part) for part in parts])
    percent = 100.0 * failures / rows
    overall = 100.0 * failures.sum() / rows.sum()
    bars = axes.barh(range(len(parts)), percent, height=0.7, color=_COLOURS[5])
    texts = [f"{rate:.1f} %  ({count:,})" for rate, count in zip(percent, failures, strict=True)]
    axes.axvline(overall, color=_INK, linewidth=1, linestyle=(0, (4, 3)))
    paper = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}  # keeps the line off the text
    axes.bar_label(bars, texts, padding=5, fontsize=9, color=_INK, bbox=paper)
    axes.set_title(
        f"failure rate and failures; all sites {overall:.1f} %", loc="left", fontsize=10, color=_INK
    )
    axes.set_xlim(0, 1.45 * percent.max())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g} %"))


def _draw_column(axes: Axes, cells: list[pd.Series], column: str) -> None:
    axes.set_title(column, loc="left", fontsize=10, color=_INK)
    if pd.api.types.is_numeric_dtype(cells[0]):
        _draw_histograms(axes, cells)
    else:
        _draw_shares(axes, cells)


def _draw_histograms(axes: Axes, cells: list[pd.Series]) -> None:
    together = pd.concat(cells).dropna()
    edges = np.histogram_bin_edges(together.to_numpy(dtype=np.float64), bins=_BINS)
    for row, values in enumerate(cells):
        counts, _ = np.histogram(values.dropna().to_numpy(dtype=np.float64), bins=edges)
        heights = 0.8 * counts / counts.max()
        axes.stairs(row + 0.35 - heights, edges, baseline=row + 0.35, fill=True, color=_COLOURS[2])
        axes.axhline(row + 0.35, color=_FAINT, linewidth=0.5)


def _draw_shares(axes: Axes, cells: list[pd.Series]) -> None:
    shares = pd.DataFrame([values.value_counts(normalize=True) for values in cells]).fillna(0.0)
    shares = shares[pd.concat(cells).value_counts().index]
    if len(shares.columns) > len(_COLOURS):
        rare = shares.columns[len(_COLOURS) - 1 :]
        shares = shares.drop(columns=rare).assign(others=shares[rare].sum(axis=1))
    left = np.zeros(len(cells))
    for colour, (name, share) in zip(_COLOURS, shares.items(), strict=False):
        width = 100.0 * share.to_numpy()
        axes.barh(range(len(cells)), width, left=left, height=0.7, color=colour, label=str(name))
        left += width
    axes.set_xlim(0, 100)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g} %"))
    axes.legend(
        loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9, handlelength=1
    )


def _tidy(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.tick_params(length=0, labelsize=9, labelcolor=_INK)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_FAINT)
