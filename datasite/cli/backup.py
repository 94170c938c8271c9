"""`datasite backup` and `datasite restore`: the site's state as one file."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from datasite.cli.options import ConfigFile, load

if TYPE_CHECKING:
    from datasite.archive import Manifest

_STREAM: Final = Path("-")

_NOT_IN_IT = (
    "not in it: site.yaml, the password files, TLS key and certificate; keep them elsewhere"
)


def backup(
    config: ConfigFile,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The new file; - for a pipe.", show_default=False)
    ],
) -> None:
    """Write all that the site keeps to one file, while it runs or not.

    It holds the factory's data and the site's private key: keep it as secret as these. Not in it
    are site.yaml, the password files, TLS key and certificate.

    Example: datasite backup --out factory-1.tar.gz --config site.yaml
    """
    from datasite.backup import back_up, back_up_to

    site = load(config)
    manifest = back_up_to(site, sys.stdout.buffer) if out == _STREAM else back_up(site, out)
    where = "the output" if out == _STREAM else out
    typer.echo(f"{where} holds {_told(manifest)}", err=True)
    typer.echo(_NOT_IN_IT, err=True)


def restore(
    file: Annotated[
        Path, typer.Argument(help="What 'datasite backup' wrote; - for a pipe.", show_default=False)
    ],
    config: ConfigFile,
    replace: Annotated[
        bool, typer.Option("--replace", help="Move the state that is there aside first.")
    ] = False,
) -> None:
    """Put what a backup holds into the place of the site's state; the site must not run.

    The file is checked whole before anything is written. site.yaml, passwords and TLS files must be
    there already: they are in no backup.

    Example: datasite restore factory-1.tar.gz --config site.yaml
    """
    from datasite.restore import restore as restore_site
    from datasite.restore import restore_from

    site = load(config)
    if file == _STREAM:
        done = restore_from(site, sys.stdin.buffer, replace=replace)
    else:
        done = restore_site(site, file, replace=replace)
    typer.echo(f"{site.state} is restored: {_told(done.manifest)}")
    if done.replaced is not None:
        typer.echo(f"what was there before lies in {done.replaced}; remove it when all is well")
    typer.echo(_NOT_IN_IT)


def _told(manifest: "Manifest") -> str:
    audit = manifest.audit
    log = f"{audit.rows} audit rows up to {audit.sha256 or 'none'}"
    if audit.fault:
        log += f" (WARNING: the audit log is not whole: {audit.fault})"
    return (
        f"{manifest.site_id} as of {manifest.made_at}, version {manifest.version}: "
        f"{len(manifest.files)} files, {manifest.size_bytes:,} bytes, {log}"
    )
