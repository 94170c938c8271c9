"""Runs with differential privacy over whole federations, real and simulated."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from federations import Federation

from core.configuration import load_yaml
from core.exceptions import ConfigurationError, ExperimentError
from core.messages import PrivacyAccount
from core.schema import DataSchema
from datasite.configuration import Budget
from datasite.ledger import AuditRow
from orchestrator.communication.simulated import over_memory
from orchestrator.configuration import ClassWeight
from orchestrator.experiment import ExperimentOrchestrator
from orchestrator.observer import Observer
from orchestrator.private_runs import in_words, preprocessing_of, spent_in_words
from orchestrator.runs import RunStore
from orchestrator.testbed.presets import AI4I_SCHEMA

PRIVACY = {"level": "differential_privacy", "epsilon": 4.0, "delta": 1e-5}
MODEL = {"type": "cnn", "options": {"channels": 4, "blocks": 1}}


class Accounts(Observer):
    """Notes what a run costs."""

    told: Mapping[str, PrivacyAccount]

    def accounted(self, run_id: str, accounts: Mapping[str, PrivacyAccount]) -> None:
        """Note it."""
        self.told = accounts


class StopAfter(Accounts):
    """Interrupts the run after a round, as Ctrl-C does."""

    def __init__(self, round_num: int) -> None:
        self.round_num = round_num

    def round_done(self, run_id: str, record: Mapping[str, Any]) -> None:
        """Interrupt after the chosen round."""
        if record["round_num"] == self.round_num:
            raise KeyboardInterrupt


def set_budgets(federation: Federation, *, epsilon: float = 10.0, unit: str = "window") -> None:
    """Give every site a budget."""
    for site in federation.sites.values():
        budget = Budget.model_validate({"epsilon": epsilon, "delta": 1e-5, "unit": unit})
        site._private._budgets.set("ai4i", budget, who="operator")


def kinds_asked(federation: Federation) -> set[str]:
    """Give what the sites were asked for, by their audit logs."""
    found: set[str] = set()
    for site in federation.sites.values():
        with site.ledger.read() as session:
            found |= {row.action for row in session.query(AuditRow)}
    return found


@pytest.mark.parametrize("algorithm", ["fedavg", "fedprox"])
def test_a_private_run_costs_what_its_plan_says(federation: Federation, algorithm: str) -> None:
    """Told beforehand and after each round, by site, with unit and δ; no sums are asked for."""
    set_budgets(federation)
    watch = Accounts()
    settings = {"name": "fedprox", "mu": 0.1} if algorithm == "fedprox" else {"name": "fedavg"}
    results = federation.run("run", watch, privacy=PRIVACY, model=MODEL, algorithm=settings)
    assert watch.told.keys() == federation.sites.keys()
    words = "\n".join(in_words(watch.told))
    assert "factory-1: ε = 4 per window at δ = 1e-05 for the whole run; noise σ = " in words
    assert "it allows 3 more rounds of this run" in words
    spent = [record["privacy"]["factory-1"]["epsilon"] for record in results["rounds"]]
    assert spent == sorted(spent)
    assert 0.99 * 4.0 < spent[-1] <= 4.0
    last = results["rounds"][-1]
    assert last["privacy"]["factory-1"] == {"epsilon": spent[-1], "delta": 1e-5, "unit": "window"}
    assert math.isnan(last["training"]["loss"])
    assert "factory-1: ε = 3.99" in "\n".join(spent_in_words(results["rounds"]))
    assert results["privacy"] == last["privacy"]
    assert "statistics" not in kinds_asked(federation)
    assert math.isfinite(last["global"]["pr_auc"])


def test_a_budget_that_is_too_small_stops_the_run_before_it_begins(federation: Federation) -> None:
    """Nothing is trained, and the message says how many rounds there are."""
    set_budgets(federation, epsilon=3.0)
    with pytest.raises(ExperimentError, match=r"allows [12] more rounds of this run, which has 3"):
        federation.run("run", privacy=PRIVACY, model=MODEL)
    assert "train" not in kinds_asked(federation)


def test_a_run_goes_on_without_a_site_that_cannot_pay(federation: Federation) -> None:
    """As `min_sites` bears it; that site trains nothing, and says nothing in evaluation."""
    set_budgets(federation)
    poor = federation.sites["factory-2"]._private._budgets
    poor.set("ai4i", Budget(epsilon=0.5, delta=1e-5), who="operator")
    results = federation.run("run", privacy=PRIVACY, model=MODEL, min_sites=2)
    assert results["rounds"][-1]["sites"].keys() == {"factory-1", "factory-3"}
    assert results["rounds"][-1]["per_site"].keys() == {"factory-1", "factory-3"}
    assert (
        "its privacy budget does not allow the run" in results["rounds"][0]["missing"]["factory-2"]
    )
    assert poor.spent("ai4i") == []


def test_a_run_that_goes_on_pays_each_round_once(federation: Federation) -> None:
    """Interrupted and resumed, it costs what it would have cost at once."""
    set_budgets(federation)
    orchestrator = federation.orchestrator(StopAfter(0))
    settings = federation.settings(privacy=PRIVACY, model=MODEL)
    orchestrator.setup_experiment({**settings, "experiment_id": "run"})
    with pytest.raises(KeyboardInterrupt):
        orchestrator.run_experiment("run")
    results = federation.orchestrator().run_experiment("run")
    assert results["status"] == "COMPLETED"
    paid = federation.sites["factory-1"]._private._budgets.spent("ai4i")
    assert [each.round_num for each in paid] == [0, 1, 2]
    assert results["rounds"][-1]["privacy"]["factory-1"]["epsilon"] <= 4.0


def test_three_runs_share_the_budget(federation: Federation) -> None:
    """Of ε = 7 the second leaves too little for the third."""
    set_budgets(federation, epsilon=6.0)
    federation.run("one", privacy=PRIVACY, model=MODEL)
    watch = Accounts()
    federation.run("two", watch, privacy=PRIVACY, model=MODEL)
    assert 3.9 < watch.told["factory-1"]["budget"]["spent"] <= 4.0
    with pytest.raises(ExperimentError, match="its privacy budget allows"):
        federation.run("three", privacy=PRIVACY, model=MODEL)


def test_clipping_twice_is_refused(federation: Federation) -> None:
    """There is one norm, and it is the privacy section's."""
    with pytest.raises(ConfigurationError, match="leave gradient_clip out"):
        federation.run("run", privacy=PRIVACY, training={"gradient_clip": 1.0})


def test_the_scaler_comes_from_the_schema() -> None:
    """From where values usually lie, or else from the range as if they lay evenly in it."""
    published = load_yaml(AI4I_SCHEMA, DataSchema)
    first = published.columns[1].model_copy(update={"usual": None})
    columns = (published.columns[0], first, *published.columns[2:])
    schema = published.model_copy(update={"columns": columns})
    made = preprocessing_of(schema, ClassWeight.BALANCED)
    by_name = {
        name: (mean, scale)
        for name, mean, scale in zip(schema.features, made["mean"], made["scale"], strict=True)
    }
    low, high = schema.columns[1].range or (0.0, 0.0)
    expected = ((low + high) / 2, (high - low) / 12**0.5)
    assert by_name[schema.columns[1].name] == pytest.approx(expected)
    assert by_name["Torque [Nm]"] == pytest.approx((40.0, 10.0))
    assert by_name["Type=L"] == (0.5, 0.5)
    rate = schema.label.rate
    assert made["positive_weight"] == pytest.approx((1 - rate) / rate)


def test_simulated_sites_train_with_the_same_noise(samples: list[Path], tmp_path: Path) -> None:
    """By the mechanism of their own data, and without a budget."""
    store = RunStore(tmp_path / "runs")
    watch = Accounts()
    with over_memory(tmp_path / "runs" / "run") as communicate:
        orchestrator = ExperimentOrchestrator(communicate, store, watch)
        orchestrator.setup_experiment(
            {
                "name": "simulated",
                "experiment_id": "run",
                "rounds": 2,
                "dataset": "ai4i",
                "transport": "memory",
                "simulation": {"data": str(samples[0].parent), "schema": str(AI4I_SCHEMA)},
                "model": MODEL,
                "training": {"local_epochs": 1, "batch_size": 64, "learning_rate": 0.05},
                "privacy": PRIVACY,
            }
        )
        results = orchestrator.run_experiment("run")
    assert all("budget" not in account for account in watch.told.values())
    assert "no budget: its data are the researcher's own" in "\n".join(in_words(watch.told))
    assert results["rounds"][-1]["privacy"].keys() == watch.told.keys()


def test_a_reading_in_many_windows_is_told_honestly() -> None:
    """Its ε is larger than the window's, and where none follows it says so."""
    account: PrivacyAccount = {
        "kind": "privacy_spent",
        "datasite_id": "factory-1",
        "unit": "window",
        "units": 1000,
        "windows_per_reading": 3,
        "noise_multiplier": 8.0,
        "sample_rate": 0.01,
        "steps": 10,
        "epsilon": 0.5,
        "delta": 1e-5,
        "rounds_trained": 0,
        "rounds_left": 5,
    }
    words = "\n".join(in_words({"factory-1": account}))
    assert "one reading lies in up to 3 windows; for one reading it is ε = " in words
    noisy: PrivacyAccount = {**account, "noise_multiplier": 0.5, "windows_per_reading": 60}
    assert "ε = inf at δ = 1e-05, which promises nothing" in "\n".join(in_words({"f": noisy}))
