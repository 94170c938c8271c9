"""The picture of what endurance.py measured: memory and open files of every process, by round."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

MIB: Final = 2**-20
SETTLED: Final = 20
TITLES: Final = {
    "memory": "ten sites in memory, one process",
    "live": "three live sites",
}
COLOURS: Final = {
    "all": "#222222",
    "orchestrator": "#222222",
    "server": "#4477aa",
    "trainer": "#ccbb44",
}
"""By what a process is; the sites' are numbered."""


def draw(results: Mapping[str, Any], folder: Path) -> Path | None:
    """Draw what `results` have, as `folder`/endurance.png; the picture's path."""
    parts = [part for part in TITLES if part in results]
    if not parts:
        return None
    figure, axes = plt.subplots(
        2, len(parts), figsize=(5.2 * len(parts), 5.6), squeeze=False, sharex="col"
    )
    for column, part in enumerate(parts):
        above, below = axes[0][column], axes[1][column]
        above.set_title(TITLES[part], fontsize=10)
        _curves(above, results[part]["resident"], MIB)
        _curves(below, results[part]["files"], 1)
        below.set_xlabel("round")
        if len(results[part]["resident"]) > 1:
            above.legend(frameon=False, fontsize=8, loc="lower right", ncols=3)
    axes[0][0].set_ylabel("memory, MiB")
    axes[1][0].set_ylabel("open files")
    figure.tight_layout()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "endurance.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _curves(axis: Axes, values: Mapping[str, list[int]], factor: float) -> None:
    """Draw a line for each process, and one where nothing is to grow any more."""
    named = set()
    for name, each in values.items():
        role = name.split()[0]
        label = None if role in named else (f"{role}s" if role != name else role)
        named.add(role)
        axis.plot([value * factor for value in each], color=COLOURS[role], lw=1.2, label=label)
    axis.axvline(SETTLED, color="#999999", linestyle=":", linewidth=1)
    axis.margins(y=0.1)
    axis.set_ylim(bottom=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(linewidth=0.3)
