"""Checks of an installation: each on its own and within its time, each with what to do about it.

A check is a function that gives a `Verdict`. One that cannot be done, because what it looks at is
broken, fails with why, and the others go on.
"""

import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from shutil import disk_usage
from typing import Final

from core.exceptions import FederatedLearningError

_LIMIT_S: Final = 30.0
_SYFT: Final = "0.9.5"
_PYTHONS: Final = ((3, 11), (3, 12))
_LEAST_FREE_BYTES: Final = 1 << 28
_GB: Final = 1e9


class Outcome(Enum):
    """How a check ended; only `FAIL` fails the whole."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one check says.

    Attributes:
        found: What it found, never a secret.
        advice: What to do about it; empty when all is well.
    """

    outcome: Outcome
    found: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """The verdict of a named check."""

    check: str
    verdict: Verdict

    @property
    def failed(self) -> bool:
        """Whether something must be done."""
        return self.verdict.outcome is Outcome.FAIL


def ok(found: str) -> Verdict:
    """All is well."""
    return Verdict(Outcome.OK, found)


def warn(found: str, advice: str) -> Verdict:
    """It works, and somebody should look at it."""
    return Verdict(Outcome.WARN, found, advice)


def fail(found: str, advice: str) -> Verdict:
    """It does not work."""
    return Verdict(Outcome.FAIL, found, advice)


def skip(found: str) -> Verdict:
    """It was not looked at, because of what failed before it or is not there yet."""
    return Verdict(Outcome.SKIP, found)


class Checkup:
    """Runs checks one after the other and keeps what they say.

    Attributes:
        findings: So far, in order.
    """

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def check(
        self, name: str, examine: Callable[[], Verdict], *, advice: str, limit_s: float = _LIMIT_S
    ) -> bool:
        """Do one check; whether it did not fail.

        Args:
            name: What is looked at.
            examine: Looks; what it raises is a failure.
            advice: What to do when it raises, or does not end within its time.
            limit_s: After this it is given up; its thread ends with the process.
        """
        said: list[Verdict] = []
        thread = threading.Thread(
            target=lambda: said.append(_examined(examine, advice)), name=name, daemon=True
        )
        thread.start()
        thread.join(limit_s)
        verdict = said[0] if said else fail(f"no answer within {limit_s:g} s", advice)
        self.findings.append(Finding(name, verdict))
        return verdict.outcome is not Outcome.FAIL

    def skip(self, name: str, found: str) -> None:
        """Say that a check was not done, and why."""
        self.findings.append(Finding(name, skip(found)))


def _examined(examine: Callable[[], Verdict], advice: str) -> Verdict:
    try:
        return examine()
    except FederatedLearningError as exc:
        return fail(str(exc), advice)
    except OSError as exc:
        return fail(f"could not be checked: {exc.strerror or type(exc).__name__}", advice)
    except Exception as exc:  # noqa: BLE001 - whatever is broken, the other checks go on
        return fail(f"could not be checked: {type(exc).__name__}", advice)


def versions() -> Verdict:
    """Look at Python and at the packages on which results depend."""
    python = sys.version_info
    advice = "install the release anew, as README.md says"
    try:
        found = {name: version(name) for name in ("federated-maintenance", "syft", "torch")}
    except PackageNotFoundError as exc:
        return fail(f"{exc.name} is not installed", advice)
    told = f"Python {python.major}.{python.minor}.{python.micro}, " + ", ".join(
        f"{name} {number}" for name, number in found.items()
    )
    if found["syft"] != _SYFT or python[:2] not in _PYTHONS:
        return fail(f"{told}; needed are Python 3.11 or 3.12 and syft {_SYFT}", advice)
    return ok(told)


def room(folder: Path, *, wanted_bytes: int) -> Verdict:
    """Look at the disk on which `folder` lies, or will lie.

    Args:
        folder: What grows.
        wanted_bytes: With less free than this, the verdict is a warning.
    """
    there = next(each for each in (folder, *folder.parents) if each.exists())
    usage = disk_usage(there)
    told = f"{usage.free / _GB:.1f} of {usage.total / _GB:.1f} GB are free at {there}"
    if usage.free < _LEAST_FREE_BYTES:
        return fail(f"{told}; at least {_LEAST_FREE_BYTES / _GB:.2f} GB are needed", "make room")
    if usage.free < wanted_bytes:
        return warn(f"{told}; {wanted_bytes / _GB:.1f} GB would do", "make room")
    return ok(told)


def as_rows(findings: Sequence[Finding]) -> list[dict[str, str]]:
    """Give findings as plain values, for JSON."""
    return [
        {
            "check": finding.check,
            "outcome": finding.verdict.outcome.value,
            "found": finding.verdict.found,
            "advice": finding.verdict.advice,
        }
        for finding in findings
    ]
