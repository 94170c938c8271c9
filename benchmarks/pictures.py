"""Pictures of what speed.py measured: rounds, memory and bytes, and what comes once."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from quantities import FLOOR_NAMES, MOST_MODELS, number_text

LIVE: Final = "#4477aa"
DARK: Final = "#222222"
GREY: Final = "#999999"
FLOORS: Final[Mapping[str, tuple[str, str]]] = {
    "plain": (DARK, "--"),
    "quickest": (GREY, ":"),
    "echo": ("#cc6677", "-."),
}
SITES: Final = ("#66ccee", "#4477aa", "#ccbb44", "#228833", "#aa3377")
MEGA: Final = 1e6

Cells = Sequence[Mapping[str, Any]]


def draw(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw what `results` have, as `folder`/speed-*.png; the pictures' paths."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    if "rounds" in results:
        drawn.append(_draw_rounds(results["rounds"], folder / "speed-rounds.png"))
        drawn.append(_draw_memory(results["rounds"], folder / "speed-memory.png"))
    once = [
        row
        for row in results["quantities"]
        if row["part"] in {"startup", "login", "training"} and row["unit"] in {"s", "wall s"}
    ]
    if once:
        drawn.append(_draw_once(once, folder / "speed-once.png"))
    return drawn


def _draw_rounds(cells: Cells, path: Path) -> Path:
    """Draw a panel for each number of sites: a round's time by parameters, and the floors'."""
    numbers = sorted({cell["sites"] for cell in cells})
    figure, axes = plt.subplots(
        1,
        len(numbers),
        figsize=(max(6.4, 3.4 * len(numbers) + 0.6), 3.9),
        sharey=True,
        squeeze=False,
    )
    for axis, number in zip(axes[0], numbers, strict=True):
        chosen = _of(cells, number)
        sizes = [cell["parameters"] for cell in chosen]
        for name, (colour, style) in FLOORS.items():
            floor_ms = [cell["floor_ms"].get(name, math.nan) for cell in chosen]
            label = FLOOR_NAMES[name]
            axis.plot(sizes, floor_ms, style, marker=".", color=colour, label=label)
        medians = [cell["round_ms"]["median"] for cell in chosen]
        axis.errorbar(
            sizes,
            medians,
            yerr=_reach([cell["round_ms"] for cell in chosen]),
            color=LIVE,
            marker="o",
            markersize=4,
            capsize=3,
            elinewidth=0.8,
            label="live sites: median, least and greatest",
        )
        for size, median in zip(sizes, medians, strict=True):
            _write(axis, number_text(median), (size, median), (-5, 6))
        axis.set_title(f"{number} sites", fontsize=10)
        _by_size(axis, "parameters")
    axes[0][0].set_ylabel("a round with the null objective, ms")
    return _finish(figure, axes[0][0], path)


def _draw_memory(cells: Cells, path: Path) -> Path:
    """Draw by the model's size: memory of both sides and, where they were counted, the bytes."""
    is_counted = all(cell["sent_bytes"] is not None for cell in cells)
    figure, axes = plt.subplots(
        1, 2 + is_counted, figsize=(3.8 * (2 + is_counted), 3.9), squeeze=False
    )
    orchestrator, site, *carried = axes[0]
    seen = [cell for cell in cells if cell["orchestrator"]["model_bytes"] > MEGA]
    _bars(orchestrator, seen or cells, lambda cell: float(cell["orchestrator"]["over_start"]))
    orchestrator.axhline(MOST_MODELS, color=DARK, linestyle="--", linewidth=0.9)
    place = (orchestrator.get_xlim()[1], MOST_MODELS)
    _write(orchestrator, "target with 16 sites", place, (0, 3), colour=DARK)
    orchestrator.set_title("orchestrator's peak, in models", fontsize=10)
    _bars(site, cells, lambda cell: cell["server_peak_bytes"] / MEGA)
    _bars(site, cells, lambda cell: cell["trainer_peak_bytes"] / MEGA, is_mark=True)
    site.set_title("a site's server (bar), trainer (line), MB", fontsize=10)
    for axis in carried:
        _bars(axis, cells, _carried)
        axis.axhline(1, color=DARK, linestyle="--", linewidth=0.9)
        axis.set_title("bytes carried / raw float32", fontsize=10)
    return _finish(figure, orchestrator, path)


def _draw_once(rows: Cells, path: Path) -> Path:
    """Draw what comes once in a run, and a round of training: seconds, each beside its floor."""
    figure, axis = plt.subplots(figsize=(8.6, 0.42 * len(rows) + 1.5))
    for place, row in enumerate(rows):
        median, target = row["spread"]["median"], row["target"]
        axis.errorbar(
            median,
            place,
            xerr=_reach([row["spread"]]),
            color=LIVE,
            marker="o",
            markersize=6,
            capsize=3,
            linestyle="",
            label="median, least and greatest" if place == 0 else None,
        )
        _write(axis, number_text(median), (median, place), (0, 7), align="center")
        if row["floor"]:
            value = row["floor"]["value"]
            axis.plot(value, place, "|", color=DARK, markersize=15, markeredgewidth=1.6)
        if target and target["of"] == "median":
            axis.plot(target["at_most"], place, "<", color="#228833", markersize=7)
    axis.plot([], [], "|", color=DARK, markersize=12, markeredgewidth=1.6, label="floor")
    axis.plot([], [], "<", color="#228833", label="target: at most")
    axis.set_yticks(range(len(rows)), [row["what"].replace("`", "") for row in rows], fontsize=9)
    axis.set_ylim(len(rows) - 0.5, -0.7)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_xlabel("seconds")
    _tidy(axis)
    axis.grid(axis="y", linewidth=0)
    return _finish(figure, axis, path)


def _bars(
    axis: Axes,
    cells: Cells,
    value: Callable[[Mapping[str, Any]], float],
    *,
    is_mark: bool = False,
) -> None:
    """Draw bars, or lines across them: a group for each size, in it each number of sites."""
    sizes = sorted({cell["asked"] for cell in cells})
    numbers = sorted({cell["sites"] for cell in cells})
    width = 0.8 / len(numbers)
    for place, (number, colour) in enumerate(zip(numbers, SITES, strict=False)):
        chosen = _of(cells, number)
        lefts = [
            sizes.index(cell["asked"]) + (place + 0.5) * width - 0.4 - 0.46 * width
            for cell in chosen
        ]
        values = [value(cell) for cell in chosen]
        if is_mark:
            rights = [left + 0.92 * width for left in lefts]
            axis.hlines(values, lefts, rights, color=DARK, linewidth=1.4)
        else:
            label = f"{number} sites"
            axis.bar(lefts, values, 0.92 * width, align="edge", color=colour, label=label)
    axis.set_xticks(range(len(sizes)), [f"{4 * size / MEGA:g} MB" for size in sizes])
    axis.set_xlabel("the model")
    _tidy(axis)
    axis.grid(axis="x", linewidth=0)


def _carried(cell: Mapping[str, Any]) -> float:
    both = float(cell["sent_bytes"]["median"]) + float(cell["received_bytes"]["median"])
    return both / (8 * int(cell["parameters"]) * int(cell["sites"]))


def _of(cells: Cells, sites: int) -> Cells:
    return sorted(
        (cell for cell in cells if cell["sites"] == sites), key=lambda cell: cell["parameters"]
    )


def _reach(spreads: Sequence[Mapping[str, float]]) -> list[list[float]]:
    """Give how far least and greatest are from the median, as error bars want it."""
    return [
        [spread["median"] - spread["min"] for spread in spreads],
        [spread["max"] - spread["median"] for spread in spreads],
    ]


def _write(
    axis: Axes,
    text: str,
    place: tuple[float, float],
    beside: tuple[float, float],
    *,
    align: str = "right",
    colour: str = LIVE,
) -> None:
    """Write beside a point by so many points of type."""
    axis.annotate(
        text,
        place,
        xytext=beside,
        textcoords="offset points",
        horizontalalignment=align,
        fontsize=8,
        color=colour,
    )


def _by_size(axis: Axes, what: str) -> None:
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.margins(x=0.18, y=0.1)
    axis.set_xlabel(what)
    _tidy(axis)


def _tidy(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(linewidth=0.3)
    axis.set_axisbelow(True)


def _finish(figure: Figure, legend_of: Axes, path: Path) -> Path:
    """Put the legend below all panels, and save."""
    handles, labels = legend_of.get_legend_handles_labels()
    columns = min(len(labels), 3)
    figure.legend(handles, labels, loc="lower center", ncol=columns, frameon=False, fontsize=9)
    rows_inches = 0.2 + 0.25 * -(-len(labels) // columns)
    figure.tight_layout(rect=(0, rows_inches / figure.get_figheight(), 1, 1))
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path
