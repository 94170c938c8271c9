"""Compressed requests and updates at one site's door."""

from typing import Any

import pytest
import torch
from sites import FEDAVG, PROBE, ask, evaluate_request, parameters, planned, proposal, train_request

from core.compression import VALUES, compress, receive
from core.enums import Compression
from core.messages import Parameters
from core.parameters import digest, largest_difference
from datasite.plans import plan_id_of
from datasite.site import FactoryDataSite

LOSSY = ["fp16", "int8"]
FORMS = ["zstd", *LOSSY]


def request(plan_id: str, compression: str | None, **changes: Any) -> dict[str, Any]:
    """Give a request for training in this form."""
    plain = changes.pop("parameters", None) or parameters()
    if compression is None:
        return train_request(plan_id, parameters=plain, **changes)
    return train_request(plan_id, parameters=compress(plain), compression=compression, **changes)


def trained(
    site: FactoryDataSite, plan_id: str, compression: str, round_num: int = 0, **changes: Any
) -> Parameters:
    """Have a round trained, from parameters of its own; what the orchestrator makes of it."""
    start = parameters(seed=round_num)
    asked = request(plan_id, compression, round_num=round_num, parameters=start, **changes)
    reply = ask(site, asked)
    assert reply["kind"] == "update", reply
    assert reply["compression"] == compression
    return receive(reply["parameters"], start, Compression(compression))


def test_zstd_changes_no_bit_of_an_update(site: FactoryDataSite) -> None:
    """The same training, in another form."""
    plain = ask(site, request(planned(site), None))["parameters"]
    found = trained(site, planned(site, compression="zstd"), "zstd")
    assert digest(found) == digest(plain)


@pytest.mark.parametrize(("compression", "step"), [("fp16", 2**-11), ("int8", 1 / 127)])
def test_a_rounded_update_is_near_the_true_one(
    site: FactoryDataSite, compression: str, step: float
) -> None:
    """By a step of the largest change."""
    plain = ask(site, request(planned(site), None))["parameters"]
    found = trained(site, planned(site, compression=compression), compression)
    way = largest_difference(plain, parameters())
    assert 0.0 < largest_difference(found, plain) <= step * way


@pytest.mark.parametrize("compression", LOSSY)
def test_a_round_builds_on_the_memory_that_the_request_names(
    site: FactoryDataSite, compression: str
) -> None:
    """Round 1 was lost: round 2 is as if it had never been; and the memory does count."""
    plans = [planned(site, compression=compression, run_id=run_id) for run_id in "abc"]
    for plan_id in plans:
        trained(site, plan_id, compression, 0)
    trained(site, plans[0], compression, 1, state_round=0)
    third = trained(site, plans[0], compression, 2, state_round=0)
    assert digest(third) == digest(trained(site, plans[1], compression, 2, state_round=0))
    assert digest(third) != digest(trained(site, plans[2], compression, 2))


@pytest.mark.parametrize("compression", LOSSY)
def test_a_memory_that_the_site_does_not_have_is_refused(
    site: FactoryDataSite, compression: str
) -> None:
    """As an algorithm's state is: to start from nothing would lose what was rounded off."""
    plan_id = planned(site, compression=compression)
    asked = request(plan_id, compression, round_num=1, state_round=0)
    assert "has no state of plan" in ask(site, asked)["message"]


@pytest.mark.parametrize("compression", FORMS)
def test_the_null_objective_travels_in_every_form(site: FactoryDataSite, compression: str) -> None:
    """It adds 0.5 to every number, which any rounding here hits but for the last bits."""
    plan_id = planned(site, compression=compression, algorithm=PROBE)
    found = trained(site, plan_id, compression, algorithm=PROBE)
    expected = {name: tensor + 0.5 for name, tensor in parameters().items()}
    assert largest_difference(found, expected) < 1e-6


@pytest.mark.parametrize("compression", FORMS)
def test_a_compressed_model_is_scored_as_it_is(site: FactoryDataSite, compression: str) -> None:
    """The global model loses nothing on its way to the sites, whatever is done to updates."""
    plain = ask(site, evaluate_request(planned(site)))
    plan_id = planned(site, compression=compression)
    packed = compress(parameters())
    asked = evaluate_request(plan_id, parameters=packed, compression=compression)
    assert ask(site, asked) == plain


@pytest.mark.parametrize("asked", [None, *FORMS], ids=str)
@pytest.mark.parametrize("agreed", [None, *FORMS], ids=str)
@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_the_plan_binds_the_form(
    site: FactoryDataSite, kind: str, agreed: str | None, asked: str | None
) -> None:
    """An operator who approved rounded deltas did not approve exact ones."""
    plan_id = planned(site, **({"compression": agreed} if agreed else {}))
    message = request(plan_id, asked)
    if kind == "evaluate":
        form = {"compression": asked} if asked else {}
        message = evaluate_request(plan_id, parameters=message["parameters"], **form)
    reply = ask(site, message)
    if agreed == asked:
        assert reply["kind"] in {"update", "evaluation"}
        return
    assert (reply["kind"], reply["error"]) == ("failure", "PlanError")
    told = f"was approved for compression {agreed or 'none'!r}, not {asked or 'none'!r}"
    assert reply["message"] == f"factory-1: plan {plan_id[:12]} {told}"


def test_a_proposal_of_before_is_the_plan_that_it_was() -> None:
    """Without the field, the id is the hash of what was proposed before there was one."""
    before: Any = proposal(code_hash="0" * 64, algorithm=FEDAVG)
    expected = "d88597f42fe93545471c025cae8f722f96b87798dc4d8d1fc93865824a497e98"
    assert plan_id_of(before, "researcher@lab.example.com") == expected
    after: Any = {**before, "compression": "int8"}
    assert plan_id_of(after, "researcher@lab.example.com") != expected


def test_a_form_that_the_site_does_not_know_is_no_plan(site: FactoryDataSite) -> None:
    """A newer orchestrator is told so at once; `none` is said by saying nothing."""
    for unknown in ("gzip", "none"):
        reply = ask(site, proposal(compression=unknown))
        assert (reply["kind"], reply["error"]) == ("failure", "ProtocolError")


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize(
    ("found", "told"),
    [
        (compress({"w": torch.zeros(10**6)}), "become 4000000 bytes, expected"),
        ({}, "lack .values"),
        (parameters(), "lack .values"),
        ({VALUES: torch.zeros(9, dtype=torch.uint8)}, "cannot be read"),
    ],
    ids=["a bomb", "nothing", "not compressed", "no frame"],
)
def test_a_request_that_does_not_become_the_model_is_refused(
    site: FactoryDataSite, kind: str, found: Parameters, told: str
) -> None:
    """The site knows the sizes from the model and its schema, not from the request."""
    plan_id = planned(site, compression="int8")
    build = train_request if kind == "train" else evaluate_request
    reply = ask(site, build(plan_id, parameters=found, compression="int8"))
    assert (reply["kind"], reply["error"]) == ("failure", "ProtocolError")
    assert told in reply["message"]
