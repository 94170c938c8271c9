"""Secure aggregation at a site's door: what it agrees to, keeps, answers, and never answers."""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from sites import (
    RESEARCHER,
    RIVAL,
    ask,
    encoded,
    inline,
    parameters,
    proposal,
    register,
    site_settings,
    train_request,
)
from sqlalchemy import select

from core import wire
from core.exceptions import SecurityError
from core.plans import PlanStatus
from core.secure.addends import SCALARS, as_sum
from core.secure.context import Context, trained_on
from core.secure.masks import Vector
from datasite import audit
from datasite.configuration import SecureAggregation
from datasite.ledger import AuditRow
from datasite.release import require_mask
from datasite.site import FactoryDataSite
from orchestrator.masked_sum import MaskedSum

NAMES = [f"factory-{number}" for number in range(1, 5)]
SESSION = "5" * 32
OTHER = "6" * 32
STEPS = ("secure_keys", "secure_shares", "secure_mask", "secure_confirm", "secure_unmask")


class Plant:
    """Four factories with the same readings, and a researcher who asks them one by one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sites = {name: self.open(name) for name in NAMES}
        for name, site in self.sites.items():
            register(site, folder / name)
        self.roster = {
            name: ask(s, {"kind": "describe"})["identity_key"] for name, s in self.sites.items()
        }
        self.plans: dict[str, str] = {}
        self.run_id = ""
        self._runs = itertools.count()

    def open(self, name: str, **changes: object) -> FactoryDataSite:
        """Open a site, or open it again."""
        (self.folder / name).mkdir(exist_ok=True)
        site = FactoryDataSite(inline)
        site.initialize_datasite(site_settings(self.folder / name, site_id=name, **changes))
        return site

    def restart(self, name: str, **changes: object) -> None:
        """Close a site and open it again."""
        self.sites[name].close()
        self.sites[name] = self.open(name, **changes)

    def settings(self, **changes: object) -> dict[str, Any]:
        """Give what a plan says of secure aggregation."""
        return {
            "level": "secure_aggregation",
            "roster": self.roster,
            "sites_per_round": 4,
            "threshold": 3,
            "max_change": 16.0,
            "max_samples": 1000,
            "weighting": "samples",
            **changes,
        }

    def propose(self, name: str, settings: Mapping[str, Any], **changes: object) -> dict[str, Any]:
        """Propose a plan to one site; what it answers."""
        said = {"privacy_level": "secure_aggregation", "privacy": settings, **changes}
        return ask(self.sites[name], proposal(run_id=self.run_id, **said))

    def agree(self, **changes: object) -> None:
        """Propose the plan of a new run to all, which approve it by rule."""
        self.run_id = f"run-{next(self._runs)}"
        for name in NAMES:
            self.plans[name] = self.propose(name, self.settings(**changes))["plan_id"]

    def train(self, names: list[str] = NAMES, **changes: object) -> dict[str, dict[str, Any]]:
        """Have these train; what they answer."""
        return {
            name: ask(self.sites[name], train_request(self.plans[name], **changes))
            for name in names
        }

    def step(
        self, name: str, step: str, session: str = SESSION, round_num: int = 0, **fields: object
    ) -> dict[str, Any]:
        """Ask one site for one step; what it answers."""
        request = {"kind": step, "plan_id": self.plans[name], "round_num": round_num}
        return ask(self.sites[name], {**request, "session_id": session, **fields})

    def run(
        self, session: str = SESSION, names: list[str] = NAMES, masked: list[str] | None = None
    ) -> Vector:
        """Run a session among these, `masked` of which send their updates; the sum."""
        survivors = masked or names
        keys = {name: self.step(name, "secure_keys", session)["keys"] for name in names}
        sealed = {
            name: self.step(name, "secure_shares", session, keys=keys)["sealed"] for name in names
        }
        total = MaskedSum(self.context(session), keys, numbers())
        for name in survivors:
            given = {peer: each[name] for peer, each in sealed.items() if peer != name}
            reply = self.step(name, "secure_mask", session, sealed=given)
            assert reply["kind"] == "masked_update", reply
            total.add(name, reply["parameters"]["masked"].numpy().view(np.uint64))
        signed = {
            name: self.step(name, "secure_confirm", session, survivors=survivors)["signature"]
            for name in survivors
        }
        shares = {
            name: self.step(name, "secure_unmask", session, confirmations=signed)["shares"]
            for name in survivors
        }
        return total.opened(names, shares)

    def context(self, session: str) -> Context:
        """Give what a session is bound to, as the orchestrator knows it."""
        request = train_request("")
        return Context(
            run_id=self.run_id,
            settings=cast("Any", self.settings()),
            round_num=0,
            trained_on=trained_on(request, encoded(request).body_hash),
            session_id=session,
        )

    def log(self, name: str) -> list[AuditRow]:
        """Give what a site's audit log has of the run's plan."""
        with self.sites[name].ledger.read() as session:
            rows = session.scalars(select(AuditRow).order_by(AuditRow.seq)).all()
            audit.verify(audit.written(session))
        return [row for row in rows if row.plan_id == self.plans[name]]


def numbers() -> int:
    """Give how many numbers travel of the model of these tests."""
    return sum(tensor.numel() for tensor in parameters().values()) + len(SCALARS)


@pytest.fixture(scope="module")
def plants(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    """Give four factories for all tests of this file."""
    plant = Plant(tmp_path_factory.mktemp("secure"))
    yield plant
    for site in plant.sites.values():
        site.close()


@pytest.fixture
def plant(plants: Plant) -> Iterator[Plant]:
    """Give them as they are configured at first, with no plan."""
    plants.plans = {}
    yield plants
    if plants.sites["factory-1"].config.secure_aggregation != SecureAggregation():
        plants.restart("factory-1")


def refused(reply: Mapping[str, Any], error: str, said: str) -> None:
    """Fail unless the answer is this error, which says this."""
    assert (reply["kind"], reply.get("error")) == ("failure", error), reply
    assert said in reply["message"]


def test_a_site_says_that_it_has_trained_and_no_more(plant: Plant) -> None:
    """Neither samples nor steps nor loss, and no tensor; asked again, the same."""
    plant.agree()
    told = plant.train()
    for name, reply in told.items():
        assert reply["metrics"].keys() == {"fit_s"}
        del reply["metrics"]
        assert reply == {"kind": "trained", "datasite_id": name, "round_num": 0}
    again = plant.train()
    assert [again[name]["kind"] for name in NAMES] == ["trained"] * 4
    trainings = [row for row in plant.log("factory-1") if row.action == "train"]
    assert len(trainings) == 1


def test_the_sum_is_that_of_the_plain_updates(plant: Plant) -> None:
    """All four have the same readings and draw by their names: their mean, weighted by samples."""
    plant.agree()
    plant.train()
    total = as_sum(plant.run(), parameters(), cast("Any", plant.settings()))
    plain = []
    for name in NAMES:
        plan_id = str(ask(plant.sites[name], proposal(run_id="plain"))["plan_id"])
        plain.append(ask(plant.sites[name], train_request(plan_id)))
    samples = [update["num_samples"] for update in plain]
    assert (total.samples, total.weight) == (sum(samples), sum(samples))
    assert total.steps == sum(update["num_steps"] for update in plain)
    loss = sum(
        update["metrics"]["train_loss"] * n for update, n in zip(plain, samples, strict=True)
    )
    assert total.loss == pytest.approx(loss, abs=1e-6)
    for tensor_name, start in parameters().items():
        mean = sum(
            (n / sum(samples)) * (update["parameters"][tensor_name].double() - start.double())
            for update, n in zip(plain, samples, strict=True)
        )
        assert torch.allclose(
            total.change[tensor_name], cast("torch.Tensor", mean), rtol=0, atol=1e-9
        )


def test_each_step_is_on_the_log(plant: Plant) -> None:
    """With its round and session, and how much left; and no share."""
    plant.agree()
    plant.train()
    plant.run()
    rows = [row for row in plant.log("factory-2") if row.action.startswith("secure_")]
    assert [(row.action, row.outcome) for row in rows] == [(step, "ok") for step in STEPS]
    assert {row.detail["session"] for row in rows} == {SESSION}
    assert {row.detail["round_num"] for row in rows} == {0}
    assert rows[2].detail["bytes_out"] > 8 * numbers()


def test_what_is_asked_again_is_answered_again(plant: Plant) -> None:
    """A lost answer costs nothing: the very same request gets the very same bytes."""
    plant.agree()
    plant.train()
    site = plant.sites["factory-1"]
    request = {"kind": "secure_keys", "plan_id": plant.plans["factory-1"], "round_num": 0}
    blob = encoded({**request, "session_id": SESSION})
    assert site.handle(blob, RESEARCHER).joined() == site.handle(blob, RESEARCHER).joined()


def test_an_ended_session_is_not_taken_up_again(plant: Plant) -> None:
    """Another one has begun since: what belongs to the first is refused, whatever it is."""
    plant.agree()
    plant.train()
    keys = {name: plant.step(name, "secure_keys")["keys"] for name in NAMES}
    plant.step("factory-1", "secure_keys", OTHER)
    reply = plant.step("factory-1", "secure_shares", keys=keys)
    refused(reply, "SecurityError", "there is no such session")


def test_keys_of_an_earlier_session_are_refused(plant: Plant) -> None:
    """Their secrets may be known by now: a session replayed is no session."""
    plant.agree()
    plant.train()
    earlier = {name: plant.step(name, "secure_keys")["keys"] for name in NAMES}
    now = plant.step("factory-1", "secure_keys", OTHER)["keys"]
    keys = {**earlier, "factory-1": now}
    reply = plant.step("factory-1", "secure_shares", OTHER, keys=keys)
    refused(reply, "SecurityError", "not signed by its identity for this session")


def test_a_second_request_to_unmask_is_refused(plant: Plant) -> None:
    """After the shares of one kind nothing else is given, whoever has signed what."""
    plant.agree()
    plant.train()
    plant.run(masked=NAMES[:3])
    reply = plant.step("factory-1", "secure_unmask", confirmations={})
    refused(reply, "SecurityError", "due is 'nothing more'")
    reply = plant.step("factory-1", "secure_confirm", survivors=NAMES)
    refused(reply, "SecurityError", "due is 'nothing more'")


def test_an_update_is_in_one_sum_only(plant: Plant) -> None:
    """The sum of others in the same round, whose difference is one update, is refused; for good."""
    plant.agree()
    plant.train()
    first = plant.run(masked=NAMES[:3])
    plant.restart("factory-1")
    told = plant.step("factory-1", "secure_keys", OTHER)
    assert told["bound_to"] == NAMES[:3]
    keys = {name: plant.step(name, "secure_keys", OTHER)["keys"] for name in NAMES[1:]}
    keys["factory-1"] = told["keys"]
    sealed = {name: plant.step(name, "secure_shares", OTHER, keys=keys)["sealed"] for name in NAMES}
    for name in NAMES:
        given = {peer: each[name] for peer, each in sealed.items() if peer != name}
        plant.step(name, "secure_mask", OTHER, sealed=given)
    reply = plant.step("factory-1", "secure_confirm", OTHER, survivors=NAMES)
    refused(reply, "SecurityError", "counted in a sum of this round before")
    assert np.array_equal(plant.run("7" * 32, names=NAMES[:3]), first)


def test_another_update_of_a_summed_round_is_refused(plant: Plant) -> None:
    """It would be in a sum beside the first one's; before that, it takes the first one's place."""
    plant.agree()
    plant.train()
    assert {r["kind"] for r in plant.train(parameters=parameters(seed=1)).values()} == {"trained"}
    assert {r["kind"] for r in plant.train().values()} == {"trained"}
    plant.run()
    for reply in plant.train(parameters=parameters(seed=1)).values():
        refused(reply, "SecurityError", "was counted in a sum already")
    assert {r["kind"] for r in plant.train().values()} == {"trained"}


def test_an_update_that_was_replaced_is_not_unmasked(plant: Plant) -> None:
    """What was masked is no longer what the site keeps: the sum would be of another one."""
    plant.agree()
    plant.train()
    keys = {name: plant.step(name, "secure_keys")["keys"] for name in NAMES}
    sealed = {name: plant.step(name, "secure_shares", keys=keys)["sealed"] for name in NAMES}
    for name in NAMES:
        given = {peer: each[name] for peer, each in sealed.items() if peer != name}
        plant.step(name, "secure_mask", sealed=given)
    signed = {
        name: plant.step(name, "secure_confirm", survivors=NAMES)["signature"] for name in NAMES
    }
    plant.train(parameters=parameters(seed=1))
    reply = plant.step("factory-1", "secure_unmask", confirmations=signed)
    refused(reply, "SecurityError", "taken the place")


def test_a_restarted_site_has_its_update_and_no_session(plant: Plant) -> None:
    """Keys are in memory alone; what it trained is in its ledger."""
    plant.agree()
    plant.train()
    keys = {name: plant.step(name, "secure_keys")["keys"] for name in NAMES}
    plant.restart("factory-2")
    reply = plant.step("factory-2", "secure_shares", keys=keys)
    refused(reply, "SecurityError", "there is no such session")
    assert len(plant.run(OTHER)) == numbers()


def test_a_revoked_plan_ends_the_session_between_two_steps(plant: Plant) -> None:
    """Nothing that belongs to it is answered from then on."""
    plant.agree()
    plant.train()
    keys = {name: plant.step(name, "secure_keys")["keys"] for name in NAMES}
    plans = plant.sites["factory-1"].plans
    plans.decide(plant.plans["factory-1"], PlanStatus.REVOKED, reason="stop", by="operator")
    refused(plant.step("factory-1", "secure_shares", keys=keys), "PlanError", "is REVOKED")
    refused(plant.step("factory-1", "secure_keys"), "PlanError", "is REVOKED")


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        ({"round_num": 1}, "DataSiteError", "has trained nothing in round 1"),
        ({"round_num": 3}, "PlanError", "allows no secure aggregation of round 3"),
    ],
    ids=["not trained", "beyond the plan"],
)
def test_a_session_is_of_a_round_that_was_trained(
    plant: Plant, fields: dict[str, Any], error: str, said: str
) -> None:
    """There is nothing else to add."""
    plant.agree()
    plant.train()
    refused(plant.step("factory-1", "secure_keys", **fields), error, said)


def test_a_session_is_of_the_researcher_whose_plan_it_is(plant: Plant) -> None:
    """Another one is told what of an unknown plan, and one without a sum that there is none."""
    plant.agree()
    plant.train()
    request = {"kind": "secure_keys", "round_num": 0, "session_id": SESSION}
    theirs = {**request, "plan_id": plant.plans["factory-1"]}
    refused(ask(plant.sites["factory-1"], theirs, RIVAL), "PlanError", "has proposed no plan")
    plain = str(ask(plant.sites["factory-1"], proposal(run_id="plain"))["plan_id"])
    told = ask(plant.sites["factory-1"], {**request, "plan_id": plain})
    refused(told, "PlanError", "allows no secure aggregation")


def test_sessions_are_used_up(plant: Plant) -> None:
    """Four for each of the plan's three rounds, a restart in between or not."""
    plant.agree()
    plant.train()
    for number in range(12):
        assert plant.step("factory-1", "secure_keys", f"{number:032x}")["kind"] == "public_keys"
        if number == 5:
            plant.restart("factory-1")
    refused(plant.step("factory-1", "secure_keys", "f" * 32), "PlanError", "is used up")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_change": 1e-4}, "the largest change of a parameter is"),
        ({"max_samples": 59}, "the weight is 60"),
    ],
    ids=["change", "samples"],
)
def test_an_update_beyond_the_range_is_refused_before_it_is_masked(
    plant: Plant, changes: dict[str, Any], said: str
) -> None:
    """In the answer to the training: it cannot be added, and nothing is kept of it."""
    plant.agree(**changes)
    for reply in plant.train().values():
        refused(reply, "DataSiteError", said)
    refused(plant.step("factory-1", "secure_keys"), "DataSiteError", "has trained nothing")


STRANGER = "0123456789abcdef" * 4

PROPOSALS: dict[str, tuple[dict[str, Any], str]] = {
    "weak threshold": ({"threshold": 2}, "threshold 2 of 4 sites; this site asks for 3 or more"),
    "more than there are": ({"threshold": 5}, "threshold 5 of 4 sites"),
    "more sites than listed": ({"sites_per_round": 5, "threshold": 4}, "5 sites in a round of 4"),
    "two sites": ({"sites_per_round": 2}, "hides an update among 3"),
    "normalised": ({"weighting": "normalised"}, "'normalised' is fednova's"),
    "no room": ({"max_samples": 2**40}, "bits for fractions"),
}


@pytest.mark.parametrize("case", PROPOSALS)
def test_a_plan_that_hides_too_little_is_refused(plant: Plant, case: str) -> None:
    """Whatever rule would approve it; the message says what is asked for."""
    changes, said = PROPOSALS[case]
    refused(plant.propose("factory-1", plant.settings(**changes)), "PlanError", said)


def test_a_roster_with_another_key_of_the_site_is_refused(plant: Plant) -> None:
    """Somebody has put a key of their own where the site's belongs."""
    roster = {**plant.roster, "factory-1": STRANGER}
    reply = plant.propose("factory-1", plant.settings(roster=roster))
    refused(reply, "PlanError", "the key 0123456789abcdef… for factory-1")


def test_a_roster_is_held_to_the_peers_that_the_operator_named(plant: Plant) -> None:
    """A peer of another key, or a site that is no peer, is refused; the peers alone are not."""
    peers = {name: key for name, key in plant.roster.items() if name != "factory-1"}
    plant.restart("factory-1", secure_aggregation={"peers": peers})
    assert plant.propose("factory-1", plant.settings())["status"] == "APPROVED"
    false = plant.settings(roster={**plant.roster, "factory-3": STRANGER})
    refused(plant.propose("factory-1", false), "PlanError", "0123456789abcdef… for factory-3")
    more = plant.settings(roster={**plant.roster, "ghost": STRANGER})
    refused(plant.propose("factory-1", more), "PlanError", "ghost of the roster is not among")


def test_a_lower_threshold_takes_the_operators_trust(plant: Plant) -> None:
    """3 of 5 is more than half: a site agrees for as long as its operator trusts the relay."""
    roster = {**plant.roster, "factory-5": STRANGER}
    weak = plant.settings(roster=roster, sites_per_round=5, threshold=3)
    refused(plant.propose("factory-1", weak), "PlanError", "asks for 4 or more")
    plant.restart("factory-1", secure_aggregation={"trusts_orchestrator": True})
    plant.plans["factory-1"] = plant.propose("factory-1", weak)["plan_id"]
    assert plant.train(["factory-1"])["factory-1"]["kind"] == "trained"
    assert plant.step("factory-1", "secure_keys")["kind"] == "public_keys"
    plant.restart("factory-1")
    refused(plant.step("factory-1", "secure_keys", OTHER), "PlanError", "asks for 4 or more")


def test_a_masked_update_leaves_in_its_size_alone() -> None:
    """The gate knows it by that: numbers of 8 bytes, as many as the model's and the scalars."""
    fields = {"kind": "masked_update", "datasite_id": "factory-1", "round_num": 0}

    def reply(**tensors: torch.Tensor) -> wire.Parcel:
        return encoded({**fields, "parameters": tensors})

    require_mask(reply(masked=torch.zeros(7, dtype=torch.int64)), 7, site_id="factory-1")
    for tensors in (
        {"masked": torch.zeros(8, dtype=torch.int64)},
        {"masked": torch.zeros(7, dtype=torch.float64)},
        {"masked": torch.zeros(7, dtype=torch.int64), "more": torch.zeros(1)},
        {},
    ):
        with pytest.raises(SecurityError, match="withheld"):
            require_mask(reply(**tensors), 7, site_id="factory-1")
