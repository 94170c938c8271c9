"""`datasite users`: the accounts of the running site."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import typer

from core.commands import echo_json, echo_table
from datasite.caller import Role
from datasite.cli.options import AsJson, ConfigFile, load, read_password

if TYPE_CHECKING:
    from datasite.operator_door import OperatorDoor

_ROLES = click.Choice([role.value for role in Role])

Email = Annotated[str, typer.Argument(help="The account's e-mail.", show_default=False)]
RoleName = Annotated[str, typer.Option("--role", help="What it may do.", click_type=_ROLES)]
PasswordFile = Annotated[
    Path | None, typer.Option("--password-file", help="Read the password from this file.")
]

app = typer.Typer(
    help="Add and list accounts, shut them out, change their passwords.", no_args_is_help=True
)


@app.command()
def add(
    email: Annotated[
        str, typer.Option("--email", help="What it logs in with.", show_default=False)
    ],
    config: ConfigFile,
    role: RoleName = Role.RESEARCHER.value,
    name: Annotated[str, typer.Option("--name", help="Whose it is; by default the e-mail.")] = "",
    password_file: PasswordFile = None,
) -> None:
    """Open an account. The password comes from a prompt, a file, or $DATASITE_USER_PASSWORD.

    It is never an argument: arguments can be seen by every user of the machine.

    Example: datasite users add --email r@lab.example.com --role researcher -c site.yaml
    """
    with _door(config) as door:
        door.status()  # a site that does not run is known before a password is asked for
        account = door.create_user(
            email=email, name=name or email, password=_password(password_file), role=Role(role)
        )
    typer.echo(f"{account.email} has an account now: {role}")


@app.command(name="list")
def list_(config: ConfigFile, as_json: AsJson = False) -> None:
    """List the accounts.

    Example: datasite users list -c site.yaml
    """
    with _door(config) as door:
        accounts = door.users()
    if as_json:
        echo_json(
            [{"email": a.email, "name": a.name, "role": a.role and a.role.value} for a in accounts]
        )
        return
    rows = [(a.email, a.role.value if a.role else "disabled", a.name) for a in accounts]
    echo_table(("email", "role", "name"), rows, empty="there are no accounts")


@app.command()
def disable(email: Email, config: ConfigFile) -> None:
    """Shut an account out at once: its next call is refused, and its sessions are ended.

    Its plans stay, and so does the account: site.yaml does not open it again at the next start.

    Example: datasite users disable r@lab.example.com -c site.yaml
    """
    with _door(config) as door:
        account = door.disable_user(email)
    typer.echo(f"{account.email} is disabled; let it in again with 'datasite users enable'")


@app.command()
def enable(email: Email, config: ConfigFile, role: RoleName = Role.RESEARCHER.value) -> None:
    """Let a disabled account in again, with its password and in this role.

    Example: datasite users enable r@lab.example.com --role researcher -c site.yaml
    """
    with _door(config) as door:
        account = door.enable_user(email, role=Role(role))
    typer.echo(f"{account.email} is let in again: {role}")


@app.command()
def password(email: Email, config: ConfigFile, password_file: PasswordFile = None) -> None:
    """Change an account's password, from a prompt, a file, or $DATASITE_USER_PASSWORD.

    Who logged in with the old one is out at once, too. Its plans stay: they are the e-mail's.

    Example: datasite users password r@lab.example.com -c site.yaml
    """
    with _door(config) as door:
        door.status()
        account = door.set_password(email, _password(password_file))
    typer.echo(f"{account.email} has another password now; whoever was logged in must do so again")


def _door(config: Path) -> "OperatorDoor":
    """Give the door of the running site; it closes as a context."""
    from datasite.operator_door import OperatorDoor

    site = load(config)
    return OperatorDoor(site_id=site.site_id, state=site.state)


def _password(file: Path | None) -> str:
    return read_password(file, variable="DATASITE_USER_PASSWORD", confirm=True)
