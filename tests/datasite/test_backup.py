"""A backup restores a site to the state it was in; what is not whole or not its own is refused."""

import gzip
import io
import json
import os
import resource
import shutil
import sqlite3
import stat
import subprocess
import sys
import tarfile
import threading
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from sites import ask, planned, site_settings, train_request

from core.exceptions import ConfigurationError, DataSiteError, FederatedLearningError, SecurityError
from datasite import audit
from datasite.archive import Nowhere, read
from datasite.backup import back_up
from datasite.configuration import SiteConfig, load_site_config
from datasite.holding import held
from datasite.identity import Identity
from datasite.operator_door import DoorActions, open_door
from datasite.restore import restore
from datasite.site import FactoryDataSite

HEADER_BYTES = 10
"""Of gzip: some of them say nothing of the content."""


@pytest.fixture
def config(tmp_path: Path) -> SiteConfig:
    """Give the configuration that `open_site` opens a site with, as read from a file."""
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(site_settings(tmp_path)))
    return load_site_config(tmp_path / "site.yaml")


@pytest.fixture
def kept(site: FactoryDataSite, config: SiteConfig) -> FactoryDataSite:
    """Give a site with an identity, a dataset and a round trained under a plan."""
    Identity.open(config.state)
    (config.state / "replies").mkdir(mode=0o700)
    (config.state / "replies" / "plan-train-0").write_bytes(os.urandom(300_000))
    (config.state / "pysyft" / "jobs").mkdir(mode=0o700, parents=True)
    assert ask(site, train_request(planned(site)))["kind"] == "update"
    return site


@pytest.fixture
def archive(kept: FactoryDataSite, config: SiteConfig, tmp_path: Path) -> Path:
    """Give a backup of it; the site is closed."""
    out = tmp_path / "backup.tar.gz"
    back_up(config, out)
    kept.close()
    return out


def contents(state: Path) -> dict[str, object]:
    """Give what a state holds: files by their bytes, databases by their rows, with every mode."""
    found: dict[str, object] = {}
    for path in sorted(state.rglob("*")):
        name = path.relative_to(state).as_posix()
        mode = stat.S_IMODE(path.stat().st_mode)
        if path.suffix == ".db":
            with sqlite3.connect(path) as connection:
                found[name] = mode, list(connection.iterdump())
            connection.close()
        elif not name.endswith(("-wal", "-shm")):
            found[name] = mode, path.read_bytes() if path.is_file() else None
    return found


def left_over(folder: Path) -> list[str]:
    """Name what was begun in a folder and not finished."""
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def cli(*arguments: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run the command."""
    return subprocess.run(
        [sys.executable, "-m", "datasite", *map(str, arguments)],
        capture_output=True,
        check=False,
        timeout=60,
        **options,
    )


def test_a_restored_state_is_the_one_that_was_backed_up(
    archive: Path, config: SiteConfig, tmp_path: Path
) -> None:
    """Every file to the byte, every database to the row, all of it private."""
    before = contents(config.state)
    shutil.rmtree(config.state)
    done = restore(config, archive)
    assert contents(config.state) == before
    assert done.replaced is None
    assert stat.S_IMODE(config.state.stat().st_mode) == 0o700
    assert left_over(tmp_path) == []


def test_a_restored_site_goes_on_where_it_was(
    archive: Path, config: SiteConfig, open_site: Callable[..., FactoryDataSite]
) -> None:
    """Its chain verifies, its plan holds, and a repeated round is answered without training."""
    identity = Identity.open(config.state)
    shutil.rmtree(config.state)
    manifest = restore(config, archive).manifest
    site = open_site()
    assert Identity.open(config.state) == identity
    with site.ledger.read() as session:
        head = audit.Anchor(manifest.audit.rows, manifest.audit.sha256)
        assert audit.verify(audit.written(session)) == head
    (plan,) = site.plans.all()
    ask(site, train_request(plan.plan_id))
    with site.ledger.read() as session:
        assert audit.verify(audit.written(session)).count == manifest.audit.rows
    assert ask(site, train_request(plan.plan_id, round_num=1))["kind"] == "update"


def test_an_archive_is_private_whatever_the_umask(archive: Path) -> None:
    """It holds the site's key."""
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600


def test_a_backup_is_of_one_moment_while_the_site_writes(
    kept: FactoryDataSite, config: SiteConfig, tmp_path: Path
) -> None:
    """Audit rows come in all the time, and the chain in each backup is whole."""
    stop = threading.Event()
    entry = audit.Entry(who="operator", action="tested", detail={"what": "x" * 500})

    def write() -> None:
        while not stop.is_set():
            with kept.ledger.transaction() as connection:
                audit.append(connection, entry)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        heads = [back_up(config, tmp_path / f"{number}.tar.gz").audit for number in range(5)]
    finally:
        stop.set()
        writer.join()
    assert [head.fault for head in heads] == [""] * 5
    rows = [head.rows for head in heads]
    assert rows == sorted(set(rows))
    kept.close()
    restore(config, tmp_path / "4.tar.gz", replace=True)
    (database,) = config.state.glob("ledger.db")
    with sqlite3.connect(database) as connection:
        assert connection.execute("SELECT count(*) FROM audit").fetchone() == (rows[4],)
    connection.close()


def test_files_come_and_go_while_a_backup_is_taken(
    kept: FactoryDataSite, config: SiteConfig, tmp_path: Path
) -> None:
    """As those of replies do: what was begun is begun anew, and what comes out is whole."""
    stop = threading.Event()
    replies = config.state / "replies"

    def churn() -> None:
        number = 0
        while not stop.is_set():
            (replies / f"new-{number}").write_bytes(b"x" * 1000)
            (replies / f"new-{number - 40}").unlink(missing_ok=True)
            number += 1
            stop.wait(0.005)

    writer = threading.Thread(target=churn)
    writer.start()
    try:
        manifest = back_up(config, tmp_path / "busy.tar.gz")
    finally:
        stop.set()
        writer.join()
    assert read(tmp_path / "busy.tar.gz", Nowhere()) == manifest
    assert left_over(tmp_path) == []


def test_unfinished_files_sockets_and_sqlites_own_are_left_out(
    kept: FactoryDataSite, config: SiteConfig, tmp_path: Path
) -> None:
    """What is in a write-ahead log is in the copy of its database."""
    (config.state / "data" / "press.part").write_text("half")
    assert (config.state / "ledger.db-wal").exists()
    with open_door(no_actions(), config.state):
        manifest = back_up(config, tmp_path / "out.tar.gz")
    names = {file.name for file in manifest.files}
    assert {"identity.json", "ledger.db", "replies/plan-train-0"} <= names
    assert not [name for name in names if name.endswith(("-wal", "-shm", ".part", ".sock"))]


def test_a_broken_audit_log_is_kept_as_it_is_and_said_to_be(
    kept: FactoryDataSite, config: SiteConfig, tmp_path: Path
) -> None:
    """It is evidence, and a backup is not the place to refuse it."""
    kept.close()
    with sqlite3.connect(config.state / "ledger.db") as connection:
        triggers = connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")
        for (name,) in triggers.fetchall():
            connection.execute(f'DROP TRIGGER "{name}"')
        connection.execute("UPDATE audit SET who = 'nobody' WHERE seq = 2")
    connection.close()
    done = cli("backup", "--out", tmp_path / "out.tar.gz", "-c", tmp_path / "site.yaml")
    assert done.returncode == 0
    assert b"WARNING: the audit log is not whole: audit row 2 was changed" in done.stderr


def test_a_state_that_is_there_is_not_written_over(archive: Path, config: SiteConfig) -> None:
    """Only when told to, and then it is moved aside whole."""
    before = contents(config.state)
    with pytest.raises(ConfigurationError, match="is not empty; give --replace"):
        restore(config, archive)
    assert contents(config.state) == before
    (config.state / "later").touch(mode=0o600)
    replaced = restore(config, archive, replace=True).replaced
    assert replaced is not None
    assert replaced.parent == config.state.parent
    assert (replaced / "later").exists()
    assert contents(config.state) == before


def test_an_empty_folder_is_restored_into(archive: Path, config: SiteConfig) -> None:
    """As one that a package or a volume made."""
    before = contents(config.state)
    shutil.rmtree(config.state)
    config.state.mkdir(mode=0o700)
    restore(config, archive)
    assert contents(config.state) == before


def no_actions() -> DoorActions:
    """Give a door behind which nothing is done."""
    return DoorActions(status=dict, accounts=cast("Any", None), publish=list)


@pytest.mark.parametrize("by", ["its lock", "its door"])
def test_a_running_site_is_not_restored_over(archive: Path, config: SiteConfig, by: str) -> None:
    """From its first moment on; a site of an older release is known by its door."""
    before = contents(config.state)
    running = (
        held(config.state, site_id="factory-1")
        if by == "its lock"
        else open_door(no_actions(), config.state)
    )
    with running, pytest.raises(DataSiteError, match="is running on this state"):
        restore(config, archive, replace=True)
    assert contents(config.state) == before


def test_another_sites_archive_is_refused(archive: Path, tmp_path: Path) -> None:
    """A site that became another would answer to plans that were never its own."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "site.yaml").write_text(yaml.safe_dump(site_settings(other, site_id="factory-2")))
    config = load_site_config(other / "site.yaml")
    with pytest.raises(ConfigurationError, match=r"is the state of 'factory-1', and site.yaml is"):
        restore(config, archive)
    assert not config.state.exists()


def refused(config: SiteConfig, archive: Path) -> str:
    """Restore it and give why that is refused; nothing may be left of it."""
    shutil.rmtree(config.state, ignore_errors=True)
    with pytest.raises((DataSiteError, SecurityError)) as caught:
        restore(config, archive)
    assert not config.state.exists()
    assert left_over(config.state.parent) == []
    return str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_an_archive_that_was_cut_short_is_refused(
    archive: Path, config: SiteConfig, share: float
) -> None:
    """Wherever that was."""
    whole = archive.read_bytes()
    archive.write_bytes(whole[: int(len(whole) * share)])
    assert "is no backup of a site, or was changed or cut short" in refused(config, archive)


def test_an_archive_of_which_a_bit_was_changed_is_refused(
    archive: Path, config: SiteConfig
) -> None:
    """At forty places, from behind its header to its last byte, that say something."""
    whole = archive.read_bytes()
    content = gzip.decompress(whole)
    step = (len(whole) - HEADER_BYTES) // 40
    for place in [*range(HEADER_BYTES, len(whole), step), len(whole) - 1]:
        changed = bytearray(whole)
        changed[place] ^= 1
        # A copy of zeros from a little further away is the same copy: nothing has changed then.
        with suppress(EOFError, OSError, zlib.error):
            if gzip.decompress(changed) == content:
                continue
        archive.write_bytes(changed)
        assert refused(config, archive), place


def repacked(
    archive: Path, change: Callable[[list[tuple[tarfile.TarInfo, bytes]]], object]
) -> None:
    """Let `change` work on an archive's members, and pack them again with the right checksums."""
    with tarfile.open(archive) as tar:
        members = [
            (member, stream.read() if (stream := tar.extractfile(member)) else b"")
            for member in tar
        ]
    change(members)
    with gzip.open(archive, "wb") as packed, tarfile.open(fileobj=packed, mode="w") as tar:
        for member, content in members:
            member.size = len(content) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(content))


def renamed(members: list[tuple[tarfile.TarInfo, bytes]], name: str) -> None:
    """Let the first file of the state be another."""
    next(member for member, _ in members if member.isreg()).name = name


def linked(members: list[tuple[tarfile.TarInfo, bytes]], kind: bytes) -> None:
    """Let the first file of the state be no file."""
    member = next(member for member, _ in members if member.isreg())
    member.type, member.linkname = kind, "/etc/passwd"


def told_otherwise(members: list[tuple[tarfile.TarInfo, bytes]], **changes: object) -> None:
    """Let the manifest say something else."""
    member, content = members.pop()
    members.append((member, json.dumps(json.loads(content) | changes).encode()))


def other_rows(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    """Let the manifest tell of an audit log that ends later."""
    audit = json.loads(members[-1][1])["audit"]
    told_otherwise(members, audit=audit | {"rows": audit["rows"] + 1})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: renamed(m, "state/../../outside"), "leads out of a site's state"),
        (lambda m: renamed(m, "/outside"), "leads out of a site's state"),
        (lambda m: renamed(m, "outside"), "leads out of a site's state"),
        (lambda m: renamed(m, "state/./x"), "leads out of a site's state"),
        (lambda m: linked(m, tarfile.SYMTYPE), "is no plain file or folder"),
        (lambda m: linked(m, tarfile.LNKTYPE), "is no plain file or folder"),
        (lambda m: linked(m, tarfile.FIFOTYPE), "is no plain file or folder"),
        (lambda m: linked(m, tarfile.CHRTYPE), "is no plain file or folder"),
        (lambda m: renamed(m, "state/renamed"), "is not what its manifest says"),
        (lambda m: m.insert(-1, (tarfile.TarInfo("state/added"), b"x")), "is not what its"),
        (lambda m: m.insert(-1, m[-2]), "twice"),
        (lambda m: m.pop(-2), "is not what its manifest says"),
        (lambda m: m.pop(0), "folders are not those of its manifest"),
        (lambda m: m.pop(), "its manifest is missing"),
        (lambda m: told_otherwise(m, format=2), "is no backup of a site"),
        (lambda m: told_otherwise(m, files=[]), "is not what its manifest says"),
        (other_rows, "does not end as its manifest says"),
    ],
)  # fmt: skip
def test_an_archive_that_somebody_packed_anew_is_refused(
    archive: Path, config: SiteConfig, change: Any, said: str
) -> None:
    """Nothing is written for it, inside the state or outside."""
    repacked(archive, change)
    assert said in refused(config, archive)
    assert not (config.state.parent.parent / "outside").exists()


NO_ARCHIVES = {
    "empty": b"",
    "text": b"not an archive",
    "gzip": gzip.compress(b"no tar in it"),
}


@pytest.mark.parametrize("content", NO_ARCHIVES.values(), ids=NO_ARCHIVES)
def test_what_is_no_archive_is_refused(tmp_path: Path, config: SiteConfig, content: bytes) -> None:
    """Whatever it is."""
    (tmp_path / "file").write_bytes(content)
    assert "is no backup of a site" in refused(config, tmp_path / "file")


def test_an_archive_that_is_not_there_is_named(tmp_path: Path, config: SiteConfig) -> None:
    """With the system's word for it."""
    assert "missing cannot be read: No such file" in refused(config, tmp_path / "missing")


@pytest.mark.parametrize("place", ["there", "state/inside", "missing/out"])
def test_a_place_that_will_not_do_for_a_backup_is_refused(
    kept: FactoryDataSite, config: SiteConfig, tmp_path: Path, place: str
) -> None:
    """The last backup is not written over, and none lies in what it is of."""
    (tmp_path / "there").write_text("the last one")
    with pytest.raises(FederatedLearningError, match=r"is there already|itself|No such file"):
        back_up(config, tmp_path / place)
    assert (tmp_path / "there").read_text() == "the last one"
    assert not (config.state / "inside").exists()


def test_nothing_is_no_backup(config: SiteConfig, tmp_path: Path) -> None:
    """A mistyped site.yaml must not look as if all were safe."""
    with pytest.raises(ConfigurationError, match="nothing is kept there yet"):
        back_up(config, tmp_path / "out")
    assert not config.state.exists()


def with_little_room(size_bytes: int) -> Callable[[], None]:
    """Let a command write no file larger than this, as a full disk would."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, size_bytes))

    return limit


def test_a_full_disk_leaves_nothing_half_written(
    kept: FactoryDataSite, config: SiteConfig, tmp_path: Path
) -> None:
    """Neither of a backup nor of a restore."""
    site_yaml, out = tmp_path / "site.yaml", tmp_path / "out.tar.gz"
    full = cli("backup", "-o", out, "-c", site_yaml, preexec_fn=with_little_room(200_000))
    assert full.returncode == 1
    assert b"cannot be written: File too large" in full.stderr
    assert not out.exists()
    assert cli("backup", "-o", out, "-c", site_yaml).returncode == 0
    kept.close()
    before = contents(config.state)
    full = cli("restore", out, "--replace", "-c", site_yaml, preexec_fn=with_little_room(200_000))
    assert full.returncode == 1
    assert b"cannot be written: File too large" in full.stderr
    assert contents(config.state) == before
    assert left_over(tmp_path) == []


def test_a_backup_goes_through_a_pipe(
    kept: FactoryDataSite, config: SiteConfig, tmp_path: Path
) -> None:
    """Out of a container and into another, where there is no folder to leave it in."""
    site_yaml = tmp_path / "site.yaml"
    out = cli("backup", "--out", "-", "-c", site_yaml)
    assert out.returncode == 0, out.stderr
    assert b"not in it: site.yaml, the password files, TLS key and certificate" in out.stderr
    kept.close()
    before = contents(config.state)
    shutil.rmtree(config.state)
    done = cli("restore", "-", "-c", site_yaml, input=out.stdout)
    assert done.returncode == 0, done.stderr
    assert contents(config.state) == before
    cut = cli("restore", "-", "--replace", "-c", site_yaml, input=out.stdout[:-1000])
    assert cut.returncode == 1
    assert contents(config.state) == before
    assert left_over(tmp_path) == []
