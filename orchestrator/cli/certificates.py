"""`orchestrator certificates`: a small authority for the sites of one federation."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from core.commands import echo_json

if TYPE_CHECKING:
    from orchestrator.certificates import CertificateFacts

app = typer.Typer(help="Vouch for sites: make, sign and read certificates.", no_args_is_help=True)

_A_CENTURY = 36_500

AuthorityFolder = Annotated[
    Path, typer.Option("--ca", help="Folder of ca.key and ca.crt.", show_default=False)
]
Days = Annotated[int, typer.Option("--days", min=1, max=_A_CENTURY, help="How long it is valid.")]


@app.command()
def ca(
    out: Annotated[
        Path, typer.Option("--out", help="Folder for ca.key and ca.crt.", show_default=False)
    ],
    name: Annotated[str, typer.Option("--name", help="For people.")] = "Federation",
    days: Days = 3650,
) -> None:
    """Make an authority, whose certificate the researchers trust.

    Example: orchestrator certificates ca --out authority
    """
    from orchestrator.certificates import make_authority

    certificate = make_authority(out, name=name, days=days)
    _echo_valid(certificate)
    typer.echo(
        f"  researchers give it as ca_file in their sites file; keep {out / 'ca.key'} secret"
    )


@app.command()
def issue(
    site: Annotated[str, typer.Argument(help="The site's id.", show_default=False)],
    authority: AuthorityFolder,
    out: Annotated[
        Path, typer.Option("--out", help="Folder for SITE.key and SITE.crt.", show_default=False)
    ],
    host: Annotated[
        list[str] | None,
        typer.Option(
            "--host",
            help="A name or IP address in the site's URL; repeatable; by default its id.",
            show_default=False,
        ),
    ] = None,
    days: Days = 365,
    renew: Annotated[
        bool,
        typer.Option("--renew", help="Replace the certificate; key, and hosts if none, stay."),
    ] = False,
) -> None:
    """Make a site's key and certificate here; or let the site keep its key, and `sign` its request.

    Example: orchestrator certificates issue factory-1 --ca authority --out tls --host 10.0.0.7
    """
    from orchestrator.certificates import issue_certificate, renew_certificate

    make = renew_certificate if renew else issue_certificate
    certificate = make(site, authority=authority, out=out, hosts=host or (), days=days)
    _echo_valid(certificate)
    if renew:
        typer.echo("  the site takes it up when it restarts, or on SIGHUP")
    else:
        typer.echo(f"  its key, which only the site may have: {certificate.with_suffix('.key')}")


@app.command()
def sign(
    request: Annotated[
        Path, typer.Argument(help="What the factory sent, site.csr.", show_default=False)
    ],
    authority: AuthorityFolder,
    out: Annotated[Path, typer.Option("--out", help="The certificate's file.", show_default=False)],
    days: Days = 365,
) -> None:
    """Sign a request whose key never left its factory, for the hosts that it names.

    Example: orchestrator certificates sign site.csr --ca authority --out factory-1.crt
    """
    from orchestrator.certificates import sign_request

    _echo_valid(sign_request(request, authority=authority, certificate_file=out, days=days))


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="A certificate, PEM.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")] = False,
) -> None:
    """Say whom a certificate is for, who vouches, and for how long.

    Example: orchestrator certificates show factory-1.crt
    """
    from orchestrator.certificates import describe_certificates

    found = describe_certificates(file)
    if as_json:
        echo_json(found)
        return
    typer.echo("\n\n".join(_in_words(facts) for facts in found))


def _in_words(facts: "CertificateFacts") -> str:
    days = facts["days_left"]
    left = f"{days} days left" if days >= 0 else f"EXPIRED {-days} days ago"
    kind = " (an authority)" if facts["is_authority"] else ""
    return f"""\
Subject      {facts["subject"] or "none"}{kind}
Names        {", ".join(facts["hosts"]) or "none"}
Issuer       {facts["issuer"]}
Valid from   {facts["valid_from"]}
Valid until  {facts["valid_until"]}: {left}"""


def _echo_valid(certificate: Path) -> None:
    from orchestrator.certificates import describe_certificates

    facts = describe_certificates(certificate)[0]
    whom = ", ".join(facts["hosts"]) or facts["subject"]
    typer.echo(f"{certificate} is for {whom}, valid until {facts['valid_until'][:10]}")
