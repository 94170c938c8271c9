"""`datasite users`: the accounts of the running site."""

from pathlib import Path
from typing import Annotated

import click
import typer

from core.commands import echo_json, echo_table
from datasite.caller import Role
from datasite.cli.options import AsJson, ConfigFile, load, read_password

_ROLES = click.Choice([role.value for role in Role])

app = typer.Typer(help="Add and list accounts.", no_args_is_help=True)


@app.command()
def add(
    email: Annotated[
        str, typer.Option("--email", help="What it logs in with.", show_default=False)
    ],
    config: ConfigFile,
    role: Annotated[
        str, typer.Option("--role", help="What it may do.", click_type=_ROLES)
    ] = Role.RESEARCHER.value,
    name: Annotated[str, typer.Option("--name", help="Whose it is; by default the e-mail.")] = "",
    password_file: Annotated[
        Path | None, typer.Option("--password-file", help="Read the password from this file.")
    ] = None,
) -> None:
    """Open an account. The password comes from a prompt, a file, or $DATASITE_USER_PASSWORD.

    It is never an argument: arguments can be seen by every user of the machine.

    Example: datasite users add --email r@lab.example.com --role researcher -c site.yaml
    """
    from datasite.operator_door import OperatorDoor

    site = load(config)
    with OperatorDoor(site_id=site.site_id, state=site.state) as door:
        door.status()  # a site that does not run is known before a password is asked for
        account = door.create_user(
            email=email, name=name or email, password=_password(password_file), role=Role(role)
        )
    typer.echo(f"{site.site_id}: {account.email} is a {account.role.value} now")


@app.command(name="list")
def list_(config: ConfigFile, as_json: AsJson = False) -> None:
    """List the accounts.

    Example: datasite users list -c site.yaml
    """
    from datasite.operator_door import OperatorDoor

    site = load(config)
    with OperatorDoor(site_id=site.site_id, state=site.state) as door:
        accounts = door.users()
    if as_json:
        echo_json([{"email": a.email, "name": a.name, "role": a.role.value} for a in accounts])
        return
    rows = [(a.email, a.role.value, a.name) for a in accounts]
    echo_table(("email", "role", "name"), rows, empty="there are no accounts")


def _password(file: Path | None) -> str:
    return read_password(file, variable="DATASITE_USER_PASSWORD", confirm=True)
