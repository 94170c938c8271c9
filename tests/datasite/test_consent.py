"""What a site's consent covers, from the request to the kept reply, and how it is taken back."""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from sites import (
    MODEL,
    PREPROCESSING,
    RESEARCHER,
    SCHEMA,
    SPLIT,
    TRAINING,
    ask,
    encoded,
    evaluate_request,
    in_a_process,
    parameters,
    planned,
    register,
    site_settings,
    train_request,
    trainer_process,
)
from sqlalchemy import func, select

from core import exceptions
from core.codehash import installed_code_hash
from core.exceptions import SecurityError
from core.models import create_model
from core.plans import PlanStatus
from core.schema import DataSchema
from datasite.ledger import AuditRow, PlanRow, ReplyRow, StateRow, now
from datasite.site import FactoryDataSite
from datasite.trainer import InlineTrainer, Watch
from datasite.training.work import Assignment, Done
from datasite.usage import TIMES

OpenSite = Callable[..., FactoryDataSite]
Request = dict[str, Any]

FEDDYN = {"name": "feddyn", "hyperparameters": {"alpha": 0.5}}
ENDLESS = TRAINING | {"local_epochs": 10**9}
SOON_S = 1.0
"""Within which a revocation stops the work."""
PATIENCE_S = 30.0
ROOT = Path(__file__).resolve().parents[2]


class Hooked(InlineTrainer):
    """Trains in the calling thread; something happens before or after."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs = 0
        self.before: Callable[[], object] = lambda: None
        self.after: Callable[[], object] = lambda: None

    def perform(self, assignment: Assignment, *, deadline_s: float, watch: Watch) -> Done:
        """Train."""
        self.jobs += 1
        self.before()
        done = super().perform(assignment, deadline_s=deadline_s, watch=watch)
        self.after()
        return done


@pytest.fixture
def trainer() -> Hooked:
    """The trainer of `site`."""
    return Hooked()


@pytest.fixture
def site(open_site: OpenSite, tmp_path: Path, trainer: Hooked) -> FactoryDataSite:
    """A site with `press`, whose rule approves the researcher's plans."""
    opened = open_site(lambda _config: trainer)
    register(opened, tmp_path)
    return opened


def log(site: FactoryDataSite) -> list[AuditRow]:
    """Give the audit rows, oldest first."""
    with site.ledger.read() as session:
        return list(session.scalars(select(AuditRow).order_by(AuditRow.seq)))


def kept(site: FactoryDataSite) -> tuple[int, int, list[Path]]:
    """Give how many replies and states are stored, and the files of replies."""
    with site.ledger.read() as session:
        replies, states = (
            session.scalar(select(func.count()).select_from(table)) or 0
            for table in (ReplyRow, StateRow)
        )
    return replies, states, sorted((site.config.state / "replies").glob("*"))


def error_of(reply: Request) -> tuple[str, str]:
    """Give a failure's class and message."""
    assert reply["kind"] == "failure", reply["kind"]
    return reply["error"], reply["message"]


def revoke(site: FactoryDataSite, plan_id: str) -> None:
    """Take the approval back."""
    site.plans.decide(plan_id, PlanStatus.REVOKED, reason="contract ended", by="operator")


def change_row(site: FactoryDataSite, plan_id: str, **changes: object) -> None:
    """Write into the plan's row."""
    with site.ledger.write() as session:
        row = session.get_one(PlanRow, plan_id)
        for name, value in changes.items():
            setattr(row, name, value)


def expire(site: FactoryDataSite, plan_id: str) -> None:
    """Let the plan's time be over."""
    yesterday = (datetime.now(UTC) - timedelta(days=1)).isoformat()
    change_row(site, plan_id, expires_at=yesterday)


def change_code(site: FactoryDataSite, plan_id: str) -> None:
    """Let other code have been installed when the plan was approved."""
    proposal = site.plans.find(plan_id).proposal
    change_row(site, plan_id, proposal={**proposal, "code_hash": "f" * 64})


def change_data(site: FactoryDataSite, _plan_id: str) -> None:
    """Change one reading of the site's own copy."""
    file = site.registry.find("press").file
    table = pd.read_parquet(file)
    table.loc[0, "load"] = 9.9
    table.to_parquet(file, index=False)


def swap_bytes(site: FactoryDataSite, _plan_id: str) -> None:
    """Change the copy, and give it the size and the time of writing that it had."""
    file = site.registry.find("press").file
    before = file.stat()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def remove_file(site: FactoryDataSite, _plan_id: str) -> None:
    """Delete the copy."""
    site.registry.find("press").file.unlink()


def use_up(site: FactoryDataSite, plan_id: str) -> None:
    """Ask for more than a plan of three rounds is answered."""
    for seed in range(3 * TIMES + 1):
        for make in (train_request, evaluate_request):
            ask(site, make(plan_id, parameters=parameters(seed=100 + seed)))


def nothing(_site: FactoryDataSite, _plan_id: str) -> None:
    """Change nothing."""


OTHER_SCALE = {**PREPROCESSING, "scale": [3.0, 1e-6]}

Beyond = tuple[Callable[[FactoryDataSite, str], None], Request, str]
"""What happens, how the next request differs, and what is said of it."""

BOTH: dict[str, Beyond] = {
    "a round too many": (nothing, {"round_num": 3}, "covers rounds 0 to 2, not 3"),
    "model": (nothing, {"model": MODEL | {"options": {}}}, "approved for another model"),
    "compression": (nothing, {"compression": "int8"}, "approved for compression 'none', not"),
    "preprocessing": (nothing, {"preprocessing": OTHER_SCALE}, "begun with another preproc"),
    "used up": (use_up, {}, "is used up: a plan of 3 rounds is answered 12 times"),
    "expired": (expire, {}, "expired at"),
    "revoked": (revoke, {}, "is REVOKED (contract ended)"),
    "code": (change_code, {}, "bound to training code ffffffffffff"),
    "data changed": (change_data, {}, "'press' (version 1) changed on disk since registration"),
    "data changed in secret": (swap_bytes, {}, "changed on disk since registration"),
    "data gone": (remove_file, {}, "changed on disk since registration"),
}
OTHER_SETTINGS = {
    "local_epochs": 2,
    "batch_size": 8,
    "optimizer": "adam",
    "momentum": 0.5,
    "weight_decay": 0.5,
    "gradient_clip": 1.0,
    "learning_rate": 0.11,
    "focal_gamma": 2.0,
}
MU = {"name": "fedavg", "hyperparameters": {"mu": 0.1}}
TRAINING_ALONE: dict[str, Beyond] = {
    "algorithm": (nothing, {"algorithm": FEDDYN}, "approved for another algorithm"),
    "hyper-parameter": (nothing, {"algorithm": MU}, "approved for another algorithm"),
} | {
    name: (nothing, {"training": TRAINING | {name: value}}, "approved for other training settings")
    for name, value in OTHER_SETTINGS.items()
}


@pytest.mark.parametrize(
    ("make", "beyond"),
    [
        pytest.param(make, case, id=f"{kind} {name}")
        for kind, make, cases in (
            ("train", train_request, BOTH | TRAINING_ALONE),
            ("evaluate", evaluate_request, BOTH),
        )
        for name, case in cases.items()
    ],
)
def test_what_is_beyond_the_consent_is_refused_and_written_down(
    site: FactoryDataSite, trainer: Hooked, make: Callable[..., Request], beyond: Beyond
) -> None:
    """After a good request, the next goes too far: refused, unworked, unkept, on the log."""
    happens, changes, message = beyond
    plan_id = planned(site)
    assert ask(site, make(plan_id))["kind"] != "failure"
    happens(site, plan_id)
    jobs, before = trainer.jobs, kept(site)
    again = {"round_num": 1, "parameters": parameters(seed=1), **changes}
    error, told = error_of(ask(site, make(plan_id, **again)))
    assert issubclass(getattr(exceptions, error), SecurityError)
    assert message in told
    assert (trainer.jobs, kept(site)) == (jobs, before)
    row = log(site)[-1]
    assert (row.who, row.plan_id, row.outcome) == (RESEARCHER.email, plan_id, error)
    assert row.action == make(plan_id)["kind"]
    assert row.detail["message"] == told
    assert (row.detail["dataset"], row.detail["data_version"]) == ("press", 1)
    assert row.detail["code_hash"] == installed_code_hash()
    assert row.detail["bytes_out"] > 0


def test_what_may_vary_within_a_plan_does(site: FactoryDataSite) -> None:
    """Round, parameters, seed, deadline and a lower learning rate: each request is answered."""
    plan_id = planned(site)
    for changes in (
        {},
        {"round_num": 2},
        {"parameters": parameters(seed=1)},
        {"seed": 7},
        {"deadline_s": 9.0},
        {"training": TRAINING | {"learning_rate": 0.01}},
    ):
        assert ask(site, train_request(plan_id, **changes))["kind"] == "update"


@pytest.mark.parametrize("kind", ["train", "evaluate", "statistics"])
def test_all_work_is_on_the_log_with_its_data_code_and_bytes(
    site: FactoryDataSite, kind: str
) -> None:
    """Who, under which plan, on which version of the data, by which code, how much went out."""
    plan_id = planned(site)
    requests = {
        "train": train_request(plan_id),
        "evaluate": evaluate_request(plan_id),
        "statistics": {"kind": "statistics", "plan_id": plan_id},
    }
    reply = site.handle(encoded(requests[kind]), RESEARCHER)
    row = log(site)[-1]
    assert (row.who, row.action, row.plan_id) == (RESEARCHER.email, kind, plan_id)
    assert row.outcome == "ok"
    assert (row.detail["dataset"], row.detail["data_version"]) == ("press", 1)
    assert (row.detail["code_hash"], row.detail["bytes_out"]) == (installed_code_hash(), len(reply))


def test_the_sites_own_training_is_on_the_log_too(site: FactoryDataSite) -> None:
    """Under no plan, by the operator; nothing goes out."""
    request = train_request("")
    fields = ("model", "algorithm", "training", "preprocessing")
    settings = {"dataset": "press", "split": SPLIT, **{name: request[name] for name in fields}}
    schema = DataSchema.model_validate(SCHEMA)
    site.train_local_model(create_model("cnn", schema, channels=2, blocks=1), settings)
    row = log(site)[-1]
    assert (row.who, row.action, row.plan_id) == ("operator", "train locally", None)
    assert row.detail == {
        "dataset": "press",
        "data_version": 1,
        "code_hash": installed_code_hash(),
        "bytes_out": 0,
    }


def test_data_that_are_as_before_again_are_trained_on(site: FactoryDataSite) -> None:
    """A copy that was put back, or that was only touched, is what was registered."""
    plan_id = planned(site)
    file = site.registry.find("press").file
    whole = file.read_bytes()
    change_data(site, plan_id)
    assert error_of(ask(site, train_request(plan_id)))[0] == "SecurityError"
    file.write_bytes(whole)
    assert ask(site, train_request(plan_id))["kind"] == "update"
    file.touch()
    assert ask(site, train_request(plan_id, round_num=1))["kind"] == "update"


def test_the_usage_of_a_plan_survives_a_restart(
    open_site: OpenSite, site: FactoryDataSite, trainer: Hooked
) -> None:
    """It is read off the log: neither the count nor the preprocessing begins anew."""
    plan_id = planned(site)
    use_up(site, plan_id)
    answered = Counter(row.action for row in log(site) if row.outcome == "ok")
    assert (answered["train"], answered["evaluate"]) == (12, 12)  # 4 times 3 rounds
    other = str(planned(site, run_id="run-2"))
    assert ask(site, train_request(other))["kind"] == "update"
    site.close()
    opened = open_site(lambda _config: trainer)
    more = train_request(plan_id, parameters=parameters(seed=1))
    assert "is used up" in error_of(ask(opened, more))[1]
    changed = train_request(other, round_num=1, preprocessing=OTHER_SCALE)
    assert "another preprocessing" in error_of(ask(opened, changed))[1]
    assert ask(opened, train_request(other, round_num=1))["kind"] == "update"


def test_a_plan_that_is_used_up_still_gives_its_stored_replies(site: FactoryDataSite) -> None:
    """The last answer that was allowed may have been lost on its way, and is asked for again."""
    plan_id = planned(site)
    last = encoded(train_request(plan_id, round_num=2))
    first = site.handle(last, RESEARCHER)
    use_up(site, plan_id)
    assert site.handle(last, RESEARCHER) == first
    assert "is used up" in error_of(ask(site, train_request(plan_id, round_num=1)))[1]


def test_only_what_was_answered_counts(open_site: OpenSite, site: FactoryDataSite) -> None:
    """Work that failed, and a stored reply given again, use nothing up and settle nothing."""
    plan_id = planned(site)
    wrong = {"mean": [0.0], "scale": [1.0], "positive_weight": 1.0}
    for _ in range(3 * TIMES + 1):
        assert ask(site, train_request(plan_id, preprocessing=wrong))["kind"] == "failure"
    for _ in range(3 * TIMES + 1):
        assert ask(site, train_request(plan_id))["kind"] == "update"
    assert ask(site, train_request(plan_id, round_num=1))["kind"] == "update"
    site.close()  # from now on it is what the log tells
    assert ask(open_site(), train_request(plan_id, round_num=2))["kind"] == "update"


CHANGED_CODE = """
import sys
sys.path.insert(0, {tests!r})
from sites import ask, inline, train_request
from pathlib import Path
from datasite.configuration import load_site_config
from datasite.site import FactoryDataSite

site = FactoryDataSite(inline)
site.open(load_site_config(Path({config!r})))
print(ask(site, train_request(sys.argv[1]))["message"])
"""


def test_code_that_changed_on_disk_voids_the_plan(site: FactoryDataSite, tmp_path: Path) -> None:
    """One comment more in one module: what would run now is not what was approved."""
    plan_id = planned(site)
    site.close()
    code = tmp_path / "code"
    for package in ("core", "datasite"):
        shutil.copytree(ROOT / package, code / package)
    with (code / "datasite" / "training" / "fit.py").open("a", encoding="utf-8") as module:
        module.write("# another word\n")
    config = tmp_path / "site.yaml"
    config.write_text(yaml.safe_dump(site_settings(tmp_path)))
    script = CHANGED_CODE.format(tests=str(ROOT / "tests"), config=str(config))
    done = subprocess.run(
        [sys.executable, "-c", script, plan_id],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(code)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"bound to training code {installed_code_hash()[:12]}, installed is " in done.stdout


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("how", [revoke, expire])
@pytest.mark.parametrize("kind", ["train", "evaluate", "statistics"])
def test_what_is_revoked_during_the_work_is_neither_kept_nor_answered(
    site: FactoryDataSite, trainer: Hooked, when: str, how: Callable[..., None], kind: str
) -> None:
    """At the work's start, or between its end and the keeping of its reply: both are in time."""
    plan_id = planned(site, algorithm=FEDDYN)
    other = planned(site, run_id="run-2")
    requests = {
        "train": train_request(plan_id, algorithm=FEDDYN),
        "evaluate": evaluate_request(plan_id),
        "statistics": {"kind": "statistics", "plan_id": plan_id},
    }
    setattr(trainer, when, lambda: how(site, plan_id))
    error, message = error_of(ask(site, requests[kind]))
    setattr(trainer, when, lambda: None)
    assert error == "PlanError"
    assert ("is REVOKED (contract ended)" if how is revoke else "expired at") in message
    assert kept(site) == (0, 0, [])
    row = log(site)[-1]
    assert (row.action, row.plan_id, row.outcome) == (kind, plan_id, "PlanError")
    assert ask(site, train_request(other))["kind"] == "update"


def test_a_large_reply_of_a_revoked_plan_is_not_on_the_disk(
    site: FactoryDataSite, trainer: Hooked
) -> None:
    """Its file is written before the ledger's row, and not before it is known to be allowed."""
    wide = {"type": "cnn", "options": {"channels": 192, "blocks": 2}}
    plan_id = planned(site, model=wide)
    request = train_request(plan_id, model=wide, parameters=parameters(model=wide))
    trainer.after = lambda: revoke(site, plan_id)
    assert error_of(ask(site, request))[0] == "PlanError"
    assert kept(site) == (0, 0, [])


def test_what_is_revoked_while_it_waits_for_its_turn_is_not_worked_on(
    site: FactoryDataSite, trainer: Hooked
) -> None:
    """Not even the stored reply of that very request is given."""
    plan_id, first = planned(site), planned(site, run_id="run-2")
    assert ask(site, train_request(plan_id))["kind"] == "update"
    entered, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        assert go_on.wait(PATIENCE_S)

    trainer.before = hold
    with ThreadPoolExecutor(2) as threads:
        working = threads.submit(ask, site, train_request(first))
        assert entered.wait(PATIENCE_S)
        waiting = threads.submit(ask, site, train_request(plan_id))
        revoke(site, plan_id)
        go_on.set()
        assert working.result(PATIENCE_S)["kind"] == "update"
        assert "is REVOKED" in error_of(waiting.result(PATIENCE_S))[1]
    assert trainer.jobs == 2


def wait_until(claim: Callable[[], bool]) -> None:
    """Look again until `claim` holds; fail when it does not in time."""
    end = time.monotonic() + PATIENCE_S
    while not claim():
        assert time.monotonic() < end, f"not within {PATIENCE_S:g} s"
        threading.Event().wait(0.01)


def test_revoking_by_another_process_stops_the_training(
    open_site: OpenSite, tmp_path: Path
) -> None:
    """The operator's command, beside a site at endless work: it ends within a second."""
    site = open_site(in_a_process)
    register(site, tmp_path)
    config = tmp_path / "site.yaml"
    config.write_text(yaml.safe_dump(site_settings(tmp_path)))
    endless, other = planned(site, training=ENDLESS), planned(site, run_id="run-2")
    assert ask(site, train_request(other))["kind"] == "update"
    process = trainer_process(site)
    computed = process.cpu_times().user
    with ThreadPoolExecutor(1) as thread:
        request = train_request(endless, training=ENDLESS, deadline_s=3600.0)
        answer = thread.submit(ask, site, request)
        wait_until(lambda: bool(process.cpu_times().user > computed + 0.2))
        command = [sys.executable, "-m", "datasite", "plans", "revoke", endless]
        subprocess.run(
            [*command, "--reason", "contract ended", "-c", str(config)], cwd=ROOT, check=True
        )
        revoked_at = datetime.fromisoformat(site.plans.find(endless).decided_at or "")
        error, message = error_of(answer.result(PATIENCE_S))
        took = datetime.fromisoformat(log(site)[-1].at) - revoked_at
    assert (error, took.total_seconds() < SOON_S) == ("PlanError", True)
    assert message == f"factory-1: plan {endless[:12]} is REVOKED (contract ended)"
    assert not process.is_running()
    row = log(site)[-1]
    assert (row.action, row.plan_id, row.outcome) == ("train", endless, "PlanError")
    assert kept(site)[0] == 1  # the other plan's
    assert ask(site, train_request(other, round_num=1))["kind"] == "update"


def test_a_plan_that_expires_stops_the_training(open_site: OpenSite, tmp_path: Path) -> None:
    """Its time is the operator's bound too, in the middle of a round."""
    site = open_site(in_a_process)
    register(site, tmp_path)
    plan_id = planned(site, training=ENDLESS)
    ends = (datetime.now(UTC) + timedelta(seconds=1.5)).isoformat()
    change_row(site, plan_id, expires_at=ends)
    request = train_request(plan_id, training=ENDLESS, deadline_s=3600.0)
    error, message = error_of(ask(site, request))
    late = datetime.fromisoformat(now()) - datetime.fromisoformat(ends)
    assert (error, late.total_seconds() < SOON_S) == ("PlanError", True)
    assert f"expired at {ends}" in message
