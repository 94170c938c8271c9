"""Whole experiments over in-memory sites, through the public doors only."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from federations import RESEARCHER, Federation
from sqlalchemy import select

from core import wire
from core.drift import flagged
from core.enums import ExperimentStatus
from core.exceptions import (
    AggregationError,
    CommunicationError,
    DataError,
    ExperimentError,
    ModelError,
    WaitExpiredError,
)
from core.models import build_model
from core.parameters import digest
from core.plans import PlanStatus
from datasite.ledger import AuditRow
from orchestrator.observer import Observer


class StopAfter(Observer):
    """Interrupts the run after a round, as Ctrl-C does."""

    def __init__(self, round_num: int) -> None:
        self.round_num = round_num

    def round_done(self, run_id: str, record: Mapping[str, Any]) -> None:
        """Interrupt after the chosen round."""
        if record["round_num"] == self.round_num:
            raise KeyboardInterrupt


def trained_rounds(federation: Federation, site_id: str) -> list[int]:
    """Give the rounds that a site trained, in order, by its own audit log."""
    with federation.sites[site_id].ledger.read() as session:
        rows = session.scalars(
            select(AuditRow).where(AuditRow.action == "train").order_by(AuditRow.seq)
        )
        return [row.detail["round_num"] for row in rows]


def test_a_run_learns_and_completes(federation: Federation) -> None:
    """Three rounds beat the majority baseline, and the record says so."""
    results = federation.run("one", training={"local_epochs": 5, "batch_size": 32})
    final = results["metrics"]["final"]
    assert results["status"] == "COMPLETED"
    assert [record["round_num"] for record in results["rounds"]] == [0, 1, 2]
    assert final["global"]["pr_auc"] > 3 * final["baseline"]["pr_auc"]
    assert set(final["per_site"]) == {"factory-1", "factory-2", "factory-3"}


def test_the_same_settings_give_bit_equal_parameters(
    build_federation: Callable[..., Federation],
) -> None:
    """Two fresh federations with the same data and seed end with the same bits."""
    first, second = build_federation().run("one"), build_federation().run("two")
    assert first["parameters_sha256"] == second["parameters_sha256"]


def test_another_seed_gives_other_parameters(federation: Federation) -> None:
    """The seed decides: a claim of reproducibility would be empty otherwise."""
    first, second = federation.run("one", seed=1), federation.run("two", seed=2)
    assert first["parameters_sha256"] != second["parameters_sha256"]


def test_an_interrupted_run_resumes_to_the_same_parameters(federation: Federation) -> None:
    """Stopped after round 0 and run again, the experiment ends as if nothing had happened."""
    undisturbed = federation.run("undisturbed")
    with pytest.raises(KeyboardInterrupt):
        federation.run("stopped", StopAfter(0))
    assert federation.store.find("stopped").status == "CANCELLED"
    resumed = federation.orchestrator().run_experiment("stopped")
    assert resumed["parameters_sha256"] == undisturbed["parameters_sha256"]
    assert [record["round_num"] for record in resumed["rounds"]] == [0, 1, 2]


def test_a_run_that_goes_on_counts_the_rounds_of_its_checkpoint(federation: Federation) -> None:
    """A crash may have come between the last checkpoint and the index; then nothing is left to run.

    The index is set back as the crash would have left it.
    """
    with pytest.raises(KeyboardInterrupt):
        federation.run("stopped", StopAfter(2))
    federation.store.move("stopped", ExperimentStatus.RUNNING, rounds_done=2)
    federation.orchestrator().run_experiment("stopped")
    row = federation.store.find("stopped")
    assert (row.status, row.rounds_done) == ("COMPLETED", 3)


def test_a_repeated_round_does_not_train_twice(federation: Federation) -> None:
    """A run that lost its newest checkpoint is answered from the sites' ledgers."""
    with pytest.raises(KeyboardInterrupt):
        federation.run("stopped", StopAfter(1))
    newest = federation.store.folder("stopped") / "checkpoints" / "round_000002.safetensors"
    newest.unlink()
    resumed = federation.orchestrator().run_experiment("stopped")
    assert resumed["status"] == "COMPLETED"
    assert trained_rounds(federation, "factory-1") == [0, 1, 2]


def test_fedavg_of_one_site_is_that_site(federation: Federation) -> None:
    """With one participant the global model is what the site itself would train."""
    results = federation.run("one", rounds=1, participation={"sites": ["factory-2"]})
    checkpoint = federation.store.load_checkpoint("one")
    assert checkpoint is not None
    site = federation.sites["factory-2"]
    model = build_model({"type": "cnn", "options": {}}, sensors=11, window_steps=1, seed=0)
    update = site.train_local_model(
        model,
        {
            "dataset": "ai4i",
            "split": {"test": 0.2, "validation": 0.1, "seed": 0},
            "model": {"type": "cnn", "options": {}},
            "algorithm": {"name": "fedavg", "hyperparameters": {}},
            "training": {
                "local_epochs": 1,
                "batch_size": 64,
                "learning_rate": 0.05,
                "optimizer": "sgd",
                "momentum": 0.0,
                "weight_decay": 0.0,
                "gradient_clip": None,
                "focal_gamma": 0.0,
            },
            "preprocessing": dict(checkpoint.preprocessing),
        },
    )
    assert digest(update["parameters"]) == results["parameters_sha256"]


def test_a_waiting_plan_is_said_and_an_approval_lets_it_go_on(
    build_federation: Callable[..., Federation],
) -> None:
    """Without a rule, the run waits for the operator, names the site, and then runs."""
    federation = build_federation(policy=[])

    class ApproveWhenAsked(Observer):
        """An operator who approves as soon as the run says that it waits."""

        waited_for: Sequence[str] = ()

        def waiting(self, run_id: str, site_ids: Sequence[str]) -> None:
            """Approve the one waiting plan at each site."""
            self.waited_for = site_ids
            for site_id in site_ids:
                plans = federation.sites[site_id].plans
                plan = plans.all()[-1]
                plans.decide(plan.plan_id, PlanStatus.APPROVED, reason="seen", by="operator")

    operator = ApproveWhenAsked()
    results = federation.run("one", operator, rounds=1)
    assert operator.waited_for == ["factory-1", "factory-2", "factory-3"]
    assert results["status"] == "COMPLETED"


def test_a_denied_plan_ends_the_run_with_the_reason(
    build_federation: Callable[..., Federation],
) -> None:
    """The researcher is told which site said no, and why."""
    deny = [{"name": "closed for audit", "decision": "deny", "researcher": RESEARCHER}]
    federation = build_federation(policy=deny)
    with pytest.raises(ExperimentError, match=r"factory-1: .*DENIED.*'closed for audit'"):
        federation.run("one")
    assert federation.store.find("one").status == "FAILED"


def test_waiting_for_approval_ends_at_its_limit(
    build_federation: Callable[..., Federation],
) -> None:
    """An operator who never looks costs the run its limit and not for ever; exit code 3."""
    federation = build_federation(policy=[])
    with pytest.raises(WaitExpiredError, match="did not decide on plan") as caught:
        federation.run("one", limits={"approval_s": 0.1, "attempts": 1})
    assert caught.value.exit_code == 3


def test_a_site_without_the_dataset_is_named_with_what_to_do(federation: Federation) -> None:
    """The error says which site, what it has, and the operator's command."""
    federation.sites["factory-2"].registry.remove("ai4i", who="operator")
    with pytest.raises(
        DataError, match=r"factory-2: has no dataset 'ai4i'.*datasite data register"
    ):
        federation.run("one")


def test_a_drift_comes_with_every_round(federation: Federation) -> None:
    """A second version that is 6 K hotter: its site's record says so, and the others' nothing."""
    federation.heat("factory-2", 6.0)
    results = federation.run("one")
    for record in results["rounds"]:
        told = {site_id: flagged(metrics) for site_id, metrics in record["sites"].items()}
        assert list(told["factory-2"]) == ["Air temperature [K]"]
        assert (told["factory-1"], told["factory-3"]) == ({}, {})
        assert not any("psi." in name for name in record["sites"]["factory-1"])


class Unreachable:
    """A site whose line is down."""

    def __init__(self, site_id: str) -> None:
        self.site_id = site_id

    def __call__(self, request: bytes, email: str) -> bytes:
        """Fail as a transport does."""
        raise CommunicationError(f"{self.site_id}: connection refused", site_id=self.site_id)


def test_an_unreachable_site_ends_the_run_and_is_named(federation: Federation) -> None:
    """By default every site must answer; exit code 2 says that it was the connection."""
    handlers = {**federation.handlers(), "factory-3": Unreachable("factory-3")}
    orchestrator = federation.orchestrator(handlers=handlers)
    orchestrator.setup_experiment({**federation.settings(), "experiment_id": "one"})
    with pytest.raises(CommunicationError, match=r"2 of at least 3.*\n.*factory-3") as caught:
        orchestrator.run_experiment("one")
    assert caught.value.exit_code == 2


def test_enough_sites_make_a_round_and_the_missing_one_is_recorded(
    federation: Federation,
) -> None:
    """With min_sites 2, a site that fails in training is missing from the round, by name."""
    site = federation.handlers()["factory-3"]

    def fails_to_train(request: bytes, email: str) -> bytes:
        if wire.decode(request)["kind"] == "train":
            raise CommunicationError("factory-3: connection reset", site_id="factory-3")
        return site(request, email)

    handlers = {**federation.handlers(), "factory-3": fails_to_train}
    orchestrator = federation.orchestrator(handlers=handlers)
    settings = federation.settings(min_sites=2, rounds=1)
    orchestrator.setup_experiment({**settings, "experiment_id": "one"})
    results = orchestrator.run_experiment("one")
    assert results["rounds"][0]["missing"] == {"factory-3": "factory-3: connection reset"}
    assert set(results["rounds"][0]["sites"]) == {"factory-1", "factory-2"}


def test_a_site_that_claims_too_many_samples_is_refused(federation: Federation) -> None:
    """A site's weight is its own claim; it cannot exceed what the site has registered."""
    site = federation.handlers()["factory-1"]

    def boasts(request: bytes, email: str) -> bytes:
        reply = wire.decode(site(request, email))
        if reply["kind"] == "update":
            reply["num_samples"] = 10**6
        return wire.encode(reply)

    orchestrator = federation.orchestrator(handlers={**federation.handlers(), "factory-1": boasts})
    orchestrator.setup_experiment({**federation.settings(), "experiment_id": "one"})
    with pytest.raises(ExperimentError, match="factory-1: claims 1000000 samples"):
        orchestrator.run_experiment("one")


def test_a_diverged_site_says_so_and_what_to_change(federation: Federation) -> None:
    """A learning rate that blows up is told by the site and never averaged in."""
    with pytest.raises((ExperimentError, AggregationError, ModelError), match="learning_rate"):
        federation.run("one", training={"learning_rate": 1e30, "local_epochs": 3})


def test_a_completed_run_is_not_run_again(federation: Federation) -> None:
    """Running a COMPLETED experiment gives its results and asks no site."""
    first = federation.run("one", rounds=1)
    again = federation.orchestrator().run_experiment("one")
    assert again == first
    assert trained_rounds(federation, "factory-1") == [0]


def test_two_runs_cannot_have_one_owner_each(federation: Federation) -> None:
    """While a run is being run, a second process is told who holds it."""
    orchestrator = federation.orchestrator()
    orchestrator.setup_experiment({**federation.settings(), "experiment_id": "one"})
    with (
        federation.store.owned("one"),
        pytest.raises(ExperimentError, match="is being run by process"),
    ):
        orchestrator.run_experiment("one")
