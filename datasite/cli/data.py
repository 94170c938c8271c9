"""`datasite data`: what the site holds."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from core.commands import echo_json, echo_table
from datasite.cli.options import AsJson, ConfigFile, load, open_records

if TYPE_CHECKING:
    from core.schema import DataSchema

app = typer.Typer(help="Check, register, list and remove sensor data.", no_args_is_help=True)

DataFile = Annotated[
    Path, typer.Argument(help="A CSV or Parquet file of sensor readings.", show_default=False)
]
SchemaFile = Annotated[
    Path,
    typer.Option("--schema", "-s", help="The data contract, as YAML.", show_default=False),
]
Name = Annotated[
    str,
    typer.Option("--name", "-n", help="The dataset's name for researchers.", show_default=False),
]


@app.command()
def check(file: DataFile, schema: SchemaFile) -> None:
    """Hold a file against its schema and report; exit code 1 when it breaks it. Changes nothing.

    Example: datasite data check press.csv --schema press.yaml
    """
    from datasite.data.report import render
    from datasite.data.table import check_table

    report = check_table(file, _schema(schema))
    typer.echo(render(report))
    raise typer.Exit(1 if report.violation_count else 0)


@app.command()
def register(file: DataFile, schema: SchemaFile, name: Name, config: ConfigFile) -> None:
    """Register a file as a dataset: checked, copied into the site, shown to researchers as a mock.

    Example: datasite data register press.csv --schema press.yaml --name press -c site.yaml
    """
    registry = open_records(config).registry
    before = {found.version for found in registry.versions() if found.name == name}
    dataset = registry.register(file, _schema(schema), name=name, who="operator")
    published = _publish(config)
    done = "already registered" if dataset.version in before else "registered"
    typer.echo(
        f"{done} {dataset.name!r}, version {dataset.version}: {dataset.rows:,} rows, "
        f"{len(dataset.schema.features)} features; "
        + ("researchers see it now" if published else "researchers see it once the site runs")
    )
    if before and dataset.version not in before:
        versions = ", ".join(map(str, sorted(before)))
        typer.echo(f"plans that name version {versions} keep it")
    _echo_drift(registry.drift(dataset))


@app.command(name="list")
def list_(config: ConfigFile, as_json: AsJson = False) -> None:
    """List the registered datasets, every version; researchers see the newest of each.

    Example: datasite data list -c site.yaml
    """
    datasets = open_records(config).registry.versions()
    if as_json:
        echo_json(
            [
                {
                    "name": d.name,
                    "version": d.version,
                    "rows": d.rows,
                    "schema": d.schema.name,
                    "sha256": d.sha256,
                    "registered_at": d.registered_at,
                }
                for d in datasets
            ]
        )
        return
    echo_table(
        ("name", "version", "rows", "schema", "registered"),
        [(d.name, d.version, d.rows, d.schema.name, d.registered_at[:19]) for d in datasets],
        empty="no dataset is registered; see 'datasite data register --help'",
    )


@app.command()
def remove(
    name: Annotated[str, typer.Argument(help="The dataset's name.", show_default=False)],
    config: ConfigFile,
    version: Annotated[
        int | None,
        typer.Option("--version", help="This version alone; otherwise all.", show_default=False),
    ] = None,
) -> None:
    """Remove a dataset: the site's copies are deleted, and their plans can do nothing more.

    Example: datasite data remove press --version 1 -c site.yaml
    """
    removed = open_records(config).registry.remove(name, version, who="operator")
    _publish(config)
    typer.echo(f"removed {name!r}, version {', '.join(map(str, removed))}")


def _echo_drift(metrics: dict[str, float]) -> None:
    """Say which columns are no longer distributed as in the first version."""
    from core.drift import LARGE, flagged

    for column, value in flagged(metrics).items():
        how = "has drifted far" if value > LARGE else "has drifted"
        typer.echo(f"{column!r} {how} from the first version (PSI {value:.2f})")


def _publish(config: Path) -> bool:
    """Have the running site show what is registered now; False when it does not run."""
    from datasite.operator_door import OperatorDoor

    site = load(config)
    with OperatorDoor(site_id=site.site_id, state=site.state) as door:
        if not door.is_running():
            return False
        door.publish()
    return True


def _schema(path: Path) -> "DataSchema":
    from core.configuration import load_yaml
    from core.schema import DataSchema

    return load_yaml(path, DataSchema)
