"""The picture of what privacy.py measured: utility, membership, inversion, level by level."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

COLOURS: Final = ("#4477aa", "#ccbb44", "#aa3377")
DARK: Final = "#222222"
WIDTH: Final = 0.8


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Draw a panel each for PR-AUC, the AUC of the better membership attack, and inversion."""
    levels = list(results["levels"].values())
    figure, axes = plt.subplots(1, 3, figsize=(13.5, 4.6))
    utility, membership, inversion = axes
    _bars(utility, levels, {"test parts": lambda entry: entry["ordinary"]["pr_auc"]})
    target = 0.85 * float(np.mean(levels[0]["ordinary"]["pr_auc"]))
    utility.axhline(target, color=DARK, linestyle="--", linewidth=0.9, label="0.85 of none")
    utility.set_title("PR-AUC", fontsize=10)
    _bars(
        membership,
        levels,
        {
            "this federation": lambda entry: entry["ordinary"]["ratio"]["auc"],
            "overfitted: few rows, many epochs": lambda entry: entry["overfitted"]["ratio"]["auc"],
        },
    )
    membership.axhline(0.5, color=DARK, linestyle="--", linewidth=0.9, label="chance")
    membership.set_ylim(0.45, None)
    membership.set_title("membership, likelihood ratio: AUC", fontsize=10)
    cases = levels[0]["inversion"]
    _bars(
        inversion,
        levels,
        {case: lambda entry, case=case: [entry["inversion"][case]["found"]] for case in cases},
    )
    inversion.set_ylim(0, 1.02)
    inversion.set_title("inversion of an update: share of rows found", fontsize=10)
    for axis in axes:
        axis.set_xticks(
            range(len(levels)), [entry["title"] for entry in levels], rotation=35, ha="right"
        )
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", linewidth=0.3)
        axis.set_axisbelow(True)
        axis.legend(fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _bars(axis: Axes, levels: Sequence[Mapping[str, Any]], series: Mapping[str, Any]) -> None:
    """Draw a group for each level, in it a bar for each of `series`: mean and deviation."""
    width = WIDTH / len(series)
    for number, (label, values_of) in enumerate(series.items()):
        values = [values_of(entry) for entry in levels]
        axis.bar(
            [place - WIDTH / 2 + (number + 0.5) * width for place in range(len(levels))],
            [float(np.mean(each)) for each in values],
            0.92 * width,
            yerr=[float(np.std(each, ddof=1)) if len(each) > 1 else 0.0 for each in values],
            color=COLOURS[number],
            error_kw={"elinewidth": 0.8, "ecolor": DARK},
            label=label,
        )
