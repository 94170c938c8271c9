"""The hash of the installed code that trains, which plans are bound to."""

import hashlib
from functools import cache
from pathlib import Path


@cache
def installed_code_hash() -> str:
    """Give the SHA-256 over the exact bytes of every module of `core` and `datasite`.

    All of it counts, not only the fitting: what is released is decided by the code around it. Read
    once a process: code that changes on disk takes effect, and is noticed, at the next start.
    """
    root = Path(__file__).resolve().parent.parent
    sha = hashlib.sha256()
    for package in ("core", "datasite"):
        for path in sorted((root / package).rglob("*.py")):
            content = path.read_bytes()
            sha.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode())
            sha.update(content)
    return sha.hexdigest()
