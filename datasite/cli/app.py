"""`datasite`: what a site's operator does from a shell on the site's machine.

Commands that change the site's records work whether the site runs or not; those that need PySyft
(accounts, status) ask the running site. Imports are late, so that `--help` is instant.
"""

from typing import TYPE_CHECKING, NoReturn

import typer

from core.commands import Debug, configure_logging, echo_json
from core.commands import run as run_app
from datasite.cli import audit, backup, budget, certificate, data, doctor, plans, users
from datasite.cli.options import AsJson, ConfigFile, load

if TYPE_CHECKING:
    from pydantic import JsonValue

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(data.app, name="data")
app.add_typer(plans.app, name="plans")
app.add_typer(budget.app, name="budget")
app.add_typer(users.app, name="users")
app.add_typer(audit.app, name="audit")
app.add_typer(certificate.app, name="certificate")
app.command()(backup.backup)
app.command()(backup.restore)
app.command()(doctor.doctor)


@app.callback()
def prepare(debug: Debug = False) -> None:
    """Run a factory's datasite, and decide what may be done with its data."""
    configure_logging(debug=debug)


@app.command()
def serve(config: ConfigFile) -> None:
    """Run the site until it is told to stop (SIGTERM, or Ctrl-C).

    Example: datasite serve --config site.yaml
    """
    from core.imports import uncollected

    with uncollected():
        from datasite.serve import serve as serve_site

    serve_site(load(config))


@app.command()
def status(config: ConfigFile, as_json: AsJson = False) -> None:
    """Say whether the site runs, and what it offers.

    Example: datasite status --config site.yaml
    """
    from datasite.operator_door import OperatorDoor

    site = load(config)
    with OperatorDoor(site_id=site.site_id, state=site.state) as door:
        found = door.status()
    if as_json:
        echo_json(found)
        return
    width = max(map(len, found))
    for name, value in found.items():
        typer.echo(f"{name.replace('_', ' '):<{width}} {_shown(value)}")


@app.command()
def identity(config: ConfigFile) -> None:
    """Print the site's name and identity key, for the operators of its peers.

    They compare it with the roster of a plan under secure aggregation, or name it in their
    site.yaml under `secure_aggregation.peers`. Give it to them over a way of your own, and not by
    who runs the orchestrator.

    Example: datasite identity --config site.yaml
    """
    from datasite.configuration import open_state
    from datasite.identity import Identity

    site = load(config)
    typer.echo(f"{site.site_id}: {Identity.open(open_state(site)).public_key}")


def _shown(value: "JsonValue") -> str:
    if isinstance(value, list):
        return ", ".join(str(item["name"]) for item in value if isinstance(item, dict)) or "none"
    return str(value)


def main() -> NoReturn:
    """Run the command and end the process with its exit code."""
    run_app(app)
