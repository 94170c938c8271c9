"""What a site answers: bytes in, bytes out, and a row in the audit log."""

import resource
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from loguru import logger
from sites import (
    PREPROCESSING,
    PROBE,
    RESEARCHER,
    RIVAL,
    ROWS,
    SCHEMA,
    SPLIT,
    TRAIN_ROWS,
    TRAINING,
    ask,
    encoded,
    evaluate_request,
    parameters,
    planned,
    proposal,
    register,
    train_request,
)
from sqlalchemy import select

from core import wire
from core.codehash import installed_code_hash
from core.enums import PrivacyLevel
from core.messages import Message
from core.models import available_models
from core.parameters import digest
from core.plans import PlanStatus
from core.wire import Parcel
from datasite.ledger import AuditRow, PlanRow
from datasite.site import FactoryDataSite
from datasite.trainer import InlineTrainer, Watch
from datasite.training.objectives import PROBE_STEP
from datasite.training.work import Assignment, Done

SECRET = "SECRET ROW 42"

OpenSite = Callable[..., FactoryDataSite]


def log(site: FactoryDataSite, action: str | None = None) -> list[AuditRow]:
    """Give the audit rows, or those of one action, oldest first."""
    with site.ledger.read() as session:
        rows = session.scalars(select(AuditRow).order_by(AuditRow.seq)).all()
    return [row for row in rows if action in {None, row.action}]


def error_of(reply: dict[str, Any]) -> tuple[str, str]:
    """Give a failure's class and message."""
    assert reply["kind"] == "failure", reply["kind"]
    return reply["error"], reply["message"]


class Replies:
    """A trainer that trains nothing and gives what it was made with."""

    def __init__(self, reply: Message | Exception) -> None:
        self.reply = reply

    def perform(self, assignment: Assignment, *, deadline_s: float, watch: Watch) -> Done:
        """Give the reply, or raise it."""
        if isinstance(self.reply, Exception):
            raise self.reply
        return Done(wire.encode(self.reply))

    def close(self) -> None:
        """Nothing to end."""


class Counts(InlineTrainer):
    """Trains, and remembers the deadline of each job."""

    def __init__(self) -> None:
        super().__init__()
        self.deadlines_s: list[float] = []

    def perform(self, assignment: Assignment, *, deadline_s: float, watch: Watch) -> Done:
        """Train in the calling thread."""
        self.deadlines_s.append(deadline_s)
        return super().perform(assignment, deadline_s=deadline_s, watch=watch)


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"hello",
        b"\xff" * 64,
        b"\x10" + bytes(7) + b'{"a": 1}',
        encoded(proposal()).joined()[:-3],
    ],
    ids=["empty", "text", "huge header", "short header", "cut off"],
)
def test_unreadable_bytes_are_a_protocol_error_and_are_written_down(
    site: FactoryDataSite, blob: bytes
) -> None:
    """A stranger's bytes get an answer that the orchestrator can read, and leave a trace."""
    reply = wire.decode(site.handle(Parcel.of(blob), RESEARCHER))
    assert reply["kind"] == "failure"
    assert reply["error"] == "ProtocolError"
    assert reply["datasite_id"] == "factory-1"
    (row,) = log(site, "unreadable request")
    assert (row.who, row.outcome) == (RESEARCHER.email, "ProtocolError")


def test_a_reply_is_no_request(site: FactoryDataSite) -> None:
    """A message that only sites send is refused by name."""
    failure = {"kind": "failure", "error": "X", "message": "", "datasite_id": "y"}
    error, message = error_of(ask(site, failure))
    assert error == "DataSiteError"
    assert "'failure' message is no request" in message


def test_a_site_describes_itself_to_anybody(site: FactoryDataSite) -> None:
    """Name, code, catalogue, and each dataset's schema and size."""
    reply = ask(site, {"kind": "describe"}, RIVAL)
    assert reply["datasite_id"] == "factory-1"
    assert reply["status"] == "ONLINE"
    assert reply["code_hash"] == installed_code_hash()
    assert reply["models"] == available_models()
    assert {"fedavg", "fedprox", "feddyn", "fednova", "probe"} <= set(reply["algorithms"])
    (dataset,) = reply["datasets"]
    assert (dataset["name"], dataset["version"], dataset["rows"]) == ("press", 1, 100)
    assert [column["name"] for column in dataset["schema"]["columns"]] == ["load", "heat"]


def test_a_site_at_work_says_that_it_is_busy(open_site: OpenSite, tmp_path: Path) -> None:
    """While the trainer works, `describe` is answered, and the status is BUSY."""
    seen: list[str] = []

    class Asks(InlineTrainer):
        """Asks for the status in the middle of the work."""

        def perform(self, assignment: Assignment, *, deadline_s: float, watch: Watch) -> Done:
            seen.append(ask(site, {"kind": "describe"})["status"])
            return super().perform(assignment, deadline_s=deadline_s, watch=watch)

    site = open_site(lambda _config: Asks())
    register(site, tmp_path)
    ask(site, train_request(planned(site)))
    assert seen == ["BUSY"]
    assert ask(site, {"kind": "describe"})["status"] == "ONLINE"


def test_the_same_proposal_is_the_same_plan(site: FactoryDataSite) -> None:
    """Proposing again asks for the state of the plan: one plan, one row each in the log."""
    first, again = ask(site, proposal()), ask(site, proposal())
    assert first == again
    assert first["status"] == "APPROVED"
    assert "'lab'" in first["reason"]
    assert len(log(site, "plan proposed")) == len(log(site, "plan approved")) == 1


@pytest.mark.parametrize(
    ("changes", "caller"),
    [({"rounds": 4}, RESEARCHER), ({"run_id": "run-2"}, RESEARCHER), ({}, RIVAL)],
    ids=["another content", "another run", "another researcher"],
)
def test_another_proposal_is_another_plan(
    site: FactoryDataSite, changes: dict[str, Any], caller: Any
) -> None:
    """A plan's id covers what is proposed and who proposes."""
    assert ask(site, proposal(**changes), caller)["plan_id"] != planned(site)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"dataset": "mill"}, "DataError", "mill (version 1) is not registered here"),
        ({"dataset_version": 2}, "DataError", "registered: press (version 1)"),
        ({"model": {"type": "mlp", "options": {}}}, "PlanError", "'mlp' is not offered here"),
        (
            {"algorithm": {"name": "fedmagic", "hyperparameters": {}}},
            "PlanError",
            "'fedmagic' is not offered here; offered: fedavg, ",
        ),
        (
            {"privacy_level": PrivacyLevel.DIFFERENTIAL_PRIVACY.value},
            "PlanError",
            "is 'differential_privacy', and its settings are for 'none'",
        ),
        ({"code_hash": "0" * 64}, "PlanError", "bound to training code 000000000000"),
    ],
    ids=["dataset", "version", "model", "algorithm", "privacy", "code"],
)
def test_what_the_site_cannot_do_is_refused_at_the_proposal(
    site: FactoryDataSite, changes: dict[str, Any], error: str, message: str
) -> None:
    """The researcher learns at once what is missing, and no plan is made."""
    found, text = error_of(ask(site, proposal(**changes)))
    assert found == error
    assert message in text
    assert site.plans.all() == []


def test_the_state_of_a_plan_can_be_asked(site: FactoryDataSite) -> None:
    """`plan_status` gives what `propose` gave."""
    decision = ask(site, proposal())
    assert ask(site, {"kind": "plan_status", "plan_id": decision["plan_id"]}) == decision


@pytest.mark.parametrize("kind", ["plan_status", "statistics", "train", "evaluate"])
def test_another_researchers_plan_is_refused_as_an_unknown_one(
    site: FactoryDataSite, kind: str
) -> None:
    """The two texts differ in nothing but the id that was asked for."""
    theirs = planned(site)
    unknown = "0" * 64

    def refusal(plan_id: str) -> tuple[str, str]:
        requests = {
            "plan_status": {"kind": "plan_status", "plan_id": plan_id},
            "statistics": {"kind": "statistics", "plan_id": plan_id},
            "train": train_request(plan_id),
            "evaluate": evaluate_request(plan_id),
        }
        return error_of(ask(site, requests[kind], RIVAL))

    error, message = refusal(theirs)
    assert error == "PlanError"
    assert message.replace(theirs[:12], unknown[:12]) == refusal(unknown)[1]


def test_a_round_gives_an_update_that_says_what_was_done(site: FactoryDataSite) -> None:
    """60 rows in batches of 16 are 4 steps; the update is this site's for this round."""
    reply = ask(site, train_request(planned(site), round_num=2))
    assert reply["kind"] == "update"
    assert (reply["datasite_id"], reply["round_num"]) == ("factory-1", 2)
    assert (reply["num_samples"], reply["num_steps"]) == (TRAIN_ROWS, 4)
    assert set(reply["metrics"]) == {"train_loss", "fit_s"}
    assert digest(reply["parameters"]) != digest(parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"round_num": 3}, "covers rounds 0 to 2, not 3"),
        ({"model": {"type": "cnn", "options": {"channels": 4}}}, "another model"),
        ({"algorithm": PROBE}, "another algorithm"),
        ({"training": TRAINING | {"local_epochs": 2}}, "other training settings"),
        ({"training": TRAINING | {"batch_size": 8}}, "other training settings"),
        ({"training": TRAINING | {"optimizer": "adam"}}, "other training settings"),
        ({"training": TRAINING | {"momentum": 0.5}}, "other training settings"),
        ({"training": TRAINING | {"weight_decay": 0.5}}, "other training settings"),
        ({"training": TRAINING | {"gradient_clip": 1.0}}, "other training settings"),
        ({"training": TRAINING | {"learning_rate": 0.11}}, "other training settings"),
    ],
    ids=[
        "a round too many",
        "model",
        "algorithm",
        "epochs",
        "batch size",
        "optimizer",
        "momentum",
        "weight decay",
        "clipping",
        "a higher learning rate",
    ],
)
def test_what_the_plan_does_not_cover_is_refused(
    site: FactoryDataSite, changes: dict[str, Any], message: str
) -> None:
    """Consent is for what was read: everything else is another plan."""
    error, found = error_of(ask(site, train_request(planned(site), **changes)))
    assert error == "PlanError"
    assert message in found
    assert [row.outcome for row in log(site, "train")] == ["PlanError"]


def test_a_lower_learning_rate_is_covered(site: FactoryDataSite) -> None:
    """A schedule may lower it: the update is then another one."""
    plan_id = planned(site)
    full = ask(site, train_request(plan_id))
    half = ask(site, train_request(plan_id, training=TRAINING | {"learning_rate": 0.05}))
    assert half["kind"] == "update"
    assert digest(half["parameters"]) != digest(full["parameters"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"round_num": 3}, "covers rounds 0 to 2, not 3"),
        ({"model": {"type": "cnn", "options": {"channels": 4}}}, "another model"),
    ],
    ids=["a round too many", "model"],
)
def test_evaluation_keeps_to_the_plan(
    site: FactoryDataSite, changes: dict[str, Any], message: str
) -> None:
    """What is scored is bounded as what is trained."""
    error, found = error_of(ask(site, evaluate_request(planned(site), **changes)))
    assert error == "PlanError"
    assert message in found


def test_evaluation_gives_counts_of_each_part(site: FactoryDataSite) -> None:
    """A fifth of 75 and of 25 rows in each part: 15 scores by label 0 and 5 by label 1."""
    reply = ask(site, evaluate_request(planned(site)))
    for part in ("validation", "test"):
        assert reply[part]["count"] == 20
        assert (sum(reply[part]["negatives"]), sum(reply[part]["positives"])) == (15, 5)


def test_statistics_are_sums_over_all_rows(site: FactoryDataSite) -> None:
    """Of 100 rows 75 and 25 by label; sums, and no row."""
    reply = ask(site, {"kind": "statistics", "plan_id": planned(site)})
    assert reply["count"] == ROWS
    assert reply["label_counts"] == [75, 25]
    assert len(reply["total"]) == len(reply["total_of_squares"]) == 2


def test_the_statistics_of_two_splits_do_not_differ_by_a_row(site: FactoryDataSite) -> None:
    """Sums that followed the split would tell a row by the difference of two plans."""
    first, second = (
        ask(site, {"kind": "statistics", "plan_id": planned(site, split={**SPLIT, "test": test})})
        for test in (0.2, 0.21)
    )
    assert first == second


@pytest.mark.parametrize("kind", ["train", "evaluate", "statistics"])
@pytest.mark.parametrize("status", [PlanStatus.WAITING, PlanStatus.DENIED, PlanStatus.REVOKED])
def test_nothing_is_done_under_a_plan_that_is_not_approved(
    open_site: OpenSite, tmp_path: Path, status: PlanStatus, kind: str
) -> None:
    """Waiting, denied, revoked: each is refused by name, with the operator's reason."""
    site = open_site(policy=[])
    register(site, tmp_path)
    plan_id = planned(site)
    if status is PlanStatus.REVOKED:
        site.plans.decide(plan_id, PlanStatus.APPROVED, reason="yes", by="operator")
    if status is not PlanStatus.WAITING:
        site.plans.decide(plan_id, status, reason="audit week", by="operator")
    requests = {
        "train": train_request(plan_id),
        "evaluate": evaluate_request(plan_id),
        "statistics": {"kind": "statistics", "plan_id": plan_id},
    }
    error, message = error_of(ask(site, requests[kind]))
    assert error == "PlanError"
    assert f"is {status.name}" in message
    assert ("audit week" in message) == (status is not PlanStatus.WAITING)


def test_a_revoked_plan_is_not_even_answered_from_the_ledger(site: FactoryDataSite) -> None:
    """A stored reply is data too: after the revocation it stays where it is."""
    plan_id = planned(site)
    assert ask(site, train_request(plan_id))["kind"] == "update"
    site.plans.decide(plan_id, PlanStatus.REVOKED, reason="contract ended", by="operator")
    assert error_of(ask(site, train_request(plan_id)))[0] == "PlanError"


def test_an_expired_plan_is_refused(site: FactoryDataSite) -> None:
    """Approved once is not approved for ever."""
    plan_id = planned(site)
    yesterday = (datetime.now(UTC) - timedelta(days=1)).isoformat()
    with site.ledger.write() as session:
        session.get_one(PlanRow, plan_id).expires_at = yesterday
    error, message = error_of(ask(site, train_request(plan_id)))
    assert error == "PlanError"
    assert f"expired at {yesterday}" in message


def test_a_plan_for_other_code_than_is_installed_is_refused(site: FactoryDataSite) -> None:
    """After an update of the site's software, what was consented to is no longer what would run."""
    plan_id = planned(site)
    with site.ledger.write() as session:
        row = session.get_one(PlanRow, plan_id)
        row.proposal = {**row.proposal, "code_hash": "f" * 64}
    error, message = error_of(ask(site, train_request(plan_id)))
    assert error == "PlanError"
    assert "bound to training code ffffffffffff" in message


def test_a_removed_dataset_trains_no_more(site: FactoryDataSite) -> None:
    """The plan stands, its data are gone."""
    plan_id = planned(site)
    site.registry.remove("press", who="operator")
    error, message = error_of(ask(site, train_request(plan_id)))
    assert error == "DataError"
    assert "press (version 1) is not registered here; registered: nothing" in message


def test_a_plan_does_not_pass_to_the_next_version_of_the_data(
    site: FactoryDataSite, tmp_path: Path
) -> None:
    """Consent was for version 1; version 2 needs a plan of its own."""
    plan_id = planned(site)
    site.registry.remove("press", who="operator")
    register(site, tmp_path)
    error, message = error_of(ask(site, train_request(plan_id)))
    assert error == "DataError"
    assert "registered: press (version 2)" in message


def test_a_plan_keeps_the_version_that_it_names(site: FactoryDataSite, tmp_path: Path) -> None:
    """Its sums are those of version 1 after version 2 came; the site tells of version 2 alone."""
    plan_id = planned(site)
    before = ask(site, {"kind": "statistics", "plan_id": plan_id})
    register(site, tmp_path, load=9.0)
    assert ask(site, {"kind": "statistics", "plan_id": plan_id}) == before
    (described,) = site.describe()["datasets"]
    assert (described["name"], described["version"]) == ("press", 2)
    newest = planned(site, dataset_version=2)
    assert ask(site, {"kind": "statistics", "plan_id": newest})["total"][0] == pytest.approx(900)


@pytest.mark.parametrize("change", ["changed", "deleted"])
def test_a_private_file_that_is_not_the_registered_one_is_refused(
    site: FactoryDataSite, change: str
) -> None:
    """What trains is what was checked, or nothing."""
    file = site.registry.find("press").file
    if change == "changed":
        table = pd.read_parquet(file)
        table.loc[0, "load"] = 9.9
        table.to_parquet(file, index=False)
    else:
        file.unlink()
    error, message = error_of(ask(site, train_request(planned(site))))
    assert error == "SecurityError"
    assert "changed on disk since registration" in message
    assert str(file) not in message


def test_the_same_rows_under_another_schema_are_prepared_anew(
    site: FactoryDataSite, tmp_path: Path
) -> None:
    """A corrected range counts from the next registration on: heat above 50 is then refused."""
    before = ask(site, {"kind": "statistics", "plan_id": planned(site)})
    site.registry.remove("press", who="operator")
    # heat − load is one feature more, out of the same columns and rows.
    heated = {
        "name": "heated",
        "of": ["heat", "load"],
        "formula": "difference",
        "range": [-10, 100],
    }
    schema = SCHEMA | {"derived": [heated]}
    site.register_data({"name": "press", "file": tmp_path / "press.csv", "schema": schema})
    after = ask(site, {"kind": "statistics", "plan_id": planned(site, dataset_version=2)})
    load, heat, difference = after["total"]
    assert before["total"] == [load, heat]
    assert difference == pytest.approx(heat - load)


def test_a_repeated_request_is_answered_with_the_same_bytes(
    open_site: OpenSite, tmp_path: Path
) -> None:
    """The ledger answers: nothing is trained again, and the log has one row."""
    trainer = Counts()
    site = open_site(lambda _config: trainer)
    register(site, tmp_path)
    request = encoded(train_request(planned(site)))
    first, again = site.handle(request, RESEARCHER), site.handle(request, RESEARCHER)
    assert first == again
    assert len(trainer.deadlines_s) == 1
    assert [row.outcome for row in log(site, "train")] == ["ok"]


def test_a_repeated_request_is_answered_after_a_restart(
    open_site: OpenSite, tmp_path: Path
) -> None:
    """The reply is on disk: another process of the site gives the same bytes."""
    site = open_site()
    register(site, tmp_path)
    request = encoded(train_request(planned(site)))
    first = site.handle(request, RESEARCHER)
    site.close()
    trainer = Counts()
    assert open_site(lambda _config: trainer).handle(request, RESEARCHER) == first
    assert trainer.deadlines_s == []


def test_a_different_request_for_the_same_round_trains_again(
    open_site: OpenSite, tmp_path: Path
) -> None:
    """Other parameters are another question; its answer takes the place of the first."""
    trainer = Counts()
    site = open_site(lambda _config: trainer)
    register(site, tmp_path)
    plan_id = planned(site)
    first = ask(site, train_request(plan_id))
    other = ask(site, train_request(plan_id, parameters=parameters(seed=1)))
    assert digest(first["parameters"]) != digest(other["parameters"])
    assert len(trainer.deadlines_s) == len(log(site, "train")) == 2


def test_short_rounds_of_a_plan_have_a_line_a_second_in_the_log(site: FactoryDataSite) -> None:
    """The first at once, and that of another plan too; the audit log has every round."""
    lines: list[str] = []
    sink = logger.add(lines.append, level="INFO", format="{message}")
    plan_id, rounds, begin = planned(site, rounds=20), range(20), time.monotonic()
    for round_num in rounds:
        assert ask(site, train_request(plan_id, round_num=round_num))["kind"] == "update"
    seconds = time.monotonic() - begin
    other = planned(site, run_id="run-2")
    assert ask(site, train_request(other, round_num=2))["kind"] == "update"
    logger.remove(sink)
    found = [line.partition(":")[0] for line in lines if line.startswith("round ")]
    assert (found[0], found[-1]) == ("round 0", "round 2")
    assert len(found) <= 2 + seconds
    assert len(log(site, "train")) == len(rounds) + 1


def test_a_failed_round_may_be_tried_again(site: FactoryDataSite) -> None:
    """Only an update is kept as the answer: after a failure the same bytes are worked on anew."""
    plan_id = planned(site)
    file = site.registry.find("press").file
    away = file.with_suffix(".away")
    file.rename(away)
    assert ask(site, train_request(plan_id))["kind"] == "failure"
    away.rename(file)
    assert ask(site, train_request(plan_id))["kind"] == "update"
    assert [row.outcome for row in log(site, "train")] == ["SecurityError", "ok"]


def test_two_identical_requests_at_once_train_once(open_site: OpenSite, tmp_path: Path) -> None:
    """An impatient orchestrator's second request waits for the first one's answer."""
    trainer = Counts()
    site = open_site(lambda _config: trainer)
    register(site, tmp_path)
    request = encoded(train_request(planned(site)))
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(lambda _: site.handle(request, RESEARCHER), range(2))
    assert first == second
    assert len(trainer.deadlines_s) == 1


def test_a_reply_is_written_down_before_it_is_given(
    site: FactoryDataSite,
) -> None:
    """Who trained what, in which round, and how many bytes went out."""
    plan_id = planned(site)
    reply = site.handle(encoded(train_request(plan_id, round_num=1)), RESEARCHER)
    (row,) = log(site, "train")
    assert (row.who, row.plan_id, row.outcome) == (RESEARCHER.email, plan_id, "ok")
    facts = dict(row.detail)
    assert len(facts.pop("preprocessing")) == 64
    assert facts == {
        "dataset": "press",
        "data_version": 1,
        "code_hash": installed_code_hash(),
        "round_num": 1,
        "bytes_out": len(reply),
    }


def test_the_shorter_deadline_counts(open_site: OpenSite, tmp_path: Path) -> None:
    """A researcher may ask for less time than the site allows, and never for more."""
    trainer = Counts()
    site = open_site(lambda _config: trainer, training={"deadline_s": 30.0})
    register(site, tmp_path)
    plan_id = planned(site)
    for deadline_s in (20.0, 40.0):
        ask(site, train_request(plan_id, deadline_s=deadline_s))
    assert trainer.deadlines_s == [20.0, 30.0]


def test_an_unexpected_error_is_told_by_its_class_alone(
    open_site: OpenSite, tmp_path: Path
) -> None:
    """Its text may hold data: neither the reply nor the audit log repeats it."""
    site = open_site(lambda _config: Replies(RuntimeError(SECRET)))
    register(site, tmp_path)
    plan_id = planned(site)
    statistics = {"kind": "statistics", "plan_id": plan_id}
    for request in (train_request(plan_id), evaluate_request(plan_id), statistics):
        reply = site.handle(encoded(request), RESEARCHER)
        assert SECRET.encode() not in reply.joined()
        error, message = error_of(ask(site, request))
        assert (error, message) == (
            "DataSiteError",
            "factory-1: failed with RuntimeError; its log says why",
        )
    assert SECRET not in str([row.detail for row in log(site)])


def test_a_cell_that_is_no_number_is_never_quoted(site: FactoryDataSite) -> None:
    """Even a private file that lost its types, with a hash to match, tells nothing of its cells."""
    dataset = site.registry.find("press")
    table = pd.read_parquet(dataset.file).astype({"load": str})
    table.loc[0, "load"] = SECRET
    table.to_parquet(dataset.file, index=False)
    _adopt(site)
    plan_id = planned(site)
    reply = site.handle(encoded({"kind": "statistics", "plan_id": plan_id}), RESEARCHER)
    assert SECRET.encode() not in reply.joined()
    assert wire.decode(reply)["kind"] == "failure"


def _adopt(site: FactoryDataSite) -> None:
    """Make the ledger believe that the private file is as it was registered."""
    from datasite.ledger import DatasetRow  # noqa: PLC0415 - here alone
    from datasite.registry import file_sha256  # noqa: PLC0415

    dataset = site.registry.find("press")
    with site.ledger.write() as session:
        row = session.get_one(DatasetRow, (dataset.name, dataset.version))
        row.sha256 = file_sha256(dataset.file)


def test_a_part_with_one_label_is_named_and_not_counted(
    open_site: OpenSite, tmp_path: Path
) -> None:
    """One failure in 100 rows: it trains, no part is left with both labels; no count is told."""
    site = open_site()
    register(site, tmp_path, load=3.14159, failure=[0] * 99 + [1])
    error, message = error_of(ask(site, train_request(planned(site))))
    assert error == "DataError"
    assert "the validation part of 'press' has too few windows; it needs windows with" in message
    assert "20" not in message
    assert "3.14" not in message


@pytest.mark.parametrize(
    "metrics",
    [{"train_loss": 0.5, "row": 42.0}, {"largest_value": 1.0}, {"psi.load": 42.0}],
    ids=["beside a known one", "alone", "a drift that the site did not find"],
)
def test_an_unknown_metric_does_not_leave(
    open_site: OpenSite, tmp_path: Path, metrics: dict[str, float]
) -> None:
    """The last gate lists what may pass; the reply is withheld whole, and its names with it."""
    update: Any = {
        "kind": "update",
        "datasite_id": "factory-1",
        "round_num": 0,
        "num_samples": 1,
        "num_steps": 1,
        "metrics": metrics,
        "parameters": {"w": torch.tensor([1.0])},
    }
    site = open_site(lambda _config: Replies(update))
    register(site, tmp_path)
    error, message = error_of(ask(site, train_request(planned(site))))
    assert error == "SecurityError"
    assert message == "factory-1: 1 of the metrics may not leave the site; withheld"
    assert [row.outcome for row in log(site, "train")] == ["SecurityError"]


def test_a_reply_of_another_kind_does_not_leave(open_site: OpenSite, tmp_path: Path) -> None:
    """The trainer answers in three ways; a plan's decision is none of them."""
    decision: Any = {"kind": "plan", "plan_id": "x", "status": "APPROVED", "reason": SECRET}
    site = open_site(lambda _config: Replies(decision))
    register(site, tmp_path)
    error, message = error_of(ask(site, train_request(planned(site))))
    assert error == "SecurityError"
    assert SECRET not in message


def test_a_model_far_larger_than_its_parameters_takes_no_memory(site: FactoryDataSite) -> None:
    """Options for billions of parameters are compared with what came before anything is built."""
    model = {"type": "cnn", "options": {"channels": 1024, "blocks": 32}}
    plan_id = planned(site, model=model)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    error, _ = error_of(ask(site, train_request(plan_id, model=model)))
    assert error == "ModelError"
    # 32 blocks of 1024 x 1024 float32 would be 131,072 KiB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 65_536


def test_a_request_that_never_gets_its_turn_is_told_that_the_site_is_busy(
    open_site: OpenSite, tmp_path: Path
) -> None:
    """One piece of work at a time; the other waits as long as its deadline allows."""
    told: list[tuple[str, str]] = []

    class IsAsked(InlineTrainer):
        """Has another request come in the middle of the work."""

        def perform(self, assignment: Assignment, *, deadline_s: float, watch: Watch) -> Done:
            told.append(error_of(ask(site, evaluate_request(plan_id, deadline_s=0.01))))
            return super().perform(assignment, deadline_s=deadline_s, watch=watch)

    site = open_site(lambda _config: IsAsked())
    register(site, tmp_path)
    plan_id = planned(site)
    assert ask(site, train_request(plan_id))["kind"] == "update"
    assert told[0][0] == "SiteBusyError"
    assert "try again later" in told[0][1]


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"type": "cnn", "options": {"channels": 4096}}, "'channels' is 4096"),
        ({"type": "cnn", "options": {"layers": 3}}, "unknown option 'layers'"),
    ],
    ids=["out of range", "unknown"],
)
def test_a_wrong_model_option_is_a_configuration_error(
    site: FactoryDataSite, model: dict[str, Any], message: str, kind: str
) -> None:
    """The researcher is told which option and what is possible."""
    plan_id = planned(site, model=model)
    make = train_request if kind == "train" else evaluate_request
    error, found = error_of(ask(site, make(plan_id, model=model)))
    assert error == "ConfigurationError"
    assert message in found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": [0.0], "scale": [1.0]}, "for 1 features, the data have 2"),
        ({"mean": [0.0] * 3, "scale": [1.0] * 3}, "for 3 features, the data have 2"),
        ({"mean": [0.0] * 2, "scale": [1.0] * 3}, "features"),
    ],
    ids=["short", "long", "uneven"],
)
def test_a_preprocessing_of_the_wrong_length_is_refused(
    site: FactoryDataSite, changes: dict[str, Any], message: str
) -> None:
    """One number for each feature; nothing is broadcast."""
    request = train_request(planned(site), preprocessing=PREPROCESSING | changes)
    error, found = error_of(ask(site, request))
    assert error == "DataSiteError"
    assert message in found


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_parameters_that_do_not_fit_are_a_model_error(site: FactoryDataSite, kind: str) -> None:
    """The tensor is named."""
    make = train_request if kind == "train" else evaluate_request
    wrong = parameters() | {"head.bias": torch.zeros(3)}
    error, message = error_of(ask(site, make(planned(site), parameters=wrong)))
    assert error == "ModelError"
    assert "'head.bias'" in message


@pytest.mark.parametrize("value", [float("nan"), 1e38], ids=["NaN", "overflowing"])
def test_a_model_whose_scores_are_not_finite_is_a_model_error(
    site: FactoryDataSite, value: float
) -> None:
    """A diverged model is told as such, and costs no trainer."""
    wrong = {name: torch.full_like(tensor, value) for name, tensor in parameters().items()}
    error, message = error_of(ask(site, evaluate_request(planned(site), parameters=wrong)))
    assert error == "ModelError"
    assert "not finite" in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": TRAINING | {"optimizer": "lion"}}, "not with 'lion'"),
        ({"split": {"test": 0.5, "validation": 0.5, "seed": 0}}, "leave nothing for training"),
        (
            {"algorithm": {"name": "fedavg", "hyperparameters": {"mu": 0.1}}},
            "takes the hyper-parameters [], got ['mu']",
        ),
    ],
    ids=["optimizer", "split", "hyper-parameter"],
)
def test_a_plan_that_cannot_work_says_why(
    site: FactoryDataSite, changes: dict[str, Any], message: str
) -> None:
    """The mistake is named as a mistake of configuration."""
    plan_id = planned(site, **changes)
    request = {key: value for key, value in changes.items() if key != "split"}
    error, found = error_of(ask(site, train_request(plan_id, **request)))
    assert error == "ConfigurationError"
    assert message in found


def test_the_probe_adds_its_step_to_every_number_and_uses_no_data(site: FactoryDataSite) -> None:
    """Bit for bit the received parameters plus PROBE_STEP, from one sample in one step."""
    plan_id = planned(site, algorithm=PROBE)
    start = parameters(seed=3)
    reply = ask(site, train_request(plan_id, algorithm=PROBE, parameters=start))
    expected = {name: tensor + PROBE_STEP for name, tensor in start.items()}
    assert digest(reply["parameters"]) == digest(expected)
    assert (reply["num_samples"], reply["num_steps"]) == (1, 1)


def test_a_ledger_that_is_gone_is_answered_with_a_failure(
    site: FactoryDataSite, tmp_path: Path
) -> None:
    """Every kind of request is answered, refused, and told no path."""
    plan_id = planned(site)
    site.ledger.close()
    for file in (tmp_path / "state").glob("ledger.db*"):
        file.unlink()
    (tmp_path / "state" / "ledger.db").mkdir()
    for request in (train_request(plan_id), {"kind": "describe"}, proposal()):
        error, message = error_of(ask(site, request))
        assert error == "DataSiteError"
        assert "the ledger cannot be used" in message
        assert str(tmp_path) not in message
    reply = wire.decode(site.handle(Parcel.of(b"noise"), RESEARCHER))
    assert reply["kind"] == "failure"
    assert reply["error"] == "ProtocolError"


FULL_DISK = """
import resource, sys
from pathlib import Path
sys.path[:0] = {path!r}
from sites import ask, inline, planned, register, site_settings, train_request
from datasite.site import FactoryDataSite

folder = Path(sys.argv[1])
site = FactoryDataSite(inline)
site.initialize_datasite(site_settings(folder))
register(site, folder)
plan_id = planned(site)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
for _ in range(2):
    reply = ask(site, train_request(plan_id))
    print(reply["kind"], reply["error"], "the ledger cannot be used" in reply["message"])
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
print(ask(site, train_request(plan_id))["kind"])
"""


def test_a_full_disk_gives_failures_until_there_is_room_again(tmp_path: Path) -> None:
    """An update that cannot be written down does not leave; the site recovers by itself."""
    tests = Path(__file__).resolve().parents[1]
    script = FULL_DISK.format(path=[str(tests), str(tests.parent)])
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    refused = "failure DataSiteError True"
    assert done.stdout.splitlines() == [refused, refused, "update"]


def test_a_damaged_ledger_is_answered_with_a_failure(site: FactoryDataSite, tmp_path: Path) -> None:
    """A file that is no database is an error of the site, and no traceback."""
    plan_id = planned(site)
    site.ledger.close()
    for file in (tmp_path / "state").glob("ledger.db-*"):
        file.unlink()
    (tmp_path / "state" / "ledger.db").write_bytes(b"no database at all" * 512)
    error, message = error_of(ask(site, train_request(plan_id)))
    assert error == "DataSiteError"
    assert "the ledger cannot be used" in message


def test_closing_a_site_that_was_never_opened_does_nothing() -> None:
    """What failed while it opened can be closed like the rest."""
    site = FactoryDataSite()
    site.close()
    site.close()
