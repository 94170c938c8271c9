"""A site's state into one archive: everything in it, while the site runs or not.

The state is taken as it is found, so nothing has to be listed here: each SQLite database through
SQLite's own online backup, which sees one moment of it, and every other file as it lies. The
databases are taken first. A file that is written later is more than they know of, which does no
harm; when one goes away meanwhile, everything is taken anew.
"""

import contextlib
import errno
import os
import shutil
import sqlite3
import stat
import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final
from urllib.parse import quote

from sqlalchemy import create_engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from core.exceptions import ConfigurationError, DataSiteError, SecurityError
from core.files import sync_folder
from core.version import VERSION
from datasite import archive, audit
from datasite.archive import AuditHead, KeptFile, Manifest, Writer
from datasite.configuration import SiteConfig, open_state
from datasite.disk import on_disk, scratch_folder

LEDGER: Final = "ledger.db"
_SQLITE: Final = b"SQLite format 3\0"
_SQLITE_COMPANIONS: Final = ("-wal", "-shm", "-journal")
_UNFINISHED: Final = (".part", ".draft")
"""How files end that are renamed once they are whole."""

_PATIENCE_S: Final = 30.0
_ATTEMPTS: Final = 5


class _ChangedMeanwhileError(Exception):
    """A file of a running site went away while it was to be copied."""


@dataclass(slots=True)
class _Found:
    """The state's folders, databases and other files, by relative name."""

    folders: list[str] = field(default_factory=list)
    databases: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    @property
    def kept(self) -> set[str]:
        return {*self.databases, *self.files}


def back_up(config: SiteConfig, out: Path) -> Manifest:
    """Write the site's state to the new file `out` (0600), whole or not at all.

    Raises:
        ConfigurationError: There is no state, or `out` is there already or cannot be made.
        DataSiteError: A database cannot be read, or the disk is full; nothing is left behind.
    """
    state = _kept_state(config)
    target = out.resolve()
    if target.exists():
        raise ConfigurationError(f"{out} is there already; give another name")
    if target.is_relative_to(state):
        raise ConfigurationError(f"{out} lies in the state itself; give a file elsewhere")
    with scratch_folder(target.parent, target.name) as scratch:
        part = scratch / "archive"
        manifest = _write(config, state, part, scratch)
        with on_disk(out):
            part.rename(target)
            sync_folder(target.parent)
    return manifest


def back_up_to(config: SiteConfig, stream: IO[bytes]) -> Manifest:
    """Write the site's state to `stream`, once it was put together whole beside the state.

    Raises:
        ConfigurationError: There is no state.
        DataSiteError: As `back_up`.
    """
    state = _kept_state(config)
    with scratch_folder(state.parent, "backup") as scratch:
        part = scratch / "archive"
        manifest = _write(config, state, part, scratch)
        with part.open("rb") as whole, on_disk(Path("the output")):
            shutil.copyfileobj(whole, stream)
            stream.flush()
    return manifest


def _kept_state(config: SiteConfig) -> Path:
    if not config.state.is_dir() or not any(config.state.iterdir()):
        raise ConfigurationError(
            f"state: {config.state}: nothing is kept there yet; is it the right site.yaml?"
        )
    return open_state(config).resolve()


def _write(config: SiteConfig, state: Path, part: Path, scratch: Path) -> Manifest:
    for _ in range(_ATTEMPTS):
        with contextlib.suppress(_ChangedMeanwhileError), on_disk(part):
            return _attempt(config, state, part, Path(tempfile.mkdtemp(dir=scratch)))
    raise DataSiteError(
        f"{config.site_id}: files of {state} went away {_ATTEMPTS} times while they were copied; "
        "try again when less is done at the site",
        site_id=config.site_id,
    )


def _attempt(config: SiteConfig, state: Path, part: Path, scratch: Path) -> Manifest:
    before = _look(state)
    snapshots = {}
    for number, name in enumerate(before.databases):
        snapshots[name] = scratch / str(number)
        _snapshot(state / name, snapshots[name], site_id=config.site_id)
    found = _look(state)
    if before.kept - found.kept or set(found.databases) - snapshots.keys():
        raise _ChangedMeanwhileError
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        with archive.writing(stream) as writer:
            for name in found.folders:
                writer.folder(name)
            kept = [writer.file(name, snapshots[name]) for name in found.databases]
            kept += [_copied(writer, name, state / name) for name in found.files]
            manifest = Manifest(
                site_id=config.site_id,
                version=VERSION,
                made_at=datetime.now(tz=UTC).isoformat(timespec="seconds"),
                audit=audit_head(snapshots.get(LEDGER)),
                folders=tuple(found.folders),
                files=tuple(kept),
            )
            writer.manifest(manifest)
        stream.flush()
        os.fsync(stream.fileno())
    return manifest


def _copied(writer: Writer, name: str, path: Path) -> KeptFile:
    try:
        return writer.file(name, path)
    except OSError as exc:
        if exc.errno in {errno.ENOENT, None}:  # tarfile's own, without a number: it became shorter
            raise _ChangedMeanwhileError from exc
        raise


def _look(state: Path) -> _Found:
    """Find what is to be kept; sockets and unfinished files are not.

    Raises:
        ConfigurationError: Something is neither file nor folder.
    """
    found = _Found()
    for parent, folders, files in os.walk(state):
        for name in sorted([*folders, *files]):
            path = Path(parent, name)
            relative = path.relative_to(state).as_posix()
            try:
                kind = path.lstat().st_mode
                is_database = stat.S_ISREG(kind) and _is_database(path)
            except FileNotFoundError:
                continue
            if stat.S_ISDIR(kind):
                found.folders.append(relative)
            elif is_database:
                found.databases.append(relative)
            elif stat.S_ISREG(kind):
                if not name.endswith(_UNFINISHED) and not _is_companion(path):
                    found.files.append(relative)
            elif not stat.S_ISSOCK(kind):
                raise ConfigurationError(f"{path} is neither file nor folder; take it away")
    return found


def _is_database(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(_SQLITE)) == _SQLITE


def _is_companion(path: Path) -> bool:
    """Tell whether SQLite keeps it beside a database, whose online backup has what is in it."""
    return any(
        path.name.endswith(end) and path.with_name(path.name.removesuffix(end)).exists()
        for end in _SQLITE_COMPANIONS
    )


def _snapshot(database: Path, copy: Path, *, site_id: str) -> None:
    """Copy one moment of a database that others may be writing."""
    try:
        with (
            contextlib.closing(_connected(database, "mode=rw")) as source,
            contextlib.closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
    except sqlite3.Error as exc:
        if not database.exists():
            raise _ChangedMeanwhileError from exc
        raise DataSiteError(
            f"{site_id}: {database} cannot be copied ({exc}); is the disk full?", site_id=site_id
        ) from exc


def _connected(database: Path, how: str) -> sqlite3.Connection:
    uri = f"file:{quote(os.fspath(database))}?{how}"
    return sqlite3.connect(uri, uri=True, timeout=_PATIENCE_S)


def audit_head(ledger: Path | None) -> AuditHead:
    """Give where the audit log in a ledger ends that nobody writes; the ledger is not touched."""
    if ledger is None:
        return AuditHead(rows=0, sha256="")
    engine = create_engine("sqlite://", creator=lambda: _connected(ledger, "immutable=1"))
    fault = ""
    try:
        with engine.connect() as connection:
            rows, newest = connection.exec_driver_sql(
                "SELECT count(*), (SELECT sha256 FROM audit ORDER BY seq DESC LIMIT 1) FROM audit"
            ).one()
        with Session(engine) as session:
            audit.verify(audit.written(session))
    except SecurityError as exc:
        fault = str(exc)
    except (SQLAlchemyError, sqlite3.Error) as exc:
        return AuditHead(rows=0, sha256="", fault=f"it cannot be read ({exc})")
    finally:
        engine.dispose()
    return AuditHead(rows=rows, sha256=newest or "", fault=fault)
