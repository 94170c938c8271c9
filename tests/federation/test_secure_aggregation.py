"""Whole runs under secure aggregation: the plain run's result, whoever is lost on the way."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from federations import APPROVE_ALL, Federation
from sqlalchemy import select

from core import wire
from core.enums import DataDistribution
from core.exceptions import (
    AggregationError,
    CommunicationError,
    ConfigurationError,
    ExperimentError,
)
from core.messages import Parameters
from core.parameters import largest_difference
from core.wire import Parcel
from datasite.ledger import AuditRow
from orchestrator.communication.memory import Handler
from orchestrator.testbed.ai4i import generate_ai4i
from orchestrator.testbed.presets import AI4I_SCHEMA
from orchestrator.testbed.samples import write_samples

NAMES = [f"factory-{number}" for number in range(1, 5)]
MODEL = {"type": "cnn", "options": {"channels": 4, "blocks": 1}}
SECURE = {"level": "secure_aggregation"}

STEPS = ("secure_keys", "secure_shares", "secure_mask", "secure_confirm", "secure_unmask")
ROUNDING = 1e-6
"""Of float32, in which parameters travel; the bound of the fixed point is far below: 4 sites with
f = 35 and some 1000 samples are off by 4 · 2^-36 / 1000 at most."""


class Plant:
    """Four factories for all runs of this file."""

    def __init__(self, federation: Federation) -> None:
        self.federation = federation
        self._numbers = itertools.count()

    def settings(self, **changes: Any) -> dict[str, Any]:
        """Give an experiment's settings."""
        said = {"rounds": 1, "model": MODEL, "min_sites": 3, "evaluation": {"every": 9}, **changes}
        return self.federation.settings(**said)

    def start(self, handlers: dict[str, Handler] | None = None, **changes: Any) -> str:
        """Set up a run and run it; its id."""
        run_id = self.set_up(**changes)
        self.federation.orchestrator(handlers=handlers).run_experiment(run_id)
        return run_id

    def set_up(self, **changes: Any) -> str:
        """Set up a run; its id."""
        run_id = f"secure-{next(self._numbers)}"
        settings = {**self.settings(**changes), "experiment_id": run_id}
        self.federation.orchestrator().setup_experiment(settings)
        return run_id

    def parameters(self, run_id: str) -> Parameters:
        """Give the model that a run ended with."""
        found = self.federation.store.load_checkpoint(run_id)
        assert found is not None
        return found.parameters

    def records(self, run_id: str) -> list[dict[str, Any]]:
        """Give a run's rounds."""
        return self.federation.store.rounds(run_id)

    def without(self, *lost: tuple[str, str], times: int = 10**6) -> dict[str, Handler]:
        """Give the sites' doors, of which some do not answer a kind of request, so many times."""
        left = dict.fromkeys(lost, times)

        def door(name: str, handler: Handler) -> Handler:
            def ask(request: Parcel, email: str) -> Parcel:
                asked = (name, wire.peek(request)["kind"])
                if left.get(asked, 0):
                    left[asked] -= 1
                    raise CommunicationError(f"{name}: gone", site_id=name)
                return handler(request, email)

            return ask

        return {name: door(name, handler) for name, handler in self.federation.handlers().items()}

    def rows(self, name: str, run_id: str) -> list[AuditRow]:
        """Give what a site's audit log has of a run's plans."""
        site = self.federation.sites[name]
        plans = [plan.plan_id for plan in site.plans.all() if plan.proposal["run_id"] == run_id]
        with site.ledger.read() as session:
            return list(session.scalars(select(AuditRow).where(AuditRow.plan_id.in_(plans))))


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    """Give four factories with registered data."""
    folder = tmp_path_factory.mktemp("secure")
    table = generate_ai4i(rows=1600, seed=7)
    files = write_samples(
        table, folder / "samples", sites=4, distribution=DataDistribution.NON_IID_QUANTITY, seed=7
    )
    federation = Federation(folder, policy=APPROVE_ALL)
    for path in files:
        site = federation.open_site(path.stem)
        site.register_data({"name": "ai4i", "file": path, "schema": AI4I_SCHEMA})
    yield Plant(federation)
    for site in federation.sites.values():
        site.close()


CASES = [
    ("fedavg", "weighted_average"),
    ("fedavg", "simple_average"),
    ("fedprox", "weighted_average"),
    ("fedprox", "simple_average"),
    ("feddyn", "simple_average"),
    ("fednova", "weighted_average"),
    ("fedavgm", "weighted_average"),
    ("fedavgm", "simple_average"),
    ("fedadam", "weighted_average"),
    ("fedadam", "simple_average"),
]


@pytest.mark.parametrize(("algorithm", "aggregation"), CASES)
def test_a_run_comes_to_what_the_plain_one_does(
    plant: Plant, algorithm: str, aggregation: str
) -> None:
    """In two rounds, with sites of different sizes and steps; the loss too, to its rounding."""
    training = {"local_epochs": 1, "batch_size": 64, "learning_rate": 0.05, "momentum": 0.5}
    chosen = {"name": algorithm, "aggregation": aggregation}
    said = {"rounds": 2, "algorithm": chosen, "training": training}
    secure, plain = plant.start(privacy=SECURE, **said), plant.start(**said)
    found, expected = plant.parameters(secure), plant.parameters(plain)
    assert largest_difference(found, expected) < 2 * ROUNDING
    for record, other in zip(plant.records(secure), plant.records(plain), strict=True):
        loss = pytest.approx(other["training"]["loss"], abs=1e-5)
        assert record["training"]["loss"] == loss


def test_the_record_tells_of_no_site_by_itself(plant: Plant) -> None:
    """Only that it was there, and how long it trained."""
    (record,) = plant.records(plant.start(privacy=SECURE))
    assert record["aggregation"] == {
        "method": "weighted_average",
        "sites": {name: {} for name in NAMES},
    }
    assert [set(record["sites"][name]) for name in NAMES] == [{"fit_s"}] * 4
    assert record["missing"] == {}


@pytest.mark.parametrize("step", ["train", *STEPS[:3]])
def test_a_site_lost_before_its_update_came_is_not_in_the_sum(plant: Plant, step: str) -> None:
    """The result is that of a plain run without it."""
    secure = plant.start(plant.without(("factory-2", step)), privacy=SECURE)
    plain = plant.start(plant.without(("factory-2", "train")))
    assert largest_difference(plant.parameters(secure), plant.parameters(plain)) < ROUNDING
    (record,) = plant.records(secure)
    assert sorted(record["sites"]) == ["factory-1", "factory-3", "factory-4"]
    assert "gone" in record["missing"]["factory-2"]


@pytest.mark.parametrize("step", STEPS[3:])
def test_a_site_lost_after_its_update_came_is_in_the_sum(plant: Plant, step: str) -> None:
    """The others have the shares that take its own mask away."""
    secure = plant.start(plant.without(("factory-2", step)), privacy=SECURE)
    plain = plant.start()
    assert largest_difference(plant.parameters(secure), plant.parameters(plain)) < ROUNDING
    assert sorted(plant.records(secure)[0]["sites"]) == NAMES


@pytest.mark.parametrize("step", STEPS)
def test_one_more_lost_is_a_clean_failure_and_the_round_can_be_repeated(
    plant: Plant, step: str
) -> None:
    """The error names who was lost, and where; a resumed run comes to what it would have."""
    run_id = plant.set_up(privacy=SECURE)
    doors = plant.without(("factory-2", step), ("factory-3", step))
    with pytest.raises(AggregationError, match="it takes 3") as failed:
        plant.federation.orchestrator(handlers=doors).run_experiment(run_id)
    assert "factory-2: factory-2: gone" in str(failed.value)
    assert "nothing of any update was learned" in str(failed.value)
    assert f"step {step.removeprefix('secure_')!r}" in str(failed.value)
    plant.federation.orchestrator().run_experiment(run_id)
    assert largest_difference(plant.parameters(run_id), plant.parameters(plant.start())) < ROUNDING
    trainings = [row for row in plant.rows("factory-1", run_id) if row.action == "train"]
    assert len(trainings) == 1


def test_after_shares_were_given_only_the_same_sum_is_taken_up(plant: Plant) -> None:
    """Without one of its sites there is none: it is waited for, and then the sum is the same."""
    run_id = plant.set_up(privacy=SECURE)
    doors = plant.without(
        ("factory-4", "secure_mask"), ("factory-3", "secure_unmask")
    )  # the sum is that of 1, 2 and 3, and two of these are too few
    with pytest.raises(AggregationError, match="step 'unmask'"):
        plant.federation.orchestrator(handlers=doors).run_experiment(run_id)
    others = plant.without(("factory-3", "secure_keys"))
    with pytest.raises(AggregationError, match=r"sum of factory-1, factory-2, factory-3 before"):
        plant.federation.orchestrator(handlers=others).run_experiment(run_id)
    plant.federation.orchestrator().run_experiment(run_id)
    plain = plant.start(plant.without(("factory-4", "train")))
    assert largest_difference(plant.parameters(run_id), plant.parameters(plain)) < ROUNDING


def test_a_session_is_begun_anew_without_training_again(plant: Plant) -> None:
    """As often as any request is tried: two sites were away for a moment."""
    doors = plant.without(("factory-1", "secure_mask"), ("factory-2", "secure_mask"), times=2)
    run_id = plant.start(doors, privacy=SECURE, limits={"attempts": 2})
    assert sorted(plant.records(run_id)[0]["sites"]) == NAMES
    rows = [row.action for row in plant.rows("factory-1", run_id)]
    assert (rows.count("train"), rows.count("secure_keys")) == (1, 2)


def test_a_round_keeps_to_the_fewest_sites_that_the_run_asks_for(plant: Plant) -> None:
    """By default every site that was drawn: then nothing is unmasked without one."""
    doors = plant.without(("factory-2", "secure_mask"))
    run_id = plant.set_up(privacy=SECURE, min_sites=None)
    with pytest.raises(AggregationError, match="it takes 4"):
        plant.federation.orchestrator(handlers=doors).run_experiment(run_id)
    assert "secure_unmask" not in {row.action for row in plant.rows("factory-1", run_id)}


def test_a_site_whose_update_is_out_of_range_is_told_of(plant: Plant) -> None:
    """It has not trained as far as the round is concerned; the message says what to change."""
    run_id = plant.set_up(privacy={**SECURE, "max_change": 1e-6})
    with pytest.raises(ExperimentError, match=r"raise privacy\.max_change"):
        plant.federation.orchestrator().run_experiment(run_id)


def test_a_resumed_run_proposes_the_same_plans(plant: Plant) -> None:
    """Though a site of the roster is away: its key was pinned when the run began."""
    run_id = plant.set_up(privacy=SECURE)
    doors = plant.without(*((name, "train") for name in NAMES))
    with pytest.raises(CommunicationError):
        plant.federation.orchestrator(handlers=doors).run_experiment(run_id)
    away = plant.without(("factory-4", "describe"))
    plant.federation.orchestrator(handlers=away).run_experiment(run_id)
    site = plant.federation.sites["factory-1"]
    assert len([p for p in site.plans.all() if p.proposal["run_id"] == run_id]) == 1
    (record,) = plant.records(run_id)
    assert sorted(record["sites"]) == NAMES[:3]


def test_a_run_does_not_begin_without_all_keys(plant: Plant) -> None:
    """A site that was not reached could not be in the roster, nor ever take part."""
    run_id = plant.set_up(privacy=SECURE)
    away = plant.without(("factory-4", "describe"))
    with pytest.raises(CommunicationError, match="roster of the run: 3 of at least 4"):
        plant.federation.orchestrator(handlers=away).run_experiment(run_id)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"participation": {"sites": NAMES[:2]}, "min_sites": 2}, "let 3 or more take part"),
        ({"privacy": {**SECURE, "threshold": 2}}, "2 of the 4 sites in a round; choose 3 to 4"),
        ({"privacy": {**SECURE, "threshold": 5}}, "5 of the 4 sites in a round; choose 3 to 4"),
    ],
    ids=["two sites", "half of them", "more than there are"],
)
def test_a_round_that_hides_nothing_is_refused(
    plant: Plant, changes: dict[str, Any], said: str
) -> None:
    """Before anything is asked of a site."""
    run_id = plant.set_up(**{"privacy": SECURE, **changes})
    with pytest.raises(ConfigurationError, match=said):
        plant.federation.orchestrator().run_experiment(run_id)


def test_a_part_of_the_sites_may_be_drawn(plant: Plant) -> None:
    """The plan says how many; three of four in each round, and all of the three must last."""
    said = {"participation": {"fraction": 0.75}, "rounds": 3}
    secure, plain = plant.start(privacy=SECURE, **said), plant.start(**said)
    found = [sorted(record["sites"]) for record in plant.records(secure)]
    assert found == [sorted(record["sites"]) for record in plant.records(plain)]
    assert {len(names) for names in found} == {3}
    assert largest_difference(plant.parameters(secure), plant.parameters(plain)) < 3 * ROUNDING


def test_no_message_of_a_run_shows_an_update(plant: Plant, tmp_path: Path) -> None:
    """Of all that sites answer, only masked tensors and the shares of their seeds are not told."""
    kinds = set()
    handlers = {}

    def door(handler: Handler) -> Handler:
        def ask(request: Parcel, email: str) -> Parcel:
            reply = handler(request, email)
            message = wire.peek(reply)
            kinds.add(message["kind"])
            assert message["kind"] == "masked_update" or not reply.body
            return reply

        return ask

    handlers = {name: door(handler) for name, handler in plant.federation.handlers().items()}
    plant.start(handlers, privacy=SECURE)
    assert {"trained", "masked_update", "unmasking"} <= kinds
    assert "update" not in kinds
