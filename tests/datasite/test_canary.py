"""A canary lies in a site's data, names and paths; whatever fails, it does not get out.

The site runs in a process of its own, with its trainer, and is made to fail in every way that the
code can (`canary_site.py`). Then every byte that came out is looked through: replies, what an
auditor reads, standard output and error, and all files outside the site's private folder.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from canaries import NUMBER, TEXT, WAYS, found_below, found_in, install_leaky

TESTS = Path(__file__).resolve().parents[1]


class Played(NamedTuple):
    """What came of it: the folder, and what the process wrote to standard output and error."""

    folder: Path
    said: bytes


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    """Play every scene once."""
    folder = tmp_path_factory.mktemp("canary")
    packages = install_leaky(tmp_path_factory.mktemp("packages"))
    paths = (TESTS.parent, TESTS, packages)
    done = subprocess.run(
        [sys.executable, str(TESTS / "datasite" / "canary_site.py"), str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=540,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:].decode()
    return Played(folder, done.stdout)


def replies(played: Played) -> dict[str, str]:
    """Give the kind of reply, or the class of error, of each scene."""
    names = [path.name for path in (played.folder / "replies").iterdir()]
    return dict(name.rsplit(" - ", 1) for name in names)


def test_no_reply_and_no_file_outside_has_the_canary(played: Played) -> None:
    """Nor has what an auditor reads, in any of the forms that are looked for."""
    assert found_below(played.folder, private=[played.folder / TEXT]) == {}


def test_no_line_outside_has_the_canary(played: Played) -> None:
    """Standard output and error of the site and its trainer are what a log collector reads."""
    assert b"the trainer ended with exit code" in played.said
    assert found_in(played.said) == []
    assert b"Traceback" not in played.said


def test_the_private_log_says_what_was_kept_back(played: Played) -> None:
    """The operator finds all of it: tracebacks, and what the third party's model printed."""
    log = (played.folder / TEXT / "private.log").read_bytes()
    assert log.count(TEXT.encode()) > len(WAYS)
    assert b"Traceback" in log
    assert b"Error: CANARY-7f3a" in log


def test_the_canary_lay_where_it_could_be_told(played: Played) -> None:
    """In the site's own copy, as a number and as a text: else nothing was proven."""
    (copy,) = (played.folder / TEXT / "state").rglob("*.parquet")
    forms = found_in(copy.read_bytes())
    assert f"{NUMBER} as <d" in forms
    assert f"text {TEXT}" in forms


def test_every_scene_came_to_its_end(played: Played) -> None:
    """What should work did, and everything else was an error of ours."""
    found = replies(played)
    assert len(found) > 60
    works = {name for name, kind in found.items() if not kind.endswith("Error")}
    assert works >= {
        "described",
        "proposed",
        "as it should be, train",
        "as it should be, evaluate",
        "as it should be, statistics",
        "private, train",
        "private, account",
        *(f"summed, {step}" for step in ("train", "keys", "shares", "mask", "confirm")),
        "audit read",
        "plans read",
    }
    failed = set(found) - works
    assert found["private, sums"] == "SecurityError"
    assert found["private, until nothing is left, 19"] == "PrivacyBudgetError"
    assert {f"a model, {way}" for way in WAYS if way != "prints and logs"} <= failed
