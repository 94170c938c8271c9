"""The build looks known advisories up, and never passes off not knowing as all being well.

`pip-audit` is a small program here that says what the real one says: JSON of what it was told by an
advisory service, or an error.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
AUDIT: Final = ROOT / ".ci" / "audit.py"

PYSYFT: Final = {
    "name": "syft",
    "version": "0.9.5",
    "vulns": [{"id": "PYSEC-2026-546", "aliases": ["CVE-2026-31220"], "fix_versions": []}],
}
CLEAN: Final = {"name": "numpy", "version": "1.26.4", "vulns": []}
NEW: Final = {
    "name": "jinja2",
    "version": "3.1.0",
    "vulns": [{"id": "PYSEC-2099-1", "aliases": ["CVE-2099-1"], "fix_versions": ["3.1.1"]}],
}
UNKNOWN: Final = {"name": "syft", "skip_reason": "Dependency not found on PyPI"}


def audit(folder: Path, *packages: dict[str, Any], says: str | None = None) -> tuple[int, str]:
    """Audit with a service that says this of the packages; the exit code, and what was printed."""
    said = json.dumps({"dependencies": packages, "fixes": []}) if says is None else says
    program = folder / "pip_audit.py"
    program.write_text(f"import sys\nprint({said!r})\nsys.exit(1)\n", encoding="utf-8")
    return run(sys.executable, str(program))


def run(*pip_audit: str) -> tuple[int, str]:
    """Audit with a program; the exit code, and what was printed."""
    done = subprocess.run(
        [sys.executable, str(AUDIT), *pip_audit], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_an_advisory_with_a_reason_passes(tmp_path: Path) -> None:
    """PySyft's own is ignored by its other name, with a reason that SECURITY.md has at length."""
    code, said = audit(tmp_path, PYSYFT, CLEAN)
    assert (code, said) == (0, "2 packages, 1 advisories, 0 without a reason\n")


def test_a_new_advisory_fails(tmp_path: Path) -> None:
    """It is named, with the release that mends it."""
    code, said = audit(tmp_path, PYSYFT, NEW)
    assert code == 1
    assert "NEW ADVISORY  jinja2 3.1.0: CVE-2099-1, PYSEC-2099-1, fixed in 3.1.1" in said


def test_an_ignore_that_nothing_needs_is_named(tmp_path: Path) -> None:
    """So that the list does not grow old."""
    code, said = audit(tmp_path, CLEAN)
    assert code == 0
    assert "nothing is found of CVE-2026-31220 any more" in said


@pytest.mark.parametrize("says", ["", "a proxy's page"], ids=["an error", "something else"])
def test_without_an_answer_the_build_goes_on_and_says_so(tmp_path: Path, says: str) -> None:
    """No internet is no failure of the change, and no all-clear."""
    code, said = audit(tmp_path, says=says)
    assert code == 0
    assert "!!! THE PACKAGES WERE NOT AUDITED: no advisory service answered." in said


def test_a_service_that_knows_nothing_is_no_all_clear(tmp_path: Path) -> None:
    """An index without advisories answers, and pip-audit ends with 0 and finds nothing."""
    code, said = audit(tmp_path, UNKNOWN)
    assert code == 0
    assert "!!! THE PACKAGES WERE NOT AUDITED: the advisory service knows none" in said


def test_some_packages_that_are_not_known_are_named(tmp_path: Path) -> None:
    """The rest is audited."""
    code, said = audit(tmp_path, UNKNOWN, NEW)
    assert code == 1
    assert "not known to the advisory service: syft" in said


def test_without_pip_audit_the_build_goes_on_and_says_so(tmp_path: Path) -> None:
    """It could not be installed, say."""
    code, said = run(str(tmp_path / "pip-audit"))
    assert code == 0
    assert "!!! THE PACKAGES WERE NOT AUDITED" in said


def test_every_ignore_has_a_date_and_a_reason(tmp_path: Path) -> None:
    """A line without them ends the audit before anybody is asked."""
    copy = tmp_path / "audit.py"
    copy.write_bytes(AUDIT.read_bytes())
    (tmp_path / "audit-ignores.txt").write_text("CVE-2099-1 because\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(copy), "none"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "expected 'ID YYYY-MM-DD REASON', got: CVE-2099-1 because" in done.stderr
