"""Who else could read what a site keeps secret: files and folders, by owner and mode.

The state belongs to the site alone: folders 0700, files 0600. What `site.yaml` names besides,
passwords and the TLS key, may also be kept private by what surrounds it: `require_secret`.
"""

import os
import shlex
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from core.exceptions import ConfigurationError

_OTHERS: Final = 0o077
_MORE_THAN_GROUP_READS: Final = 0o037
_ROOT: Final = 0
_NAMED: Final = 5
"""How many offending paths a message names."""


def private_directory(path: Path) -> Path:
    """Give `path` as a directory that only this account enters, made when it is not there.

    Raises:
        ConfigurationError: It cannot be made, belongs to somebody else, or others may enter it.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        fault = _fault(path, path.stat())
    except OSError as exc:
        message = (
            f"{path}: no private directory can be kept here ({exc.strerror}); choose a directory "
            "that belongs to the account the site runs as"
        )
        raise ConfigurationError(message) from exc
    if fault:
        raise ConfigurationError(fault)
    return path


def require_private_tree(folder: Path) -> int:
    """Check `folder` and everything in it; the number of paths that were checked, 0 without any.

    Raises:
        ConfigurationError: Something belongs to somebody else, or others may use it, or it is a
            link to elsewhere; the message names the first of them and what mends all.
    """
    faults = []
    count = 0
    try:
        if not folder.is_dir():
            return 0
        for path, found in _everything(folder):
            count += 1
            if fault := _fault(path, found):
                faults.append(fault)
    except OSError as exc:
        raise ConfigurationError(f"{exc.filename}: cannot be looked at: {exc.strerror}") from exc
    if faults:
        more = f"\n... and {len(faults) - _NAMED} more" if len(faults) > _NAMED else ""
        raise ConfigurationError("\n".join(faults[:_NAMED]) + more + _all_at_once(folder, faults))
    return count


def require_secret(path: Path, *, entry: str) -> None:
    """Check that nobody else reads or changes a file that `site.yaml` names.

    The rule is PostgreSQL's for its key: a file of this account is for it alone (0600), one of
    root's may be read by its group too (0640), and nobody else's is taken. What surrounds the file
    may keep it private instead: a folder that only this account enters, or a mount that cannot be
    written. The latter is how engines hand secrets to containers, readable for whichever account
    runs there; who else may read them, the engine's side decides.

    Args:
        path: The file; one that cannot be looked at is left to who reads it.
        entry: Where it stands in `site.yaml`, for messages.

    Raises:
        ConfigurationError: It is not private; the message says how to make it so.
    """
    try:
        path = path.resolve()
        found = path.stat()
        if _is_enclosed(path) or os.statvfs(path).f_flag & os.ST_RDONLY:
            return
    except OSError:
        return
    mode, private = stat.S_IMODE(found.st_mode), _OTHERS
    if found.st_uid == _ROOT != os.geteuid():
        private = _MORE_THAN_GROUP_READS
    elif found.st_uid != os.geteuid():
        raise ConfigurationError(f"{entry}: {_another_owner(path, found.st_uid)}")
    if mode & private:
        wanted = "600" if private == _OTHERS else "640"
        raise ConfigurationError(
            f"{entry}: {path} has mode {mode:04o}, so others may use it; make it private: "
            f"chmod {wanted} {shlex.quote(str(path))}"
        )


def _everything(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Give `folder` and what is in it; what goes away meanwhile, as a running site's may, is none.

    Raises:
        OSError: A folder cannot be read.
    """
    yield folder, folder.stat()
    for parent, folders, files in os.walk(folder, onerror=_raise):
        for name in (*folders, *files):
            path = Path(parent, name)
            try:
                yield path, path.lstat()
            except FileNotFoundError:
                continue


def _raise(exc: OSError) -> None:
    if not isinstance(exc, FileNotFoundError):
        raise exc


def _fault(path: Path, found: os.stat_result) -> str:
    """Say what is wrong with a path of the state; nothing when it is private."""
    if stat.S_ISLNK(found.st_mode):
        return f"{path} is a link; put what it leads to in its place"
    if found.st_uid != os.geteuid():
        return _another_owner(path, found.st_uid)
    mode = stat.S_IMODE(found.st_mode)
    if mode & _OTHERS:
        wanted = "700" if stat.S_ISDIR(found.st_mode) else "600"
        return (
            f"{path} has mode {mode:04o}, so others may use it; make it private: "
            f"chmod {wanted} {shlex.quote(str(path))}"
        )
    return ""


def _another_owner(path: Path, uid: int) -> str:
    return (
        f"{path} belongs to uid {uid}, and this process is uid {os.geteuid()}; run as its owner, "
        f"or give it away: chown {os.geteuid()} {shlex.quote(str(path))}"
    )


def _all_at_once(folder: Path, faults: Sequence[str]) -> str:
    """Say what mends several modes; nothing for a single one, which says it itself."""
    modes = sum("has mode" in fault for fault in faults)
    return f"\nall at once: chmod -R go= {shlex.quote(str(folder))}" if modes > 1 else ""


def _is_enclosed(path: Path) -> bool:
    """Tell whether a folder above `path` is entered by this account alone."""
    folders = (folder.stat() for folder in path.parents)
    return any(
        found.st_uid == os.geteuid() and not stat.S_IMODE(found.st_mode) & _OTHERS
        for found in folders
    )
