"""What happens to a run when containers are killed, frozen or cut off in the middle of a round."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import docker
import pytest
from compose_project import FACTORIES, Compose, events
from docker.models.containers import Container

Act = Callable[[], None]
LOST = "factory-2"


@pytest.fixture
def factory(registered: Compose, engine: docker.DockerClient) -> Iterator[Container]:
    """Give the factory that gets lost; whatever became of it, it is well again afterwards."""
    lost = registered.container(LOST)
    yield lost
    lost.reload()
    if lost.status == "paused":
        lost.unpause()
    if network_of(lost) is None:
        engine.networks.get(f"{registered.project}_{LOST}").connect(lost, aliases=[LOST])
    registered.run("up", "--detach", "--wait", "--no-build")


def network_of(container: Container) -> str | None:
    """Give the name of the network that a container is on, if it is on any."""
    return next(iter(container.attrs["NetworkSettings"]["Networks"]), None)


@pytest.fixture(scope="module")
def registered(compose: Compose) -> Compose:
    """Give the testbed with the demonstration's data at every site."""
    for number in (1, 2, 3):
        compose.run("--profile", "demo", "run", "--rm", "--no-TTY", f"demo-data-{number}")
    return compose


def follow(run: Container, *, at: dict[int, Act]) -> list[dict[str, Any]]:
    """Follow a run to its end, acting once the rounds named are done: then the next has begun."""
    records = []
    for event in events(run):
        if event["event"] == "round":
            records.append(event)
            at.get(event["round_num"], lambda: None)()
    assert run.wait()["StatusCode"] == 0, run.logs().decode()
    run.remove()
    return records


def missing(records: list[dict[str, Any]]) -> dict[int, dict[str, str]]:
    """Give who was missing in which round, and why."""
    return {r["round_num"]: r["missing"] for r in records if r["missing"]}


def assert_lost_and_back(records: list[dict[str, Any]], *, rounds: int, why: str) -> None:
    """One site was missing from the round of the fault on, said why, and took part at the end."""
    assert [record["round_num"] for record in records] == list(range(rounds))
    gaps = missing(records)
    assert 1 in gaps
    assert all(set(gap) == {LOST} for gap in gaps.values())
    assert why in gaps[1][LOST]
    last = records[-1]
    assert last["missing"] == {}
    assert set(last["aggregation"]["sites"]) == set(FACTORIES)


def test_a_factory_killed_in_a_round_comes_back(registered: Compose, factory: Container) -> None:
    """The round ends with two; the site, started again, takes part again by itself."""
    experiment = registered.write_experiment(
        "killed", rounds=14, limits={"call_s": 60, "attempts": 1}
    )
    run = registered.start_orchestrator(f"{registered.project}-killed", "run", experiment, "--json")
    records = follow(run, at={0: factory.kill, 1: factory.start})
    assert_lost_and_back(records, rounds=14, why="factory-2")


def test_a_factory_frozen_beyond_the_deadline_comes_back(
    registered: Compose, factory: Container
) -> None:
    """The deadline passes, the round ends with two, and the thawed site takes part again."""
    experiment = registered.write_experiment(
        "frozen", rounds=5, limits={"call_s": 20, "attempts": 1}
    )
    run = registered.start_orchestrator(f"{registered.project}-frozen", "run", experiment, "--json")
    records = follow(run, at={0: factory.pause, 1: factory.unpause})
    assert_lost_and_back(records, rounds=5, why="no answer within 20 s")


def test_a_factory_cut_off_comes_back(
    registered: Compose, factory: Container, engine: docker.DockerClient
) -> None:
    """Its network is taken from it while it trains, and given back a round later."""
    network = engine.networks.get(f"{registered.project}_{LOST}")
    experiment = registered.write_experiment(
        "cut-off", rounds=6, limits={"call_s": 20, "attempts": 1}
    )
    run = registered.start_orchestrator(f"{registered.project}-cut", "run", experiment, "--json")
    records = follow(
        run,
        at={
            0: lambda: network.disconnect(factory),
            1: lambda: network.connect(factory, aliases=[LOST]),
        },
    )
    assert_lost_and_back(records, rounds=6, why="factory-2")


def test_an_orchestrator_killed_in_a_round_is_resumed(registered: Compose) -> None:
    """Another container goes on from the checkpoint; no round is done twice."""
    experiment = registered.write_experiment("resumed", rounds=4)
    run = registered.start_orchestrator(
        f"{registered.project}-resumed", "run", experiment, "--json", "--run-id", "resumed"
    )
    done = 0
    for event in events(run):
        done += event["event"] == "round"
        if done == 2:
            run.kill()
            break
    run.wait()
    run.remove()
    resumed = registered.orchestrator("resume", "resumed", "--json").out
    results = json.loads(resumed.splitlines()[-1])
    assert results["status"] == "COMPLETED"
    assert [record["round_num"] for record in results["rounds"]] == [0, 1, 2, 3]
    assert all(record["missing"] == {} for record in results["rounds"])
    for factory in FACTORIES:
        assert trained_rounds(registered, factory) == [0, 1, 2, 3]


def trained_rounds(compose: Compose, factory: str) -> list[int]:
    """Give the rounds that a site trained for the newest plan, as its log has them."""
    shown = compose.datasite(factory, "audit", "show", "--last", "500", "--json")
    fits = [row for row in json.loads(shown.out) if row["action"] == "train"]
    assert all(row["outcome"] == "ok" for row in fits if row["plan_id"] == fits[-1]["plan_id"])
    return [r["detail"]["round_num"] for r in fits if r["plan_id"] == fits[-1]["plan_id"]]
