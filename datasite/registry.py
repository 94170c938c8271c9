"""The site's datasets: checked on the way in, kept as Parquet in the private folder, versioned."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import Text, cast, func, select

from core.exceptions import DataError, DataSiteError
from core.schema import DataSchema
from datasite import audit
from datasite.ledger import DatasetRow, now

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from sqlalchemy import Row
    from sqlalchemy.orm import Session

    from datasite.ledger import Ledger


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
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as exc:
            raise DataSiteError(
                f"{site_id}: {folder} cannot be made: {exc.strerror}", site_id=site_id
            ) from exc

    def register(self, file: Path, schema: DataSchema, *, name: str, who: str) -> Dataset:
        """Check `file` against `schema` and keep a copy as the next version of `name`.

        The same data and schema again change nothing: what is registered already is given.

        Raises:
            DataError: The data break the schema, or other data are registered as `name`; nothing is
                kept.
        """
        from datasite.data.table import load_table  # noqa: PLC0415 - pandas, for this alone

        table = load_table(file, schema)
        with ExitStack() as undo:
            with self._ledger.write() as session:  # from here on nobody else can take the name
                known = next((found for found in self.current() if found.name == name), None)
                if known is not None:
                    self._require_same(known, table, schema)
                    return known
                dataset = self._keep(table, schema, name)
                undo.callback(dataset.file.unlink, missing_ok=True)
                _record(session, dataset, who)
            undo.pop_all()
        return dataset

    def current(self) -> list[Dataset]:
        """Give what is registered now, by name."""
        return [self._as_dataset(row) for row in self._ledger.rows(_CURRENT)]

    def find(self, name: str, version: int | None = None) -> Dataset:
        """Give the dataset `name`, of `version` where one is named.

        Raises:
            DataError: It is not registered here.
        """
        current = {dataset.name: dataset for dataset in self.current()}
        found = current.get(name)
        if found is None or version not in {None, found.version}:
            known = ", ".join(f"{d.name} (version {d.version})" for d in current.values())
            wanted = name if version is None else f"{name} (version {version})"
            raise DataError(
                f"{self._site_id}: the dataset {wanted} is not registered here; "
                f"registered: {known or 'nothing'}",
                site_id=self._site_id,
            )
        return found

    def remove(self, name: str, *, who: str) -> None:
        """Forget the dataset and delete the site's copy; its plans can then train no more.

        Raises:
            DataError: It is not registered here.
        """
        dataset = self.find(name)
        with self._ledger.write() as session:
            row = session.get_one(DatasetRow, (dataset.name, dataset.version))
            row.removed_at = now()
            detail = {"dataset": name, "version": dataset.version}
            audit.append(
                session.connection(), audit.Entry(who=who, action="data removed", detail=detail)
            )
        dataset.file.unlink(missing_ok=True)

    def _require_same(self, known: Dataset, table: pd.DataFrame, schema: DataSchema) -> None:
        from datasite.data.table import load_table  # noqa: PLC0415 - pandas, for this alone

        if known.schema != schema or not load_table(known.file, schema).equals(table):
            raise DataError(
                f"{self._site_id}: other data are registered as {known.name!r} already; "
                f"remove them first with 'datasite data remove {known.name}'",
                site_id=self._site_id,
            )

    def _keep(self, table: pd.DataFrame, schema: DataSchema, name: str) -> Dataset:
        with self._ledger.read() as session:
            last = session.scalar(
                select(func.max(DatasetRow.version)).where(DatasetRow.name == name)
            )
        version = (last or 0) + 1
        # The name is the operator's text: it goes into the ledger, and only its hash into a path.
        stem = hashlib.sha256(name.encode()).hexdigest()[:16]
        target = self._folder / f"{stem}-v{version}.parquet"
        part = target.with_suffix(".part")
        try:
            table.to_parquet(part, index=False)
            part.replace(target)
        except OSError as exc:
            raise DataError(
                f"{self._site_id}: {name!r} cannot be kept in {self._folder}: "
                f"{exc.strerror or exc}",
                site_id=self._site_id,
            ) from exc
        finally:
            part.unlink(missing_ok=True)
        return Dataset(
            name=name,
            version=version,
            rows=len(table),
            file=target,
            sha256=file_sha256(target),
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


_CURRENT = (
    select(
        *(column for column in DatasetRow.__table__.columns if column.name != "schema"),
        cast(DatasetRow.schema, Text).label("schema"),
    )
    .where(DatasetRow.removed_at.is_(None))
    .order_by(DatasetRow.name)
)


@lru_cache(maxsize=64)
def _parsed(schema: str) -> DataSchema:
    """Give the schema that is kept as this JSON; every request asks for it."""
    return DataSchema.model_validate_json(schema)


def file_sha256(path: Path) -> str:
    """Give the SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
