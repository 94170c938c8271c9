"""The trainer's process: it gives what a thread gives, and it never outlives its site."""

import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any, cast

import pandas as pd
import psutil
import pytest
from sites import (
    MODEL,
    SCHEMA,
    SPLIT,
    TRAINING,
    encoded,
    evaluate_request,
    parameters,
    train_request,
    write_table,
)

from core import wire
from core.exceptions import DataSiteError
from core.messages import Message
from core.packing import content_hash
from core.parameters import digest
from core.schema import DataSchema
from core.wire import Parcel
from datasite.registry import file_sha256
from datasite.trainer import InlineTrainer, TrainerProcess
from datasite.training.loop import NAME
from datasite.training.work import Assignment, Job

PATIENCE_S = 30.0

ENDLESS = train_request("plan", training=TRAINING | {"local_epochs": 10**9})
"""Work that ends only when it is stopped."""


@pytest.fixture(scope="module")
def trainer() -> Iterator[TrainerProcess]:
    """A trainer in a child process, which takes seconds to start: most tests share it."""
    made = TrainerProcess(site_id="factory-1", threads=1)
    yield made
    made.close()


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """The job of a registered dataset of 100 rows."""
    file = tmp_path / "press.parquet"
    pd.read_csv(write_table(tmp_path / "press.csv")).astype({"load": float}).to_parquet(file)
    schema = DataSchema.model_validate(SCHEMA).model_dump(mode="json")
    return Job(
        site_id="factory-1",
        file=str(file),
        sha256=file_sha256(file),
        schema=schema,
        split=cast("Any", SPLIT),
        drift={},
        privacy=None,
    )


def unwatched() -> None:
    """Let the work go on."""


def process_of(trainer: TrainerProcess) -> psutil.Process:
    """Give the child that a trainer has now."""
    return psutil.Process(trainer._child.process.pid)


def has_ended(trainer: TrainerProcess) -> Callable[[], bool]:
    """Give the claim that the child that a trainer has now can be reaped."""
    process = trainer._child.process
    return lambda: process.poll() is not None


def children() -> set[int]:
    """Give the trainers that run below this process."""
    return {
        child.pid
        for child in psutil.Process().children()
        if child.status() != psutil.STATUS_ZOMBIE and "datasite.training" in child.cmdline()
    }


def wait_until(claim: Callable[[], bool]) -> None:
    """Look again until `claim` holds; fail when it does not in time."""
    end = time.monotonic() + PATIENCE_S
    while not claim():
        assert time.monotonic() < end, f"not within {PATIENCE_S:g} s"
        threading.Event().wait(0.01)


def is_gone(pid: int) -> bool:
    """Tell whether a process has ended; one that nobody has reaped yet has."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def works(process: psutil.Process) -> Callable[[], bool]:
    """Give the claim that `process` has computed for another fifth of a second."""
    before = process.cpu_times().user
    return lambda: bool(process.cpu_times().user > before + 0.2)


def train(trainer: TrainerProcess | InlineTrainer, job: Job) -> dict[str, Any]:
    """Train a round; its update."""
    done = trainer.perform(
        Assignment(job, encoded(train_request("plan"))), deadline_s=PATIENCE_S, watch=unwatched
    )
    return cast("dict[str, Any]", wire.decode(done.reply))


def test_a_process_gives_what_a_thread_gives(trainer: TrainerProcess, job: Job) -> None:
    """Statistics, evaluation and a failure byte for byte; an update but for its wall time."""
    inline = InlineTrainer()
    same = [
        {"kind": "statistics", "plan_id": "plan"},
        evaluate_request("plan"),
        train_request("plan", training=TRAINING | {"optimizer": "lion"}),
        {"kind": "describe"},
    ]
    for request in same:
        assignment = Assignment(job, encoded(request))
        assert trainer.perform(
            assignment, deadline_s=PATIENCE_S, watch=unwatched
        ) == inline.perform(assignment, deadline_s=PATIENCE_S, watch=unwatched)
    update, expected = train(trainer, job), train(inline, job)
    assert digest(update.pop("parameters")) == digest(expected.pop("parameters"))
    assert update["metrics"]["train_loss"] == expected["metrics"]["train_loss"]
    del update["metrics"], expected["metrics"]
    assert update == expected


def test_one_process_does_every_job(trainer: TrainerProcess, job: Job) -> None:
    """It is started once: its imports and its prepared data are kept."""
    train(trainer, job)
    before = process_of(trainer)
    train(trainer, job)
    assert process_of(trainer) == before


def test_a_deadline_stops_the_work_and_the_next_job_is_done(
    trainer: TrainerProcess, job: Job
) -> None:
    """Work without end is ended after half a second; its process with it."""
    before = process_of(trainer)
    with pytest.raises(DataSiteError, match=r"factory-1: .*stopped at its deadline of 0\.5 s"):
        trainer.perform(Assignment(job, encoded(ENDLESS)), deadline_s=0.5, watch=unwatched)
    assert is_gone(before.pid)
    assert train(trainer, job)["kind"] == "update"


def test_a_deadline_does_not_count_the_start(trainer: TrainerProcess, job: Job) -> None:
    """A new trainer imports for longer than this request may take, and answers it all the same."""
    process_of(trainer).kill()
    wait_until(has_ended(trainer))
    asked = Assignment(job, encoded({"kind": "describe"}))
    refused = wire.decode(trainer.perform(asked, deadline_s=0.5, watch=unwatched).reply)
    assert refused["kind"] == "failure"
    assert refused["message"] == "factory-1: a 'describe' request is no work"


def test_a_trainer_killed_at_work_costs_one_reply(trainer: TrainerProcess, job: Job) -> None:
    """As the kernel does when memory runs out: one error that says so, and the next job is done."""
    train(trainer, job)
    child = process_of(trainer)
    claim = works(child)
    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(
            trainer.perform,
            Assignment(job, encoded(ENDLESS)),
            deadline_s=PATIENCE_S,
            watch=unwatched,
        )
        wait_until(claim)
        os.kill(child.pid, signal.SIGKILL)
        with pytest.raises(DataSiteError, match=r"in the middle of the work \(exit code -9\)"):
            answer.result(timeout=PATIENCE_S)
    assert train(trainer, job)["kind"] == "update"


def test_a_trainer_killed_at_rest_costs_nothing(trainer: TrainerProcess, job: Job) -> None:
    """The next job finds it gone and starts another."""
    os.kill(process_of(trainer).pid, signal.SIGKILL)
    wait_until(has_ended(trainer))
    assert train(trainer, job)["kind"] == "update"


def test_an_unexpected_error_tells_nothing_but_an_exit_code(
    trainer: TrainerProcess, job: Job
) -> None:
    """The traceback is for the site's log; the trainer starts anew."""
    file = Path(job["file"]).with_name("broken.parquet")
    file.write_text("SECRET ROW 42")
    broken = cast("Job", {**job, "file": str(file), "sha256": file_sha256(file)})
    with pytest.raises(DataSiteError) as caught:
        train(trainer, broken)
    assert str(caught.value) == (
        "factory-1: the trainer ended in the middle of the work (exit code 1); "
        "the site's log says why"
    )
    assert train(trainer, job)["kind"] == "update"


FEDDYN = {"name": "feddyn", "hyperparameters": {"alpha": 0.5}}

WIDE = {"type": "cnn", "options": {"channels": 192, "blocks": 2}}
"""A model of far more bytes than those by which a reply may exceed its request's room."""


def request_of(trainer: TrainerProcess, where: str, **changes: object) -> Parcel:
    """Give a request whose body lies in the trainer's memory, elsewhere, or is read-only."""
    parcel = encoded(train_request("plan", **changes))
    if where == "arena":
        piece = trainer.allocate(len(parcel.body))
        piece[:] = parcel.body
        return Parcel(parcel.head, piece)
    return Parcel(parcel.head, bytes(parcel.body) if where == "read-only" else parcel.body)


def work(trainer: TrainerProcess | InlineTrainer, assignment: Assignment) -> tuple[str, bytes]:
    """Have it done; the digest of what was fitted, and what is to be kept."""
    done = trainer.perform(assignment, deadline_s=PATIENCE_S, watch=unwatched)
    update: Any = wire.decode(done.reply)
    assert update["kind"] == "update", update
    assert done.reply.body_hash == content_hash(done.reply.body)
    return digest(update["parameters"]), done.state


@pytest.mark.parametrize("where", ["arena", "elsewhere", "read-only"])
@pytest.mark.parametrize("model", [MODEL, WIDE], ids=["small", "wide"])
def test_a_request_may_lie_anywhere(
    trainer: TrainerProcess, job: Job, where: str, model: dict[str, Any]
) -> None:
    """In the memory that both processes see or not: what comes of it is the same."""
    changes = {"model": model, "parameters": parameters(model=model)}
    request = request_of(trainer, where, **changes)
    expected = work(InlineTrainer(), Assignment(job, encoded(train_request("plan", **changes))))
    assert work(trainer, Assignment(job, request)) == expected
    assert request == encoded(train_request("plan", **changes))  # it is as it was


@pytest.mark.parametrize("where", ["arena", "elsewhere"])
def test_what_is_kept_goes_to_the_trainer_and_comes_back(
    trainer: TrainerProcess, job: Job, where: str
) -> None:
    """Rounds that go on from a state, and those that have none, give what a thread gives."""
    inline = InlineTrainer()
    request = request_of(trainer, where, algorithm=FEDDYN)
    state = b""
    for _ in range(3):
        found = work(trainer, Assignment(job, request, state))
        assert found == work(inline, Assignment(job, request, state))
        assert found[1] not in {b"", state}
        state = found[1]
    without = request_of(trainer, where)
    assert work(trainer, Assignment(job, without))[1] == b""


def test_a_reply_that_is_larger_than_its_room_comes_all_the_same(
    trainer: TrainerProcess, job: Job
) -> None:
    """SCAFFOLD's has a control variate beside the model: about twice the request's bytes."""
    changes = {
        "algorithm": {"name": "scaffold", "hyperparameters": {}},
        "model": WIDE,
        "parameters": parameters(model=WIDE),
    }
    request = request_of(trainer, "arena", **changes)
    done = trainer.perform(Assignment(job, request), deadline_s=PATIENCE_S, watch=unwatched)
    expected = InlineTrainer().perform(
        Assignment(job, request), deadline_s=PATIENCE_S, watch=unwatched
    )
    assert len(done.reply.body) > len(request.body) + 2**16
    assert done.reply.body == expected.reply.body
    assert (done.reply.body_hash, done.state) == (expected.reply.body_hash, expected.state)
    assert digest(train(trainer, job)["parameters"]) == digest(
        train(InlineTrainer(), job)["parameters"]
    )


def test_replies_that_are_kept_do_not_change(trainer: TrainerProcess, job: Job) -> None:
    """Twenty jobs in a row, in memory that is used again: each reply stays what it was."""
    kept: list[tuple[Parcel, bytes, dict[str, Any], str]] = []
    for number in range(20):
        request = request_of(trainer, "arena", parameters=parameters(seed=number), seed=number)
        done = trainer.perform(Assignment(job, request), deadline_s=PATIENCE_S, watch=unwatched)
        update: Any = wire.decode(done.reply)
        copied = bytes(done.reply.body)
        if number % 4 < 3:  # some are let go of, so that their memory is there for others
            kept.append((done.reply, copied, update, digest(update["parameters"])))
        del request, done, update
    assert len({told for _, _, _, told in kept}) == len(kept) == 15
    for reply, copied, update, told in kept:
        assert bytes(reply.body) == copied
        assert reply.body_hash == content_hash(reply.body)
        assert digest(update["parameters"]) == told


def test_a_reply_outlives_its_trainer(job: Job) -> None:
    """Its memory goes when nobody has it any more, and not when the site closes."""
    trainer = TrainerProcess(site_id="factory-1", threads=1)
    done = trainer.perform(
        Assignment(job, request_of(trainer, "arena")), deadline_s=PATIENCE_S, watch=unwatched
    )
    copied = bytes(done.reply.body)
    trainer.close()
    del trainer
    assert bytes(done.reply.body) == copied


def test_a_new_trainer_goes_on_in_the_same_memory(trainer: TrainerProcess, job: Job) -> None:
    """A request that was put there before the old one died is worked on by the next."""
    request = request_of(trainer, "arena")
    before = train(trainer, job)
    os.kill(process_of(trainer).pid, signal.SIGKILL)
    wait_until(has_ended(trainer))
    assert work(trainer, Assignment(job, request))[0] == digest(before["parameters"])


def test_closing_leaves_no_process_and_may_be_repeated(job: Job) -> None:
    """After the first close nothing is left to close; work is refused."""
    others = children()
    trainer = TrainerProcess(site_id="factory-1", threads=1)
    child = process_of(trainer)
    trainer.close()
    trainer.close()
    assert not psutil.pid_exists(child.pid)
    with pytest.raises(DataSiteError, match="factory-1: the trainer is closed"):
        train(trainer, job)
    assert children() == others


def test_closing_gives_up_the_work_under_way(job: Job) -> None:
    """The caller gets an error, and no new trainer takes the place of the one that was ended."""
    others = children()
    trainer = TrainerProcess(site_id="factory-1", threads=1)
    train(trainer, job)
    claim = works(process_of(trainer))
    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(
            trainer.perform,
            Assignment(job, encoded(ENDLESS)),
            deadline_s=PATIENCE_S,
            watch=unwatched,
        )
        wait_until(claim)
        trainer.close()
        with pytest.raises(DataSiteError, match="in the middle of the work"):
            answer.result(timeout=PATIENCE_S)
    assert children() == others


SITE = """
import sys
sys.path[:0] = {path!r}
import json
import psutil
from datasite.trainer import TrainerProcess
from core.wire import Parcel
from datasite.training.work import Assignment

secret = open("{secret}")
trainer = TrainerProcess(site_id="factory-1", threads=1, is_copy={is_copy})
print(trainer._child.process.pid, flush=True)
for line in sys.stdin:
    assignment = Assignment(json.loads(sys.argv[1]), Parcel.of(bytes.fromhex(line)))
    done = trainer.perform(assignment, deadline_s=60.0, watch=lambda: None)
    print(done.reply.body_hash.hex(), trainer._child.process.pid, flush=True)
"""


@pytest.fixture(params=[False, True], ids=["anew", "as a copy"])
def site(job: Job, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Popen[str]]:
    """A process with a trainer, whose pid it prints; it has trained what it is given line by line.

    It prints the hash of what came of it, and the pid of the trainer that it has then.
    """
    tests = Path(__file__).resolve().parents[1]
    secret = tmp_path / "secret"
    secret.write_text("of the site")
    paths = [str(tests), str(tests.parent)]
    script = SITE.format(path=paths, secret=secret, is_copy=request.param)
    with Popen(
        [sys.executable, "-c", script, json.dumps(job)], stdin=PIPE, stdout=PIPE, text=True
    ) as process:
        yield process
        process.kill()


def tell(site: Popen[str], request: Message) -> None:
    """Have the site's trainer do it."""
    assert site.stdin is not None
    site.stdin.write(f"{encoded(request).joined().hex()}\n")
    site.stdin.flush()


def told(site: Popen[str]) -> list[str]:
    """Give the words of the next line that the site prints."""
    assert site.stdout is not None
    return site.stdout.readline().split()


def test_a_trainer_ends_with_its_site(site: Popen[str]) -> None:
    """A site that is killed can stop nobody: its trainer ends by itself, in the middle of work."""
    pid = int(*told(site))
    tell(site, train_request("plan"))
    assert told(site)[1] == str(pid)
    tell(site, ENDLESS)
    wait_until(works(psutil.Process(pid)))
    site.kill()
    site.wait()
    wait_until(lambda: is_gone(pid))


def test_a_trainer_has_no_file_of_its_site(site: Popen[str], tmp_path: Path) -> None:
    """However it came to be: what the site has open is not for who computes with foreign models."""
    trainer = psutil.Process(int(*told(site)))
    tell(site, train_request("plan"))
    told(site)  # by now it is at work
    held = {Path(file.path) for file in psutil.Process(site.pid).open_files()}
    assert tmp_path / "secret" in held
    assert not held & {Path(file.path) for file in trainer.open_files()}
    assert trainer.name() == NAME
    assert os.getsid(trainer.pid) == trainer.pid  # Ctrl-C in the site's terminal is not for it


@pytest.mark.parametrize("site", [True], ids=["as a copy"], indirect=True)
def test_another_trainer_follows_one_that_was_killed(site: Popen[str]) -> None:
    """It is a program of its own, whatever the first one was, and gives the same."""
    first = psutil.Process(int(*told(site)))
    tell(site, train_request("plan"))
    trained, _ = told(site)
    with os.fdopen(os.pidfd_open(first.pid)) as end:
        first.kill()
        assert select.select([end], [], [], PATIENCE_S)[0]  # not before its last thread is gone
    tell(site, train_request("plan"))
    again, pid = told(site)
    assert again == trained
    assert int(pid) != first.pid
    assert "datasite.training" in psutil.Process(int(pid)).cmdline()


def test_trainers_end_one_by_one(trainer: TrainerProcess, job: Job) -> None:
    """Neither holds the other's lifeline: ending one leaves the other at its work."""
    child = process_of(trainer)
    TrainerProcess(site_id="factory-2", threads=1).close()
    assert train(trainer, job)["kind"] == "update"
    assert process_of(trainer) == child
