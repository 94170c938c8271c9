"""The options that the operator's commands share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from datasite.configuration import SiteConfig
    from datasite.records import Records

ConfigFile = Annotated[
    Path,
    typer.Option(
        "--config", "-c", envvar="DATASITE_CONFIG", help="The site's site.yaml.", show_default=False
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
Reason = Annotated[str, typer.Option("--reason", help="Told to the researcher, and kept.")]


def load(path: Path) -> "SiteConfig":
    """Read the site's configuration."""
    from datasite.configuration import load_site_config

    return load_site_config(path)


def open_records(path: Path) -> "Records":
    """Open the site's records, beside the running site or without it."""
    from datasite.records import Records

    return Records.open(load(path))


def read_password(file: Path | None, *, variable: str, confirm: bool) -> str:
    """Give a password from a file, from the environment's `variable`, or from a prompt.

    It is never an argument: arguments can be seen by every user of the machine.

    Raises:
        ConfigurationError: The file cannot be read as text.
    """
    import os

    from core.exceptions import ConfigurationError

    if file is not None:
        try:
            return file.read_text(encoding="utf-8").strip()
        except OSError as exc:
            raise ConfigurationError(f"--password-file: {file}: {exc.strerror}") from exc
        except UnicodeDecodeError as exc:
            raise ConfigurationError(f"--password-file: {file}: is not UTF-8 text") from exc
    given = os.environ.get(variable, "")
    return given or str(typer.prompt("Password", hide_input=True, confirmation_prompt=confirm))
