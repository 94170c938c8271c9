"""What a running site writes: its own lines outside, all else in its private folder."""

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
SECRET: Final = "load is 42.0"

SITE: Final = """
import os, sys, threading, warnings
from pathlib import Path
from loguru import logger
from core.exceptions import ConfigurationError, DataError, FederatedLearningError
from core.commands import configure_logging
from datasite.private_log import private_log

def from_our_code(text, **options):
    exec(compile(f"logger.opt(**options).info({text!r})", "x", "exec"),
         {"__name__": "datasite.site", "logger": logger, "options": options})

def fails_in_a_thread(text):
    def fail():
        raise ValueError(text)
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()

configure_logging(debug=False)
try:
    with private_log(Path(sys.argv[1]), site_id="factory-1"):
        BODY
except FederatedLearningError as exc:
    print(type(exc).__name__, exc)
print("after")
"""


def run(state: Path, body: str) -> str:
    """Do something while the log of `state` is private; what came outside."""
    done = subprocess.run(
        [sys.executable, "-c", SITE.replace("BODY", body), str(state)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    return done.stdout


def private(state: Path) -> str:
    """Give what the private log has."""
    return (state / "private.log").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "body",
    [
        f"print({SECRET!r})",
        f"print({SECRET!r}, file=sys.stderr)",
        f"os.write(2, {SECRET!r}.encode())",
        f"warnings.warn({SECRET!r})",
        f"logger.error({SECRET!r})",
        f"import logging; logging.error({SECRET!r})",
        f"import subprocess; subprocess.run(['echo', {SECRET!r}])",
        f"fails_in_a_thread({SECRET!r})",
        f"from_our_code('it failed', exception=ValueError({SECRET!r}))",
    ],
    ids=[
        "print",
        "standard error",
        "its descriptor",
        "a warning",
        "somebody else's line",
        "a line of logging",
        "a child",
        "a thread",
        "the exception of our own line",
    ],
)
def test_what_may_hold_data_stays_inside(tmp_path: Path, body: str) -> None:
    """By whichever way it was written."""
    assert SECRET not in run(tmp_path, body)
    assert SECRET in private(tmp_path)


def test_our_own_lines_are_in_both(tmp_path: Path) -> None:
    """One line each; afterwards all goes where it went before."""
    outside = run(tmp_path, "from_our_code('round 3: 4 steps')").splitlines()
    assert outside[0].endswith("INFO    round 3: 4 steps")
    assert outside[1:] == ["after"]
    assert "round 3: 4 steps" in private(tmp_path)
    assert stat.S_IMODE((tmp_path / "private.log").stat().st_mode) == 0o600


@pytest.mark.parametrize("kind", ["ValueError", "DataError"])
def test_an_error_that_ends_the_site_is_told_by_its_class(tmp_path: Path, kind: str) -> None:
    """The operator is told where the rest is."""
    outside = run(tmp_path, f"raise {kind}({SECRET!r})").splitlines()
    told = f"DataSiteError factory-1: ended by {kind}; {tmp_path / 'private.log'} says why"
    assert outside[0].endswith("ERROR   the site ends")
    assert outside[1:] == [told, "after"]
    assert f"{kind}: {SECRET}" in private(tmp_path)


def test_a_mistake_of_the_operators_is_told_as_it_is(tmp_path: Path) -> None:
    """It holds no data, and it is what they must mend."""
    outside = run(tmp_path, "raise ConfigurationError('listen.port is taken')")
    assert outside == "ConfigurationError listen.port is taken\nafter\n"


def test_a_log_that_has_grown_is_put_aside_once(tmp_path: Path) -> None:
    """So it takes twice its bound at most, whoever wrote into it; what comes then is kept."""
    body = "print('x' * (17 << 20), flush=True); from_our_code('one'); from_our_code('two')"
    run(tmp_path, body)
    assert (tmp_path / "private.log.1").stat().st_size > 17 << 20
    assert "one" not in private(tmp_path)
    assert "two" in private(tmp_path)


def test_a_log_that_cannot_be_written_keeps_the_site_from_starting(tmp_path: Path) -> None:
    """It would run without anybody being able to say why it failed."""
    (tmp_path / "private.log").mkdir()
    said = f"{tmp_path / 'private.log'} cannot be written: Is a directory"
    assert run(tmp_path, "pass") == f"DataSiteError factory-1: {said}\nafter\n"
