"""What a site keeps for an algorithm from round to round, seen through its door."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from sites import ask, encoded, parameters, planned, register, train_request
from sqlalchemy import select

from core import wire
from core.messages import Parameters
from core.parameters import difference, digest
from datasite.caller import Caller, Role
from datasite.ledger import StateRow
from datasite.site import FactoryDataSite
from datasite.trainer import InlineTrainer, Watch
from datasite.training.work import Assignment, Done

ALPHA = 0.5
FEDDYN = {"name": "feddyn", "hyperparameters": {"alpha": ALPHA}}
SCAFFOLD = {"name": "scaffold", "hyperparameters": {}}

OpenSite = Callable[..., FactoryDataSite]


def plan(site: FactoryDataSite, rounds: int = 3, **changes: object) -> str:
    """Propose a FedDyn plan; its id."""
    return planned(site, algorithm=FEDDYN, rounds=rounds, **changes)


def request(plan_id: str, round_num: int, **changes: object) -> dict[str, Any]:
    """Give the request of a round; rounds start from different parameters."""
    given = {"algorithm": FEDDYN, "parameters": parameters(seed=round_num), **changes}
    return train_request(plan_id, round_num=round_num, **given)


def train(site: FactoryDataSite, plan_id: str, round_num: int, **changes: object) -> Parameters:
    """Have a round trained; the parameters that came of it."""
    reply = ask(site, request(plan_id, round_num, **changes))
    assert reply["kind"] == "update", reply
    fitted: Parameters = reply["parameters"]
    return fitted


def states(site: FactoryDataSite, plan_id: str) -> dict[int, bytes]:
    """Give what the site keeps of a plan, by round."""
    with site.ledger.read() as session:
        rows = session.scalars(select(StateRow).where(StateRow.plan_id == plan_id))
        return {row.round_num: row.state for row in rows}


def dual(site: FactoryDataSite, plan_id: str, round_num: int) -> Parameters:
    """Give g as it was after a round."""
    found: Parameters = safetensors.torch.load(states(site, plan_id)[round_num])
    return found


def expected_dual(before: Parameters, fitted: Parameters, round_num: int) -> Parameters:
    """Give g − α (θ_k − θ)."""
    change = difference(fitted, parameters(seed=round_num))
    return {name: before.get(name, torch.zeros_like(d)) - ALPHA * d for name, d in change.items()}


def test_the_second_round_builds_on_the_first(site: FactoryDataSite) -> None:
    """g₁ = g₀ − α (θ₁ − θ): the sum of both rounds; and the training was bent by g₀."""
    plan_id = plan(site)
    first = train(site, plan_id, 0)
    second = train(site, plan_id, 1, state_round=0)
    after_first = expected_dual({}, first, 0)
    assert digest(dual(site, plan_id, 0)) == digest(after_first)
    assert digest(dual(site, plan_id, 1)) == digest(expected_dual(after_first, second, 1))
    other = plan(site, run_id="run-2")
    assert digest(train(site, other, 1)) != digest(second)


def test_without_a_round_named_it_starts_from_nothing(site: FactoryDataSite) -> None:
    """A state that is there is left alone: the round is that of a site that never trained."""
    plan_id = plan(site)
    train(site, plan_id, 0)
    second = train(site, plan_id, 1)
    fresh = plan(site, run_id="run-2")
    assert digest(train(site, fresh, 1)) == digest(second)
    assert digest(dual(site, plan_id, 1)) == digest(expected_dual({}, second, 1))


def test_an_older_round_can_be_built_on(site: FactoryDataSite) -> None:
    """The update of round 1 was lost on its way: round 2 builds on round 0, as round 1 did."""
    plan_id = plan(site)
    first = train(site, plan_id, 0)
    train(site, plan_id, 1, state_round=0)
    third = train(site, plan_id, 2, state_round=0)
    after_first = expected_dual({}, first, 0)
    assert digest(dual(site, plan_id, 2)) == digest(expected_dual(after_first, third, 2))


def test_a_round_trained_anew_replaces_its_state(site: FactoryDataSite) -> None:
    """A run that went on from an older checkpoint sends round 1 otherwise than before."""
    plan_id = plan(site)
    first = train(site, plan_id, 0)
    train(site, plan_id, 1, state_round=0)
    again = train(site, plan_id, 1, state_round=0, parameters=parameters(seed=9))
    change = difference(again, parameters(seed=9))
    after_first = expected_dual({}, first, 0)
    assert digest(dual(site, plan_id, 1)) == digest(
        {name: g - ALPHA * change[name] for name, g in after_first.items()}
    )


@pytest.mark.parametrize("state_round", [0, 2, 7], ids=["not trained", "of itself", "to come"])
def test_a_state_that_the_site_does_not_have_is_refused(
    site: FactoryDataSite, state_round: int
) -> None:
    """To start from nothing instead would break the sum at the server without a word."""
    plan_id = plan(site)
    train(site, plan_id, 1)
    reply = ask(site, request(plan_id, 2, state_round=state_round))
    assert (reply["kind"], reply["error"]) == ("failure", "DataSiteError")
    assert reply["message"] == (
        f"factory-1: has no state of plan {plan_id[:12]} after round {state_round}: it was not "
        "trained then, or more than a few rounds ago; start a new run"
    )
    assert states(site, plan_id).keys() == {1}


def test_another_plans_state_is_not_found(site: FactoryDataSite) -> None:
    """What one run left behind is nothing to the next."""
    train(site, plan(site), 0)
    reply = ask(site, request(plan(site, run_id="run-2"), 1, state_round=0))
    assert reply["error"] == "DataSiteError"
    assert "has no state of plan" in reply["message"]


def test_an_algorithm_without_state_keeps_none(site: FactoryDataSite) -> None:
    """FedAvg leaves nothing in the ledger but its reply."""
    plan_id = planned(site)
    assert ask(site, train_request(plan_id))["kind"] == "update"
    assert states(site, plan_id) == {}


def test_a_repeated_request_neither_trains_nor_moves_the_state(
    open_site: OpenSite, tmp_path: Path
) -> None:
    """The same bytes get the stored reply; the dual counts the round once."""
    rounds: list[int] = []

    class Counts(InlineTrainer):
        """Trains, and counts how often."""

        def perform(self, assignment: Assignment, *, deadline_s: float, watch: Watch) -> Done:
            """Train in the calling thread."""
            message = wire.decode(assignment.request)
            assert message["kind"] == "train"
            rounds.append(message["round_num"])
            return super().perform(assignment, deadline_s=deadline_s, watch=watch)

    site = open_site(lambda _config: Counts())
    register(site, tmp_path)
    plan_id = plan(site)
    train(site, plan_id, 0)
    first = train(site, plan_id, 1, state_round=0)
    kept = states(site, plan_id)
    again = train(site, plan_id, 1, state_round=0)
    assert digest(again) == digest(first)
    assert states(site, plan_id) == kept
    assert rounds == [0, 1]


@pytest.mark.parametrize("algorithm", [FEDDYN, SCAFFOLD], ids=["feddyn", "scaffold"])
def test_the_state_survives_close_and_open(
    site: FactoryDataSite, open_site: OpenSite, algorithm: dict[str, Any]
) -> None:
    """A restart between two rounds changes no bit of the second."""
    control = {name: torch.zeros_like(tensor) for name, tensor in parameters().items()}
    changes: dict[str, Any] = {"algorithm": algorithm}
    if algorithm is SCAFFOLD:
        changes["control"] = control
    plans = [planned(site, algorithm=algorithm, run_id=run_id) for run_id in ("run-1", "run-2")]
    for plan_id in plans:
        train(site, plan_id, 0, **changes)
    undisturbed = train(site, plans[0], 1, state_round=0, **changes)
    site.close()
    reopened = open_site()
    restarted = train(reopened, plans[1], 1, state_round=0, **changes)
    assert digest(restarted) == digest(undisturbed)
    assert states(reopened, plans[0])[1] == states(reopened, plans[1])[1]


def test_only_the_newest_few_states_are_kept(site: FactoryDataSite) -> None:
    """Of each plan the four newest: a run can go back to its three checkpoints."""
    plan_id, other = plan(site, rounds=7), plan(site, run_id="run-2")
    train(site, other, 0)
    train(site, plan_id, 0)
    for round_num in range(1, 7):
        train(site, plan_id, round_num, state_round=round_num - 1)
    assert states(site, plan_id).keys() == {3, 4, 5, 6}
    assert states(site, other).keys() == {0}


def test_rounds_that_were_left_out_do_not_count_among_the_newest(site: FactoryDataSite) -> None:
    """A site that is drawn seldom still has its own last four."""
    plan_id = plan(site, rounds=99)
    train(site, plan_id, 3)
    for before, round_num in ((3, 10), (10, 11), (11, 50)):
        train(site, plan_id, round_num, state_round=before)
    assert states(site, plan_id).keys() == {3, 10, 11, 50}


def test_a_state_that_counts_outlasts_any_number_that_do_not(site: FactoryDataSite) -> None:
    """Round 0 counted, the answers to rounds 1 to 6 were lost: round 7 still builds on round 0."""
    plan_id = plan(site, rounds=99)
    train(site, plan_id, 0)
    for round_num in range(1, 8):
        train(site, plan_id, round_num, state_round=0)
    assert states(site, plan_id).keys() == {0, 4, 5, 6, 7}


def test_the_state_never_leaves_the_site(site: FactoryDataSite) -> None:
    """Neither the stored bytes nor one tensor of them is in the reply."""
    plan_id = plan(site)
    caller = Caller(email="researcher@lab.example.com", role=Role.RESEARCHER)
    train(site, plan_id, 0)
    reply = site.handle(encoded(request(plan_id, 1, state_round=0)), caller)
    kept = states(site, plan_id)
    assert kept.keys() == {0, 1}
    for state in kept.values():
        assert state not in reply.joined()
        for tensor in safetensors.torch.load(state).values():
            assert tensor.abs().sum() > 0
            assert tensor.numpy().tobytes() not in reply.joined()
            assert tensor.float().numpy().tobytes() not in reply.joined()
    message = wire.decode(reply)
    assert message["kind"] == "update"
    assert "control" not in message


def test_what_scaffold_sends_is_what_it_added_to_its_state(site: FactoryDataSite) -> None:
    """c_k after two rounds is the exact sum of the two changes that left the site."""
    plan_id = planned(site, algorithm=SCAFFOLD)
    control = {name: torch.full_like(tensor, 0.01) for name, tensor in parameters().items()}
    shared = {"algorithm": SCAFFOLD, "control": control}
    first = ask(site, request(plan_id, 0, **shared))["control"]
    second = ask(site, request(plan_id, 1, state_round=0, **shared))["control"]
    kept = safetensors.torch.load(states(site, plan_id)[1])
    assert digest(kept) == digest(
        {name: first[name].double() + second[name].double() for name in first}
    )


def test_states_go_with_the_plans_that_trained_the_longest_ago(site: FactoryDataSite) -> None:
    """However many runs there were, a site keeps the states of sixteen; the others say so."""
    plans = [plan(site, run_id=f"run-{number}") for number in range(17)]
    for plan_id in plans[:-1]:
        train(site, plan_id, 0)
    train(site, plans[0], 1, state_round=0)
    train(site, plans[-1], 0)
    assert [plan_id for plan_id in plans if states(site, plan_id)] == [plans[0], *plans[2:]]
    train(site, plans[2], 1, state_round=0)
    refused = ask(site, request(plans[1], 1, state_round=0))
    assert (refused["kind"], "has no state" in refused["message"]) == ("failure", True)
