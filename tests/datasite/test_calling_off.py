"""A researcher calls off what a site is asked for, before its turn or in the middle of the work."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from site_process import wait_until
from sites import (
    RESEARCHER,
    RIVAL,
    TRAIN_ROWS,
    TRAINING,
    ask,
    in_a_process,
    planned,
    register,
    train_request,
    trainer_process,
)
from sqlalchemy import select

from core.parameters import digest
from datasite.caller import Caller, Role
from datasite.cli.plan_words import in_words, look_up
from datasite.ledger import AuditRow
from datasite.records import Records
from datasite.site import FactoryDataSite
from datasite.trainer import InlineTrainer, Watch
from datasite.training.work import Assignment, Done

OpenSite = Callable[..., FactoryDataSite]

ENDLESS = TRAINING | {"local_epochs": 10**9}
SOON_S = 1.0
"""Within which the work has stopped."""
PATIENCE_S = 30.0


class Held(InlineTrainer):
    """Begins its first job only when it is let, and stops when the watch says so."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs = 0
        self.entered, self.go_on = threading.Event(), threading.Event()

    def perform(self, assignment: Assignment, *, deadline_s: float, watch: Watch) -> Done:
        """Train."""
        self.jobs += 1
        self.entered.set()
        assert self.go_on.wait(PATIENCE_S)
        watch()
        return super().perform(assignment, deadline_s=deadline_s, watch=watch)


@pytest.fixture
def trainer() -> Held:
    """The trainer of `site`."""
    return Held()


@pytest.fixture
def site(open_site: OpenSite, tmp_path: Path, trainer: Held) -> FactoryDataSite:
    """A site with `press`, whose rule approves the researcher's plans."""
    opened = open_site(lambda _config: trainer)
    register(opened, tmp_path)
    return opened


def cancel(plan_id: str, round_num: int = 0) -> dict[str, Any]:
    """Give the request that calls a round off."""
    return {"kind": "cancel", "plan_id": plan_id, "round_num": round_num}


def log(site: FactoryDataSite) -> list[AuditRow]:
    """Give the audit rows, oldest first."""
    with site.ledger.read() as session:
        return list(session.scalars(select(AuditRow).order_by(AuditRow.seq)))


def test_a_training_that_is_called_off_stops_within_a_second(
    open_site: OpenSite, tmp_path: Path
) -> None:
    """Its process is ended, nothing is kept, the log has both; and the site works on."""
    site = open_site(in_a_process)
    register(site, tmp_path)
    plan_id, other = planned(site, training=ENDLESS), planned(site, run_id="run-2")
    assert ask(site, train_request(other))["kind"] == "update"
    process = trainer_process(site)
    computed = process.cpu_times().user
    with ThreadPoolExecutor(1) as thread:
        request = train_request(plan_id, training=ENDLESS, deadline_s=3600.0)
        answer = thread.submit(ask, site, request)
        wait_until(
            lambda: bool(process.cpu_times().user > computed + 0.2),
            limit_s=PATIENCE_S,
            what="it trains",
        )
        decision = ask(site, cancel(plan_id))
        told = answer.result(PATIENCE_S)
    assert (decision["kind"], decision["status"]) == ("plan", "APPROVED")
    assert (told["error"], told["message"]) == (
        "CalledOffError",
        "factory-1: round 0 was called off by who had asked for it",
    )
    called, stopped = log(site)[-2:]
    assert (called.action, called.who, called.plan_id) == ("cancel", RESEARCHER.email, plan_id)
    assert called.detail["stopped"] == 1
    assert (stopped.action, stopped.outcome) == ("train", "CalledOffError")
    took = datetime.fromisoformat(stopped.at) - datetime.fromisoformat(called.at)
    assert took.total_seconds() < SOON_S
    assert not process.is_running()
    assert ask(site, train_request(other, round_num=1))["kind"] == "update"


def test_what_waits_for_its_turn_is_called_off_too(site: FactoryDataSite, trainer: Held) -> None:
    """It is never begun; the other plan's work, which it waited for, is done."""
    first, plan_id = planned(site), planned(site, run_id="run-2")
    with ThreadPoolExecutor(2) as threads:
        working = threads.submit(ask, site, train_request(first))
        assert trainer.entered.wait(PATIENCE_S)
        waiting = threads.submit(ask, site, train_request(plan_id))
        wait_until(
            lambda: (
                ask(site, cancel(plan_id))["kind"] == "plan"
                and log(site)[-1].detail["stopped"] == 1
            ),
            limit_s=PATIENCE_S,
            what="it waits",
        )
        trainer.go_on.set()
        assert working.result(PATIENCE_S)["kind"] == "update"
        assert waiting.result(PATIENCE_S)["error"] == "CalledOffError"
    assert trainer.jobs == 1


@pytest.mark.parametrize("what", ["another round", "another plan"])
def test_what_was_not_named_goes_on(site: FactoryDataSite, trainer: Held, what: str) -> None:
    """A word that comes late cannot stop the next round."""
    plan_id, other = planned(site), planned(site, run_id="run-2")
    with ThreadPoolExecutor(1) as thread:
        working = thread.submit(ask, site, train_request(plan_id, round_num=1))
        assert trainer.entered.wait(PATIENCE_S)
        wrong = cancel(plan_id, 0) if what == "another round" else cancel(other, 1)
        assert ask(site, wrong)["kind"] == "plan"
        assert log(site)[-1].detail["stopped"] == 0
        trainer.go_on.set()
        assert working.result(PATIENCE_S)["kind"] == "update"


def test_a_round_that_was_called_off_can_be_asked_for_again(
    site: FactoryDataSite, trainer: Held
) -> None:
    """It is trained then: a run that was cancelled can be resumed."""
    plan_id = planned(site)
    with ThreadPoolExecutor(1) as thread:
        working = thread.submit(ask, site, train_request(plan_id))
        assert trainer.entered.wait(PATIENCE_S)
        ask(site, cancel(plan_id))
        trainer.go_on.set()
        assert working.result(PATIENCE_S)["error"] == "CalledOffError"
    assert ask(site, train_request(plan_id))["kind"] == "update"


@pytest.mark.parametrize(
    ("caller", "error"),
    [
        pytest.param(RIVAL, "PlanError", id="rival"),
        pytest.param(
            Caller(email="auditor@authority.example.com", role=Role.AUDITOR),
            "SecurityError",
            id="auditor",
        ),
    ],
)
def test_nobody_else_can_call_it_off(
    site: FactoryDataSite, trainer: Held, caller: Caller, error: str
) -> None:
    """A plan is its researcher's alone."""
    plan_id = planned(site)
    with ThreadPoolExecutor(1) as thread:
        working = thread.submit(ask, site, train_request(plan_id))
        assert trainer.entered.wait(PATIENCE_S)
        assert ask(site, cancel(plan_id), caller)["error"] == error
        trainer.go_on.set()
        assert working.result(PATIENCE_S)["kind"] == "update"


PARTIAL = ENDLESS | {"partial": True}


def test_a_round_is_cut_short_only_under_a_plan_that_says_so(
    site: FactoryDataSite, trainer: Held
) -> None:
    """An operator who approved whole rounds is not asked for parts of them."""
    trainer.go_on.set()
    plan_id = planned(site)
    refused = ask(site, train_request(plan_id, stop_after_s=0.001))
    assert refused["error"] == "PlanError"
    assert "was approved for whole rounds of training, not for parts of them" in refused["message"]
    partial = planned(site, training=PARTIAL)
    request = train_request(partial, training=PARTIAL, stop_after_s=0.1)
    update = ask(site, request)
    assert (update["kind"], update["num_samples"]) == ("update", TRAIN_ROWS)
    assert ask(site, request)["num_steps"] == update["num_steps"]  # as it was, from the ledger


def test_the_first_epoch_is_whole_however_short_the_time(
    site: FactoryDataSite, trainer: Held
) -> None:
    """A step on a few windows would tell too much of them; here 60 windows are 4 batches of 16."""
    trainer.go_on.set()
    plan_id = planned(site, training=PARTIAL)
    update = ask(site, train_request(plan_id, training=PARTIAL, stop_after_s=1e-9))
    whole = planned(site, run_id="run-2")
    same = ask(site, train_request(whole))
    assert update["num_steps"] == same["num_steps"] == 4
    assert digest(update["parameters"]) == digest(same["parameters"])
    assert update["metrics"]["train_loss"] == same["metrics"]["train_loss"]


def test_an_operator_is_told_that_rounds_may_be_cut_short(site: FactoryDataSite) -> None:
    """`datasite plans show` has it in words."""
    records = Records.open(site.config)
    try:
        for training, is_said in ((TRAINING, False), (PARTIAL, True)):
            words = in_words(look_up(records, planned(site, training=training)))
            assert ("a round may be cut short" in words) == is_said
    finally:
        records.ledger.close()
