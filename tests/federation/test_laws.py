"""Laws that whole runs keep, over real sites and the real codec, whatever the data are."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from federations import APPROVE_ALL, Federation
from sqlalchemy import delete

from core import wire
from core.exceptions import CommunicationError
from core.messages import Parameters
from core.parameters import l2_norm, largest_difference, weighted_sum, zeros_like
from datasite.ledger import ReplyRow
from datasite.states import States
from orchestrator.algorithms import ALGORITHMS
from orchestrator.communication.memory import Handler
from orchestrator.observer import Observer
from orchestrator.runs import Checkpoint

MODEL = {"type": "cnn", "options": {"channels": 4, "blocks": 1}}
TRAINING: dict[str, Any] = {"local_epochs": 1, "batch_size": 128, "learning_rate": 0.05}

STATEFUL = {"feddyn": "h", "scaffold": "c"}
"""Algorithms whose sites keep a state, and the symbol of its mean at the server."""


class AfterEach(Observer):
    """Looks after every round."""

    def __init__(self, look: Callable[[str, Mapping[str, Any]], None]) -> None:
        self._look = look

    def round_done(self, run_id: str, record: Mapping[str, Any]) -> None:
        """Look."""
        self._look(run_id, record)


def stop_after(round_num: int) -> Observer:
    """Give an observer that interrupts the run after a round, as Ctrl-C does."""

    def look(run_id: str, record: Mapping[str, Any]) -> None:
        if record["round_num"] == round_num:
            raise KeyboardInterrupt

    return AfterEach(look)


class Plant:
    """Three factories for all runs of this file: each run has plans, and so states, of its own.

    Attributes:
        newest: The id of the run that was started last, whatever became of it.
    """

    newest = ""

    def __init__(self, federation: Federation) -> None:
        self.federation = federation
        self._numbers = itertools.count()

    def start(
        self,
        algorithm: str,
        observer: Observer | None = None,
        handlers: dict[str, Handler] | None = None,
        **changes: Any,
    ) -> str:
        """Set up a run of four rounds and run it; its id."""
        self.newest = run_id = f"run-{next(self._numbers)}"
        options = changes.pop("options", {})
        settings = {"rounds": 4, "evaluation": {"every": 4}, "training": TRAINING, **changes}
        orchestrator = self.federation.orchestrator(observer, handlers)
        orchestrator.setup_experiment(
            {
                **self.federation.settings(
                    model=MODEL, algorithm={"name": algorithm, **options}, **settings
                ),
                "experiment_id": run_id,
            }
        )
        orchestrator.run_experiment(run_id)
        return run_id

    def stopped(self, algorithm: str, round_num: int, **changes: Any) -> str:
        """Run until after a round and no further; the run's id."""
        with pytest.raises(KeyboardInterrupt):
            self.start(algorithm, stop_after(round_num), **changes)
        row = self.federation.store.find(self.newest)
        assert (row.status, row.rounds_done) == ("CANCELLED", round_num + 1)
        return self.newest

    def resume(self, run_id: str) -> dict[str, Any]:
        """Take the run up again, as another process would; its results."""
        return self.federation.orchestrator().run_experiment(run_id)

    def digest(self, run_id: str) -> str:
        """Give the digest of the model that a completed run ended with."""
        results = self.federation.store.results(run_id)
        assert results["status"] == "COMPLETED"
        return str(results["parameters_sha256"])

    def checkpoint(self, run_id: str) -> Checkpoint:
        """Give the run's newest checkpoint."""
        found = self.federation.store.load_checkpoint(run_id)
        assert found is not None
        return found

    def lose_checkpoints(self, run_id: str, how_many: int) -> None:
        """Delete the run's newest checkpoints."""
        folder = self.federation.store.folder(run_id) / "checkpoints"
        for path in sorted(folder.iterdir())[-how_many:]:
            path.unlink()

    def forget_replies(self) -> None:
        """Have every site forget what it answered: it will have to train again."""
        for site in self.federation.sites.values():
            with site.ledger.write() as session:
                session.execute(delete(ReplyRow))

    def restart_sites(self) -> None:
        """Close every site and open it again."""
        for site_id, site in list(self.federation.sites.items()):
            site.close()
            self.federation.open_site(site_id)

    def states(self, run_id: str) -> dict[str, Parameters]:
        """Give what each site keeps of the run, as it was after the round that last counted."""
        found = {}
        for site_id, round_num in self.checkpoint(run_id).counted.items():
            site = self.federation.sites[site_id]
            (plan,) = (p for p in site.plans.all() if p.proposal["run_id"] == run_id)
            blob = States(site.ledger, site_id=site_id).find(plan.plan_id, round_num)
            found[site_id] = safetensors.torch.load(blob)
        return found

    def distance_from_the_mean(self, run_id: str, symbol: str) -> float:
        """Give how far the server's state is from the mean of all sites', with 0 for the absent."""
        mean = self.checkpoint(run_id).state[symbol]
        assert l2_norm(mean) > 1e-3  # else there would be nothing to compare
        states = list(self.states(run_id).values())
        size = len(self.federation.sites)
        sites = weighted_sum([zeros_like(mean), *states], [0.0, *[1 / size] * len(states)])
        return largest_difference(mean, sites)


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory, samples: list[Path]) -> Iterator[Plant]:
    """Three sites with 420 rows each to train on."""
    federation = Federation(tmp_path_factory.mktemp("plant"), policy=APPROVE_ALL)
    federation.open_samples(samples)
    yield Plant(federation)
    federation.close()


def test_fedprox_without_mu_is_fedavg_to_the_bit(plant: Plant) -> None:
    """Over a whole run; with a μ it is something else."""
    fedavg = plant.digest(plant.start("fedavg"))
    assert plant.digest(plant.start("fedprox", options={"mu": 0.0})) == fedavg
    assert plant.digest(plant.start("fedprox", options={"mu": 0.1})) != fedavg


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_fednova_with_equal_steps_is_fedavg(plant: Plant, momentum: float) -> None:
    """All sites have 420 rows: 4 steps of 128 each, whatever a step amounts to."""
    training = {**TRAINING, "momentum": momentum}
    fedavg, fednova = (plant.start(name, training=training) for name in ("fedavg", "fednova"))
    for record in plant.federation.store.rounds(fednova):
        assert {site["num_steps"] for site in record["sites"].values()} == {4}
    found, expected = plant.checkpoint(fednova).parameters, plant.checkpoint(fedavg).parameters
    assert largest_difference(found, expected) < 1e-6


@pytest.mark.parametrize("fraction", [1.0, 0.5, 0.3], ids=["all", "two of three", "one of three"])
@pytest.mark.parametrize("name", STATEFUL)
def test_the_servers_state_is_the_mean_of_the_sites(
    plant: Plant, name: str, fraction: float
) -> None:
    """FedDyn: h = (1/m) Σ g_k, SCAFFOLD: c = (1/N) Σ c_k, after every round."""
    taken_part: list[int] = []

    def look(run_id: str, record: Mapping[str, Any]) -> None:
        taken_part.append(len(plant.checkpoint(run_id).counted))
        assert plant.distance_from_the_mean(run_id, STATEFUL[name]) < 1e-9

    options = {"feddyn": {"alpha": 0.1}, "scaffold": {}}[name]
    plant.start(name, AfterEach(look), options=options, participation={"fraction": fraction})
    # The sites that were not drawn yet count as 0.
    assert taken_part == {1.0: [3, 3, 3, 3], 0.5: [2, 2, 3, 3], 0.3: [1, 1, 2, 2]}[fraction]


@pytest.mark.parametrize("name", STATEFUL)
def test_an_update_that_was_lost_on_its_way_is_not_built_on(plant: Plant, name: str) -> None:
    """The site trained in round 1 and nobody knows: in round 2 it builds on round 0."""
    handlers = plant.federation.handlers()
    site = handlers["factory-3"]
    asked: list[tuple[int, int | None]] = []

    def loses_round_1(request: bytes, email: str) -> bytes:
        reply = site(request, email)
        message = wire.decode(request)
        if message["kind"] == "train":
            asked.append((message["round_num"], message.get("state_round")))
            if message["round_num"] == 1:
                raise CommunicationError("factory-3: connection reset", site_id="factory-3")
        return reply

    def look(run_id: str, record: Mapping[str, Any]) -> None:
        assert set(record["missing"]) == ({"factory-3"} if record["round_num"] == 1 else set())
        assert plant.distance_from_the_mean(run_id, STATEFUL[name]) < 1e-9

    options = {"feddyn": {"alpha": 0.1}, "scaffold": {}}[name]
    plant.start(
        name,
        AfterEach(look),
        {**handlers, "factory-3": loses_round_1},
        options=options,
        min_sites=2,
    )
    assert asked == [(0, None), (1, 0), (2, 0), (3, 2)]


@pytest.mark.parametrize("fraction", [1.0, 0.5], ids=["all", "two of three"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_permuting_the_sites_changes_nothing(plant: Plant, name: str, fraction: float) -> None:
    """The sites file in another order: the same sites are drawn, and the same bits result."""
    participation = {"fraction": fraction}
    first = plant.digest(plant.start(name, participation=participation))
    plant.federation.sites = dict(reversed(plant.federation.sites.items()))
    assert plant.digest(plant.start(name, participation=participation)) == first


@pytest.mark.parametrize("round_num", [0, 1, 2])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_run_resumes_after_any_round_as_if_undisturbed(
    plant: Plant, name: str, round_num: int
) -> None:
    """Whatever the algorithm carries from round to round is carried over the interruption."""
    undisturbed = plant.start(name)
    stopped = plant.stopped(name, round_num)
    resumed = plant.resume(stopped)
    assert [record["round_num"] for record in resumed["rounds"]] == [0, 1, 2, 3]
    assert plant.digest(stopped) == plant.digest(undisturbed)


@pytest.mark.parametrize("round_num", range(4))
def test_all_options_together_resume_as_if_undisturbed(plant: Plant, round_num: int) -> None:
    """Two of three sites a round, a falling rate, and an early end at the best round's model."""
    changes: dict[str, Any] = {
        "rounds": 20,
        "evaluation": {"every": 1},
        "options": {"alpha": 0.1},
        "participation": {"fraction": 0.5},
        "training": {**TRAINING, "learning_rate": 0.3, "schedule": "cosine"},
        "early_stopping": {"metric": "pr_auc", "patience": 3, "restore_best": True},
    }
    undisturbed = plant.federation.store.results(plant.start("feddyn", **changes))
    assert undisturbed["stopped_early"]
    resumed = plant.resume(plant.stopped("feddyn", round_num, **changes))
    assert len(resumed["rounds"]) == len(undisturbed["rounds"])
    for fact in ("parameters_sha256", "stopped_early"):
        assert resumed[fact] == undisturbed[fact]
    best = undisturbed["metrics"]["final"]["round_num"]
    assert resumed["metrics"]["final"]["round_num"] == best == len(undisturbed["rounds"]) - 4


@pytest.mark.parametrize("round_num", [0, 1, 2])
@pytest.mark.parametrize("name", STATEFUL)
def test_a_run_resumes_over_sites_that_were_restarted(
    plant: Plant, name: str, round_num: int
) -> None:
    """What the sites keep is on disk."""
    undisturbed = plant.start(name)
    stopped = plant.stopped(name, round_num)
    plant.restart_sites()
    plant.resume(stopped)
    assert plant.digest(stopped) == plant.digest(undisturbed)


@pytest.mark.parametrize("forgotten", [False, True], ids=["replies kept", "replies forgotten"])
@pytest.mark.parametrize("lost", [1, 2])
@pytest.mark.parametrize("name", STATEFUL)
def test_a_run_resumes_from_an_older_checkpoint(
    plant: Plant, name: str, lost: int, *, forgotten: bool
) -> None:
    """Sites still have the state of that time, also where they must train the rounds again."""
    undisturbed = plant.start(name)
    stopped = plant.stopped(name, 2)
    plant.lose_checkpoints(stopped, lost)
    assert plant.checkpoint(stopped).next_round == 3 - lost
    if forgotten:
        plant.forget_replies()
    plant.resume(stopped)
    assert plant.digest(stopped) == plant.digest(undisturbed)


@pytest.mark.parametrize("name", STATEFUL)
def test_a_run_resumes_from_its_oldest_checkpoint_in_the_middle_of_a_round(
    plant: Plant, name: str
) -> None:
    """The sites trained round 4 and keep the states of rounds 1 to 4: it goes on from round 2."""
    changes = {"rounds": 6, "evaluation": {"every": 1}}

    def interrupted(site: Handler) -> Handler:
        def handle(request: bytes, email: str) -> bytes:
            message = wire.decode(request)
            if message["kind"] == "evaluate" and message["round_num"] == 4:
                raise KeyboardInterrupt
            return site(request, email)

        return handle

    undisturbed = plant.start(name, **changes)
    doors = plant.federation.handlers()
    with pytest.raises(KeyboardInterrupt):
        plant.start(name, None, {**doors, "factory-2": interrupted(doors["factory-2"])}, **changes)
    stopped = plant.newest
    plant.lose_checkpoints(stopped, 2)
    assert plant.checkpoint(stopped).next_round == 2
    plant.forget_replies()
    plant.resume(stopped)
    assert plant.digest(stopped) == plant.digest(undisturbed)


def test_runs_end_in_different_places(plant: Plant) -> None:
    """Seven algorithms, and but one pair that is equal by law: what is compared here differs."""
    models = [plant.checkpoint(plant.start(name)).parameters for name in ALGORITHMS]
    equal = [
        {first, second}
        for (first, left), (second, right) in itertools.combinations(
            zip(ALGORITHMS, models, strict=True), 2
        )
        if all(torch.allclose(left[name], right[name], rtol=0, atol=1e-6) for name in left)
    ]
    assert equal == [{"fedavg", "fednova"}]
