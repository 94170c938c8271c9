"""`datasite certificate`: what the site's certificate is asked for with."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Ask for the site's certificate.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep `request` a command of its own: typer makes a group's only command the group."""


@app.command()
def request(
    host: Annotated[
        list[str],
        typer.Option(
            "--host",
            help="A name or IP address in the URL by which researchers reach the site; repeatable.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", help="Folder for site.key and site.csr.", show_default=False)
    ],
) -> None:
    """Make the site's key, which stays here, and a request that the authority signs.

    Example: datasite certificate request --host factory-1.example.com --out tls
    """
    from datasite.certificates import request_certificate

    key_file, request_file = request_certificate(out, host)
    typer.echo(f"{key_file} is the site's key; keep it here, and secret")
    typer.echo(
        f"{request_file} asks for a certificate for {', '.join(host)}; have the authority sign it: "
        f"orchestrator certificates sign {request_file.name} --ca FOLDER --out site.crt"
    )
