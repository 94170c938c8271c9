"""`orchestrator testbed`: a federation on this machine, of processes or of containers."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer

from core.commands import echo_json, echo_table
from core.enums import DataDistribution
from orchestrator.testbed.kinds import SampleKind

if TYPE_CHECKING:
    from orchestrator.testbed.processes import SiteProcess

app = typer.Typer(help="A federation on this machine, with sample data.", no_args_is_help=True)

Folder = Annotated[
    Path, typer.Option("--folder", envvar="TESTBED_FOLDER", help="Where the testbed lies.")
]
_DISTRIBUTIONS = click.Choice([distribution.value for distribution in DataDistribution])
_KINDS = click.Choice([kind.value for kind in SampleKind])
_FOLDER = Path(".testbed")
_PROJECT = "testbed"
_MOST_DRAWN = 100
NumSites = Annotated[int, typer.Option("--sites", "-n", min=1, max=64, help="How many factories.")]
Source = Annotated[
    Path | None,
    typer.Option("--source", help="The AI4I 2020 file (CSV); by default data like it are made."),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Where random draws come from.")]


Containers = Annotated[
    bool, typer.Option("--containers", help="Sites as Docker containers; else as processes.")
]
Project = Annotated[
    str,
    typer.Option(
        "--project", help="With --containers: names everything that the testbed makes in Docker."
    ),
]


@app.command()
def up(
    sites: NumSites = 3,
    folder: Folder = _FOLDER,
    containers: Containers = False,
    project: Project = _PROJECT,
    image: Annotated[
        str, typer.Option("--image", help="With --containers: by default this version's.")
    ] = "",
) -> None:
    """Start the sites and wait until they answer; what runs already is left as it is.

    Example: orchestrator testbed up --sites 3
    """
    _require_meant(containers, {}, {"--image": bool(image), "--project": project != _PROJECT})
    if containers:
        from orchestrator.testbed.containers import IMAGE, ContainerTestbed

        in_docker = ContainerTestbed(project)
        typer.echo(f"starting {sites} site(s) as containers {project}-factory-... ")
        made = in_docker.up(sites, image=image or IMAGE)
        rows = [(site.site_id, site.url, site.container) for site in made]
        echo_table(("site", "url", "container"), rows, empty="")
        sites_file = in_docker.sites_file
    else:
        from orchestrator.testbed.processes import Testbed

        testbed = Testbed(folder)
        typer.echo(f"starting {sites} site(s) in {testbed.folder} (about half a minute) ...")
        rows = [(site.site_id, site.url, str(site.pid)) for site in testbed.up(sites)]
        echo_table(("site", "url", "process"), rows, empty="")
        sites_file = testbed.sites_file
    typer.echo(f"sites file for experiments: {sites_file}")


@app.command()
def status(
    folder: Folder = _FOLDER,
    containers: Containers = False,
    project: Project = _PROJECT,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")] = False,
) -> None:
    """Say which sites run, where, and with how much memory; exit code 1 when one does not.

    Example: orchestrator testbed status
    """
    _require_meant(containers, {}, {"--project": project != _PROJECT})
    if containers:
        from orchestrator.testbed.containers import ContainerTestbed

        found = [asdict(site) for site in ContainerTestbed(project).sites(with_memory=True)]
        well = all(site["health"] == "healthy" for site in found)
    else:
        from orchestrator.testbed.processes import Testbed

        found = [_process_status(site) for site in Testbed(folder).sites()]
        well = all(site["pid"] for site in found)
    if as_json:
        echo_json(found)
    else:
        shown = [["-" if value is None else value for value in site.values()] for site in found]
        header = [name.replace("_mib", ", MiB").replace("_id", "") for name in found[0]]
        echo_table(header, shown, empty="")
    raise typer.Exit(0 if well else 1)


def _process_status(site: "SiteProcess") -> dict[str, Any]:
    process = site.process()
    family = [process, *process.children(recursive=True)] if process else []
    return {
        "site_id": site.site_id,
        "pid": site.pid if process else None,
        "url": site.url,
        "memory_mib": sum(member.memory_info().rss for member in family) // 2**20,
    }


@app.command()
def down(
    folder: Folder = _FOLDER,
    delete: Annotated[
        bool, typer.Option("--delete", help="Also delete the folder: accounts, data, plans.")
    ] = False,
    containers: Containers = False,
    project: Project = _PROJECT,
    keep_data: Annotated[
        bool,
        typer.Option("--keep-data", help="With --containers: leave volumes for the next `up`."),
    ] = False,
) -> None:
    """Stop the sites; their data, accounts and plans stay for the next `up`.

    With --containers everything is removed, volumes too, unless they are to be kept.

    Example: orchestrator testbed down --delete
    """
    _require_meant(
        containers,
        {"--delete": delete},
        {"--keep-data": keep_data, "--project": project != _PROJECT},
    )
    if containers:
        from orchestrator.testbed.containers import ContainerTestbed

        for removed in ContainerTestbed(project).down(keep_data=keep_data):
            typer.echo(f"removed {removed}")
        return
    from orchestrator.testbed.processes import Testbed

    stopped = Testbed(folder).down(delete=delete)
    typer.echo(f"stopped: {', '.join(stopped) or 'nothing was running'}")


def _require_meant(
    containers: bool,  # noqa: FBT001 - a command's flag, handed on
    of_processes: dict[str, bool],
    of_containers: dict[str, bool],
) -> None:
    """Refuse an option that would be passed over: with --containers, or without it."""
    from core.exceptions import ConfigurationError

    given = of_processes if containers else of_containers
    for option in (name for name, is_given in given.items() if is_given):
        how = "does not go with" if containers else "is for"
        raise ConfigurationError(f"{option} {how} --containers; see --help")


@app.command()
def data(
    sites: Annotated[
        int, typer.Option("--sites", "-n", min=1, max=1000, help="How many factories.")
    ] = 3,
    out: Annotated[Path, typer.Option("--out", help="Folder for the files.")] = Path("data"),
    kind: Annotated[
        str,
        typer.Option(
            help="AI4I 2020, or pumps whose failures show in a trend only.", click_type=_KINDS
        ),
    ] = SampleKind.AI4I.value,
    distribution: Annotated[
        str, typer.Option(help="How the rows are divided.", click_type=_DISTRIBUTIONS)
    ] = DataDistribution.IID.value,
    alpha: Annotated[
        float | None,
        typer.Option(
            help="For non_iid_quantity and non_iid_label: the smaller, the more unlike; "
            "by default 0.5."
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="For non_iid_feature: the column in which sites differ; by default "
            "'Tool wear [min]' (ai4i) or 'speed' (vibration).",
        ),
    ] = None,
    source: Source = None,
    fetch: Annotated[
        bool, typer.Option("--fetch", help="Download the AI4I 2020 data set (needs internet).")
    ] = False,
    rows: Annotated[
        int | None,
        typer.Option(
            min=150,
            help="Rows to make; by default 10,000 (ai4i) or a day of each pump (vibration).",
        ),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Write one CSV for each site, and split.png, a picture of who got what (of up to 100 sites).

    Example: orchestrator testbed data --sites 3 --distribution non_iid_label --out data
    """
    from orchestrator.files import write_whole
    from orchestrator.testbed import samples
    from orchestrator.testbed.ai4i import read_ai4i
    from orchestrator.testbed.deals import Skew
    from orchestrator.testbed.picture import draw_split

    chosen, division = SampleKind(kind), DataDistribution(distribution)
    skew = Skew(alpha=alpha, by=by)
    source = _require_ai4i_file(chosen, source, out, fetch=fetch, rows=rows)
    if source is None:
        table = samples.generate_table(chosen, rows=rows, sites=sites, seed=seed)
    else:
        table = read_ai4i(source)
    parts = samples.divide_samples(
        table, sites=sites, distribution=division, seed=seed, kind=chosen, skew=skew
    )
    label = samples.KINDS[chosen].label
    title = f"{kind}, {distribution}, seed {seed}"
    column = samples.column_of_split(chosen, division, skew)
    is_drawn = len(parts) <= _MOST_DRAWN
    picture = draw_split(parts, title=title, label=label, column=column) if is_drawn else b""
    paths = samples.write_parts(parts, out)
    if is_drawn:
        write_whole(out / "split.png", picture)
    lines = [
        (path.stem, len(part), part[label].sum(), f"{part[label].mean():.1%}", path)
        for path, part in zip(paths, parts, strict=True)
    ]
    echo_table(("site", "rows", "failures", "failure rate", "file"), lines, empty="")
    if is_drawn:
        typer.echo(f"picture: {out / 'split.png'}")


def _require_ai4i_file(
    kind: SampleKind, source: Path | None, out: Path, *, fetch: bool, rows: int | None
) -> Path | None:
    """Give the AI4I file asked for, downloaded if need be; None where a table is to be made."""
    from core.exceptions import ConfigurationError
    from orchestrator.testbed.fetching import fetch_ai4i

    if not fetch and source is None:
        return None
    if kind is not SampleKind.AI4I:
        raise ConfigurationError(
            f"--source and --fetch are for --kind {SampleKind.AI4I.value}; "
            f"{kind.value} data are always made"
        )
    if rows is not None:
        raise ConfigurationError("--rows is for made data; leave it out with --source and --fetch")
    if source is None:
        return fetch_ai4i(out / "source" / "ai4i2020.csv")  # beside the sites it would be one
    if fetch:
        raise ConfigurationError("--fetch and --source: give one of them")
    return source


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
