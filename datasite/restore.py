"""A site's state from an archive: read whole and compared, unpacked beside it, then swapped in."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from core.exceptions import ConfigurationError, DataSiteError, SecurityError
from core.files import sync_folder
from datasite import archive
from datasite.archive import Manifest
from datasite.backup import LEDGER, audit_head
from datasite.configuration import SiteConfig
from datasite.disk import on_disk, scratch_folder
from datasite.holding import held
from datasite.operator_door import OperatorDoor


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What a restore did.

    Attributes:
        manifest: Of the archive.
        replaced: Where the state that was there before lies now.
    """

    manifest: Manifest
    replaced: Path | None


def restore(config: SiteConfig, file: Path, *, replace: bool = False) -> Restored:
    """Put the state in an archive into the place of the site's state.

    The archive is read to its end and compared with its manifest before anything is written, and
    written beside the state before anything there is touched.

    Args:
        config: Of the site; its state folder is empty or not there.
        file: The archive.
        replace: Move a state that is there aside first.

    Raises:
        ConfigurationError: There is a state, or the archive is another site's.
        DataSiteError: The site runs, the archive is not whole, or the disk is full.
        SecurityError: The archive was changed, or a name in it leads out of the state.
    """
    state = config.state.resolve()
    with _nobody_runs(config, state):
        is_empty = not state.exists() or not any(state.iterdir())
        if not (is_empty or replace):
            raise ConfigurationError(
                f"state: {config.state} is not empty; give --replace to have it moved aside, or "
                "restore with a site.yaml that names another"
            )
        manifest = archive.read(file, archive.Nowhere())
        if manifest.site_id != config.site_id:
            raise ConfigurationError(
                f"{file} is the state of {manifest.site_id!r}, and site.yaml is "
                f"{config.site_id!r}'s; nothing is restored"
            )
        with on_disk(state.parent):
            state.parent.mkdir(parents=True, exist_ok=True)
        _require_room(manifest, state.parent)
        with scratch_folder(state.parent, state.name) as scratch:
            staged = _unpack(file, scratch / "state", manifest)
            replaced = None if is_empty else _unused(state)
            with on_disk(state):
                _swap(staged, state, replaced)
    return Restored(manifest=manifest, replaced=replaced)


def restore_from(config: SiteConfig, stream: IO[bytes], *, replace: bool = False) -> Restored:
    """Restore from an archive that comes in by `stream`; see `restore`."""
    parent = config.state.resolve().parent
    with on_disk(parent):
        parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(parent, "archive") as scratch:
        file = scratch / "archive"
        with on_disk(file), file.open("wb") as spool:
            shutil.copyfileobj(stream, spool)
        return restore(config, file, replace=replace)


@contextlib.contextmanager
def _nobody_runs(config: SiteConfig, state: Path) -> Iterator[None]:
    with contextlib.ExitStack() as holding:
        if state.exists():
            holding.enter_context(held(state, site_id=config.site_id))
        with OperatorDoor(site_id=config.site_id, state=state) as door:
            if door.is_running():
                message = f"{state}: a site is running on this state; stop it first"
                raise DataSiteError(message, site_id=config.site_id)
        yield


def _require_room(manifest: Manifest, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < manifest.size_bytes:
        raise DataSiteError(
            f"{folder}: the state takes {manifest.size_bytes:,} bytes and {free:,} are free; make "
            "room first"
        )


def _unpack(file: Path, folder: Path, manifest: Manifest) -> Path:
    """Write the archive to `folder`, and compare it once more."""
    with on_disk(folder):
        folder.mkdir(mode=0o700)
    if archive.read(file, _Folder(folder)) != manifest:
        raise SecurityError(f"{file} changed while it was read; nothing is restored")
    head = audit_head(folder / LEDGER if (folder / LEDGER).exists() else None)
    if (head.rows, head.sha256) != (manifest.audit.rows, manifest.audit.sha256):
        raise SecurityError(
            f"{file}: the audit log in it does not end as its manifest says; take another backup"
        )
    return folder


class _Folder:
    """Where an archive is unpacked to; all of it private."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def folder(self, name: str) -> None:
        with on_disk(self._root / name):
            (self._root / name).mkdir(mode=0o700)

    def file(self, name: str, blocks: Iterator[bytes]) -> None:
        path = self._root / name
        with on_disk(path):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            for block in blocks:
                with on_disk(path):
                    stream.write(block)
            with on_disk(path):
                stream.flush()
                os.fsync(stream.fileno())


def _swap(staged: Path, state: Path, replaced: Path | None) -> None:
    """Put `staged` where the state is; what was there goes to `replaced`, or comes back."""
    if replaced is not None:
        state.rename(replaced)
    try:
        staged.rename(state)
    except OSError:
        if replaced is not None:
            replaced.rename(state)
        raise
    sync_folder(state.parent)


def _unused(state: Path) -> Path:
    stamp = datetime.now(tz=UTC).strftime("%Y%m%d-%H%M%S")
    return state.with_name(f"{state.name}.replaced-{stamp}")
