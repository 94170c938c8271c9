"""Runs that lose sites, wait for them, are stopped and taken up again; no work is lost or mixed."""

import json
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from federations import Federation
from site_process import wait_until
from sqlalchemy import select

from core import wire
from core.enums import ExperimentStatus
from core.exceptions import (
    CommunicationError,
    ConfigurationError,
    DataSiteError,
    ExperimentError,
)
from core.messages import Failure
from core.wire import Parcel
from datasite.ledger import AuditRow
from orchestrator.cancelling import cancel
from orchestrator.communication.memory import Handler, MemoryCommunication
from orchestrator.experiment import ExperimentOrchestrator
from orchestrator.halting import Halt
from orchestrator.observer import Observer

PATIENCE_S = 30.0


class Line:
    """The way to one site, which can be cut; it may do so by itself when it is asked something.

    Attributes:
        is_cut: Whether nobody is reached.
        on: What happens before a kind of request is passed on, by its kind.
        asked: The kinds of what was passed on.
    """

    def __init__(self, site_id: str, handler: Handler) -> None:
        self.site_id = site_id
        self.is_cut = False
        self.on: dict[str, Callable[[Mapping[str, Any]], None]] = {}
        self.asked: list[str] = []
        self._handler = handler

    def __call__(self, request: Parcel, email: str) -> Parcel:
        """Pass a request on."""
        message = wire.peek(request)
        self.on.get(message["kind"], lambda _message: None)(message)
        if self.is_cut:
            raise CommunicationError(f"{self.site_id}: connection refused", site_id=self.site_id)
        self.asked.append(message["kind"])
        return self._handler(request, email)

    def mend(self) -> None:
        """Have everything pass from now on."""
        self.on.clear()
        self.is_cut = False


@pytest.fixture
def lines(federation: Federation) -> dict[str, Line]:
    """The ways to the three sites."""
    return {site_id: Line(site_id, handler) for site_id, handler in federation.handlers().items()}


def start(
    federation: Federation,
    lines: Mapping[str, Line],
    observer: Observer | None = None,
    halt: Halt | None = None,
    **changes: object,
) -> ExperimentOrchestrator:
    """Set the run `one` up over these lines; who runs it."""
    settings = federation.settings(**{"limits": {"attempts": 1, "sites_s": 0}, **changes})
    orchestrator = ExperimentOrchestrator(
        lambda _config: MemoryCommunication(dict(lines)), federation.store, observer, halt
    )
    orchestrator.setup_experiment({**settings, "experiment_id": "one"})
    return orchestrator


def sites_of(results: Mapping[str, Any]) -> list[list[str]]:
    """Give who trained, round by round."""
    return [sorted(record["sites"]) for record in results["rounds"]]


def trained_rounds(federation: Federation, site_id: str) -> list[int]:
    """Give the rounds that a site trained, in order, by its own audit log."""
    with federation.sites[site_id].ledger.read() as session:
        rows = session.scalars(
            select(AuditRow).where(AuditRow.action == "train").order_by(AuditRow.seq)
        )
        return [row.detail["round_num"] for row in rows if row.outcome == "ok"]


class At(Observer):
    """Does something when a round is done."""

    def __init__(self, **deeds: Callable[[], None]) -> None:
        self.deeds = deeds
        self.waited_for: list[dict[str, str]] = []

    def round_done(self, run_id: str, record: Mapping[str, Any]) -> None:
        """Do what belongs to the round."""
        self.deeds.get(f"round_{record['round_num']}", lambda: None)()

    def away(self, run_id: str, away: Mapping[str, str], limit_s: float) -> None:
        """Do what belongs to a wait."""
        self.waited_for.append(dict(away))
        self.deeds.get("away", lambda: None)()


def cut(line: Line, *, is_cut: bool = True) -> Callable[[], None]:
    """Give what cuts a line, or mends it."""

    def do() -> None:
        line.is_cut = is_cut

    return do


def test_a_site_that_was_not_there_at_first_trains_in_later_rounds(
    federation: Federation, lines: dict[str, Line]
) -> None:
    """It is logged in to, proposes its plan, and is asked from the next round on."""
    late = lines["factory-3"]
    late.is_cut = True
    mended = threading.Event()

    def mend() -> None:
        late.is_cut = False
        wait_until(
            lambda: "propose" in late.asked, limit_s=PATIENCE_S, what="factory-3 joins the run"
        )
        mended.set()

    results = start(federation, lines, At(round_0=mend), min_sites=2).run_experiment("one")
    assert mended.is_set()
    both, all_three = ["factory-1", "factory-2"], ["factory-1", "factory-2", "factory-3"]
    assert sites_of(results) == [both, all_three, all_three]
    assert results["rounds"][0]["missing"] == {"factory-3": "factory-3: connection refused"}


def test_a_site_that_is_lost_and_comes_back_misses_its_rounds_alone(
    federation: Federation, lines: dict[str, Line]
) -> None:
    """The run goes on without it, and with it again; it trains each round once."""
    line = lines["factory-2"]
    lost = At(round_0=cut(line), round_1=cut(line, is_cut=False))

    def back() -> None:
        line.is_cut = False
        before = line.asked.count("propose")
        wait_until(
            lambda: line.asked.count("propose") > before, limit_s=PATIENCE_S, what="it is back"
        )

    lost.deeds["round_1"] = back
    results = start(federation, lines, lost, min_sites=2, rounds=4).run_experiment("one")
    assert [len(sites) for sites in sites_of(results)] == [3, 2, 3, 3]
    assert trained_rounds(federation, "factory-2") == [0, 2, 3]


def test_a_run_below_its_minimum_waits_says_for_whom_and_goes_on(
    federation: Federation, lines: dict[str, Line]
) -> None:
    """It ends as if nothing had been; what the others had trained they do not train again."""
    undisturbed = federation.run("undisturbed")
    trained = {site_id: trained_rounds(federation, site_id) for site_id in lines}
    line = lines["factory-3"]
    line.on["train"] = lambda message: setattr(line, "is_cut", message["round_num"] == 1)

    observer = At(away=line.mend)
    limits = {"attempts": 1, "sites_s": PATIENCE_S}
    results = start(federation, lines, observer, limits=limits).run_experiment("one")
    assert observer.waited_for == [{"factory-3": "factory-3: connection refused"}]
    assert results["parameters_sha256"] == undisturbed["parameters_sha256"]
    for site_id in lines:
        assert trained_rounds(federation, site_id) == [*trained[site_id], 0, 1, 2]


@pytest.mark.parametrize("kind", ["describe", "propose", "statistics", "evaluate"])
def test_whatever_is_asked_is_waited_for(
    federation: Federation, lines: dict[str, Line], kind: str
) -> None:
    """A line that breaks at any kind of request costs a wait and nothing else."""
    line = lines["factory-1"]
    line.on[kind] = lambda _message: setattr(line, "is_cut", True)

    observer = At(away=line.mend)
    limits = {"attempts": 1, "sites_s": PATIENCE_S}
    results = start(federation, lines, observer, limits=limits).run_experiment("one")
    assert (results["status"], len(observer.waited_for)) == ("COMPLETED", 1)
    assert results["parameters_sha256"] == federation.run("two")["parameters_sha256"]


def test_a_wait_that_is_over_tells_who_and_why(
    federation: Federation, lines: dict[str, Line]
) -> None:
    """The run has FAILED, can be resumed, and keeps what it has."""
    line = lines["factory-2"]
    limits = {"attempts": 1, "sites_s": 0.2}
    orchestrator = start(federation, lines, At(round_0=cut(line)), limits=limits)
    with pytest.raises(CommunicationError) as caught:
        orchestrator.run_experiment("one")
    assert str(caught.value) == (
        "round 1: 2 of at least 3 sites answered; missing:\n"
        "  factory-2: connection refused\n(waited 0.2 s for factory-2)"
    )
    found = federation.store.results("one")
    assert (found["status"], found["sites"]["factory-2"]["status"]) == ("FAILED", "OFFLINE")
    assert found["sites"]["factory-2"]["message"] == "factory-2: connection refused"
    line.is_cut = False
    resumed = orchestrator.run_experiment("one")
    assert (resumed["status"], len(resumed["rounds"])) == ("COMPLETED", 3)


def test_a_site_that_is_back_and_lost_again_is_not_waited_for_for_ever(
    federation: Federation, lines: dict[str, Line]
) -> None:
    """It answers all but the training: the limit goes from the first time that it was missed."""

    def too_much(_message: Mapping[str, Any]) -> None:
        raise CommunicationError("factory-2: reset", site_id="factory-2")

    lines["factory-2"].on["train"] = too_much
    limits = {"attempts": 1, "sites_s": 0.5}
    with pytest.raises(CommunicationError, match=r"factory-2: reset\n\(waited 0.5 s for"):
        start(federation, lines, limits=limits).run_experiment("one")


def test_what_waiting_does_not_mend_is_not_waited_for(
    federation: Federation, lines: dict[str, Line]
) -> None:
    """A denied plan is a person's decision: the run fails at once, whatever its patience."""
    federation.sites["factory-1"].registry.remove("ai4i", who="operator")
    observer = At()
    limits = {"attempts": 1, "sites_s": 3600.0}
    with pytest.raises(Exception, match="factory-1: has no dataset"):
        start(federation, lines, observer, limits=limits).run_experiment("one")
    assert observer.waited_for == []


def test_a_run_stopped_after_its_round_can_be_taken_up(
    federation: Federation, lines: dict[str, Line]
) -> None:
    """The first Ctrl-C: the round under way is finished and kept, the next is not begun."""
    undisturbed = federation.run("undisturbed")
    halt = Halt()
    lines["factory-1"].on["train"] = lambda _message: setattr(halt, "after_round", True)
    orchestrator = start(federation, lines, halt=halt)
    with pytest.raises(KeyboardInterrupt):
        orchestrator.run_experiment("one")
    row = federation.store.find("one")
    assert (row.status, row.rounds_done) == ("CANCELLED", 1)
    assert row.message == "stopped; to go on: orchestrator resume one"
    resumed = federation.orchestrator().run_experiment("one")
    assert resumed["parameters_sha256"] == undisturbed["parameters_sha256"]


def test_a_run_cancelled_from_elsewhere_stops_its_sites(
    federation: Federation, lines: dict[str, Line]
) -> None:
    """In the middle of a training: who is at work is told, the run is CANCELLED and can go on."""
    undisturbed = federation.run("undisturbed")
    trains, told = threading.Event(), threading.Event()

    def hang(message: Mapping[str, Any]) -> None:
        if message["round_num"] == 1:
            trains.set()
            assert told.wait(PATIENCE_S)
            raise CommunicationError("factory-2: nobody waits", site_id="factory-2")

    lines["factory-2"].on |= {"train": hang, "cancel": lambda _message: told.set()}
    orchestrator = start(federation, lines)
    ended: list[BaseException] = []

    def run() -> None:
        try:
            orchestrator.run_experiment("one")
        except KeyboardInterrupt as exc:
            ended.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    assert trains.wait(PATIENCE_S)
    cancel(federation.store, "one")
    thread.join(PATIENCE_S)
    assert told.is_set()
    assert len(ended) == 1
    row = federation.store.find("one")
    assert (row.status, row.rounds_done) == ("CANCELLED", 1)
    assert lines["factory-2"].asked.count("cancel") == 1
    lines["factory-2"].on.clear()
    resumed = orchestrator.run_experiment("one")
    assert resumed["parameters_sha256"] == undisturbed["parameters_sha256"]


def test_a_run_that_nobody_runs_is_cancelled_by_a_word(
    federation: Federation, lines: dict[str, Line]
) -> None:
    """One that is RUNNING without a process is orphaned; one that has ended cannot be cancelled."""
    start(federation, lines)
    store = federation.store
    store.move("one", ExperimentStatus.RUNNING)
    assert store.is_orphaned(store.find("one"))
    with store.owned("one"):
        assert not store.is_orphaned(store.find("one"))
    cancel(store, "one")
    assert store.find("one").status == "CANCELLED"
    with pytest.raises(ExperimentError, match="is CANCELLED and not under way"):
        cancel(store, "one")


def test_a_word_to_stop_does_not_outlive_the_run_it_was_for(
    federation: Federation, lines: dict[str, Line]
) -> None:
    """Left by a process that died before it saw it, it does not stop who takes the run up."""
    orchestrator = start(federation, lines)
    federation.store.ownership("one").ask_to_stop()
    assert orchestrator.run_experiment("one")["status"] == "COMPLETED"


def test_a_run_that_died_with_its_last_round_done_needs_no_site(
    federation: Federation, lines: dict[str, Line]
) -> None:
    """Only the results were not written: they are, though every site is away."""
    done = start(federation, lines).run_experiment("one")
    store = federation.store
    for name in ("results.json", "model.safetensors"):
        (store.folder("one") / name).unlink()
    store.move("one", ExperimentStatus.RUNNING)
    for line in lines.values():
        line.is_cut = True
    again = ExperimentOrchestrator(
        lambda _config: MemoryCommunication(dict(lines)), store
    ).run_experiment("one")
    assert again == done


def test_a_late_update_is_dropped_and_in_no_other_round(
    federation: Federation, lines: dict[str, Line]
) -> None:
    """The slow site misses its round, is told so, and trains in the next as if new."""
    told = threading.Event()

    def dawdle(message: Mapping[str, Any]) -> None:
        if message["round_num"] == 1:
            assert told.wait(PATIENCE_S)

    line = lines["factory-2"]
    line.on |= {"train": dawdle, "cancel": lambda _message: told.set()}
    changes = {"min_sites": 2, "stragglers": {"cutoff_s": 0.5}, "rounds": 3}
    results = start(federation, lines, **changes).run_experiment("one")
    assert told.is_set()
    assert sites_of(results)[1] == ["factory-1", "factory-3"]
    assert "its answer to round 1 was not there after the cutoff" in str(
        results["rounds"][1]["missing"]["factory-2"]
    )
    # The same as a run that the site was never asked in for that round.
    for other in lines.values():
        other.on.clear()

    def refuse(message: Mapping[str, Any]) -> None:
        if message["round_num"] == 1:
            raise DataSiteError("factory-2: not today", site_id="factory-2")

    line.on["train"] = refuse
    orchestrator = ExperimentOrchestrator(
        lambda _config: MemoryCommunication(dict(lines)), federation.store
    )
    settings = federation.settings(min_sites=2)
    orchestrator.setup_experiment({**settings, "experiment_id": "two"})
    assert orchestrator.run_experiment("two")["parameters_sha256"] == results["parameters_sha256"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({}, "without min_sites every site is waited for", id="no-minimum"),
        pytest.param(
            {"min_sites": 2, "stragglers": {"cutoff_s": 1, "partial": True}},
            "stragglers.partial: fedavg takes sites to have done all their steps",
            id="partial-fedavg",
        ),
    ],
)
def test_stragglers_that_mean_nothing_are_refused(
    federation: Federation, changes: dict[str, object], message: str
) -> None:
    """With what to choose instead."""
    with pytest.raises(ConfigurationError, match=message):
        federation.run("one", **{"stragglers": {"cutoff_s": 1}, **changes})


HOOK = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(sys.stdin.read())"


def test_a_site_in_error_is_told_to_who_maintains_it(
    federation: Federation, lines: dict[str, Line], tmp_path: Path
) -> None:
    """The command is given what happened and what to inspect; the run goes on."""
    told = tmp_path / "event.json"

    def break_down(request: Parcel, email: str) -> Parcel:
        if wire.peek(request)["kind"] != "train":
            return lines["factory-3"](request, email)
        failure = Failure(
            kind="failure",
            error="DataSiteError",
            message="factory-3: the trainer ended in the middle of the work",
            datasite_id="factory-3",
        )
        return wire.encode(failure)

    broken: Any = {**lines, "factory-3": break_down}
    command = [sys.executable, "-c", HOOK, str(told)]
    start(
        federation, broken, min_sites=2, rounds=1, maintenance={"command": command}
    ).run_experiment("one")
    wait_until(lambda: told.exists() and told.read_text() != "", limit_s=PATIENCE_S, what="told")
    event = json.loads(told.read_text())
    del event["at"]
    assert event == {
        "event": "site_error",
        "run": "one",
        "site": "factory-3",
        "error": "DataSiteError",
        "message": "factory-3: the trainer ended in the middle of the work",
        "inspect": "the site's log, disk and memory: 'datasite doctor' there",
    }


def test_a_hook_that_fails_leaves_the_run_alone(
    federation: Federation, lines: dict[str, Line]
) -> None:
    """It is logged, and nothing else."""
    lines["factory-3"].on["train"] = lambda _message: (_ for _ in ()).throw(
        DataSiteError("factory-3: broken", site_id="factory-3")
    )
    hooks = {"command": ["/no/such/program"], "webhook": "http://127.0.0.1:1/"}
    results = start(federation, lines, min_sites=2, rounds=1, maintenance=hooks).run_experiment(
        "one"
    )
    assert results["status"] == "COMPLETED"


@pytest.mark.parametrize("algorithm", ["fedprox", "fednova"])
def test_partial_work_counts_with_the_steps_really_done(
    federation: Federation, lines: dict[str, Line], algorithm: str
) -> None:
    """Training without end is cut short at each site, and makes a round all the same."""
    endless = {"local_epochs": 10**6, "batch_size": 64, "learning_rate": 0.01}
    results = start(
        federation,
        lines,
        min_sites=1,
        rounds=1,
        algorithm={"name": algorithm, "mu": 0.1},
        training=endless,
        stragglers={"cutoff_s": 1.0, "partial": True},
    ).run_experiment("one")
    sites = results["rounds"][0]["sites"]
    assert sites
    assert all(0 < site["num_steps"] < 10**6 for site in sites.values())
