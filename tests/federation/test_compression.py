"""What `compression` promises, over whole runs and through the sites' doors."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
import torch
from federations import APPROVE_ALL, Federation
from sqlalchemy import delete

from core import wire
from core.compression import SCALES, VALUES, compress
from core.enums import Compression
from core.exceptions import CommunicationError, ConfigurationError, ExperimentError
from core.messages import Parameters
from core.models import initial_parameters
from core.parameters import distance, l2_norm, largest_difference, weighted_sum, zeros_like
from core.wire import Parcel
from datasite.ledger import ReplyRow
from datasite.states import States
from datasite.training.sending import Memory
from orchestrator.communication.memory import Handler
from orchestrator.observer import Observer

MODEL: Any = {"type": "cnn", "options": {"channels": 4, "blocks": 1}}
TRAINING = {"local_epochs": 1, "batch_size": 128, "learning_rate": 0.05}
LOSSY = ["fp16", "int8"]
ALGORITHMS: dict[str, dict[str, Any]] = {
    "fedavg": {"name": "fedavg"},
    "feddyn": {"name": "feddyn", "alpha": 0.1},
    "scaffold": {"name": "scaffold"},
}

Reply = dict[str, Any]
Change = Callable[[Reply], Reply]


class StopAfter(Observer):
    """Interrupts the run after a round, as Ctrl-C does."""

    def __init__(self, round_num: int) -> None:
        self.round_num = round_num

    def round_done(self, run_id: str, record: Mapping[str, Any]) -> None:
        """Interrupt after the chosen round."""
        if record["round_num"] == self.round_num:
            raise KeyboardInterrupt


class Plant:
    """Three factories for all runs of this file, whose doors note what goes in and out.

    Attributes:
        newest: The id of the run that was started last, whatever became of it.
        passed: Requests and replies of the last run, by site, as they travelled.
    """

    newest = ""

    def __init__(self, federation: Federation) -> None:
        self.federation = federation
        self.passed: list[tuple[str, Parcel, Parcel]] = []
        self._numbers = itertools.count()
        self._lock = Lock()

    def start(
        self,
        compression: str,
        *,
        observer: Observer | None = None,
        doors: Mapping[str, Handler] | None = None,
        **changes: Any,
    ) -> str:
        """Set up a run of four rounds and run it; its id."""
        self.newest = run_id = f"run-{next(self._numbers)}"
        self.passed.clear()
        handlers = {
            site_id: self._noting(site_id, door)
            for site_id, door in {**self.federation.handlers(), **(doors or {})}.items()
        }
        orchestrator = self.federation.orchestrator(observer, handlers)
        settings = {"rounds": 4, "evaluation": {"every": 4}, "training": TRAINING, **changes}
        content = self.federation.settings(model=MODEL, compression=compression, **settings)
        orchestrator.setup_experiment({**content, "experiment_id": run_id})
        orchestrator.run_experiment(run_id)
        return run_id

    def altered(self, site_id: str, change: Change) -> dict[str, Handler]:
        """Give a door that changes the site's updates on their way."""
        door = self.federation.handlers()[site_id]

        def handle(request: Parcel, email: str) -> Parcel:
            reply: Any = wire.decode(door(request, email))
            return wire.encode(change(reply) if reply["kind"] == "update" else reply)

        return {site_id: handle}

    def digest(self, run_id: str) -> str:
        """Give the digest of the model that a completed run ended with."""
        results = self.federation.store.results(run_id)
        assert results["status"] == "COMPLETED"
        return str(results["parameters_sha256"])

    def parameters(self, run_id: str) -> Parameters:
        """Give the global parameters of the run's newest checkpoint."""
        found = self.federation.store.load_checkpoint(run_id)
        assert found is not None
        return found.parameters

    def messages(self, kind: str) -> list[tuple[str, dict[str, Any]]]:
        """Give the requests or replies of a kind, by site, in the order of their rounds."""
        found = [
            (site_id, wire.decode(parcel))
            for site_id, *parcels in self.passed
            for parcel in parcels
        ]
        chosen: list[Any] = [(s, m) for s, m in found if m["kind"] == kind]
        return sorted(chosen, key=lambda item: (item[1].get("round_num", 0), item[0]))

    def kept(self, run_id: str) -> dict[str, Memory]:
        """Give what each site keeps of the run after the round that last counted."""
        checkpoint = self.federation.store.load_checkpoint(run_id)
        assert checkpoint is not None
        found = {}
        for site_id, round_num in checkpoint.counted.items():
            site = self.federation.sites[site_id]
            (plan,) = (p for p in site.plans.all() if p.proposal["run_id"] == run_id)
            blob = States(site.ledger, site_id=site_id).find(plan.plan_id, round_num)
            found[site_id] = Memory.read(blob)
        return found

    def _noting(self, site_id: str, door: Handler) -> Handler:
        def handle(request: Parcel, email: str) -> Parcel:
            reply = door(request, email)
            with self._lock:
                self.passed.append((site_id, request, reply))
            return reply

        return handle


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory, samples: list[Path]) -> Iterator[Plant]:
    """Three sites with 420 rows each to train on."""
    federation = Federation(tmp_path_factory.mktemp("plant"), policy=APPROVE_ALL)
    federation.open_samples(samples)
    yield Plant(federation)
    federation.close()


@pytest.fixture(scope="module")
def plain(plant: Plant) -> dict[str, Parameters]:
    """The models of the same runs without compression, by algorithm."""
    return {
        name: plant.parameters(plant.start("none", algorithm=algorithm))
        for name, algorithm in ALGORITHMS.items()
    }


def train_bytes(plant: Plant) -> tuple[int, int]:
    """Give the bytes of the last run's bodies for training, to the sites and back."""
    pairs = [
        (len(request.body), len(reply.body))
        for _, request, reply in plant.passed
        if wire.peek(request)["kind"] == "train"
    ]
    return sum(sent for sent, _ in pairs), sum(received for _, received in pairs)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_zstd_is_none_to_the_bit(plant: Plant, name: str, plain: dict[str, Parameters]) -> None:
    """Whatever the algorithm sends and keeps; and what travels is smaller, both ways."""
    plant.start("none", algorithm=ALGORITHMS[name])
    sent, received = train_bytes(plant)
    run_id = plant.start("zstd", algorithm=ALGORITHMS[name])
    assert largest_difference(plant.parameters(run_id), plain[name]) == 0.0
    smaller_sent, smaller_received = train_bytes(plant)
    assert smaller_sent < 0.95 * sent
    assert smaller_received < 0.95 * received


@pytest.mark.parametrize(("compression", "share"), [("fp16", 0.52), ("int8", 0.30)])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_rounded_deltas_reach_nearly_the_same_model(
    plant: Plant, name: str, compression: str, share: float, plain: dict[str, Parameters]
) -> None:
    """Nearer than a fiftieth of the way; with at most so much of the bytes, control included."""
    plant.start("none", algorithm=ALGORITHMS[name])
    _, received = train_bytes(plant)
    run_id = plant.start(compression, algorithm=ALGORITHMS[name])
    start = initial_parameters(MODEL, sensors=11, window_steps=1, seed=0)
    way = distance(plain[name], start)
    off = distance(plant.parameters(run_id), plain[name])
    assert 0.0 < off < way / 50
    assert train_bytes(plant)[1] < share * received


@pytest.mark.parametrize("compression", LOSSY)
@pytest.mark.parametrize(("name", "symbol"), [("feddyn", "h"), ("scaffold", "c")])
def test_the_servers_state_is_the_mean_of_the_sites_under_rounding(
    plant: Plant, name: str, symbol: str, compression: str
) -> None:
    """A site adds to its own state what arrived, and not what it meant to send."""
    run_id = plant.start(compression, algorithm=ALGORITHMS[name], participation={"fraction": 0.5})
    checkpoint = plant.federation.store.load_checkpoint(run_id)
    assert checkpoint is not None
    mean = checkpoint.state[symbol]
    states = [kept.state for kept in plant.kept(run_id).values()]
    sites = weighted_sum([zeros_like(mean), *states], [0.0, *[1 / 3] * len(states)])
    assert l2_norm(mean) > 1e-3  # else there would be nothing to compare
    assert largest_difference(mean, sites) < 1e-9


@pytest.mark.parametrize("compression", [*LOSSY, "zstd"])
def test_a_site_is_told_which_memory_to_build_on_where_it_has_one(
    plant: Plant, compression: str
) -> None:
    """FedAvg keeps nothing itself: only what was rounded off makes a round follow another."""
    plant.start(compression, rounds=3)
    told = [message.get("state_round") for _, message in plant.messages("train")]
    assert told == ([None] * 9 if compression == "zstd" else [*[None] * 3, *[0] * 3, *[1] * 3])


@pytest.mark.parametrize("compression", LOSSY)
def test_what_was_rounded_off_is_kept_and_never_sent(plant: Plant, compression: str) -> None:
    """It is as large as the model, and neither its numbers nor its names are in any update."""
    run_id = plant.start(compression, algorithm=ALGORITHMS["scaffold"])
    for kept in plant.kept(run_id).values():
        for left in (kept.parameters, kept.control):
            assert left.keys() == plant.parameters(run_id).keys()
            assert l2_norm(left) > 0
            for _, update in plant.messages("update"):
                assert update["parameters"].keys() == update["control"].keys() == {VALUES, SCALES}
            for _, _, reply in plant.passed:
                for tensor in left.values():
                    assert tensor.numpy().tobytes() not in bytes(reply.body)


@pytest.mark.parametrize("name", ["fedavg", "scaffold"])
@pytest.mark.parametrize("compression", LOSSY)
def test_a_run_resumed_from_an_older_checkpoint_ends_the_same(
    plant: Plant, compression: str, name: str
) -> None:
    """Rounds 1 and 2 are trained anew, from the memory after round 0; the sites were restarted."""
    algorithm = ALGORITHMS[name]
    undisturbed = plant.digest(plant.start(compression, algorithm=algorithm))
    with pytest.raises(KeyboardInterrupt):
        plant.start(compression, observer=StopAfter(2), algorithm=algorithm)
    run_id = plant.newest
    checkpoints = plant.federation.store.folder(run_id) / "checkpoints"
    for path in sorted(checkpoints.iterdir())[-2:]:
        path.unlink()
    for site_id, site in list(plant.federation.sites.items()):
        with site.ledger.write() as session:
            session.execute(delete(ReplyRow))
        site.close()
        plant.federation.open_site(site_id)
    plant.federation.orchestrator().run_experiment(run_id)
    assert plant.digest(run_id) == undisturbed


@pytest.mark.parametrize("compression", LOSSY)
def test_an_update_that_was_lost_takes_its_memory_with_it(plant: Plant, compression: str) -> None:
    """Round 1 of factory-3 is trained and lost: round 2 is told to build on round 0."""
    door = plant.federation.handlers()["factory-3"]

    def loses(request: Parcel, email: str) -> Parcel:
        reply = door(request, email)
        message = wire.peek(request)
        if message["kind"] == "train" and message["round_num"] == 1:
            raise CommunicationError("factory-3: connection reset", site_id="factory-3")
        return reply

    run_id = plant.start(compression, doors={"factory-3": loses}, min_sites=2)
    told = [
        (message["round_num"], message.get("state_round"))
        for site_id, message in plant.messages("train")
        if site_id == "factory-3"
    ]
    assert told == [(0, None), (2, 0), (3, 2)]
    assert plant.digest(run_id)


def test_the_model_is_compressed_once_and_its_body_is_the_same_for_all(plant: Plant) -> None:
    """What sites scored in one round they train from in the next: no site need get it twice."""
    plant.start("zstd", rounds=3, evaluation={"every": 1})
    bodies: dict[tuple[str, int], set[bytes]] = {}
    for _, request, _ in plant.passed:
        message: Any = wire.peek(request)
        if message["kind"] in {"train", "evaluate"}:
            key = message["kind"], message["round_num"]
            bodies.setdefault(key, set()).add(request.body_hash)
    assert all(len(found) == 1 for found in bodies.values())
    assert bodies["evaluate", 0] == bodies["train", 1]
    assert bodies["evaluate", 1] == bodies["train", 2]
    assert bodies["train", 1] != bodies["train", 2]


@pytest.mark.parametrize("compression", LOSSY)
@pytest.mark.parametrize("method", ["median", "trimmed_mean", "geometric_median"])
def test_a_robust_aggregation_sees_ordinary_updates(
    plant: Plant, compression: str, method: str
) -> None:
    """One site of three exaggerates a thousandfold, by its scales alone; it hardly counts."""
    options = {"trim": 0.34} if method == "trimmed_mean" else {}
    algorithm = {"name": "fedavg", "aggregation": {"method": method, **options}}

    def exaggerates(update: Reply) -> Reply:
        update["parameters"][SCALES] *= 1000
        return update

    start = initial_parameters(MODEL, sensors=11, window_steps=1, seed=0)
    honest = distance(
        plant.parameters(plant.start(compression, rounds=1, algorithm=algorithm)), start
    )
    doors = plant.altered("factory-3", exaggerates)
    run_id = plant.start(compression, doors=doors, rounds=1, algorithm=algorithm)
    assert distance(plant.parameters(run_id), start) < 3 * honest
    mean = plant.start(compression, doors=doors, rounds=1)
    assert distance(plant.parameters(mean), start) > 100 * honest


def without_its_form(update: Reply) -> Reply:
    """Claim that nothing was compressed."""
    del update["compression"]
    return update


def with_another_form(update: Reply) -> Reply:
    """Claim another form than was asked for."""
    return {**update, "compression": "fp16"}


def with_a_bomb(update: Reply) -> Reply:
    """Put in what becomes 10 MB, where 4 kB are expected."""
    bomb = compress({"w": torch.zeros(10**7, dtype=torch.float16)})
    return {**update, "parameters": {**update["parameters"], VALUES: bomb[VALUES]}}


def with_a_scale_that_is_none(update: Reply) -> Reply:
    """Put in a scale that is no number."""
    update["parameters"][SCALES][0] = float("nan")
    return update


@pytest.mark.parametrize(
    ("lie", "told"),
    [
        (without_its_form, "factory-2: sent its update with compression 'none', asked for 'int8'"),
        (with_another_form, "factory-2: sent its update with compression 'fp16', asked for 'int8'"),
        (with_a_bomb, r"factory-2: compressed parameters become 20000000 bytes, expected \d{3,4};"),
        (with_a_scale_that_is_none, "factory-2: '.*' holds values that are not finite"),
    ],
    ids=["no form", "another form", "a bomb", "no number"],
)
def test_an_update_that_lies_is_refused_and_its_site_named(
    plant: Plant, lie: Change, told: str
) -> None:
    """It is missing from the round, as one of another layout is."""
    with pytest.raises(ExperimentError, match=told):
        plant.start("int8", doors=plant.altered("factory-2", lie), rounds=1)


def test_a_run_without_compression_says_nothing_of_it(plant: Plant) -> None:
    """So its plans have the ids that they had before there was any, at old sites too."""
    plant.start("none", rounds=1)
    for _, request, reply in plant.passed:
        assert "compression" not in wire.peek(request)
        assert "compression" not in wire.peek(reply)


@pytest.mark.parametrize("compression", ["zstd", "fp16", "int8"])
def test_masks_and_compression_are_refused_together(plant: Plant, compression: str) -> None:
    """Neither would be left: masked numbers are noise, and rounded masks do not cancel."""
    with pytest.raises(
        ConfigurationError, match=rf"compression: {compression} with secure_aggregation: .*choose"
    ):
        plant.start(compression, privacy={"level": "secure_aggregation"})


def test_the_choices_are_those_of_the_enumeration(plant: Plant) -> None:
    """A word that is none of them is refused, with all that are."""
    assert [how.value for how in Compression] == ["none", "zstd", "fp16", "int8"]
    with pytest.raises(ConfigurationError, match="'none', 'zstd', 'fp16' or 'int8'"):
        plant.start("gzip")
