"""`datasite budget`, and what `datasite plans show` says of a plan's cost."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from sites import BUDGET, PRIVATE, ask, inline, planned, register, site_settings, train_request
from typer.testing import CliRunner

from datasite.cli.app import app
from datasite.ledger import AuditRow
from datasite.site import FactoryDataSite

Say = Callable[..., str]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A site's configuration, with a budget for every dataset."""
    path = tmp_path / "site.yaml"
    path.write_text(yaml.safe_dump(site_settings(tmp_path, budget=BUDGET)))
    return path


@pytest.fixture
def site(config: Path, tmp_path: Path) -> FactoryDataSite:
    """The site itself, with `press` registered."""
    opened = FactoryDataSite(inline)
    opened.initialize_datasite(yaml.safe_load(config.read_text()))
    register(opened, tmp_path)
    return opened


@pytest.fixture
def say(config: Path) -> Say:
    """Give what a command prints; it must succeed unless another exit code is expected."""

    def run(*words: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, [*words, "--config", str(config)])
        if code:
            assert result.exception is not None
            return str(result.exception)
        assert result.exit_code == 0, (result.output, result.exception)
        return result.output

    return run


def trained(site: FactoryDataSite, run_id: str, rounds: int, **changes: Any) -> str:
    """Train so many rounds of a plan; its id."""
    plan_id = planned(site, run_id=run_id, **changes)
    for round_num in range(rounds):
        assert ask(site, train_request(plan_id, round_num=round_num))["kind"] == "update"
    return plan_id


def test_the_budget_tells_what_was_spent_by_whom_and_what_is_left(
    site: FactoryDataSite, say: Say, tmp_path: Path
) -> None:
    """By plan, with the unit wherever ε stands; and as a picture over time."""
    plan_id = trained(site, "run-1", 3, **PRIVATE)
    trained(site, "run-2", 1, **PRIVATE)
    trained(site, "run-3", 2)
    picture = tmp_path / "press.png"
    said = say("budget", "show", "press", "--picture", str(picture))
    assert "of 9 per window spent at δ = 1e-05" in said
    assert "2 rounds were answered under other privacy levels: no ε holds" in said
    assert plan_id[:12] in said
    assert "3/3" in said
    assert "1/3" in said
    width, height = struct.unpack(">II", picture.read_bytes()[16:24])
    assert (width, height) == (1200, 675)
    (told,) = json.loads(say("budget", "show", "press", "--json"))
    assert told["budget"] == BUDGET
    assert told["epsilon_prv"] < told["epsilon"] < BUDGET["epsilon"]
    assert [plan["trained"] for plan in told["plans"]] == [3, 1]
    assert told["steps"][-1]["epsilon"] == told["epsilon"]


def test_a_budget_is_set_and_on_the_audit_log(site: FactoryDataSite, say: Say) -> None:
    """Who set it, and to what; every later plan is held to it."""
    said = say("budget", "set", "press", "--epsilon", "0.5", "--delta", "1e-6")
    assert said == "press: ε = 0.5 per window at δ = 1e-06\n"
    with site.ledger.read() as session:
        row = session.query(AuditRow).where(AuditRow.action == "privacy budget set").one()
    assert (row.who, row.detail) == (
        "operator",
        {"dataset": "press", "epsilon": 0.5, "delta": 1e-6, "unit": "window"},
    )
    plan_id = planned(site, **PRIVATE)
    assert ask(site, train_request(plan_id))["error"] == "PrivacyBudgetError"


@pytest.mark.parametrize(
    ("option", "value"), [("--epsilon", "0"), ("--delta", "1"), ("--unit", "row")]
)
def test_a_budget_that_means_nothing_is_refused(say: Say, option: str, value: str) -> None:
    """With what it may be."""
    given = {"--epsilon": "1", "--delta": "1e-5", option: value}
    words = [word for pair in given.items() for word in pair]
    assert option.removeprefix("--") in say("budget", "set", "press", *words, code=4)


def test_who_decides_on_a_plan_sees_what_it_costs(site: FactoryDataSite, say: Say) -> None:
    """ε, δ, unit, what is spent already, and how many of its rounds the budget allows."""
    plan_id = trained(site, "run-1", 1, **PRIVATE)
    said = say("plans", "show", plan_id)
    assert "ε = 5 per window at δ = 1e-05, all 3 rounds together" in said
    assert "1 of the plan's rounds among it" in said
    assert "the budget allows 2 of them" in said
    assert "per feature the sum" not in said
    assert "the mean loss" not in said


def test_the_command_that_is_missing_is_named(site: FactoryDataSite, say: Say) -> None:
    """A picture is of one dataset; an unknown one is refused."""
    assert "has no dataset 'mill'; it has: press" in say("budget", "show", "mill", code=1)
