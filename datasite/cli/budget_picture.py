"""A picture of what was spent of a privacy budget over time."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.figure import Figure

from core.exceptions import ConfigurationError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from datasite.spending import Spending

_SIZE_INCHES: Final = (8.0, 4.5)
_DOTS_PER_INCH: Final = 150
_MOST_PLANS: Final = 8
"""Whose own lines are drawn: the last ones."""


def draw(found: "Spending", path: Path) -> None:
    """Draw ε over time: of all plans together, of each, and the budget.

    Raises:
        ConfigurationError: The file is no .png, or cannot be written.
    """
    if path.suffix.lower() != ".png":
        raise ConfigurationError(f"--picture: {path} is no .png file")
    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _draw_spending(axes, found)
    unit = "" if found.budget is None else f" per {found.budget.unit}"
    delta = "" if found.budget is None else f" at δ = {found.budget.delta:g}"
    axes.set_title(f"Privacy spent on {found.dataset!r}", loc="left")
    axes.set_ylabel(f"ε{unit}{delta}")
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize="small")
    try:
        figure.savefig(path, dpi=_DOTS_PER_INCH)
    except OSError as exc:
        raise ConfigurationError(f"--picture: {path} cannot be written: {exc.strerror}") from exc


def _draw_spending(axes: "Axes", found: "Spending") -> None:
    steps = found.steps
    if not steps:
        axes.set_xticks([])
        axes.text(0.5, 0.5, "nothing was spent", ha="center", transform=axes.transAxes)
    else:
        locator = AutoDateLocator()  # type: ignore[no-untyped-call]
        axes.xaxis.set_major_locator(locator)
        formatter = ConciseDateFormatter(locator)  # type: ignore[no-untyped-call]
        axes.xaxis.set_major_formatter(formatter)
        axes.set_xlabel("time (UTC)")
        axes.xaxis_date()
        _step_line(axes, [(step.at, step.epsilon) for step in steps], "all plans", "black")
        for number, plan in enumerate(found.plans[-_MOST_PLANS:]):
            own = [(step.at, step.of_plan) for step in steps if step.plan_id == plan.plan_id]
            label = f"plan {plan.plan_id[:8]}, {plan.researcher}"
            _step_line(axes, own, label, f"C{number}")
    if found.budget is not None:
        axes.axhline(
            found.budget.epsilon,
            color="firebrick",
            linestyle="--",
            label=f"budget, ε = {found.budget.epsilon:g}",
        )
        axes.set_ylim(top=1.1 * max(found.budget.epsilon, found.epsilon))


def _step_line(axes: "Axes", points: list[tuple[str, float]], label: str, colour: str) -> None:
    times = [date2num(_time(at)) for at, _ in points]  # type: ignore[no-untyped-call]
    values = [value for _, value in points]
    axes.step(
        [times[0], *times],
        [0.0, *values],
        where="post",
        label=label,
        color=colour,
        linewidth=2.0 if colour == "black" else 1.2,
        marker="o",
        markersize=3.0,
        markevery=slice(1, None),
    )


def _time(written: str) -> datetime:
    return datetime.fromisoformat(written)
