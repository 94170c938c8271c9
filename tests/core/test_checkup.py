"""A check-up goes on whatever one check does, never hangs, and fails for what must be mended."""

import json
import threading
import time
from pathlib import Path
from typing import NoReturn

import pytest
import typer

from core import checkup
from core.checkup import Checkup, Outcome, as_rows, fail, ok, room, versions, warn
from core.commands import echo_findings
from core.exceptions import DataSiteError


def outcomes(done: Checkup) -> dict[str, str]:
    """Give how each check ended."""
    return {finding.check: finding.verdict.outcome.value for finding in done.findings}


def test_a_check_that_hangs_is_given_up_and_the_next_is_done() -> None:
    """What does not answer says so."""
    done, never = Checkup(), threading.Event()
    begin = time.monotonic()
    assert not done.check("frozen", lambda: ok(str(never.wait())), advice="look there", limit_s=0.2)
    assert done.check("next", lambda: ok("well"), advice="")
    assert time.monotonic() - begin < 5
    assert outcomes(done) == {"frozen": "FAIL", "next": "ok"}
    assert done.findings[0].verdict == fail("no answer within 0.2 s", "look there")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (DataSiteError("factory-1: the ledger is gone"), "factory-1: the ledger is gone"),
        (PermissionError(13, "Permission denied"), "could not be checked: Permission denied"),
        (RuntimeError("password is hunter2"), "could not be checked: RuntimeError"),
    ],
    ids=["ours", "the system's", "anybody's"],
)
def test_a_check_that_cannot_be_done_fails_and_says_why(error: Exception, said: str) -> None:
    """What an unknown error says may be a secret, and is not repeated."""
    done = Checkup()

    def broken() -> NoReturn:
        raise error

    assert not done.check("broken", broken, advice="do this")
    assert done.findings[0].verdict == fail(said, "do this")


def test_a_disk_is_full_scarce_or_wide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what is free where the folder is, or will be."""
    folder = tmp_path / "not" / "yet"
    assert room(folder, wanted_bytes=1).outcome is Outcome.OK
    assert room(folder, wanted_bytes=1 << 62).outcome is Outcome.WARN
    free = checkup.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(checkup, "disk_usage", lambda _folder: free)
    assert room(folder, wanted_bytes=1).outcome is Outcome.FAIL


def test_this_installation_is_one_that_is_supported() -> None:
    """Python, PySyft and torch, by number."""
    assert versions().outcome is Outcome.OK
    assert "syft 0.9.5" in versions().found


@pytest.mark.parametrize(
    ("last", "code"), [(ok("well"), 0), (warn("scarce", "make room"), 0), (fail("no", "do"), 1)]
)
@pytest.mark.parametrize("as_json", [False, True], ids=["table", "json"])
def test_only_a_failure_fails_the_command(
    capsys: pytest.CaptureFixture[str], last: checkup.Verdict, code: int, *, as_json: bool
) -> None:
    """A person and a machine are told the same."""
    done = Checkup()
    done.check("first", lambda: ok("well"), advice="")
    done.check("second", lambda: last, advice="")
    with pytest.raises(typer.Exit) as ended:
        echo_findings(as_rows(done.findings), as_json=as_json)
    assert ended.value.exit_code == code
    out = capsys.readouterr().out
    if as_json:
        assert [row["outcome"] for row in json.loads(out)] == ["ok", last.outcome.value]
    else:
        assert out.splitlines()[0] == "ok    first   well"
        assert out.splitlines()[1] == f"{last.outcome.value:<4}  second  {last.found}"
        assert out.splitlines()[2:] == ([f"              > {last.advice}"] if last.advice else [])
