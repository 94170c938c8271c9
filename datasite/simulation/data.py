"""The data of simulated sites: each file is read and judged once, and kept while there is room."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from core.exceptions import DataError, DataSiteError
from datasite.data.features import FeatureRows, make_features
from datasite.data.table import load_table
from datasite.registry import file_sha256
from datasite.training.tensors import Tensors, prepare

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import pandas as pd

    from core.messages import Preprocessing, SplitSettings
    from core.schema import DataSchema

ROOM_BYTES: Final = 2**30
"""What all sites of a simulation may keep in memory together, unless another bound is given."""

_OBJECTS_BYTES = 4096
"""What a site's tensors take beside their numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteFile:
    """Where a site's data lie.

    Attributes:
        path: CSV or Parquet.
        sha256: Of the file, when the run began.
    """

    path: Path
    sha256: str

    @classmethod
    def at(cls, path: Path, *, site_id: str) -> SiteFile:
        """Take the file as it is now.

        Raises:
            DataError: It cannot be read.
        """
        try:
            return cls(path=path, sha256=file_sha256(path))
        except OSError as exc:
            raise DataError(f"{path}: cannot be read: {exc.strerror}", site_id=site_id) from exc


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """What a model sees of a site, and what decided it."""

    split: SplitSettings
    preprocessing: Preprocessing
    parts: Mapping[str, Tensors]


_Kept = FeatureRows | _Prepared
"""Of each site the newest: its rows until they are cut and standardised, from then on the parts."""


class SiteData:
    """The data of several sites, which share one room.

    What finds no room any more is read again each time. Nothing is dropped to make room: a round
    asks each site in turn, so that the oldest would always be dropped just before it is asked for.

    Args:
        files: Where each site's data lie.
        schema: Which all of them keep.
        room_bytes: Of all that is kept together; of a site more, whose turn it is.
    """

    def __init__(
        self, files: Mapping[str, SiteFile], schema: DataSchema, *, room_bytes: int = ROOM_BYTES
    ) -> None:
        self._files = files
        self._schema = schema
        self._room_bytes = room_bytes
        self._counts: dict[str, int] = {}
        self._kept: dict[str, _Kept] = {}
        self._newest: tuple[str, _Kept] | None = None

    def count_rows(self, site_id: str) -> int:
        """Give how many rows the site has.

        Raises:
            DataError: They break the schema, in the words of a real site's registration.
            DataSiteError: The file changed since the run began.
        """
        if site_id not in self._counts:
            self.features(site_id)
        return self._counts[site_id]

    def features(self, site_id: str) -> FeatureRows:
        """Give the site's rows as numbers; raises as `count_rows`."""
        found = self._find(site_id)
        if isinstance(found, FeatureRows):
            return found
        table = self._read(site_id)
        self._counts[site_id] = len(table)
        rows = make_features(table, self._schema)
        if found is None:
            self._keep(site_id, rows)
        return rows

    def part(
        self, site_id: str, name: str, split: SplitSettings, preprocessing: Preprocessing
    ) -> Tensors:
        """Give the windows of one part, standardised.

        Args:
            site_id: Whose.
            name: `train`, `validation` or `test`.
            split: How the rows are divided.
            preprocessing: How they are standardised.

        Raises:
            DataError: As `count_rows`, or a part is empty or has one class only.
            DataSiteError: As `count_rows`, or the preprocessing is for other features.
        """
        found = self._find(site_id)
        if (
            not isinstance(found, _Prepared)
            or found.preprocessing != preprocessing
            or found.split != split
        ):
            parts = prepare(
                self.features(site_id), self._schema, split, preprocessing, site_id=site_id
            )
            found = _Prepared(split=split, preprocessing=preprocessing, parts=parts)
            self._keep(site_id, found)
        return found.parts[name]

    def _find(self, site_id: str) -> _Kept | None:
        if self._newest is not None and self._newest[0] == site_id:
            return self._newest[1]
        return self._kept.get(site_id)

    def _keep(self, site_id: str, value: _Kept) -> None:
        self._newest = (site_id, value)
        before = self._kept.pop(site_id, None)
        if before is not None:
            self._room_bytes += _size_bytes(before)
        size_bytes = _size_bytes(value)
        if size_bytes <= self._room_bytes:
            self._room_bytes -= size_bytes
            self._kept[site_id] = value

    def _read(self, site_id: str) -> pd.DataFrame:
        file = self._files[site_id]
        try:
            is_same = file_sha256(file.path) == file.sha256
        except OSError:
            is_same = False
        if not is_same:
            raise DataSiteError(
                f"{site_id}: {file.path} changed since the run began; put it back as it was, or "
                "start a new run",
                site_id=site_id,
            )
        return load_table(file.path, self._schema)


def _size_bytes(kept: _Kept) -> int:
    if isinstance(kept, FeatureRows):
        arrays = (kept.x, kept.y, kept.machine, kept.position)
        return _OBJECTS_BYTES + sum(array.nbytes for array in arrays)
    parts = kept.parts.values()
    shared = max(part.rows.nbytes for part in parts)
    return (
        _OBJECTS_BYTES
        + shared
        + sum(each.nbytes for part in parts for each in (part.starts, part.labels, part.machines))
    )
