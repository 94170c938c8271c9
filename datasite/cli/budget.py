"""`datasite budget`: what may be told of the data under differential privacy, and what was."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from core.commands import echo_json, echo_table
from datasite.cli.foreign import plain
from datasite.cli.options import AsJson, ConfigFile, open_records

if TYPE_CHECKING:
    from datasite.spending import Spending

app = typer.Typer(
    help="See and set the privacy budgets of the data.",
    no_args_is_help=True,
)

DatasetName = Annotated[str, typer.Argument(help="The dataset's name.", show_default=False)]


@app.command()
def show(
    config: ConfigFile,
    dataset: Annotated[
        str, typer.Argument(help="The dataset's name; by default each.", show_default=False)
    ] = "",
    picture: Annotated[
        Path | None,
        typer.Option("--picture", help="Write a picture of it over time to this .png file."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what was spent of each privacy budget, by whom and for which plan, and what is left.

    Example: datasite budget show press --picture press.png -c site.yaml
    """
    from datasite.spending import as_json as spending_as_json
    from datasite.spending import look_up, require_one

    found = look_up(open_records(config), dataset)
    if picture is not None:
        from datasite.cli.budget_picture import draw

        draw(require_one(found), picture)
    if as_json:
        echo_json([spending_as_json(each) for each in found])
        return
    for number, each in enumerate(found):
        typer.echo("\n" * bool(number) + _in_words(each))
        if each.plans:
            _echo_plans(each)
    if not found:
        typer.echo("no dataset is registered")


@app.command(name="set")
def set_(
    dataset: DatasetName,
    config: ConfigFile,
    epsilon: Annotated[
        float, typer.Option("--epsilon", help="ε, of all rounds together.", show_default=False)
    ],
    delta: Annotated[
        float,
        typer.Option("--delta", help="δ: well below 1 over the units.", show_default=False),
    ],
    unit: Annotated[
        str, typer.Option("--unit", help="Whose presence is hidden: window, or machine.")
    ] = "window",
) -> None:
    """Set what may be told of a dataset, by all plans on all its versions together.

    Example: datasite budget set press --epsilon 8 --delta 1e-5 --unit window -c site.yaml
    """
    from core.configuration import parse
    from datasite.configuration import Budget
    from datasite.records import OPERATOR

    given = {"epsilon": epsilon, "delta": delta, "unit": unit}
    budget = parse(given, Budget, source="budget")
    records = open_records(config)
    records.budgets.set(dataset, budget, who=OPERATOR)
    known = any(each.name == dataset for each in records.registry.current())
    later = "" if known else "; no dataset of this name is registered yet"
    typer.echo(
        f"{plain(dataset)}: ε = {budget.epsilon:g} per {budget.unit} at δ = {budget.delta:g}{later}"
    )


def _in_words(found: "Spending") -> str:
    name, budget = plain(found.dataset), found.budget
    if budget is None:
        said = (
            f"{name}: no privacy budget; plans with differential_privacy are refused until "
            f"'datasite budget set {name} --epsilon E --delta D'"
        )
    else:
        said = (
            f"{name}: ε = {found.epsilon:.3f} of {budget.epsilon:g} per {budget.unit} spent at δ = "
            f"{budget.delta:g}, {max(0.0, budget.epsilon - found.epsilon):.3f} left "
            f"(RDP, enforced; PRV, tighter: {found.epsilon_prv:.3f} spent)"
        )
        if budget.unit == "window" and found.windows_per_reading > 1:
            reading = found.epsilon_of_reading
            says = "" if math.isfinite(reading) else ", which promises nothing"
            said += (
                f"\n  one reading lies in up to {found.windows_per_reading} windows: for one "
                f"reading ε = {reading:.4g} is spent at δ = {budget.delta:g}{says}"
            )
    if found.uncovered:
        said += (
            f"\n  {found.uncovered} rounds were answered under other privacy levels: no ε holds "
            "for what they told"
        )
    return said


def _echo_plans(found: "Spending") -> None:
    echo_table(
        ("plan", "researcher", "rounds", "noise", "unit", "ε spent", "last"),
        [
            (
                each.plan_id[:12],
                plain(each.researcher),
                f"{each.trained}/{each.rounds}",
                f"{each.noise_multiplier:.3f}",
                each.unit,
                f"{each.epsilon:.3f}",
                each.last[:19],
            )
            for each in found.plans
        ],
        empty="",
    )
