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
