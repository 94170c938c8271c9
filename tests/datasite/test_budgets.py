"""What a site's privacy budgets promise: nothing leaves unpaid, nothing is paid twice."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sites import (
    BUDGET,
    PRIVATE,
    RESEARCHER,
    RIVAL,
    SCHEMA,
    TRAIN_ROWS,
    TRAINING,
    ask,
    evaluate_request,
    parameters,
    planned,
    proposal,
    register,
    site_settings,
    train_request,
    write_table,
)
from untrusted import Says

from core.accounting import Event, epsilon
from core.exceptions import PrivacyBudgetError
from datasite.caller import Caller
from datasite.configuration import Budget
from datasite.ledger import AuditRow, ReplyRow
from datasite.site import FactoryDataSite
from datasite.training.work import Assignment, Done

OpenSite = Callable[..., FactoryDataSite]

ROUNDS = 3
"""Of each plan here."""


@pytest.fixture
def private(open_site: OpenSite, tmp_path: Path) -> FactoryDataSite:
    """A site whose dataset has a budget for three plans."""
    site = open_site(budget=BUDGET)
    register(site, tmp_path)
    return site


def private_plan(site: FactoryDataSite, run_id: str = "run-1", **changes: Any) -> str:
    """Propose a plan with differential privacy; its id."""
    return planned(site, run_id=run_id, **PRIVATE, **changes)


def account_of(site: FactoryDataSite, plan_id: str, caller: Caller = RESEARCHER) -> dict[str, Any]:
    """Ask for a plan's account."""
    request = {"kind": "privacy_account", "plan_id": plan_id, "deadline_s": 60.0}
    return ask(site, request, caller)


def train(site: FactoryDataSite, plan_id: str, round_num: int = 0, **changes: Any) -> Any:
    """Ask for a round."""
    return ask(site, train_request(plan_id, round_num=round_num, **changes))


def train_all(site: FactoryDataSite, plan_id: str) -> None:
    """Train every round of a plan."""
    for round_num in range(ROUNDS):
        assert train(site, plan_id, round_num)["kind"] == "update"


def spent(site: FactoryDataSite) -> list[tuple[str, int]]:
    """Give plan and round of everything that was paid for."""
    return [(each.plan_id, each.round_num) for each in _budgets(site).spent("press")]


def _budgets(site: FactoryDataSite) -> Any:
    return site.budgets


def audited(site: FactoryDataSite, action: str) -> list[AuditRow]:
    """Give the audit log's rows of one kind."""
    with site.ledger.read() as session:
        return list(session.query(AuditRow).where(AuditRow.action == action))


def test_an_update_tells_nothing_beside_what_is_listed(private: FactoryDataSite) -> None:
    """Neither the loss nor the drift; how many windows and steps is public."""
    update = train(private, private_plan(private))
    assert update.keys() == {
        "kind",
        "datasite_id",
        "round_num",
        "num_samples",
        "num_steps",
        "metrics",
        "parameters",
    }
    assert update["metrics"].keys() == {"fit_s"}
    # 16 of 60 windows on average in a step: 60 / 16, to the nearest, are 4 steps an epoch.
    assert (update["num_samples"], update["num_steps"]) == (TRAIN_ROWS, 4)


@pytest.mark.parametrize("metric", ["train_loss", "psi.load"])
def test_the_gate_withholds_what_was_computed_from_rows(
    open_site: OpenSite, tmp_path: Path, metric: str
) -> None:
    """Also when the trainer was taken over; and what is withheld is not paid for."""

    def tells(reply: dict[str, Any]) -> None:
        if reply["kind"] == "update":
            reply["metrics"][metric] = 0.5

    site = open_site(lambda _config: Says(tells), budget=BUDGET)
    register(site, tmp_path)
    reply = train(site, private_plan(site))
    assert (reply["kind"], reply["error"]) == ("failure", "SecurityError")
    assert "metrics may not leave" in reply["message"]
    assert spent(site) == []


def test_two_rounds_of_the_same_request_differ(open_site: OpenSite, tmp_path: Path) -> None:
    """The run's seed decides nothing: noise and batches come of a secret source."""
    updates = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        site = FactoryDataSite(lambda _config: Says(lambda _reply: None))
        site.initialize_datasite(site_settings(tmp_path / name, budget=BUDGET))
        register(site, tmp_path / name)
        updates.append(train(site, private_plan(site))["parameters"])
        site.close()
    first, second = updates
    assert not any(torch.equal(first[name], second[name]) for name in first)


def test_sums_over_rows_are_refused(private: FactoryDataSite) -> None:
    """No ε would hold for them."""
    reply = ask(private, {"kind": "statistics", "plan_id": private_plan(private)})
    assert (reply["error"], "sums over rows are not told" in reply["message"]) == (
        "SecurityError",
        True,
    )


def test_a_round_is_on_the_audit_log_with_what_it_cost(private: FactoryDataSite) -> None:
    """An auditor computes the same ε from the log alone."""
    plan_id = private_plan(private)
    train_all(private, plan_id)
    account = account_of(private, plan_id)
    costs = [row.detail["privacy"] for row in audited(private, "train")]
    assert {cost["unit"] for cost in costs} == {"window"}
    events = [Event(cost["noise_multiplier"], cost["sample_rate"], cost["steps"]) for cost in costs]
    assert epsilon(events, 1e-5) == account["budget"]["spent"]
    assert 0.99 * 5.0 < account["budget"]["spent"] <= 5.0


def test_the_account_says_what_a_plan_costs(private: FactoryDataSite) -> None:
    """Before the first round, and after the second."""
    plan_id = private_plan(private)
    before = account_of(private, plan_id)
    sigma = before.pop("noise_multiplier")
    assert before == {
        "kind": "privacy_spent",
        "datasite_id": "factory-1",
        "unit": "window",
        "units": TRAIN_ROWS,
        "windows_per_reading": 1,
        "sample_rate": 16 / 60,
        "steps": 4,
        "epsilon": 5.0,
        "delta": 1e-5,
        "rounds_trained": 0,
        "rounds_left": 3,
        "budget": {"epsilon": BUDGET["epsilon"], "delta": 1e-5, "spent": 0.0},
    }
    for round_num in (0, 1):
        train(private, plan_id, round_num)
    after = account_of(private, plan_id)
    assert (after["rounds_trained"], after["rounds_left"]) == (2, 1)
    assert after["budget"]["spent"] == epsilon([Event(sigma, 16 / 60, 8)], 1e-5)


def test_the_account_is_its_researchers_alone(private: FactoryDataSite) -> None:
    """As all else of a plan."""
    assert account_of(private, private_plan(private), RIVAL)["error"] == "PlanError"


def test_a_plan_of_another_level_has_no_account(private: FactoryDataSite) -> None:
    """It costs no budget, and says so."""
    reply = account_of(private, planned(private))
    assert (reply["error"], "has no account" in reply["message"]) == ("SecurityError", True)


def test_without_a_budget_nothing_is_done(open_site: OpenSite, tmp_path: Path) -> None:
    """The operator learns by which command to set one; with it the plan goes on."""
    site = open_site()
    register(site, tmp_path)
    plan_id = private_plan(site)
    for reply in (train(site, plan_id), account_of(site, plan_id)):
        assert reply["error"] == "PrivacyBudgetError"
        assert "'datasite budget set press --epsilon E --delta D --unit window'" in reply["message"]
    _budgets(site).set("press", Budget(epsilon=10.0, delta=1e-5), who="operator")
    assert train(site, plan_id)["kind"] == "update"


def test_a_budget_for_another_unit_refuses_the_plan(open_site: OpenSite, tmp_path: Path) -> None:
    """Neither kind of round could be counted in the other's budget."""
    site = open_site(budget={**BUDGET, "unit": "machine"})
    register(site, tmp_path)
    reply = train(site, private_plan(site))
    assert reply["error"] == "PrivacyBudgetError"
    assert "protects each machine, and the plan each window" in reply["message"]
    _budgets(site).set("press", Budget(**BUDGET), who="operator")
    assert train(site, private_plan(site))["kind"] == "update"
    back = Budget(**{**BUDGET, "unit": "machine"})
    with pytest.raises(PrivacyBudgetError, match="paid for by the window"):
        _budgets(site).set("press", back, who="operator")


class Counts(Says):
    """A trainer that notes what it was asked for."""

    def __init__(self) -> None:
        super().__init__(lambda _reply: None)
        self.performed = 0

    def perform(self, assignment: Assignment, **options: Any) -> Done:
        """Count, and do it."""
        self.performed += 1
        return super().perform(assignment, **options)


def test_three_plans_share_a_budget_and_the_fourth_finds_it_exhausted(
    open_site: OpenSite, tmp_path: Path
) -> None:
    """Plans of any researcher; what cannot be paid for is not begun, and is on the audit log."""
    trainer = Counts()
    site = open_site(lambda _config: trainer, budget=BUDGET)
    register(site, tmp_path)
    for run in range(3):
        train_all(site, private_plan(site, f"run-{run}"))
    fourth = private_plan(site, "run-3")
    account = account_of(site, fourth)
    assert account["rounds_left"] < ROUNDS
    for round_num in range(account["rounds_left"]):
        assert train(site, fourth, round_num)["kind"] == "update"
    done, paid = trainer.performed, spent(site)
    reply = train(site, fourth, account["rounds_left"])
    assert (reply["kind"], reply["error"]) == ("failure", "PrivacyBudgetError")
    assert "the privacy budget of 'press' is exhausted" in reply["message"]
    assert (trainer.performed, spent(site)) == (done, paid)
    assert audited(site, "train")[-1].outcome == "PrivacyBudgetError"
    all_told = epsilon([each.event for each in _budgets(site).spent("press")], 1e-5)
    assert all_told <= BUDGET["epsilon"]


def test_versions_share_a_budget(private: FactoryDataSite, tmp_path: Path) -> None:
    """The rows of one are mostly those of the other."""
    train_all(private, private_plan(private))
    before = account_of(private, private_plan(private, "run-2"))["budget"]["spent"]
    register(private, tmp_path, heat=7.0)
    newer = private_plan(private, "run-3", dataset_version=2)
    assert account_of(private, newer)["budget"]["spent"] == before > 0


def test_what_is_asked_for_again_is_not_paid_again(private: FactoryDataSite) -> None:
    """It is answered from the ledger, to the bit."""
    plan_id = private_plan(private)
    first, again = train(private, plan_id), train(private, plan_id)
    assert all(
        torch.equal(first["parameters"][n], again["parameters"][n]) for n in first["parameters"]
    )
    assert spent(private) == [(plan_id, 0)]


def test_a_plan_cannot_go_beyond_its_own_epsilon(private: FactoryDataSite) -> None:
    """Rounds that are asked for with other parameters are trainings, and it has three."""
    plan_id = private_plan(private)
    for seed in range(ROUNDS):
        assert train(private, plan_id, 0, parameters=parameters(seed))["kind"] == "update"
    reply = train(private, plan_id, 1)
    assert reply["error"] == "PrivacyBudgetError"
    assert "has spent its own (ε = 5, δ = 1e-05) per window on 3 trainings" in reply["message"]


def test_a_budget_survives_a_restart(open_site: OpenSite, tmp_path: Path) -> None:
    """What was spent, the noise that was fixed, and what the operator set."""
    site = open_site()
    register(site, tmp_path)
    _budgets(site).set("press", Budget(**BUDGET), who="operator")
    plan_id = private_plan(site)
    train(site, plan_id)
    before = account_of(site, plan_id)
    site.close()
    assert account_of(open_site(), plan_id) == before


def test_a_budget_that_is_lowered_meanwhile_stops_the_round(
    open_site: OpenSite, tmp_path: Path
) -> None:
    """It is asked again in the very transaction that would keep the reply."""
    opened: list[FactoryDataSite] = []

    def lowered(reply: dict[str, Any]) -> None:
        if reply["kind"] == "update":
            _budgets(opened[0]).set("press", Budget(epsilon=0.1, delta=1e-5), who="operator")

    opened.append(open_site(lambda _config: Says(lowered), budget=BUDGET))
    register(opened[0], tmp_path)
    reply = train(opened[0], private_plan(opened[0]))
    assert reply["error"] == "PrivacyBudgetError"
    assert spent(opened[0]) == []
    with opened[0].ledger.read() as session:
        assert session.query(ReplyRow).count() == 0


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"algorithm": {"name": "probe", "hyperparameters": {}}}, "is not proven for 'probe'"),
        ({"training": TRAINING | {"gradient_clip": 1.0}}, "leave out gradient_clip"),
        (
            {"privacy": {**PRIVATE["privacy"], "unit": "machine"}},
            "names no column of machines",
        ),
    ],
    ids=["algorithm", "clipping", "machines"],
)
def test_what_cannot_be_kept_private_is_refused_at_the_proposal(
    private: FactoryDataSite, changes: dict[str, Any], why: str
) -> None:
    """The site says which, and what to choose."""
    reply = ask(private, proposal(**{**PRIVATE, **changes}))
    assert (reply["error"], why in reply["message"]) == ("PlanError", True)


def test_a_machine_can_be_the_unit(open_site: OpenSite, tmp_path: Path) -> None:
    """Then machines are counted, and taken."""
    site = open_site(budget={**BUDGET, "unit": "machine"})
    schema = {**SCHEMA, "machine": {"column": "press_id"}}
    file = tmp_path / "press.csv"
    register(site, tmp_path)
    write_table(file, press_id=[f"p{row % 20}" for row in range(100)])
    site.register_data({"name": "presses", "file": file, "schema": schema})
    privacy = {**PRIVATE["privacy"], "unit": "machine"}
    plan_id = planned(site, dataset="presses", **{**PRIVATE, "privacy": privacy})
    account = account_of(site, plan_id)
    assert (account["unit"], account["units"]) == ("machine", 20)
    update = train(site, plan_id)
    assert (update["num_samples"], update["num_steps"]) == (TRAIN_ROWS, round(20 / 16))


def test_evaluation_is_not_covered_and_not_stopped(private: FactoryDataSite) -> None:
    """It counts other windows than those that are trained on."""
    plan_id = private_plan(private)
    assert ask(private, evaluate_request(plan_id))["kind"] == "evaluation"
    assert spent(private) == []
