"""The hash of the installed code that trains, which plans are bound to."""

import hashlib
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Final

MODEL_ENTRY_POINTS: Final = "federated_maintenance.models"
"""The group of entry points by which other people's packages register their models."""


@cache
def installed_code_hash() -> str:
    """Give the SHA-256 over the exact bytes of every module that could run when a site trains.

    These are the modules of `core` and `datasite`, and the source of every registered third-party
    model. All of it counts, not only the fitting: what is released is decided by the code around
    it. And all registered models count, not only the one that a plan names: each is imported into
    the processes that answer and train, where it could do anything. An operator who approves a plan
    so consents to exactly this code; a model that is installed, updated or removed afterwards voids
    the plan, as a new release of ours does.

    The third parties' files are found and read, never run: what is to be judged must not take part
    in the judgement. Without third-party models the hash is that of `core` and `datasite` alone.

    Read once a process: code that changes on disk takes effect, and is noticed, at the next start.
    """
    root = Path(__file__).resolve().parent.parent
    sha = hashlib.sha256()
    for package in ("core", "datasite"):
        _add(sha, package_files(root / package))
    for entry in model_entry_points():
        sha.update(f"model {entry.name!r} {entry.value!r}\n".encode())
        _add(sha, source_files(entry))
    return sha.hexdigest()


def model_entry_points() -> list[EntryPoint]:
    """Give what installed packages register as models, in an order that is the same everywhere."""
    found = entry_points(group=MODEL_ENTRY_POINTS)
    return sorted(found, key=lambda entry: (entry.name, entry.value))


def source_files(entry: EntryPoint) -> dict[str, Path]:
    """Give the source behind an entry point, by name, without running any of it.

    It is one module, `my_model.py`, or every module of the whole package that the entry point lies
    in: to look for `my_package.part` alone, Python would run `my_package`. A name starts at the
    module or package, so that it is the same wherever that is installed.

    Returns:
        Nothing when there is no such module, or it has no source.
    """
    try:
        spec = find_spec(top_module(entry))
    except (ImportError, ValueError):
        return {}
    if spec is None:
        return {}
    if spec.submodule_search_locations is not None:
        folders = [package_files(Path(place)) for place in spec.submodule_search_locations]
        return {name: path for files in folders for name, path in files.items()}
    module = Path(spec.origin or "")
    return {module.name: module} if module.suffix == ".py" and module.is_file() else {}


def top_module(entry: EntryPoint) -> str:
    """Give the module or package that an entry point lies in: `a` for `a.b:C`."""
    return entry.value.partition(":")[0].partition(".")[0].strip()


def package_files(folder: Path) -> dict[str, Path]:
    """Give every module in `folder`, by its path from there: `folder/part/module.py`."""
    return {path.relative_to(folder.parent).as_posix(): path for path in folder.rglob("*.py")}


def _add(sha: "hashlib._Hash", files: dict[str, Path]) -> None:
    for name, path in sorted(files.items(), key=lambda item: Path(item[0])):
        content = path.read_bytes()
        sha.update(f"{name} {len(content)}\n".encode())
        sha.update(content)
