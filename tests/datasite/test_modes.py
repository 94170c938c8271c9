"""A site whose secrets others could read is refused, with the path, its mode and what mends it."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.exceptions import ConfigurationError
from datasite import modes
from datasite.configuration import SiteConfig, load_site_config, open_state, require_private
from datasite.identity import Identity
from datasite.ledger import Ledger
from datasite.modes import require_secret

PASSWORD = "correct horse battery"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Give a folder that everybody on the machine can reach, unlike pytest's own."""
    above = (tmp_path, *tmp_path.parents)
    closed = {each: each.stat().st_mode & 0o7777 for each in above if not each.stat().st_mode & 0o1}
    for each in closed:
        each.chmod(0o755)
    yield tmp_path
    for each, mode in closed.items():
        each.chmod(mode)


def configured(folder: Path, **changes: Any) -> SiteConfig:
    """Write a `site.yaml` with a password's file of mode 0600, and read it."""
    file = folder / "operator.password"
    file.write_text(f"{PASSWORD}\n")
    file.chmod(0o600)
    settings = {
        "site_id": "factory-1",
        "state": "state",
        "operator": {"email": "op@factory.example.com", "password_file": file.name},
        **changes,
    }
    (folder / "site.yaml").write_text(yaml.safe_dump(settings))
    return load_site_config(folder / "site.yaml")


def with_state(config: SiteConfig) -> Path:
    """Make what a site keeps: identity, ledger, data, replies; the state's folder."""
    state = open_state(config)
    Identity.open(state)
    Ledger(state / "ledger.db", site_id=config.site_id).close()
    for name in ("data/press.parquet", "replies/plan-train-0", "pysyft/datasite.db"):
        (state / name).parent.mkdir(exist_ok=True)
        (state / name).write_text("kept")
    return state


def of_somebody_else(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have `path` belong to neither this process nor root; the path."""
    path.touch(mode=0o600)
    if os.geteuid() == 0:
        os.chown(path, 12345, -1)
    monkeypatch.setattr(os, "geteuid", lambda: 10001)
    return path


def refusal(config: SiteConfig) -> str:
    """Give the message that refuses what is kept."""
    with pytest.raises(ConfigurationError) as caught:
        require_private(config)
    return str(caught.value)


def test_what_a_site_makes_itself_is_private(folder: Path) -> None:
    """So a site that nobody touched starts again."""
    config = configured(folder)
    with_state(config)
    require_private(config)


@pytest.mark.parametrize("mode", ["0640", "0604", "0620", "0644", "0666"])
@pytest.mark.parametrize(
    "name", ["identity.json", "ledger.db", "data/press.parquet", "replies/plan-train-0"]
)
def test_a_file_of_the_state_that_others_may_use_is_refused(
    folder: Path, name: str, mode: str
) -> None:
    """The command in the message mends it."""
    config = configured(folder)
    path = with_state(config) / name
    path.chmod(int(mode, 8))
    message = refusal(config)
    assert f"state: {path} has mode {mode}, so others may use it" in message
    subprocess.run(shlex.split(message[message.index("chmod") :]), check=True)
    require_private(config)


@pytest.mark.parametrize("name", [".", "data", "pysyft"])
def test_a_folder_of_the_state_that_others_enter_is_refused(folder: Path, name: str) -> None:
    """The state's own or one in it; nothing is changed behind the operator's back."""
    config = configured(folder)
    path = with_state(config) / name
    path.chmod(0o750)
    assert re.search(rf"{path} has mode 0750, .*chmod 700 {path}", refusal(config))
    assert path.stat().st_mode & 0o777 == 0o750


def test_every_command_refuses_an_open_state_folder(folder: Path) -> None:
    """Not only the start: a command would write into it."""
    config = configured(folder)
    with_state(config).chmod(0o755)
    with pytest.raises(ConfigurationError, match=r"state: .*has mode 0755"):
        open_state(config)


def test_many_open_files_are_mended_by_one_command(folder: Path) -> None:
    """The first are named, and the rest counted."""
    config = configured(folder)
    state = with_state(config)
    for number in range(7):
        (state / f"copy-{number}").touch(mode=0o644)
        (state / f"copy-{number}").chmod(0o644)
    message = refusal(config)
    assert message.count("has mode 0644") == 5
    assert "... and 2 more" in message
    subprocess.run(["sh", "-c", message.rpartition("all at once: ")[2]], check=True)
    require_private(config)


def test_a_link_in_the_state_is_refused(folder: Path) -> None:
    """What it leads to is kept by whoever keeps that."""
    config = configured(folder)
    (with_state(config) / "elsewhere").symlink_to(folder)
    assert "elsewhere is a link" in refusal(config)


def test_a_file_of_somebody_else_in_the_state_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that was copied in by another account."""
    config = configured(folder)
    state = with_state(config)
    of_somebody_else(state / "ledger.db", monkeypatch)
    assert re.search(rf"{state} belongs to uid [0-9]+, and this .* 10001; run as", refusal(config))


@pytest.mark.parametrize("mode", ["0640", "0604", "0644", "0660", "0444"])
def test_a_password_file_that_others_may_use_is_refused(folder: Path, mode: str) -> None:
    """The entry is named, and the password is not shown."""
    config = configured(folder)
    path = folder / "operator.password"
    path.chmod(int(mode, 8))
    message = refusal(config)
    assert message.startswith(f"operator.password_file: {path.resolve()} has mode {mode}")
    assert PASSWORD not in message
    subprocess.run(shlex.split(message[message.index("chmod") :]), check=True)
    require_private(config)


def test_a_tls_key_and_a_researchers_password_are_looked_at_too(folder: Path) -> None:
    """A certificate is not: it is shown to everybody."""
    for name in ("site.key", "site.crt", "lab"):
        (folder / name).touch(mode=0o600)
    config = configured(
        folder,
        listen={"tls": {"certificate": "site.crt", "key": "site.key"}},
        researchers=[{"email": "r@lab.example.com", "password_file": "lab"}],
    )
    (folder / "site.crt").chmod(0o644)
    require_private(config)
    (folder / "site.key").chmod(0o640)
    assert refusal(config).startswith("listen.tls.key: ")
    (folder / "site.key").chmod(0o600)
    (folder / "lab").chmod(0o644)
    assert refusal(config).startswith("researchers[0].password_file: ")


def test_a_password_file_in_a_folder_that_nobody_else_enters_is_taken(folder: Path) -> None:
    """As `deploy/make-secrets.sh` makes them: readable for whichever account a container has."""
    secrets = folder / "secrets"
    secrets.mkdir(mode=0o700)
    config = configured(
        folder, operator={"email": "o@f.example.com", "password_file": "secrets/operator"}
    )
    (secrets / "operator").write_text(PASSWORD)
    (secrets / "operator").chmod(0o444)
    require_private(config)
    secrets.chmod(0o711)
    assert "operator.password_file" in refusal(config)


@pytest.mark.parametrize(
    ("mode", "writable", "said"),
    [
        (0o640, True, ""),
        (0o440, True, ""),
        (0o644, True, "chmod 640"),
        (0o660, True, "chmod 640"),
        (0o444, False, ""),
    ],
)
def test_a_secret_of_roots_may_be_read_by_its_group_or_lie_on_a_read_only_mount(
    folder: Path, monkeypatch: pytest.MonkeyPatch, mode: int, *, writable: bool, said: str
) -> None:
    """Kubernetes gives 0440, Swarm 0444 on a mount that nobody in the container writes."""
    secret = folder / "operator"
    secret.touch()
    secret.chmod(mode)
    monkeypatch.setattr(modes, "_ROOT", os.geteuid())  # whoever tests stands for root
    monkeypatch.setattr(os, "geteuid", lambda: 10001)
    if not writable:
        mounted = os.statvfs_result((4096, 4096, 1, 1, 1, 1, 1, 1, os.ST_RDONLY, 255))
        monkeypatch.setattr(os, "statvfs", lambda _path: mounted)
    found = ""
    try:
        require_secret(secret, entry="operator.password_file")
    except ConfigurationError as exc:
        found = str(exc)
    assert said in found
    assert bool(said) == bool(found)


def test_a_secret_of_another_account_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who owns it may change it at any time."""
    secret = of_somebody_else(folder / "operator", monkeypatch)
    with pytest.raises(ConfigurationError, match=r"operator belongs to uid .* is uid 10001"):
        require_secret(secret, entry="operator.password_file")


def test_a_secret_that_is_not_there_is_left_to_who_reads_it(folder: Path) -> None:
    """Its message says what is missing."""
    require_secret(folder / "missing", entry="operator.password_file")


def test_serve_refuses_before_it_starts_anything(folder: Path) -> None:
    """Exit code 4, within a second or two, and no port is taken."""
    config = configured(folder)
    path = with_state(config) / "identity.json"
    path.chmod(0o644)
    done = subprocess.run(
        [sys.executable, "-m", "datasite", "serve", "--config", folder / "site.yaml"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 4
    assert f"state: {path} has mode 0644" in done.stderr
    assert f"chmod 600 {path}" in done.stderr
