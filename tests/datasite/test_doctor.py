"""`datasite doctor` finds what is really broken, says what to do about it, and goes on."""

import datetime as dt
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from authorities import Issued, authority, issue, redate
from site_process import free_port
from sites import site_settings

from core.checkup import Outcome, Verdict
from datasite.doctor import examine
from datasite.site import FactoryDataSite

CHECKS = [
    "versions",
    "code",
    "site.yaml",
    "permissions",
    "passwords",
    "tls",
    "disk",
    "memory",
    "clock",
    "port",
    "ledger",
    "data",
    "trainer",
]

PASSWORD = "a-password-nobody-may-see"


def written(folder: Path, **changes: Any) -> Path:
    """Write a `site.yaml` on a free port; the file."""
    operator = {"email": "op@factory.example.com", "password": PASSWORD}
    settings = {"operator": operator, "listen": {"port": free_port()}, **changes}
    (folder / "site.yaml").write_text(yaml.safe_dump(site_settings(folder, **settings)))
    return folder / "site.yaml"


def failed(file: Path) -> dict[str, Verdict]:
    """Examine the site; what failed, by check."""
    found = examine(file)
    assert PASSWORD not in repr(found)
    return {finding.check: finding.verdict for finding in found if finding.failed}


def test_a_site_that_was_never_started_is_not_ill(tmp_path: Path) -> None:
    """Every check is done, in a table that a person reads and in JSON; nothing is made."""
    file = written(tmp_path)
    command = [sys.executable, "-m", "datasite", "doctor", "--config", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout
    assert [line.split()[1] for line in done.stdout.splitlines()] == CHECKS
    assert not (tmp_path / "state").exists()
    done = subprocess.run(
        [*command, "--json"], capture_output=True, text=True, check=False, timeout=120
    )
    assert [row["check"] for row in json.loads(done.stdout)] == CHECKS
    assert PASSWORD not in done.stdout + done.stderr


def test_a_broken_site_yaml_leaves_what_does_not_need_it(tmp_path: Path) -> None:
    """Its mistakes are told as `serve` tells them."""
    found = examine(written(tmp_path, site_id="Factory One"))
    assert [finding.check for finding in found] == ["versions", "code", "site.yaml", "all else"]
    assert "site_id" in found[2].verdict.found
    assert [finding.verdict.outcome for finding in found[2:]] == [Outcome.FAIL, Outcome.SKIP]


def test_a_site_with_data_is_looked_at_through_and_through(
    site: FactoryDataSite, tmp_path: Path
) -> None:
    """Log, data and contract; each dataset is a check of its own."""
    found = {finding.check: finding.verdict for finding in examine(written(tmp_path))}
    assert list(found) == [*CHECKS[:-1], "data press", "trainer"]
    assert {verdict.outcome for verdict in found.values()} == {Outcome.OK}
    assert found["ledger"].found.startswith("whole; 1 audit rows up to ")
    assert found["data press"].found.startswith("version 1: 100 rows as registered")


def test_a_state_that_others_may_enter_is_told_with_what_mends_it(
    site: FactoryDataSite, tmp_path: Path
) -> None:
    """What cannot be done because of it says so; the trainer is tried all the same."""
    state = tmp_path / "state"
    state.chmod(0o755)
    found = failed(written(tmp_path))
    assert {"permissions", "ledger", "data"} <= found.keys()
    assert "trainer" not in found
    assert f"chmod 700 {state}" in found["permissions"].found


@pytest.mark.parametrize(
    ("operator", "said"),
    [
        ({"password": "changethis"}, "is empty or a known default"),
        ({"password_file": "missing"}, "operator.password_file: .* cannot be read: No such file"),
    ],
    ids=["weak", "missing"],
)
def test_a_password_that_will_not_do_is_told(
    tmp_path: Path, operator: dict[str, str], said: str
) -> None:
    """Without being shown."""
    file = written(tmp_path, operator={"email": "op@factory.example.com", **operator})
    found = failed(file)
    assert list(found) == ["passwords"]
    assert re.search(said, found["passwords"].found)


def expired(issued: Issued) -> None:
    """Let it be too late."""
    redate(issued, begin=dt.timedelta(days=-9), end=dt.timedelta(days=-1))


def with_another_key(issued: Issued) -> None:
    """Let the key be that of another certificate."""
    other = issue(issued.ca_file.parent, issued.key.parent / "other")
    issued.key.write_bytes(other.key.read_bytes())


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (expired, "factory-1.crt expired on "),
        (with_another_key, "the key is not that of the certificate"),
        (lambda issued: issued.certificate.unlink(), "cannot be read: No such file"),
    ],
    ids=["expired", "another key", "missing"],
)
def test_a_certificate_that_will_not_do_is_told(
    tmp_path: Path, spoil: Callable[[Issued], None], said: str
) -> None:
    """As the start would tell it."""
    issued = issue(authority(tmp_path / "ca"), tmp_path / "tls")
    spoil(issued)
    tls = {"certificate": str(issued.certificate), "key": str(issued.key)}
    found = failed(written(tmp_path, listen={"port": free_port(), "tls": tls}))
    assert list(found) == ["tls"]
    assert said in found["tls"].found


def test_a_certificate_that_ends_soon_and_plain_http_to_others_are_warnings(
    tmp_path: Path,
) -> None:
    """The command does not fail for them."""
    issued = issue(authority(tmp_path / "ca"), tmp_path / "tls", days=20)
    tls = {"certificate": str(issued.certificate), "key": str(issued.key)}
    everywhere = {"host": "0.0.0.0", "port": free_port()}  # noqa: S104 - that is the warning
    for listen, said in (
        ({"port": free_port(), "tls": tls}, "is for 127.0.0.1, valid for 19 more days"),
        (everywhere, "passwords cross in the clear"),
    ):
        found = {f.check: f.verdict for f in examine(written(tmp_path, listen=listen))}
        assert found["tls"].outcome is Outcome.WARN
        assert said in found["tls"].found


def test_a_taken_port_is_told(tmp_path: Path) -> None:
    """And that it is not the site that has it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = failed(written(tmp_path, listen={"port": port}))
    assert list(found) == ["port"]
    assert "cannot be listened on, and the site does not run: Address" in found["port"].found


def add_row(ledger: Path, at: str) -> None:
    """Write an audit row past the site, which no trigger forbids."""
    with closing(sqlite3.connect(ledger)) as connection, connection:
        connection.execute(
            "INSERT INTO audit (seq, at, who, action, outcome, detail, previous_sha256, sha256) "
            "VALUES (2, ?, 'nobody', 'train', 'ok', '{}', '', '')",
            (at,),
        )


def test_a_forged_audit_row_is_named(site: FactoryDataSite, tmp_path: Path) -> None:
    """As `datasite audit verify` does."""
    add_row(tmp_path / "state" / "ledger.db", at="2026-01-01T00:00:00+00:00")
    found = failed(written(tmp_path))
    assert found["ledger"].found.startswith("audit row 2 does not follow")
    assert "datasite restore" in found["ledger"].advice


def test_a_clock_that_was_set_back_is_told(site: FactoryDataSite, tmp_path: Path) -> None:
    """It is before something that was written down."""
    add_row(tmp_path / "state" / "ledger.db", at="2100-01-01T00:00:00+00:00")
    assert "before the newest audit row (2100-01-01" in failed(written(tmp_path))["clock"].found


def test_a_ledger_that_is_none_is_told(site: FactoryDataSite, tmp_path: Path) -> None:
    """The disk, the port and the trainer are looked at all the same."""
    site.close()
    ledger = tmp_path / "state" / "ledger.db"
    ledger.write_bytes(b"\0garbage" * 4096)
    for end in ("-wal", "-shm"):
        ledger.with_name(ledger.name + end).unlink(missing_ok=True)
    found = failed(written(tmp_path))
    assert "the ledger cannot be used" in found["ledger"].found
    assert found.keys() <= {"ledger", "data", "clock"}


@pytest.mark.parametrize("harm", ["changed", "gone"])
def test_data_that_are_not_those_registered_are_told(
    site: FactoryDataSite, tmp_path: Path, harm: str
) -> None:
    """Which dataset, which file."""
    (file,) = (tmp_path / "state" / "data").glob("*.parquet")
    if harm == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    found = failed(written(tmp_path))
    assert list(found) == ["data press"]
    assert str(file) in found["data press"].found


def test_a_trainer_that_is_killed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a machine without memory: in the middle of its start."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "torch.py").write_text("import os; os.kill(os.getpid(), 9)")
    monkeypatch.setenv("PYTHONPATH", f"{broken}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    found = failed(written(tmp_path))
    assert list(found) == ["trainer"]
    assert f"exit code {-signal.SIGKILL}" in found["trainer"].found
