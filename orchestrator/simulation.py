"""The section `simulation` of an experiment: sites that are played in memory, on files of data."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, ConfigDict, Field, SecretStr

from core.exceptions import ConfigurationError
from orchestrator.federation import SITE_ID, Member, SiteAddress, load_members
from orchestrator.naming import listed
from orchestrator.section import Section

if TYPE_CHECKING:
    from collections.abc import Sequence

_SUFFIXES = frozenset({".csv", ".parquet"})
_EMAIL = "researcher@simulation.example.com"


class Transport(Enum):
    """How an experiment reaches its sites.

    `live` over PySyft; `memory` plays them here, from the files that `simulation` names.
    """

    LIVE = "live"
    MEMORY = "memory"


class Simulation(Section):
    """The data of simulated sites.

    Attributes:
        data: Folder with a CSV or Parquet file for each site, whose name before the suffix is the
            site's; what else lies in the folder, and in folders below it, is left alone.
        schema_file: Given as `schema`: the schema that all of them keep.
        workers: Processes among which the sites are divided; 1 is none but this one.
    """

    model_config = ConfigDict(populate_by_name=True)  # a run's record has the field's name

    data: Annotated[Path, AfterValidator(Path.absolute)]
    schema_file: Annotated[Path, AfterValidator(Path.absolute)] = Field(alias="schema")
    workers: int = Field(default=1, ge=1, le=64)

    def files(self, members: Sequence[Member] | None = None) -> dict[str, Path]:
        """Give the file of each site, by the sites' names in order.

        Args:
            members: The sites to be played; by default one for each file.

        Raises:
            ConfigurationError: There is no such folder, no file in it, none for one of `members`, a
                file whose name is no site's, or two of one site.
        """
        found = _site_files(self.data)
        wanted = found.keys() if members is None else [member.site_id for member in members]
        lacking = sorted(set(wanted) - found.keys())
        if lacking:
            raise ConfigurationError(
                f"simulation.data: {self.data} has no file for {listed(lacking)}; each site of the "
                "sites file needs one that is named after it, such as "
                f"{lacking[0]}.csv; there are files for: {listed(sorted(found))}"
            )
        return {site_id: found[site_id] for site_id in sorted(wanted)}

    def addresses(self, sites: Path | None) -> tuple[SiteAddress, ...]:
        """Give the sites as a live experiment has them; nobody logs in to these.

        Args:
            sites: A sites file, of which names and tags are read; without it every file is a site.

        Raises:
            ConfigurationError: The sites file has mistakes, or as `files`.
        """
        members = load_members(sites) if sites is not None else None
        files = self.files(members)
        tags = {member.site_id: member.tags for member in members or ()}
        return tuple(
            SiteAddress(
                site_id=site_id,
                url=f"memory://{site_id}",
                email=_EMAIL,
                password=SecretStr("none"),
                tags=tags.get(site_id, ()),
            )
            for site_id in files
        )


def _site_files(folder: Path) -> dict[str, Path]:
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    except OSError as exc:
        raise ConfigurationError(
            f"simulation.data: {folder} cannot be read: {exc.strerror}; it is a folder with a CSV "
            "or Parquet file for each site"
        ) from exc
    if not paths:
        raise ConfigurationError(
            f"simulation.data: {folder} has no CSV or Parquet files; "
            f"'orchestrator testbed data --out {folder}' makes some"
        )
    found: dict[str, Path] = {}
    for path in paths:
        if not re.fullmatch(SITE_ID.strip("^$"), path.stem):
            raise ConfigurationError(
                f"simulation.data: {path} is named like no site; a site's name has small letters, "
                "digits and '-', as in factory-1.csv; rename it, or take it out of the folder"
            )
        if path.stem in found:
            raise ConfigurationError(
                f"simulation.data: {found[path.stem].name} and {path.name} in {folder} are both of "
                f"the site {path.stem}; keep one of them"
            )
        found[path.stem] = path
    return found
