"""`orchestrator testbed`: a federation on this machine, without containers."""

from pathlib import Path
from typing import Annotated

import click
import typer

from core.commands import echo_json, echo_table
from core.enums import DataDistribution

app = typer.Typer(help="A federation of local processes, with sample data.", no_args_is_help=True)

Folder = Annotated[
    Path, typer.Option("--folder", envvar="TESTBED_FOLDER", help="Where the testbed lies.")
]
_DISTRIBUTIONS = click.Choice([distribution.value for distribution in DataDistribution])
_FOLDER = Path(".testbed")
NumSites = Annotated[int, typer.Option("--sites", "-n", min=1, max=64, help="How many factories.")]
Source = Annotated[
    Path | None,
    typer.Option("--source", help="The AI4I 2020 file (CSV); by default data like it are made."),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Where random draws come from.")]


@app.command()
def up(sites: NumSites = 3, folder: Folder = _FOLDER) -> None:
    """Start the sites and wait until they answer; what runs already is left as it is.

    Example: orchestrator testbed up --sites 3
    """
    from orchestrator.testbed.processes import Testbed

    testbed = Testbed(folder)
    typer.echo(f"starting {sites} site(s) in {testbed.folder} (about half a minute) ...")
    rows = [(site.site_id, site.url, site.pid) for site in testbed.up(sites)]
    echo_table(("site", "url", "process"), rows, empty="")
    typer.echo(f"sites file for experiments: {testbed.sites_file}")


@app.command()
def status(
    folder: Folder = _FOLDER,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")] = False,
) -> None:
    """Say which sites run, where, and with how much memory; exit code 1 when one does not.

    Example: orchestrator testbed status
    """
    from orchestrator.testbed.processes import Testbed

    sites = []
    for site in Testbed(folder).sites():
        process = site.process()
        family = [process, *process.children(recursive=True)] if process else []
        sites.append(
            {
                "site_id": site.site_id,
                "url": site.url,
                "pid": site.pid if process else None,
                "memory_mib": sum(member.memory_info().rss for member in family) // 2**20,
            }
        )
    if as_json:
        echo_json(sites)
    else:
        rows = [(s["site_id"], s["pid"] or "stopped", s["url"], s["memory_mib"]) for s in sites]
        echo_table(("site", "process", "url", "MiB"), rows, empty="")
    raise typer.Exit(0 if all(site["pid"] for site in sites) else 1)


@app.command()
def down(
    folder: Folder = _FOLDER,
    delete: Annotated[
        bool, typer.Option("--delete", help="Also delete the folder: accounts, data, plans.")
    ] = False,
) -> None:
    """Stop the sites; their data, accounts and plans stay for the next `up`.

    Example: orchestrator testbed down --delete
    """
    from orchestrator.testbed.processes import Testbed

    stopped = Testbed(folder).down(delete=delete)
    typer.echo(f"stopped: {', '.join(stopped) or 'nothing was running'}")


@app.command()
def data(
    sites: NumSites = 3,
    out: Annotated[Path, typer.Option("--out", help="Folder for the files.")] = Path("data"),
    distribution: Annotated[
        str, typer.Option(help="How the rows are divided.", click_type=_DISTRIBUTIONS)
    ] = DataDistribution.IID.value,
    source: Source = None,
    fetch: Annotated[
        bool, typer.Option("--fetch", help="Download the AI4I 2020 data set (needs internet).")
    ] = False,
    rows: Annotated[int, typer.Option("--rows", min=150, help="Rows to make.")] = 10_000,
    seed: Seed = 0,
) -> None:
    """Write one CSV for each site: AI4I-like data, or the real AI4I 2020 data set divided.

    Example: orchestrator testbed data --sites 3 --distribution iid --out data
    """
    from core.exceptions import ConfigurationError
    from orchestrator.testbed.fetching import fetch_ai4i
    from orchestrator.testbed.samples import load_table, write_samples

    if fetch and source is not None:
        raise ConfigurationError("--fetch and --source: give one of them")
    if fetch:
        source = fetch_ai4i(out / "ai4i2020.csv")
    table = load_table(source, rows=rows, seed=seed)
    paths = write_samples(
        table, out, sites=sites, distribution=DataDistribution(distribution), seed=seed
    )
    for path in paths:
        typer.echo(str(path))


@app.command()
def demo(
    sites: NumSites = 3,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Rounds of FedAvg.")] = 20,
    source: Source = None,
    folder: Annotated[
        Path | None, typer.Option("--folder", help="By default one that is deleted at the end.")
    ] = None,
    runs: Annotated[Path, typer.Option("--runs", help="The folder of the runs.")] = Path("runs"),
    seed: Seed = 0,
) -> None:
    """Show everything once: sites up, data in, a federated run, each site alone, sites down.

    Example: orchestrator testbed demo
    """
    from orchestrator.testbed.demo import demonstrate

    demonstrate(sites=sites, rounds=rounds, source=source, folder=folder, runs=runs, seed=seed)
