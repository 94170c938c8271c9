"""Three ways to watch the same run."""

import io
import json
import math
from typing import Any

import pytest
from rich.console import Console

from core import ExperimentStatus
from orchestrator.observer import Observer
from orchestrator.progress import JsonLines, LiveDisplay, PlainLines, best_observer

# What errors really say: brackets that rich would take for markup, and a second line.
REASON = "factory-3: missing ['fc.weight'] [/] [/red] at [::1]:8081"

WAITING = (
    "run one: waiting for the operators of factory-1 to approve the plan "
    "('datasite plans list' there)"
)


def record(round_num: int, **changes: Any) -> dict[str, Any]:
    """Give the record of a round that two of three sites answered."""
    return {
        "round_num": round_num,
        "training": {"loss": 0.5, "slowest_fit_s": 0.1},
        "sites": {"factory-1": {}, "factory-2": {}},
        "missing": {"factory-3": REASON},
        "seconds": {"round": 1.234},
        **changes,
    }


EVALUATED = record(1, **{"global": {"loss": 0.25, "pr_auc": 0.75}})
WITHOUT_FAILURES = record(2, missing={}, **{"global": {"loss": 0.25, "pr_auc": math.nan}})


def watch(observer: Observer) -> None:
    """Play a whole run to the observer."""
    observer.connected("one", ["factory-1", "factory-2"], {"factory-3": REASON})
    observer.waiting("one", ["factory-1"])
    observer.started("one", 0, 3)
    for done in (record(0), EVALUATED, WITHOUT_FAILURES):
        observer.round_done("one", done)
    observer.finished("one", ExperimentStatus.FAILED, f"{REASON}\nsecond line")


def test_plain_lines_are_one_for_each_thing_that_happens() -> None:
    """For logs: everything said once, in words."""
    stream = io.StringIO()
    watch(PlainLines(stream))
    assert stream.getvalue().splitlines() == [
        "run one: connected to factory-1, factory-2",
        f"  factory-3 is missing: {REASON}",
        WAITING,
        "run one: rounds 0 to 2",
        "round    0  sites 2/3  train loss 0.5000  loss -  PR-AUC -  1.23 s",
        f"  factory-3 is missing: {REASON}",
        "round    1  sites 2/3  train loss 0.5000  loss 0.2500  PR-AUC 0.7500  1.23 s",
        f"  factory-3 is missing: {REASON}",
        "round    2  sites 2/2  train loss 0.5000  loss 0.2500  PR-AUC nan  1.23 s",
        f"run one: FAILED: {REASON}",
    ]


def strictly(line: str) -> Any:
    """Read JSON as other programs do: NaN is a mistake."""

    def refuse(name: str) -> float:
        raise ValueError(name)

    return json.loads(line, parse_constant=refuse)


def test_json_lines_hold_everything() -> None:
    """Each is an object that any program can read, with the run's name and what happened."""
    stream = io.StringIO()
    watch(JsonLines(stream))
    events = [strictly(line) for line in stream.getvalue().splitlines()]
    assert {event["run"] for event in events} == {"one"}
    assert [event["event"] for event in events] == [
        "connected",
        "waiting",
        "started",
        "round",
        "round",
        "round",
        "finished",
    ]
    assert events[0]["missing"] == {"factory-3": REASON}
    assert events[1]["sites"] == ["factory-1"]
    assert (events[2]["first_round"], events[2]["rounds"]) == (0, 3)
    assert {name: events[4][name] for name in EVALUATED} == EVALUATED
    assert events[5]["global"]["pr_auc"] is None
    assert (events[6]["status"], events[6]["message"]) == ("FAILED", f"{REASON}\nsecond line")


@pytest.fixture
def console() -> Console:
    """A terminal that records what it is shown."""
    return Console(
        file=io.StringIO(), record=True, force_terminal=True, width=120, color_system=None
    )


def test_the_live_display_shows_the_whole_run(console: Console) -> None:
    """Reasons stand there as they were given, whatever brackets they have."""
    watch(LiveDisplay(console))
    shown = console.export_text()
    assert shown.count(f"factory-3 is missing: {REASON}") == 3
    assert "waiting for the operators of factory-1" in shown
    assert f"run one: FAILED {REASON}" in shown
    assert "second line" not in shown
    for cell in ("PR-AUC", "2/3", "0.7500", "nan", "1.23", "3/3"):
        assert cell in shown


def test_the_live_display_shows_the_newest_rounds(console: Console) -> None:
    """A long run does not scroll the terminal away: of twenty rounds, the last eight remain."""
    display = LiveDisplay(console)
    display.started("one", 0, 20)
    for round_num in range(20):
        display.round_done("one", record(round_num, missing={}))
    console.export_text(clear=True)
    display.finished("one", ExperimentStatus.COMPLETED, "")
    rows = [line.split() for line in console.export_text().splitlines() if "2/2" in line]
    assert [row[0] for row in rows] == [str(n) for n in range(12, 20)]


def test_the_live_display_of_a_run_without_sites_ends(console: Console) -> None:
    """It may fail before the display has begun."""
    display = LiveDisplay(console)
    display.connected("one", [], {"factory-1": "connection refused"})
    display.finished("one", ExperimentStatus.FAILED, "")
    assert "connected to no site" in console.export_text()


@pytest.mark.parametrize(("as_json", "kind"), [(True, JsonLines), (False, PlainLines)])
def test_what_is_no_terminal_gets_lines(as_json: bool, kind: type[Observer]) -> None:  # noqa: FBT001 - the parameter is the case
    """A pipe or a file is not redrawn."""
    assert type(best_observer(as_json=as_json)) is kind


def test_an_observer_may_leave_everything_as_it_is() -> None:
    """Each method has a default that does nothing."""
    watch(Observer())


DRIFTED = {"train_loss": 0.5, "psi.load": 0.31, "psi.heat": 0.21, "psi.speed": 0.2}
WARNING = (
    "factory-2: its data have drifted from their first version: load (PSI 0.31, large), "
    "heat (PSI 0.21)"
)


def test_a_drift_is_told_once() -> None:
    """By site and sensor, from a PSI above 0.2; the next round says it again only when it moved."""
    stream = io.StringIO()
    observer = PlainLines(stream)
    for number in range(3):
        sites = {"factory-1": {"psi.load": 0.01}, "factory-2": DRIFTED}
        observer.round_done("one", record(number, sites=sites, missing={}))
    lines = stream.getvalue().splitlines()
    assert [line for line in lines if "drifted" in line] == [f"  {WARNING}"]
    assert lines[1] == f"  {WARNING}"


def test_the_live_display_tells_of_a_drift() -> None:
    """Above the table, as what is missing."""
    console = Console(file=io.StringIO(), width=200)
    observer = LiveDisplay(console)
    observer.started("one", 0, 1)
    observer.round_done("one", record(0, sites={"factory-2": DRIFTED}, missing={}))
    observer.finished("one", ExperimentStatus.COMPLETED, "")
    assert console.file.getvalue().count(WARNING) == 1  # type: ignore[attr-defined]
