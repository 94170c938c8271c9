"""One of five sites lies: what the robust methods save, and what they are told of it.

A method is judged by the pooled PR-AUC after the last round, against its own run without a liar.
"""

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from federations import APPROVE_ALL, Federation

from core import wire
from core.enums import DataDistribution
from core.exceptions import ExperimentError
from core.messages import Parameters
from orchestrator.communication.memory import Handler
from orchestrator.testbed.ai4i import generate_ai4i
from orchestrator.testbed.presets import AI4I_SCHEMA
from orchestrator.testbed.samples import write_samples

LIAR = "factory-4"
ROBUST = ("median", "trimmed_mean", "krum", "multi_krum", "geometric_median")

Lie = Callable[[Parameters, Parameters], Parameters]
"""From the received and the trained parameters to those that are sent."""


def delta_times(factor: float) -> Lie:
    """Send w + factor (w_k − w)."""

    def lie(received: Parameters, trained: Parameters) -> Parameters:
        return {
            name: received[name] + factor * (trained[name] - received[name]) for name in trained
        }

    return lie


def ones(received: Parameters, trained: Parameters) -> Parameters:
    """Send the same number everywhere, whatever was received."""
    return {name: torch.ones_like(tensor) for name, tensor in trained.items()}


def not_a_number(received: Parameters, trained: Parameters) -> Parameters:
    """Send one NaN among numbers that are right."""
    spoiled = trained["head.bias"].clone()
    spoiled[0] = math.nan
    return {**trained, "head.bias": spoiled}


def another_shape(received: Parameters, trained: Parameters) -> Parameters:
    """Send a head for three classes."""
    return {**trained, "head.bias": torch.zeros(3)}


# Four honest deltas of about the same length against one turned round and five times as long: the
# plain mean goes by (4 − 5) / 5 of a delta, which is backwards.
LIES: dict[str, Lie] = {
    "sign flip": delta_times(-5.0),
    "times 1000": delta_times(1000.0),
    "constant": ones,
}
REFUSED: dict[str, tuple[Lie, str]] = {
    "NaN": (not_a_number, "'head.bias' holds values that are not finite"),
    "another shape": (another_shape, r"'head.bias' is torch.float32 \(3,\), expected .* \(2,\)"),
}


def lying(site: Handler, lie: Lie) -> Handler:
    """Give a site that trains as asked and sends something else."""

    def handle(request: bytes, email: str) -> bytes:
        reply = wire.decode(site(request, email))
        if reply["kind"] == "update":
            asked = wire.decode(request)
            assert asked["kind"] == "train"
            reply["parameters"] = lie(asked["parameters"], reply["parameters"])
        return wire.encode(reply)

    return handle


class Arena:
    """Five factories with 1000 rows each; a run that was run is not run again."""

    def __init__(self, federation: Federation) -> None:
        self.federation = federation
        self._done: dict[tuple[str, str], dict[str, Any]] = {}
        self._runs = 0

    def start(self, aggregation: object, lie: Lie | None, **changes: object) -> str:
        """Run four rounds of FedAvg with `LIAR` lying, or not; the run's id."""
        run_id = f"run-{self._runs}"
        self._runs += 1
        settings = self.federation.settings(
            rounds=4,
            algorithm={"name": "fedavg", "aggregation": aggregation},
            model={"type": "cnn", "options": {"channels": 8, "blocks": 1}},
            training={
                "local_epochs": 3,
                "batch_size": 32,
                "learning_rate": 0.03,
                "momentum": 0.9,
            },
            split={"test": 0.3, "validation": 0.1},
            evaluation={"every": 4},
            **changes,
        )
        handlers = self.federation.handlers()
        if lie is not None:
            handlers[LIAR] = lying(handlers[LIAR], lie)
        orchestrator = self.federation.orchestrator(handlers=handlers)
        orchestrator.setup_experiment({**settings, "experiment_id": run_id})
        orchestrator.run_experiment(run_id)
        return run_id

    def run(self, method: str, lie: str = "") -> dict[str, Any]:
        """Give the results of a method against one of `LIES`, or against none."""
        if (method, lie) not in self._done:
            run_id = self.start(method, LIES[lie] if lie else None)
            self._done[method, lie] = self.federation.store.results(run_id)
        return self._done[method, lie]

    def last(self) -> dict[str, Any]:
        """Give the results of the newest run, whatever became of it."""
        return self.federation.store.results(f"run-{self._runs - 1}")


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    """Five sites with AI4I-like data."""
    folder = tmp_path_factory.mktemp("arena")
    federation = Federation(folder / "federation", policy=APPROVE_ALL)
    for path in write_samples(
        generate_ai4i(rows=5000, seed=7),
        folder / "samples",
        sites=5,
        distribution=DataDistribution.IID,
        seed=7,
    ):
        federation.open_site(path.stem).register_data(
            {"name": "ai4i", "file": path, "schema": AI4I_SCHEMA}
        )
    yield Arena(federation)
    for site in federation.sites.values():
        site.close()


def pr_auc(results: dict[str, Any]) -> float:
    """Give the pooled PR-AUC of the final model."""
    value: float = results["metrics"]["final"]["global"]["pr_auc"]
    return value


def of_the_liar(results: dict[str, Any], fact: str) -> list[float]:
    """Give a fact of what became of the liar's update, round by round."""
    return [record["aggregation"]["sites"][LIAR][fact] for record in results["rounds"]]


@pytest.mark.parametrize("method", ["weighted_average", *ROBUST])
def test_without_a_liar_every_method_learns(arena: Arena, method: str) -> None:
    """Each far above the share of failures, about 0.04: there is something to lose."""
    assert pr_auc(arena.run(method)) > 0.5


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("method", ROBUST)
def test_a_robust_method_outvotes_one_liar_of_five(arena: Arena, method: str, lie: str) -> None:
    """It ends within 0.05 of its own run without a liar."""
    assert pr_auc(arena.run(method, lie)) > pr_auc(arena.run(method)) - 0.05


@pytest.mark.parametrize("lie", LIES)
def test_one_liar_of_five_ruins_the_plain_mean(arena: Arena, lie: str) -> None:
    """What the robust methods are for: the weighted mean ends near the share of failures."""
    clean = pr_auc(arena.run("weighted_average"))
    assert pr_auc(arena.run("weighted_average", lie)) < clean / 4


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("method", ["krum", "multi_krum"])
def test_the_record_says_that_the_liar_did_not_count(arena: Arena, method: str, lie: str) -> None:
    """Krum leaves it out of every round: share 0."""
    assert of_the_liar(arena.run(method, lie), "share") == [0.0] * 4


@pytest.mark.parametrize("lie", ["sign flip", "times 1000"])
@pytest.mark.parametrize("method", ["median", "trimmed_mean"])
def test_the_record_says_how_little_the_liar_counted(arena: Arena, method: str, lie: str) -> None:
    """In nearly every coordinate it is the largest or the smallest: below half of 1/5."""
    assert max(of_the_liar(arena.run(method, lie), "share")) < 0.1


def test_the_geometric_median_gives_a_far_liar_next_to_nothing(arena: Arena) -> None:
    """Its share goes with 1 / distance; the four others have all the rest."""
    assert max(of_the_liar(arena.run("geometric_median", "times 1000"), "share")) < 0.001


@pytest.mark.parametrize("lie", ["sign flip", "times 1000"])
def test_the_record_says_how_far_the_liar_went(arena: Arena, lie: str) -> None:
    """In round 0 all start from the same model: five or a thousand times its honest delta."""
    honest = of_the_liar(arena.run("krum"), "delta_norm")[0]
    found = of_the_liar(arena.run("krum", lie), "delta_norm")[0]
    assert found / honest == pytest.approx({"sign flip": 5.0, "times 1000": 1000.0}[lie], rel=1e-3)


def test_clipping_says_by_how_much_the_liar_was_cut(arena: Arena) -> None:
    """With the longest honest delta as the bound, only the liar is scaled down, to the bound."""
    first = arena.run("weighted_average")["rounds"][0]["aggregation"]["sites"]
    bound = 1.01 * max(site["delta_norm"] for site in first.values())
    clipped = {"method": "weighted_average", "clip_norm": bound}
    arena.start(clipped, LIES["times 1000"])
    for record in arena.last()["rounds"]:
        liar = record["aggregation"]["sites"][LIAR]
        assert liar["clip_factor"] == pytest.approx(bound / liar["delta_norm"])
        assert liar["clip_factor"] < 0.01
    honest = arena.last()["rounds"][0]["aggregation"]["sites"]
    assert {site["clip_factor"] for site_id, site in honest.items() if site_id != LIAR} == {1.0}


@pytest.mark.parametrize("fault", REFUSED)
@pytest.mark.parametrize("method", ["weighted_average", *ROBUST])
def test_what_cannot_be_combined_ends_the_run_with_the_sites_name(
    arena: Arena, method: str, fault: str
) -> None:
    """No method outvotes a NaN: it is refused at the door, and every site must answer."""
    lie, message = REFUSED[fault]
    expected = rf"round 0: 4 of at least 5 sites answered; missing:\n  {LIAR}: {message}"
    with pytest.raises(ExperimentError, match=expected):
        arena.start(method, lie)
    results = arena.last()
    assert (results["status"], results["rounds"]) == ("FAILED", [])
    assert f"{LIAR}: " in results["message"]


@pytest.mark.parametrize("fault", REFUSED)
@pytest.mark.parametrize("method", ["weighted_average", "median", "geometric_median"])
def test_four_sites_go_on_without_what_cannot_be_combined(
    arena: Arena, method: str, fault: str
) -> None:
    """With min_sites 4 every round is made of the four, says who is missing, and learns."""
    lie, message = REFUSED[fault]
    arena.start(method, lie, min_sites=4)
    results = arena.last()
    assert len(results["rounds"]) == 4
    for record in results["rounds"]:
        assert record["missing"].keys() == {LIAR}
        assert re.match(f"{LIAR}: {message}", record["missing"][LIAR])
        assert LIAR not in record["aggregation"]["sites"]
        assert len(record["aggregation"]["sites"]) == 4
    assert pr_auc(results) > pr_auc(arena.run(method)) - 0.05
