"""What is registered: versions, files that only the site may read, and nothing half-done."""

import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
from sites import SCHEMA, write_table
from sqlalchemy import select

from core.exceptions import DataError, DataSiteError
from core.schema import DataSchema
from datasite.ledger import AuditRow, DatasetRow, Ledger
from datasite.registry import Dataset, Registry, file_sha256
from datasite.site import FactoryDataSite
from datasite.unfinished import unfinished_file

PRESS = DataSchema.model_validate(SCHEMA)


@pytest.fixture
def registry(ledger: Ledger, tmp_path: Path) -> Registry:
    """An empty registry at `tmp_path / "data"`."""
    return Registry(ledger, tmp_path / "data", site_id="factory-1")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """100 readings that keep the schema."""
    return write_table(tmp_path / "press.csv")


def kept(tmp_path: Path) -> list[str]:
    """Name the files in the registry's folder."""
    return sorted(path.name for path in (tmp_path / "data").iterdir())


def test_what_was_registered_is_found(registry: Registry, file: Path) -> None:
    """Name, version 1, 100 rows, its schema, and the hash of the site's own copy."""
    made = registry.register(file, PRESS, name="press", who="operator")
    found = registry.find("press")
    assert found == made
    assert (found.version, found.rows, found.schema) == (1, 100, PRESS)
    assert found.sha256 == file_sha256(found.file)


def test_the_copy_does_not_follow_the_file(registry: Registry, file: Path) -> None:
    """The operator's file may change or go: what trains is what was checked."""
    dataset = registry.register(file, PRESS, name="press", who="operator")
    file.unlink()
    assert file_sha256(dataset.file) == dataset.sha256


def test_versions_count_up_after_a_removal(registry: Registry, file: Path, tmp_path: Path) -> None:
    """A version is never given twice: plans name it. Only the newest copy is on disk."""
    versions = []
    for _ in range(3):
        versions.append(registry.register(file, PRESS, name="press", who="operator").version)
        registry.remove("press", who="operator")
    assert versions == [1, 2, 3]
    assert registry.current() == []
    assert kept(tmp_path) == []
    assert registry.register(file, PRESS, name="mill", who="operator").version == 1


def test_a_removed_version_is_not_found(registry: Registry, file: Path) -> None:
    """The message names the version that there is."""
    for _ in range(2):
        registry.register(file, PRESS, name="press", who="operator")
        if registry.find("press").version == 1:
            registry.remove("press", who="operator")
    assert registry.find("press", 2).version == 2
    with pytest.raises(DataError, match=r"press \(version 1\) is not registered.*\(version 2\)"):
        registry.find("press", 1)


def test_what_is_not_registered_cannot_be_removed(registry: Registry) -> None:
    """Nothing is written down for it."""
    with pytest.raises(DataError, match="mill is not registered here; registered: nothing"):
        registry.remove("mill", who="operator")


def test_registering_and_removing_are_written_down(
    registry: Registry, ledger: Ledger, file: Path
) -> None:
    """Who, which dataset, which version."""
    sha256 = registry.register(file, PRESS, name="press", who="operator").sha256
    registry.remove("press", who="operator")
    with ledger.read() as session:
        rows = session.scalars(select(AuditRow).order_by(AuditRow.seq)).all()
    assert [(row.who, row.action, row.detail) for row in rows] == [
        (
            "operator",
            "data registered",
            {"dataset": "press", "version": 1, "sha256": sha256},
        ),
        ("operator", "data removed", {"dataset": "press", "version": 1}),
    ]


def test_only_the_sites_account_may_read_what_it_keeps(site: FactoryDataSite) -> None:
    """Folders 0700 and files 0600, the ledger and its companions among them."""
    state = site.config.state
    modes = {
        path.relative_to(state).as_posix(): stat.S_IMODE(path.stat().st_mode)
        for path in [state, *state.rglob("*")]
    }
    folders = {".", "data"}
    assert {name for name, mode in modes.items() if mode == 0o700} == folders
    assert {mode for name, mode in modes.items() if name not in folders} == {0o600}
    assert len(modes) >= 4


@pytest.mark.parametrize(
    "name",
    ["../../x", "/", "/etc/passwd", "..", ".", "a\0b", "Presse Süd ⚙", "x" * 5000, "a/../../b"],
    ids=["up", "root", "absolute", "parent", "here", "NUL", "unicode", "long", "through"],
)
def test_a_name_cannot_leave_the_folder(
    registry: Registry, file: Path, tmp_path: Path, name: str
) -> None:
    """Whatever it is called, its copy is one plain file in the folder, and is found by its name."""
    before = {path for path in tmp_path.rglob("*") if "ledger" not in path.name}
    dataset = registry.register(file, PRESS, name=name, who="operator")
    made = {path for path in tmp_path.rglob("*") if "ledger" not in path.name} - before
    assert made == {dataset.file}
    assert dataset.file.parent == tmp_path / "data"
    assert registry.find(name) == dataset
    registry.remove(name, who="operator")
    assert kept(tmp_path) == []


def test_names_that_look_alike_are_different_datasets(registry: Registry, file: Path) -> None:
    """Neither case nor path is folded together."""
    names = ["press", "Press", "./press", "press "]
    files = {registry.register(file, PRESS, name=name, who="operator").file for name in names}
    assert len(files) == len(names)
    assert [dataset.name for dataset in registry.current()] == sorted(names)


def test_the_same_data_again_change_nothing(
    registry: Registry, ledger: Ledger, file: Path, tmp_path: Path
) -> None:
    """A command may be repeated: the first registration stays, and no second is written down."""
    first = registry.register(file, PRESS, name="press", who="operator")
    assert registry.register(file, PRESS, name="press", who="operator") == first
    assert kept(tmp_path) == [first.file.name]
    with ledger.read() as session:
        assert len(session.scalars(select(AuditRow)).all()) == 1


def test_other_data_under_a_name_are_a_version_more(registry: Registry, tmp_path: Path) -> None:
    """Both are kept, each with its own rows; unnamed, the newest is meant."""
    first = registry.register(write_table(tmp_path / "a.csv"), PRESS, name="press", who="operator")
    second = registry.register(
        write_table(tmp_path / "b.csv", load=1.0), PRESS, name="press", who="operator"
    )
    assert (first.version, second.version) == (1, 2)
    assert registry.find("press", 1) == first
    assert registry.find("press") == registry.find("press", 2) == second
    assert registry.current() == [second]
    assert registry.versions() == [first, second]
    assert file_sha256(first.file) == first.sha256 != second.sha256 == file_sha256(second.file)


def test_data_that_come_back_are_a_version_more(registry: Registry, tmp_path: Path) -> None:
    """Only the newest version is compared: what researchers see becomes what was registered."""
    versions = [
        registry.register(
            write_table(tmp_path / "a.csv", load=load), PRESS, name="press", who="operator"
        ).version
        for load in (1.0, 2.0, 1.0)
    ]
    assert versions == [1, 2, 3]


def test_the_same_data_under_another_schema_are_another_version(
    registry: Registry, file: Path
) -> None:
    """What researchers were told about a version does not change."""
    registry.register(file, PRESS, name="press", who="operator")
    other = PRESS.model_copy(update={"description": "another press"})
    assert registry.register(file, other, name="press", who="operator").version == 2
    assert registry.find("press", 1).schema == PRESS
    assert registry.find("press").schema == other


def test_the_same_rows_in_another_form_are_the_same_data(
    registry: Registry, ledger: Ledger, file: Path, tmp_path: Path
) -> None:
    """As Parquet in small pieces; and beside a copy that an older library wrote its own way."""
    first = registry.register(file, PRESS, name="press", who="operator")
    table = pd.read_csv(file)
    table.to_parquet(tmp_path / "press.parquet", row_group_size=7)
    again = tmp_path / "press.parquet"
    assert registry.register(again, PRESS, name="press", who="operator") == first
    pd.read_parquet(first.file).to_parquet(first.file, compression="gzip")
    assert file_sha256(first.file) != first.sha256
    with ledger.write() as session:
        session.get_one(DatasetRow, ("press", 1)).sha256 = file_sha256(first.file)
    assert registry.register(again, PRESS, name="press", who="operator").version == 1
    table["load"] += 1e-9  # other rows, though no eye sees it
    table.to_parquet(again)
    assert registry.register(again, PRESS, name="press", who="operator").version == 2


def test_one_version_is_removed_alone_or_all_together(registry: Registry, tmp_path: Path) -> None:
    """A version's copy goes with it; its number is not given again."""
    made = [
        registry.register(
            write_table(tmp_path / "a.csv", load=load), PRESS, name="press", who="operator"
        )
        for load in (1.0, 2.0, 3.0)
    ]
    assert registry.remove("press", 2, who="operator") == [2]
    assert kept(tmp_path) == [made[0].file.name, made[2].file.name]
    with pytest.raises(DataError, match=r"press \(version 2\) is not registered here"):
        registry.remove("press", 2, who="operator")
    assert registry.remove("press", who="operator") == [1, 3]
    assert kept(tmp_path) == []


def test_a_bad_file_leaves_nothing(registry: Registry, tmp_path: Path) -> None:
    """The copy is written while the file is read, and goes when its last row is wrong."""
    file = write_table(tmp_path / "press.csv")
    file.write_text(file.read_text() + "99,1,0\n")
    with pytest.raises(DataError, match="line 102, 'load': 99 is outside 0 to 10"):
        registry.register(file, PRESS, name="press", who="operator")
    assert kept(tmp_path) == []


def test_two_registrations_at_once_make_one_dataset(
    ledger: Ledger, tmp_path: Path, file: Path
) -> None:
    """All four are told of the same version, and one copy is kept, whole."""
    registry = Registry(ledger, tmp_path / "data", site_id="factory-1")
    together = threading.Barrier(4)

    def attempt(_number: int) -> Dataset:
        together.wait(timeout=30)
        return registry.register(file, PRESS, name="press", who="operator")

    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(attempt, range(4)))
    dataset = registry.find("press")
    assert made == [dataset] * 4
    assert file_sha256(dataset.file) == dataset.sha256
    assert kept(tmp_path) == [dataset.file.name]


FULL_DISK = """
import resource, sys
sys.path[:0] = {path!r}
from pathlib import Path
from sites import SCHEMA, inline, site_settings, write_table
from core.exceptions import DataError
from datasite.site import FactoryDataSite

folder = Path(sys.argv[1])
data = {{"name": "press", "file": write_table(folder / "press.csv"), "schema": SCHEMA}}
site = FactoryDataSite(inline)
site.initialize_datasite(site_settings(folder))
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # the copy has some 2,500 bytes
try:
    site.register_data(data)
except DataError as exc:
    print(exc)
print(len(list((folder / "state" / "data").iterdir())), site.registry.current())
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
site.register_data(data)
print(site.registry.find("press").version)
"""


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    """No copy, no part of one, no record; with room again, version 1 is registered."""
    tests = Path(__file__).resolve().parents[1]
    script = FULL_DISK.format(path=[str(tests), str(tests.parent)])
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    refused, nothing, version = done.stdout.splitlines()
    assert refused.startswith("factory-1: 'press' cannot be kept in ")
    assert refused.endswith("File too large")
    assert (nothing, version) == ("0 []", "1")


KILLED = """
import os, sys
sys.path[:0] = {path!r}
from pathlib import Path
from sites import SCHEMA
from core.schema import DataSchema
from datasite.data import copy
from datasite.ledger import Ledger
from datasite.registry import Registry

class Dying(copy.CopyWriter):
    def add(self, rows):
        super().add(rows)
        os.kill(os.getpid(), 9)

copy.CopyWriter = Dying
folder = Path(sys.argv[1])
registry = Registry(Ledger(folder / "other.db", site_id="f"), folder / "data", site_id="f")
registry.register(folder / "press.csv", DataSchema.model_validate(SCHEMA), name="x", who="o")
"""


def test_what_a_killed_registration_left_goes_with_the_next(
    registry: Registry, file: Path, tmp_path: Path
) -> None:
    """Private rows do not stay behind; what another registration is writing now does."""
    tests = Path(__file__).resolve().parents[1]
    script = KILLED.format(path=[str(tests), str(tests.parent)])
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], timeout=60, check=False)
    assert done.returncode == -9
    assert len(kept(tmp_path)) == 1
    with unfinished_file(tmp_path / "data") as mine:
        assert kept(tmp_path) == [mine.name]
        dataset = registry.register(file, PRESS, name="press", who="operator")
        assert sorted([mine.name, dataset.file.name]) == kept(tmp_path)
    assert kept(tmp_path) == [dataset.file.name]


def test_a_ledger_that_refuses_leaves_no_copy(
    registry: Registry, ledger: Ledger, file: Path, tmp_path: Path
) -> None:
    """A dataset that is not written down is not kept either, and its name stays free."""
    with ledger.write() as session:
        session.connection().exec_driver_sql(
            "CREATE TRIGGER no_more BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'full'); END"
        )
    with pytest.raises(DataSiteError, match="the ledger cannot be used"):
        registry.register(file, PRESS, name="press", who="operator")
    assert kept(tmp_path) == []
    assert registry.current() == []


def test_a_folder_that_cannot_be_made_is_a_datasite_error(ledger: Ledger, tmp_path: Path) -> None:
    """A file stands where the folder should be: the message names the path."""
    (tmp_path / "data").write_text("in the way")
    with pytest.raises(DataSiteError, match="data cannot be made: File exists"):
        Registry(ledger, tmp_path / "data", site_id="factory-1")
