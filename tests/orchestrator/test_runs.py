"""The record of runs, on a disk that fills up and under processes that are killed."""

import hashlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import safetensors.torch
import torch

from core import ConfigurationError, ExperimentError, ExperimentStatus
from core.messages import Preprocessing
from core.parameters import digest
from orchestrator.configuration import ExperimentConfig, ModelChoice
from orchestrator.runs import Checkpoint, RunStore

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ExperimentConfig(name="test", rounds=5, dataset="ai4i", sites=Path("sites.yaml"))


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    """Give a store with one run, `one`."""
    made = RunStore(tmp_path / "runs")
    made.create("one", CONFIG)
    return made


def checkpoint(next_round: int, size: int = 2) -> Checkpoint:
    """Give a checkpoint whose parameters are the number of its round."""
    return Checkpoint(
        next_round=next_round,
        parameters={"w": torch.full((size,), float(next_round))},
        preprocessing=Preprocessing(mean=[0.1], scale=[2.0], positive_weight=3.0),
    )


def checkpoints(store: RunStore) -> list[str]:
    """Name the files in the folder of checkpoints."""
    return sorted(path.name for path in (store.folder("one") / "checkpoints").iterdir())


@contextmanager
def full_disk(room_bytes: int) -> Iterator[None]:
    """Let no file grow beyond `room_bytes`, as on a disk that is nearly full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_new_run_is_pending_with_its_configuration(store: RunStore) -> None:
    """Everything that it was asked to do is written down."""
    row = store.find("one")
    assert (row.status, row.rounds_done, row.rounds, row.message) == ("PENDING", 0, 5, "")
    assert store.config("one") == CONFIG


def test_a_run_is_created_once(store: RunStore) -> None:
    """The second is refused and the first left as it is."""
    other = CONFIG.model_copy(update={"rounds": 9})
    with pytest.raises(ExperimentError, match="'one' exists already"):
        store.create("one", other)
    assert store.config("one") == CONFIG
    assert len(store.all()) == 1


@pytest.mark.parametrize("left", [".experiment.json.part", "experiment.json"])
def test_a_run_whose_creation_was_cut_short_is_created_again(store: RunStore, left: str) -> None:
    """Its configuration was there and its row in the index was not; nothing is left of it."""
    folder = store.folder("two")
    folder.mkdir()
    (folder / left).write_text("{", encoding="utf-8")
    store.create("two", CONFIG)
    assert store.config("two") == CONFIG
    assert [path.name for path in folder.iterdir()] == ["experiment.json"]


def starting_from(file: Path) -> ExperimentConfig:
    """Give `CONFIG` with a model that starts from `file`."""
    return CONFIG.model_copy(update={"model": ModelChoice(start=file)})


def safetensors_of(value: float, metadata: dict[str, str] | None = None) -> bytes:
    """Give a file with one number."""
    return safetensors.torch.save({"w": torch.tensor([value])}, metadata)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: No such file or directory; name a model that a run has left"),
        (b"", "is no safetensors file"),
        (b"name: test\nrounds: 2\n", "is no safetensors file"),
        (safetensors_of(float("nan")), "'w' holds values that are not finite"),
        (safetensors_of(float("inf")), "'w' holds values that are not finite"),
        (safetensors_of(1.0, {"scaler": "wide"}), "what it says of its scaler"),
        (safetensors_of(1.0, {"scaler": '{"mean": [0], "scale": [0]}'}), "scales above 0"),
        (safetensors_of(1.0, {"scaler": '{"mean": [], "scale": [1]}'}), "what it says of its"),
    ],
    ids=["none", "empty", "YAML", "NaN", "infinite", "no scaler", "scale 0", "lengths"],
)
def test_a_start_that_is_none_is_refused_and_leaves_no_run(
    store: RunStore, tmp_path: Path, content: bytes | None, said: str
) -> None:
    """The file is named; and when it is mended the same id can be used."""
    file = tmp_path / "model.safetensors"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        store.create("two", starting_from(file))
    assert str(caught.value).startswith(f"model.start: {file}")
    assert said in str(caught.value)
    assert not store.has("two")
    file.write_bytes(safetensors_of(1.0))
    store.create("two", starting_from(file))
    start = store.start("two")
    assert start is not None
    assert (start.parameters["w"].item(), start.scaler) == (1.0, None)


def test_a_start_is_kept_as_it_was(store: RunStore, tmp_path: Path) -> None:
    """What becomes of the file later is nothing to the run."""
    file = tmp_path / "model.safetensors"
    file.write_bytes(safetensors_of(1.0))
    store.create("two", starting_from(file))
    told = store.results("two")["start"]
    file.write_bytes(safetensors_of(2.0))
    start = store.start("two")
    assert start is not None
    assert start.parameters["w"].item() == 1.0
    assert store.results("two")["start"] == told
    assert told["sha256"] == hashlib.sha256(safetensors_of(1.0)).hexdigest()


@pytest.mark.parametrize("left", [".start.safetensors.part", "start.safetensors"])
def test_what_a_run_that_never_was_has_kept_is_nobodys_start(store: RunStore, left: str) -> None:
    """A crash came between the start and the index; then a run of that id is begun without one."""
    folder = store.folder("two")
    folder.mkdir()
    (folder / left).write_bytes(safetensors_of(1.0))
    store.create("two", CONFIG)
    assert store.start("two") is None
    assert store.results("two")["start"] is None


def test_a_start_that_is_lost_is_told(store: RunStore, tmp_path: Path) -> None:
    """A run that has no checkpoint yet cannot go on without it."""
    file = tmp_path / "model.safetensors"
    file.write_bytes(safetensors_of(1.0))
    store.create("two", starting_from(file))
    (store.folder("two") / "start.safetensors").unlink()
    with pytest.raises(ExperimentError, match=r"start.safetensors cannot be read: No such file"):
        store.start("two")


def test_a_folder_with_more_than_a_configuration_is_nobodys_new_run(store: RunStore) -> None:
    """An index that was lost does not cost the runs that it knew."""
    store.folder("two").mkdir()
    store.append_round("two", {"round_num": 0})
    with pytest.raises(ExperimentError, match="'two' exists already"):
        store.create("two", CONFIG)
    assert [row.run_id for row in store.all()] == ["one"]


@pytest.mark.parametrize("run_id", ["../one", "/one", "a/b", "", ".", "..", "a\0b", "x" * 200])
def test_a_run_stays_in_its_folder(store: RunStore, run_id: str) -> None:
    """An id that is no plain name makes no folder anywhere."""
    before = sorted(store.root.parent.rglob("*"))
    with pytest.raises(ConfigurationError, match="is no id for a run"):
        store.create(run_id, CONFIG)
    assert sorted(store.root.parent.rglob("*")) == before


def test_a_store_is_found_again(store: RunStore) -> None:
    """Another process sees the same runs, the newest first."""
    store.create("two", CONFIG)
    store.move("one", ExperimentStatus.FAILED, message="why", rounds_done=2)
    again = RunStore(store.root)
    assert {row.run_id for row in again.all()} == {"one", "two"}
    found = again.find("one")
    assert (found.status, found.message, found.rounds_done) == ("FAILED", "why", 2)


def test_a_status_that_moves_keeps_the_rounds_done(store: RunStore) -> None:
    """Only what is given changes."""
    store.move("one", ExperimentStatus.RUNNING, rounds_done=3)
    store.move("one", ExperimentStatus.CANCELLED)
    assert store.find("one").rounds_done == 3


@pytest.mark.parametrize("what", ["find", "config", "results"])
def test_an_unknown_run_is_said(store: RunStore, what: str) -> None:
    """With where to look."""
    with pytest.raises(ExperimentError, match=r"no run 'two' .*see 'orchestrator list'"):
        getattr(store, what)("two")


@pytest.mark.parametrize("content", [None, "{", '{"name": "test"}'], ids=["gone", "cut", "poor"])
def test_a_configuration_that_cannot_be_read_is_said(store: RunStore, content: str | None) -> None:
    """The error names the file."""
    path = store.folder("one") / "experiment.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(ExperimentError, match=r"experiment\.json cannot be read"):
        store.config("one")


def test_an_index_that_is_no_database_is_said(tmp_path: Path) -> None:
    """The error names the file."""
    (tmp_path / "index.db").write_bytes(b"no database" * 100)
    with pytest.raises(ExperimentError, match=r"index\.db cannot be used: file is not a database"):
        RunStore(tmp_path)


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    """A file of that name stands in the way."""
    (tmp_path / "runs").write_text("")
    with pytest.raises(ExperimentError, match="runs cannot be made: File exists"):
        RunStore(tmp_path / "runs")


def test_a_checkpoint_comes_back_bit_by_bit(store: RunStore) -> None:
    """With everything that a run needs to go on."""
    saved = checkpoint(3)
    saved.parameters["n"] = torch.tensor(7)
    store.save_checkpoint("one", saved)
    loaded = store.load_checkpoint("one")
    assert loaded is not None
    assert digest(loaded.parameters) == digest(saved.parameters)
    assert (loaded.next_round, loaded.preprocessing) == (saved.next_round, saved.preprocessing)


def test_without_a_checkpoint_there_is_none(store: RunStore) -> None:
    """The run starts at round 0."""
    assert store.load_checkpoint("one") is None


def test_the_newest_three_checkpoints_are_kept(store: RunStore) -> None:
    """A long run does not fill the disk, and the newest is the one that is loaded."""
    for next_round in range(12):
        store.save_checkpoint("one", checkpoint(next_round))
    assert checkpoints(store) == [f"round_{n:06}.safetensors" for n in (9, 10, 11)]
    loaded = store.load_checkpoint("one")
    assert loaded is not None
    assert loaded.next_round == 11


def test_a_checkpoint_that_finds_no_room_leaves_the_one_before(store: RunStore) -> None:
    """The error says so, and no part of the new one is left."""
    store.save_checkpoint("one", checkpoint(1))
    with (
        full_disk(room_bytes=4096),
        pytest.raises(ExperimentError, match=r"round_000002.safetensors cannot be written"),
    ):
        store.save_checkpoint("one", checkpoint(2, size=10_000))
    assert checkpoints(store) == ["round_000001.safetensors"]
    loaded = store.load_checkpoint("one")
    assert loaded is not None
    assert loaded.parameters["w"].tolist() == [1.0, 1.0]


def test_a_checkpoint_written_again_that_finds_no_room_is_the_old_one(store: RunStore) -> None:
    """The same file is replaced whole or not at all."""
    store.save_checkpoint("one", checkpoint(1))
    with full_disk(room_bytes=4096), pytest.raises(ExperimentError):
        store.save_checkpoint("one", checkpoint(1, size=10_000))
    loaded = store.load_checkpoint("one")
    assert loaded is not None
    assert loaded.parameters["w"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda blob: blob[:0],
        lambda blob: blob[: len(blob) // 2],
        lambda blob: b"\xff" * len(blob),
        lambda blob: blob.replace(b"next_round", b"last_round"),
        lambda blob: blob.replace(b"preprocessing", b"postprocessing"[:13]),
    ],
    ids=["empty", "cut", "noise", "no round", "no scaler"],
)
def test_a_checkpoint_that_cannot_be_read_says_what_to_do(store: RunStore, spoil: object) -> None:
    """Deleting it, by the name that is given, goes back to the one before."""
    store.save_checkpoint("one", checkpoint(1))
    store.save_checkpoint("one", checkpoint(2))
    newest = store.folder("one") / "checkpoints" / "round_000002.safetensors"
    assert callable(spoil)
    newest.write_bytes(spoil(newest.read_bytes()))
    with pytest.raises(ExperimentError, match="delete it to go on from the one before") as caught:
        store.load_checkpoint("one")
    assert str(newest) in str(caught.value)
    newest.unlink()
    loaded = store.load_checkpoint("one")
    assert loaded is not None
    assert loaded.next_round == 1


def test_the_history_has_one_record_a_round(store: RunStore) -> None:
    """In the order of the rounds; of a round that was run twice, the later record."""
    for round_num, loss in [(0, 0.9), (1, 0.8), (2, 0.7), (1, 0.6)]:
        store.append_round("one", {"round_num": round_num, "loss": loss})
    assert store.rounds("one") == [
        {"round_num": 0, "loss": 0.9},
        {"round_num": 1, "loss": 0.6},
        {"round_num": 2, "loss": 0.7},
    ]


def test_without_a_round_the_history_is_empty(store: RunStore) -> None:
    """Nothing was run yet."""
    assert store.rounds("one") == []


def history(store: RunStore) -> Path:
    """Give the file of the history."""
    return store.folder("one") / "rounds.jsonl"


def test_a_line_cut_short_is_left_out(store: RunStore) -> None:
    """Wherever the crash cut it; its round will be run again."""
    store.append_round("one", {"round_num": 0})
    whole = history(store).read_text()
    line = json.dumps({"round_num": 1, "missing": {"factory-1": "später"}}) + "\n"
    for length in range(1, len(line) - 1):
        history(store).write_text(whole + line[:length])
        assert store.rounds("one") == [{"round_num": 0}]


def test_a_line_cut_short_does_not_take_the_next_one_with_it(store: RunStore) -> None:
    """What is appended after a crash begins a line of its own."""
    store.append_round("one", {"round_num": 0})
    with history(store).open("a") as file:
        file.write('{"round_num": 1, "lo')
    store.append_round("one", {"round_num": 1, "loss": 0.5})
    store.append_round("one", {"round_num": 2})
    assert store.rounds("one") == [
        {"round_num": 0},
        {"round_num": 1, "loss": 0.5},
        {"round_num": 2},
    ]


def test_a_record_that_finds_no_room_is_told(store: RunStore) -> None:
    """And the rounds before it can be read."""
    store.append_round("one", {"round_num": 0})
    with full_disk(room_bytes=200), pytest.raises(ExperimentError, match="cannot be written"):
        store.append_round("one", {"round_num": 1, "text": "x" * 1000})
    assert store.rounds("one") == [{"round_num": 0}]
    store.append_round("one", {"round_num": 1})
    assert [record["round_num"] for record in store.rounds("one")] == [0, 1]


def test_a_run_has_one_owner(store: RunStore) -> None:
    """A second is told who it is; afterwards the run is free."""
    with (
        store.owned("one"),
        pytest.raises(ExperimentError, match=r"'one' is being run by process \d+"),
        RunStore(store.root).owned("one"),
    ):
        pass
    with RunStore(store.root).owned("one"):
        pass


OWNER = """
import sys
from pathlib import Path
from orchestrator.runs import RunStore

with RunStore(Path(sys.argv[1])).owned("one"):
    print("owned", flush=True)
    sys.stdin.read()
"""


def test_an_owner_that_is_killed_owns_nothing(store: RunStore) -> None:
    """After `kill -9` the run can be resumed at once."""
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(store.root)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "owned\n"
        with (
            pytest.raises(ExperimentError, match=f"process {owner.pid} on "),
            store.owned("one"),
        ):
            pass
        owner.send_signal(signal.SIGKILL)
        assert owner.wait(timeout=10) == -signal.SIGKILL
    with store.owned("one"):
        pass


def test_what_a_killed_owner_was_writing_goes_with_the_next_one(store: RunStore) -> None:
    """In the run's folder and those within; what is whole stays, and another process's word."""
    folder = store.folder("one")
    (folder / "checkpoints").mkdir(exist_ok=True)
    unfinished = [folder / ".sites.json.part", folder / "checkpoints" / ".round-3.part"]
    others = [folder / "sites.json", folder / ".cancel.part"]
    for path in (*unfinished, *others):
        path.write_bytes(b"{}")
    with store.owned("one"):
        assert [path.exists() for path in (*unfinished, *others)] == [False, False, True, True]


def test_a_run_whose_folder_is_gone_cannot_be_owned(store: RunStore) -> None:
    """The error names the file that is missing."""
    (store.folder("one") / "experiment.json").unlink()
    store.folder("one").rmdir()
    with pytest.raises(ExperimentError, match=r"owner cannot be written"), store.owned("one"):
        pass


def test_results_are_those_saved_with_where_the_run_stands(store: RunStore) -> None:
    """The index knows the status, the history the rounds, and the file the rest."""
    store.append_round("one", {"round_num": 0})
    store.save_results(
        "one",
        {"seed": 7, "status": "old"},
        {"w": torch.zeros(1)},
        Preprocessing(mean=[0.1], scale=[2.0], positive_weight=3.0),
    )
    store.move("one", ExperimentStatus.COMPLETED, rounds_done=1)
    results = store.results("one")
    assert (results["experiment_id"], results["seed"], results["status"]) == ("one", 7, "COMPLETED")
    assert results["rounds"] == [{"round_num": 0}]
    assert (store.folder("one") / "model.safetensors").exists()


def test_a_run_whose_beginning_was_cut_short_can_be_begun(store: RunStore) -> None:
    """A folder that no row of the index knows was left by a process that died."""
    write = store.folder("two")
    write.mkdir()
    (write / "experiment.json").write_text("{")
    store.create("two", CONFIG)
    assert store.config("two") == CONFIG


def test_to_ask_for_the_owner_does_not_make_one(store: RunStore) -> None:
    """Not even a folder or a file; and who owns is named with its machine."""
    ownership = store.ownership("one")
    assert ownership.holder() is None
    assert not (store.folder("one") / "owner").exists()
    with store.owned("one"):
        assert ownership.holder() == f"process {os.getpid()} on {socket.gethostname()}"
    assert ownership.holder() is None


def test_where_sites_stood_is_nothing_before_it_is_written(store: RunStore) -> None:
    """A file that cannot be read is as good as none: it is only for people."""
    assert store.sites("one") == {}
    (store.folder("one") / "sites.json").write_text("{")
    assert store.sites("one") == {}
