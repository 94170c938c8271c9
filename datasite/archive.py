"""A site's state as one file: a gzipped tar of what lies under `state/`, its manifest at the end.

The manifest names every folder and file with size and SHA-256. It comes last because a running
site's files are hashed while they are written, and an archive that was cut short has none.
"""

import gzip
import hashlib
import io
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Final, Literal, Protocol, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from core.exceptions import DataSiteError, SecurityError

_MANIFEST: Final = "manifest.json"
_LARGEST_MANIFEST_BYTES: Final = 1 << 28
_BLOCK_BYTES: Final = 1 << 20
_COMPRESSION: Final = 1
"""Most of it is Parquet and parameters, which become little smaller at any level."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KeptFile(_Strict):
    """One file of the state; `name` is relative to it."""

    name: str
    size_bytes: int
    sha256: str


class AuditHead(_Strict):
    """Where the audit log ended.

    Attributes:
        rows: How many it had.
        sha256: Of the newest row; empty without one.
        fault: What its verification found; empty when the chain was whole.
    """

    rows: int
    sha256: str
    fault: str = ""


class Manifest(_Strict):
    """What an archive holds, and of which site.

    Attributes:
        format: Of the archive.
        site_id: Whose state it is.
        version: Of the installation that wrote it.
        made_at: When, in UTC.
        audit: The end of the audit log in it.
        folders: Every folder of the state, by its relative name.
        files: Every file of the state.
    """

    format: Literal[1] = 1
    site_id: str
    version: str
    made_at: str
    audit: AuditHead
    folders: tuple[str, ...]
    files: tuple[KeptFile, ...]

    @property
    def size_bytes(self) -> int:
        """What the files take together."""
        return sum(file.size_bytes for file in self.files)


class Writer:
    """An archive that is being written.

    Args:
        tar: Where to.
    """

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar

    def folder(self, name: str) -> None:
        """Add a folder of the state."""
        member = _member(f"state/{name}")
        member.type, member.mode = tarfile.DIRTYPE, 0o700
        self._tar.addfile(member)

    def file(self, name: str, path: Path) -> KeptFile:
        """Add what `path` holds now as a file of the state.

        Raises:
            OSError: It is gone, has become shorter meanwhile, or the disk is full.
        """
        with path.open("rb") as stream:
            found = path.stat()
            hashing = _Hashing(stream)
            member = _member(f"state/{name}")
            member.size, member.mtime = found.st_size, int(found.st_mtime)
            self._tar.addfile(member, hashing)
        return KeptFile(name=name, size_bytes=member.size, sha256=hashing.sha256)

    def manifest(self, manifest: Manifest) -> None:
        """Add what makes the archive whole."""
        content = manifest.model_dump_json(indent=1).encode()
        member = _member(_MANIFEST)
        member.size = len(content)
        self._tar.addfile(member, io.BytesIO(content))


def _member(name: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.mode = 0o600
    return member


class _Hashing:
    """Reads a stream and hashes what was read."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        content = self._stream.read(size)
        self._hash.update(content)
        return content

    def blocks(self) -> Iterator[bytes]:
        while block := self.read(_BLOCK_BYTES):
            yield block

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


@contextmanager
def writing(stream: IO[bytes]) -> Iterator[Writer]:
    """Give what writes an archive to `stream`."""
    with (
        gzip.GzipFile("", "wb", _COMPRESSION, stream) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        yield Writer(tar)


class Sink(Protocol):
    """Takes in the files of an archive, one after the other."""

    def folder(self, name: str) -> None:
        """Take in a folder."""

    def file(self, name: str, blocks: Iterator[bytes]) -> None:
        """Take in a file."""


class Nowhere:
    """A sink for an archive that is only looked at."""

    def folder(self, name: str) -> None:
        """See `Sink.folder`."""

    def file(self, name: str, blocks: Iterator[bytes]) -> None:
        """See `Sink.file`."""
        del name
        for _ in blocks:
            pass


def read(archive: Path, sink: Sink) -> Manifest:
    """Read an archive to its end and give its manifest, which what it holds was compared with.

    Raises:
        SecurityError: It was changed, holds something that is no plain file or folder, or a name
            that leads out of the state.
        DataSiteError: It cannot be read, is no archive of a site, or was cut short.
    """
    try:
        with archive.open("rb") as stream, closing(gzip.GzipFile(fileobj=stream)) as packed:
            manifest = _read(packed, sink)
            while packed.read(_BLOCK_BYTES):  # to gzip's own checksum, which covers the manifest
                pass
    except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError, ValidationError) as exc:
        raise DataSiteError(
            f"{archive} is no backup of a site, or was changed or cut short "
            f"({_first_line(exc)}); take another"
        ) from exc
    except OSError as exc:
        raise DataSiteError(f"{archive} cannot be read: {exc.strerror or exc}") from exc
    return manifest


def _read(packed: gzip.GzipFile, sink: Sink) -> Manifest:
    folders: list[str] = []
    files: list[KeptFile] = []
    seen: set[str] = set()
    with tarfile.open(fileobj=packed, mode="r|") as tar:
        for member in tar:
            if member.name == _MANIFEST:
                manifest = _manifest(tar, member)
                _require_same(manifest, folders, files)
                return manifest
            name = _require_safe(member, seen)
            seen.add(name)
            if member.isdir():
                folders.append(name)
                sink.folder(name)
            else:
                hashing = _Hashing(cast("IO[bytes]", tar.extractfile(member)))  # it is regular
                sink.file(name, hashing.blocks())
                files.append(KeptFile(name=name, size_bytes=member.size, sha256=hashing.sha256))
    message = "its manifest is missing"
    raise EOFError(message)


def _manifest(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Manifest:
    stream = tar.extractfile(member) if member.isreg() else None
    if stream is None or member.size > _LARGEST_MANIFEST_BYTES:
        message = "its manifest is none"
        raise EOFError(message)
    return Manifest.model_validate_json(stream.read())


def _require_safe(member: tarfile.TarInfo, seen: set[str]) -> str:
    """Give the member's name below `state/`.

    Raises:
        SecurityError: It leads elsewhere, or is no plain file or folder.
    """
    path = PurePosixPath(member.name)
    inside = path.parts[:1] == ("state",) and str(path) == member.name.rstrip("/")
    name = "/".join(path.parts[1:])
    if not inside or ".." in path.parts or "\0" in member.name or not name:
        raise SecurityError(
            f"the archive holds {member.name!r}, which leads out of a site's state; nothing of it "
            "is taken"
        )
    if not (member.isreg() or member.isdir()):
        raise SecurityError(
            f"the archive holds {member.name!r}, which is no plain file or folder; nothing of it "
            "is taken"
        )
    if name in seen:
        raise SecurityError(f"the archive holds {member.name!r} twice; nothing of it is taken")
    return name


def _require_same(manifest: Manifest, folders: list[str], files: list[KeptFile]) -> None:
    told = {file.name: file for file in manifest.files}
    found = {file.name: file for file in files}
    for name in sorted(told.keys() | found.keys()):
        if told.get(name) != found.get(name):
            raise SecurityError(
                f"{name!r} in the archive is not what its manifest says: it was changed, removed "
                "or added; take another backup"
            )
    if sorted(manifest.folders) != sorted(folders):
        raise SecurityError("the archive's folders are not those of its manifest; take another")


def _first_line(exc: Exception) -> str:
    return (str(exc).splitlines() or [type(exc).__name__])[0]
