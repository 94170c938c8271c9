"""The site's datasets: checked on the way in, kept as Parquet in the private folder, versioned."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import Text, bindparam, func, select
from sqlalchemy import cast as cast_sql

from core.exceptions import DataError, DataSiteError
from core.schema import DataSchema
from datasite import audit
from datasite.fresh import Fresh
from datasite.ledger import CountsRow, DatasetRow, now
from datasite.unfinished import unfinished_file

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from sqlalchemy import Row
    from sqlalchemy.orm import Session

    from datasite.data.drift import TableCounts
    from datasite.ledger import Ledger, Mark


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """One version of a registered dataset.

    Attributes:
        file: The site's own copy: the schema's columns only, already checked.
        sha256: Of `file`; what trains is compared with it.
    """

    name: str
    version: int
    rows: int
    file: Path
    sha256: str
    schema: DataSchema
    registered_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Copied:
    """A file that was checked, as it lies in the site's folder before it has a version."""

    rows: int
    file: Path
    sha256: str
    counts: TableCounts

    def is_of(self, known: Dataset) -> bool:
        """Tell whether these are the rows of a version, though another library wrote them."""
        from datasite.data.copy import is_same_copy  # noqa: PLC0415 - pandas, for this alone

        return self.sha256 == known.sha256 or (
            self.rows == known.rows and known.file.exists() and is_same_copy(self.file, known.file)
        )


class Registry:
    """What is registered at one site.

    Args:
        ledger: Where the records are kept.
        folder: Where the copies are kept; private to the site.
        site_id: Named in errors.
    """

    def __init__(self, ledger: Ledger, folder: Path, *, site_id: str) -> None:
        self._ledger = ledger
        self._folder = folder
        self._site_id = site_id
        self._known: Fresh[Dataset | None] = Fresh(ledger)
        self._drift: dict[tuple[str, int], dict[str, float]] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as exc:
            raise DataSiteError(
                f"{site_id}: {folder} cannot be made: {exc.strerror}", site_id=site_id
            ) from exc

    def register(self, file: Path, schema: DataSchema, *, name: str, who: str) -> Dataset:
        """Check `file` against `schema` and keep a copy as the next version of `name`.

        The data and schema of the newest version again change nothing: it is given. Otherwise plans
        keep the version that they name, and the new one is what researchers see from now on.

        Raises:
            DataError: The data break the schema, or cannot be kept; nothing is.
        """
        try:
            with unfinished_file(self._folder) as part:
                return self._register(_copy(file, schema, part), schema, name=name, who=who)
        except OSError as exc:
            raise DataError(
                f"{self._site_id}: {name!r} cannot be kept in {self._folder}: "
                f"{exc.strerror or exc}",
                site_id=self._site_id,
            ) from exc

    def current(self) -> list[Dataset]:
        """Give the newest version of each dataset, by name."""
        newest = {dataset.name: dataset for dataset in self.versions()}
        return list(newest.values())

    def versions(self) -> list[Dataset]:
        """Give every version that was not removed, by name and version."""
        return [self._as_dataset(row) for row in self._ledger.rows(_ALL)]

    def find(self, name: str, version: int | None = None, mark: Mark | None = None) -> Dataset:
        """Give the dataset `name`: of `version` where one is named, else the newest.

        With a mark of the ledger, a version is given as it was then.

        Raises:
            DataError: It is not registered here.
        """
        if version is None:
            found = self._newest(name)
        else:
            found = self._known.get((name, version), lambda: self._version(name, version), mark)
        if found is None:
            known = ", ".join(f"{d.name} (version {d.version})" for d in self.versions())
            wanted = name if version is None else f"{name} (version {version})"
            message = (
                f"{self._site_id}: the dataset {wanted} is not registered here; "
                f"registered: {known or 'nothing'}"
            )
            raise DataError(message, site_id=self._site_id, outside=message)
        return found

    def drift(self, dataset: Dataset) -> dict[str, float]:
        """Give how far a version is from the first: the metrics of `datasite.data.drift`.

        Found at its registration, against the first version that was registered then; asked of the
        ledger once. Nothing for the first version itself, or where there are too few rows.
        """
        version = (dataset.name, dataset.version)
        if version not in self._drift:
            rows = self._ledger.rows(_DRIFT, name=dataset.name, version=dataset.version)
            self._drift[version] = rows[0].drift if rows else {}
        return self._drift[version]

    def remove(self, name: str, version: int | None = None, *, who: str) -> list[int]:
        """Forget a version, or all, and delete the site's copies; their plans train no more.

        Returns:
            The versions that were removed.

        Raises:
            DataError: It is not registered here.
        """
        self.find(name, version)
        removed = [d for d in self.versions() if d.name == name and version in {None, d.version}]
        with self._ledger.write() as session:
            for dataset in removed:
                row = session.get_one(DatasetRow, (dataset.name, dataset.version))
                row.removed_at = now()
                counted = session.get(CountsRow, (dataset.name, dataset.version))
                if counted is not None:
                    session.delete(counted)
                detail = {"dataset": name, "version": dataset.version}
                audit.append(
                    session.connection(), audit.Entry(who=who, action="data removed", detail=detail)
                )
        for dataset in removed:
            dataset.file.unlink(missing_ok=True)
        return [dataset.version for dataset in removed]

    def _version(self, name: str, version: int) -> Dataset | None:
        rows = self._ledger.rows(_ONE, name=name, version=version)
        return self._as_dataset(rows[0]) if rows else None

    def _newest(self, name: str) -> Dataset | None:
        rows = self._ledger.rows(_NEWEST, name=name)
        return self._as_dataset(rows[0]) if rows else None

    def _register(self, copied: _Copied, schema: DataSchema, *, name: str, who: str) -> Dataset:
        with ExitStack() as undo:
            with self._ledger.write() as session:  # from here on nobody else can take the version
                known = self._newest(name)
                if known is not None and known.schema == schema and copied.is_of(known):
                    return known
                dataset = self._keep(copied, schema, name, session)
                undo.callback(dataset.file.unlink, missing_ok=True)
                _record(session, dataset, who)
                session.add(_counted(session, dataset, copied.counts))
            undo.pop_all()
        return dataset

    def _keep(self, copied: _Copied, schema: DataSchema, name: str, session: Session) -> Dataset:
        last = session.scalar(select(func.max(DatasetRow.version)).where(DatasetRow.name == name))
        version = (last or 0) + 1
        # The name is the operator's text: it goes into the ledger, and only its hash into a path.
        stem = hashlib.sha256(name.encode()).hexdigest()[:16]
        target = self._folder / f"{stem}-v{version}.parquet"
        copied.file.replace(target)
        return Dataset(
            name=name,
            version=version,
            rows=copied.rows,
            file=target,
            sha256=copied.sha256,
            schema=schema,
            registered_at=now(),
        )

    def _as_dataset(self, row: Row[Any]) -> Dataset:
        return Dataset(
            name=row.name,
            version=row.version,
            rows=row.rows,
            file=self._folder / row.file,
            sha256=row.sha256,
            schema=_parsed(row.schema),
            registered_at=row.registered_at,
        )


def _copy(file: Path, schema: DataSchema, part: Path) -> _Copied:
    """Write the rows of `file` to `part` while they are checked and counted."""
    from datasite.data.copy import CopyWriter  # noqa: PLC0415 - pandas, for this alone
    from datasite.data.drift import Counting  # noqa: PLC0415
    from datasite.data.table import stream_table  # noqa: PLC0415

    counting = Counting(schema)

    def take(chunk: pd.DataFrame) -> None:
        counting.add(chunk)
        writer.add(chunk)

    with CopyWriter(part, schema) as writer:
        rows = stream_table(file, schema, take)
    return _Copied(rows=rows, file=part, sha256=file_sha256(part), counts=counting.counts())


def _counted(session: Session, dataset: Dataset, counts: TableCounts) -> CountsRow:
    """Compare with the first version that is still registered and was counted."""
    from datasite.data.drift import drift_metrics  # noqa: PLC0415 - NumPy, for this alone

    first = session.scalar(
        select(CountsRow).where(CountsRow.name == dataset.name).order_by(CountsRow.version)
    )
    drift: dict[str, float] = {}
    if first is not None:
        row = session.get_one(DatasetRow, (first.name, first.version))
        first_schema = DataSchema.model_validate(row.schema)
        before = cast("TableCounts", first.counts)
        drift = drift_metrics(dataset.schema, counts, first_schema, before)
    return CountsRow(name=dataset.name, version=dataset.version, counts=dict(counts), drift=drift)


def _record(session: Session, dataset: Dataset, who: str) -> None:
    row = DatasetRow(
        name=dataset.name,
        version=dataset.version,
        rows=dataset.rows,
        file=dataset.file.name,
        sha256=dataset.sha256,
        schema=dataset.schema.model_dump(mode="json"),
        registered_at=dataset.registered_at,
    )
    session.add(row)
    detail = {"dataset": row.name, "version": row.version, "sha256": row.sha256}
    audit.append(
        session.connection(), audit.Entry(who=who, action="data registered", detail=detail)
    )


_ALL = (
    select(
        *(column for column in DatasetRow.__table__.columns if column.name != "schema"),
        cast_sql(DatasetRow.schema, Text).label("schema"),
    )
    .where(DatasetRow.removed_at.is_(None))
    .order_by(DatasetRow.name, DatasetRow.version)
)
_NAMED = _ALL.where(DatasetRow.name == bindparam("name"))
_ONE = _NAMED.where(DatasetRow.version == bindparam("version"))
_NEWEST = _NAMED.order_by(None).order_by(DatasetRow.version.desc()).limit(1)
_DRIFT = select(CountsRow.drift).where(
    CountsRow.name == bindparam("name"), CountsRow.version == bindparam("version")
)


@lru_cache(maxsize=64)
def _parsed(schema: str) -> DataSchema:
    """Give the schema that is kept as this JSON; every request asks for it."""
    return DataSchema.model_validate_json(schema)


def file_sha256(path: Path) -> str:
    """Give the SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
