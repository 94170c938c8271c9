"""Ask for known advisories against the pinned packages.

    python .ci/audit.py PIP_AUDIT [ITS OPTIONS]

Ends with 1 on an advisory that `audit-ignores.txt`, beside this file, does not name. Where nobody
can be asked it says so and ends with 0: a build must not fail because the internet is away, and
must not look as if all were well.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
IGNORES = HERE / "audit-ignores.txt"
PINNED = HERE.parent / "constraints.txt"

_IGNORE = re.compile(r"(?P<id>\S+)\s+(?P<date>\d{4}-\d{2}-\d{2})\s+(?P<reason>\S.{19,})")


class Found(NamedTuple):
    """One advisory: the package that it is about, and all the names that it goes by."""

    package: str
    names: frozenset[str]
    fixed_in: str

    def __str__(self) -> str:
        """Say which it is, and where it is mended."""
        return f"{self.package}: {', '.join(sorted(self.names))}, fixed in {self.fixed_in}"


def main(pip_audit: list[str]) -> int:
    """Ask, compare, and give the exit code."""
    ignored = read_ignores(IGNORES.read_text(encoding="utf-8"))
    told = ask(pip_audit)
    if told is None:
        return unknown("no advisory service answered")
    unasked = [package["name"] for package in told if "vulns" not in package]
    if len(unasked) == len(told):
        return unknown("the advisory service knows none of the packages")
    found = [advisory for package in told for advisory in advisories(package)]
    new = [advisory for advisory in found if advisory.names.isdisjoint(ignored)]
    settled = ignored - {name for advisory in found for name in advisory.names}
    for advisory in new:
        print(f"NEW ADVISORY  {advisory}")
    for name in sorted(settled):
        print(f"nothing is found of {name} any more: take it out of {IGNORES.name}")
    if unasked:
        print(f"not known to the advisory service: {', '.join(unasked)}")
    print(f"{len(told)} packages, {len(found)} advisories, {len(new)} without a reason")
    return 1 if new else 0


def read_ignores(text: str) -> set[str]:
    """Give the ids of lines `ID DATE REASON`; each needs all three."""
    ids = set()
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            entry = _IGNORE.fullmatch(line.strip())
            if entry is None:
                sys.exit(f"{IGNORES.name}: expected 'ID YYYY-MM-DD REASON', got: {line}")
            ids.add(entry["id"])
    return ids


def ask(pip_audit: list[str]) -> list[dict[str, Any]] | None:
    """Give what pip-audit says of each package; None when it could not ask."""
    options = ["--requirement", str(PINNED), "--no-deps", "--disable-pip", "--format", "json"]
    command = [*pip_audit, *options, "--progress-spinner", "off", "--timeout", "10"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    except (OSError, subprocess.TimeoutExpired) as exc:
        print(exc)
        return None
    try:
        packages: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        print("\n".join(done.stderr.splitlines()[-3:]))
        return None
    return packages


def advisories(package: dict[str, Any]) -> list[Found]:
    """Give the advisories against one package."""
    return [
        Found(
            f"{package['name']} {package['version']}",
            frozenset([vulnerability["id"], *vulnerability["aliases"]]),
            ", ".join(vulnerability["fix_versions"]) or "no release",
        )
        for vulnerability in package.get("vulns", [])
    ]


def unknown(why: str) -> int:
    """Say as loudly as can be that nothing was looked up."""
    print(f"\n!!! THE PACKAGES WERE NOT AUDITED: {why}.")
    print("!!! Whether there are advisories against them is not known.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
