"""What an experiment asks for happens: every option, over whole in-memory federations."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
import yaml
from federations import APPROVE_ALL, RESEARCHER, Federation
from safetensors.torch import load_file

from core import ConfigurationError, wire
from core.exceptions import CommunicationError
from core.models import available_models, build_model
from core.parameters import digest
from orchestrator.communication.memory import Handler
from orchestrator.observer import Observer
from orchestrator.participation import Participation
from orchestrator.stopping import Judged
from orchestrator.testbed.presets import AI4I_SCHEMA

MODEL = {"type": "cnn", "options": {"channels": 4, "blocks": 1}}
TRAINING: dict[str, Any] = {"local_epochs": 1, "batch_size": 64, "learning_rate": 0.05}
TAGS = {"factory-1": ["old", "press"], "factory-2": ["press"], "factory-3": ["new"]}


class Laboratory:
    """Three factories, whose doors note what is asked of them, for many runs.

    Attributes:
        asked: The requests that came in, by site; of the last run.
    """

    def __init__(self, federation: Federation) -> None:
        self.federation = federation
        self.asked: list[tuple[str, Mapping[str, Any]]] = []
        self._lock = Lock()
        self._runs = 0

    def run(
        self,
        observer: Observer | None = None,
        doors: Mapping[str, Handler] | None = None,
        **changes: Any,
    ) -> dict[str, Any]:
        """Run an experiment, with other doors where some are given, and give its results."""
        self._runs += 1
        content = {
            **self.federation.settings(rounds=1, model=MODEL, training=TRAINING),
            "sites": str(self._sites_file()),
            "experiment_id": self.run_id,
            **changes,
        }
        self.asked.clear()
        orchestrator = self.federation.orchestrator(observer, self._noting(doors or {}))
        orchestrator.setup_experiment(content)
        return orchestrator.run_experiment(self.run_id)

    def resume(self, doors: Mapping[str, Handler] | None = None) -> dict[str, Any]:
        """Take up the last run again, as another process would."""
        orchestrator = self.federation.orchestrator(handlers=self._noting(doors or {}))
        return orchestrator.run_experiment(self.run_id)

    @property
    def run_id(self) -> str:
        """Which the last run is."""
        return f"run-{self._runs}"

    def requests(self, kind: str, round_num: int | None = None) -> dict[str, Mapping[str, Any]]:
        """Give what was asked of each site, the last of its kind, in this round or in any."""
        return {
            site_id: message
            for site_id, message in self.asked
            if message["kind"] == kind and round_num in {None, message.get("round_num")}
        }

    def trained(self, rounds: int) -> list[list[str]]:
        """Give the sites that were asked to train in each of so many rounds, sorted."""
        return [sorted(self.requests("train", round_num)) for round_num in range(rounds)]

    def received(self, *, round_num: int) -> str:
        """Give the digest of the one model that all sites were sent in this round."""
        (sent,) = {digest(r["parameters"]) for r in self.requests("train", round_num).values()}
        return sent

    def _sites_file(self) -> Path:
        path = self.federation.folder / "tagged.yaml"
        sites = [
            {
                "site_id": site_id,
                "url": f"memory://{site_id}",
                "email": RESEARCHER,
                "password": "in memory",
                "tags": tags,
            }
            for site_id, tags in TAGS.items()
        ]
        path.write_text(yaml.safe_dump({"sites": sites}))
        return path

    def _noting(self, doors: Mapping[str, Handler]) -> dict[str, Handler]:
        def note(site_id: str, door: Handler) -> Handler:
            def answer(request: bytes, email: str) -> bytes:
                with self._lock:
                    self.asked.append((site_id, wire.decode(request)))
                return door(request, email)

            return answer

        every = {**self.federation.handlers(), **doors}
        return {site_id: note(site_id, door) for site_id, door in every.items()}


@pytest.fixture(scope="module")
def laboratory(
    tmp_path_factory: pytest.TempPathFactory, samples: list[Path]
) -> Iterator[Laboratory]:
    """Three sites with data, for all runs of this file: each run has plans of its own."""
    federation = Federation(tmp_path_factory.mktemp("laboratory"), policy=APPROVE_ALL)
    for path in samples:
        site = federation.open_site(path.stem)
        site.register_data({"name": "ai4i", "file": path, "schema": AI4I_SCHEMA})
    yield Laboratory(federation)
    for site in federation.sites.values():
        site.close()


@pytest.fixture(scope="module")
def base(laboratory: Laboratory) -> str:
    """Give the digest of what one round with the settings above ends with."""
    return str(laboratory.run()["parameters_sha256"])


@pytest.mark.parametrize(
    "option",
    [
        {"local_epochs": 2},
        {"batch_size": 32},
        {"learning_rate": 0.1},
        {"optimizer": "adam"},
        {"momentum": 0.9},
        {"weight_decay": 0.1},
        {"gradient_clip": 0.01},
        {"loss": "focal"},
        {"positive_weight": "sqrt"},
        {"positive_weight": "balanced"},
    ],
    ids=str,
)
def test_a_training_option_changes_what_is_learnt(
    laboratory: Laboratory, base: str, option: dict[str, Any]
) -> None:
    """One that nobody reads would end with the same parameters."""
    results = laboratory.run(training={**TRAINING, **option})
    assert results["parameters_sha256"] != base


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"model": {"type": "cnn", "options": {"channels": 4, "blocks": 2}}},
        {"model": {"type": "cnn", "options": {"channels": 8, "blocks": 1}}},
        {"split": {"seed": 1}},
        {"split": {"test": 0.3}},
        {"split": {"validation": 0.2}},
    ],
    ids=str,
)
def test_what_is_trained_changes_what_is_learnt(
    laboratory: Laboratory, base: str, changes: dict[str, Any]
) -> None:
    """Where it starts, of which shape it is, and on which rows."""
    assert laboratory.run(**changes)["parameters_sha256"] != base


@pytest.mark.parametrize(
    "changes",
    [
        {"training": {**TRAINING, "schedule": "constant", "positive_weight": "none"}},
        {"training": {**TRAINING, "loss": "cross_entropy", "optimizer": "sgd", "momentum": 0.0}},
        {"split": {"seed": 0, "test": 0.2, "validation": 0.1}, "seed": 0},
        {"participation": {"sites": "all", "fraction": 1.0}},
    ],
    ids=["schedule", "loss", "split", "participation"],
)
def test_a_default_that_is_written_out_changes_nothing(
    laboratory: Laboratory, base: str, changes: dict[str, Any]
) -> None:
    """So what differs above differs by the option, and not from run to run."""
    assert laboratory.run(**changes)["parameters_sha256"] == base


def test_a_split_without_a_seed_has_that_of_the_run(laboratory: Laboratory) -> None:
    """Two runs with seeds of their own and one split are compared on the same test rows."""
    with_own = laboratory.run(seed=5)["parameters_sha256"]
    assert laboratory.run(seed=5, split={"seed": 5})["parameters_sha256"] == with_own
    assert laboratory.run(seed=5, split={"seed": 6})["parameters_sha256"] != with_own


def test_the_focal_gamma_is_the_one_that_is_written(laboratory: Laboratory) -> None:
    """By default 2; another gives another loss."""
    focal = {**TRAINING, "loss": "focal"}
    default = laboratory.run(training=focal)["parameters_sha256"]
    assert laboratory.run(training={**focal, "focal_gamma": 2})["parameters_sha256"] == default
    assert laboratory.run(training={**focal, "focal_gamma": 5})["parameters_sha256"] != default


@pytest.mark.parametrize("model_type", available_models())
def test_the_model_is_of_the_type_that_is_written(laboratory: Laboratory, model_type: str) -> None:
    """Every model that can be chosen goes through a round, and it is that model."""
    results = laboratory.run(model={"type": model_type})
    model = build_model({"type": model_type, "options": {}}, sensors=11, window_steps=1, seed=0)
    start = digest(model.get_parameters())
    assert laboratory.received(round_num=0) == start
    assert results["parameters_sha256"] != start


def test_the_seed_decides_where_a_run_starts_and_what_sites_draw(laboratory: Laboratory) -> None:
    """The model that the sites receive is made from it, and it is sent to them."""
    laboratory.run(seed=7)
    model = build_model(
        {"type": "cnn", "options": {"channels": 4, "blocks": 1}},
        sensors=11,
        window_steps=1,
        seed=7,
    )
    assert laboratory.received(round_num=0) == digest(model.get_parameters())
    assert {request["seed"] for request in laboratory.requests("train").values()} == {7}


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0.05, 0.05, 0.05]),
        ({"kind": "cosine", "final": 0.2}, [0.05, 0.03, 0.01]),
        ({"kind": "exponential", "final": 0.25}, [0.05, 0.025, 0.0125]),
        ({"kind": "step", "every": 2, "by": 0.1}, [0.05, 0.05, 0.005]),
    ],
    ids=["constant", "cosine", "exponential", "step"],
)
def test_every_site_is_asked_with_the_rate_of_the_round(
    laboratory: Laboratory, schedule: Any, rates: list[float]
) -> None:
    """And with all other settings as in the plan, which holds the highest rate."""
    laboratory.run(rounds=3, training={**TRAINING, "schedule": schedule})
    plan = laboratory.requests("propose")["factory-1"]["training"]
    assert plan["learning_rate"] == 0.05
    for round_num, rate in enumerate(rates):
        asked = laboratory.requests("train", round_num)
        assert sorted(asked) == ["factory-1", "factory-2", "factory-3"]
        for request in asked.values():
            assert request["training"]["learning_rate"] == pytest.approx(rate, rel=1e-12)
            assert {**request["training"], "learning_rate": 0.05} == plan


def test_a_schedule_changes_all_but_the_first_round(laboratory: Laboratory, base: str) -> None:
    """After round 0 the model is that without a schedule, to the bit; then no longer."""

    def course(schedule: str) -> tuple[str, str]:
        final = laboratory.run(rounds=2, training={**TRAINING, "schedule": schedule})
        return laboratory.received(round_num=1), final["parameters_sha256"]

    constant, cosine = course("constant"), course("cosine")
    assert constant[0] == cosine[0] == base
    assert constant[1] != cosine[1]


def test_rounds_are_evaluated_as_often_as_is_written(laboratory: Laboratory) -> None:
    """Every second, and the last whatever its number."""
    results = laboratory.run(rounds=5, evaluation={"every": 2})
    evaluated = [record["round_num"] for record in results["rounds"] if "global" in record]
    assert evaluated == [1, 3, 4]


def telling(site: Handler, part: str, losses: Sequence[float]) -> Handler:
    """Let a site report these mean losses of a part of its data, one a round."""

    def answer(request: bytes, email: str) -> bytes:
        reply = wire.decode(site(request, email))
        if reply["kind"] == "evaluation":
            counts = reply["validation"] if part == "validation" else reply["test"]
            counts["loss_total"] = losses[reply["round_num"]] * counts["count"]
        return wire.encode(reply)

    return answer


def doors(laboratory: Laboratory, **losses: Sequence[float]) -> dict[str, Handler]:
    """Give the doors of sites that all report `losses` of a part of their data."""
    made = laboratory.federation.handlers()
    for part, told in losses.items():
        made = {site_id: telling(door, part, told) for site_id, door in made.items()}
    return made


class StopAfter(Observer):
    """Interrupts the run after a round, as Ctrl-C does."""

    def __init__(self, round_num: int) -> None:
        self.round_num = round_num

    def round_done(self, run_id: str, record: Mapping[str, Any]) -> None:
        """Interrupt after the chosen round."""
        if record["round_num"] == self.round_num:
            raise KeyboardInterrupt


ROUNDS = 6
LOSSES = [0.9, 0.5, 0.6, 0.7, 0.1, 0.1]
"""With a patience of 2, round 3 is the last, and round 1 the best."""

BY_LOSS = {"metric": "loss", "patience": 2}


def test_a_run_ends_when_the_validation_stops_improving(laboratory: Laboratory) -> None:
    """COMPLETED, with the model of the best round and what that model scores."""
    results = laboratory.run(
        doors=doors(laboratory, validation=LOSSES), rounds=ROUNDS, early_stopping=BY_LOSS
    )
    assert (results["status"], results["stopped_early"]) == ("COMPLETED", True)
    assert [record["round_num"] for record in results["rounds"]] == [0, 1, 2, 3]
    assert laboratory.federation.store.find(laboratory.run_id).rounds_done == 4
    assert laboratory.trained(ROUNDS)[4:] == [[], []]
    best, final = results["rounds"][1], results["metrics"]["final"]
    assert final["round_num"] == 1
    assert (final["global"], final["per_site"]) == (best["global"], best["per_site"])
    assert final["global"] != results["rounds"][3]["global"]
    saved = load_file(laboratory.federation.store.folder(laboratory.run_id) / "model.safetensors")
    assert digest(saved) == results["parameters_sha256"]


@pytest.mark.parametrize(
    ("restore_best", "planned"), [(True, 2), (False, 4)], ids=["best round", "last round"]
)
def test_an_early_end_is_an_end_like_any_other(
    laboratory: Laboratory, *, restore_best: bool, planned: int
) -> None:
    """The parameters are those of a run that was planned to end with that round."""
    early = laboratory.run(
        doors=doors(laboratory, validation=LOSSES),
        rounds=ROUNDS,
        early_stopping={**BY_LOSS, "restore_best": restore_best},
    )
    assert len(early["rounds"]) == 4
    assert early["metrics"]["final"]["round_num"] == planned - 1
    shorter = laboratory.run(rounds=planned)
    assert early["parameters_sha256"] == shorter["parameters_sha256"]


def test_the_best_round_is_kept_when_all_rounds_are_run(laboratory: Laboratory) -> None:
    """Patience was left: the run is as long as planned, and its model that of round 0."""
    results = laboratory.run(
        doors=doors(laboratory, validation=[0.1, 0.2, 0.3]),
        rounds=3,
        early_stopping={"metric": "loss", "patience": 5},
    )
    assert (len(results["rounds"]), results["stopped_early"]) == (3, False)
    assert results["metrics"]["final"]["round_num"] == 0
    assert results["parameters_sha256"] == laboratory.run(rounds=1)["parameters_sha256"]


def test_without_early_stopping_a_run_has_all_its_rounds(laboratory: Laboratory) -> None:
    """Whatever the sites report, and the last round is the result."""
    results = laboratory.run(doors=doors(laboratory, validation=LOSSES, test=LOSSES), rounds=ROUNDS)
    assert (len(results["rounds"]), results["stopped_early"]) == (ROUNDS, False)
    assert results["metrics"]["final"]["round_num"] == ROUNDS - 1


def test_the_test_parts_decide_nothing(laboratory: Laboratory) -> None:
    """Spoiled, they change neither the end nor the choice; the validation parts change both."""

    def course(**losses: Sequence[float]) -> tuple[int, int, str]:
        results = laboratory.run(
            doors=doors(laboratory, **losses), rounds=ROUNDS, early_stopping=BY_LOSS
        )
        final = results["metrics"]["final"]
        return len(results["rounds"]), final["round_num"], results["parameters_sha256"]

    spoiled = [0.1, 0.8, 0.9, 0.9, 0.9, 0.9]  # alone, these end after round 2 and choose round 0
    honest = course(validation=LOSSES)
    assert honest[:2] == (4, 1)
    assert course(validation=LOSSES, test=spoiled) == honest
    assert course(validation=spoiled)[:2] == (3, 0)


@pytest.fixture(scope="module")
def undisturbed(laboratory: Laboratory) -> dict[str, Any]:
    """Give the results of a run that ends early and was never interrupted."""
    return laboratory.run(
        doors=doors(laboratory, validation=LOSSES), rounds=ROUNDS, early_stopping=BY_LOSS
    )


@pytest.mark.parametrize("stopped_after", [0, 1, 2, 3])
def test_a_resumed_run_ends_where_it_would_have_ended(
    laboratory: Laboratory, undisturbed: dict[str, Any], stopped_after: int
) -> None:
    """Interrupted before, at or after the best round, or at the very end."""
    with pytest.raises(KeyboardInterrupt):
        laboratory.run(
            StopAfter(stopped_after),
            doors(laboratory, validation=LOSSES),
            rounds=ROUNDS,
            early_stopping=BY_LOSS,
        )
    resumed = laboratory.resume(doors(laboratory, validation=LOSSES))
    assert (resumed["status"], resumed["stopped_early"]) == ("COMPLETED", True)
    assert [record["round_num"] for record in resumed["rounds"]] == [0, 1, 2, 3]
    assert resumed["parameters_sha256"] == undisturbed["parameters_sha256"]
    chosen = resumed["metrics"]["final"]
    assert chosen == undisturbed["metrics"]["final"]
    assert chosen["round_num"] == 1


def test_patience_is_counted_in_evaluations(laboratory: Laboratory) -> None:
    """With one every second round: rounds 1, 3 and 5 are looked at."""
    results = laboratory.run(
        doors=doors(laboratory, validation=[0.0, 0.5, 0.0, 0.6, 0.0, 0.7, 0.0, 0.1]),
        rounds=8,
        evaluation={"every": 2},
        early_stopping=BY_LOSS,
    )
    assert (len(results["rounds"]), results["metrics"]["final"]["round_num"]) == (6, 1)


@pytest.mark.parametrize("metric", [judged.value for judged in Judged])
def test_every_metric_that_can_be_chosen_is_there(laboratory: Laboratory, metric: str) -> None:
    """In what the sites report of their validation parts."""
    results = laboratory.run(early_stopping={"metric": metric})
    assert isinstance(results["rounds"][0]["validation"][metric], float)
    assert results["metrics"]["final"]["round_num"] == 0


@pytest.mark.parametrize(
    ("participation", "expected"),
    [
        ({}, ["factory-1", "factory-2", "factory-3"]),
        ({"sites": "all"}, ["factory-1", "factory-2", "factory-3"]),
        ({"sites": ["factory-3", "factory-1"]}, ["factory-1", "factory-3"]),
        ({"tags": ["press"]}, ["factory-1", "factory-2"]),
        ({"tags": ["old", "new"]}, ["factory-1", "factory-3"]),
        ({"sites": ["factory-2"], "tags": ["new"]}, ["factory-2", "factory-3"]),
        ({"sites": ["factory-1"], "tags": ["press"]}, ["factory-1", "factory-2"]),
    ],
    ids=["nothing said", "all", "names", "a tag", "tags", "names and tags", "both name one"],
)
def test_those_who_are_chosen_train_and_all_evaluate(
    laboratory: Laboratory, participation: dict[str, Any], expected: list[str]
) -> None:
    """The others are asked neither to train nor for sums over their rows."""
    results = laboratory.run(participation=participation)
    assert sorted(laboratory.requests("train")) == expected
    assert sorted(laboratory.requests("statistics")) == expected
    assert sorted(results["rounds"][0]["sites"]) == expected
    assert sorted(laboratory.requests("evaluate")) == list(TAGS)
    assert sorted(results["rounds"][0]["per_site"]) == list(TAGS)


@pytest.mark.parametrize(
    ("participation", "size", "among"),
    [
        ({"fraction": 0.3}, 1, set(TAGS)),
        ({"fraction": 0.34}, 2, set(TAGS)),
        ({"fraction": 0.3, "minimum": 2}, 2, set(TAGS)),
        ({"fraction": 0.5, "sites": ["factory-1", "factory-2"]}, 1, {"factory-1", "factory-2"}),
        ({"fraction": 0.2, "tags": ["press"], "minimum": 1}, 1, {"factory-1", "factory-2"}),
    ],
    ids=["a third", "a little more", "minimum", "of those named", "of those tagged"],
)
def test_a_fraction_trains_and_all_evaluate(
    laboratory: Laboratory, participation: dict[str, Any], size: int, among: set[str]
) -> None:
    """A part of a site is a whole one, and the minimum is kept; of those who may train."""
    results = laboratory.run(rounds=2, participation=participation)
    for round_num, record in enumerate(results["rounds"]):
        asked = sorted(laboratory.requests("train", round_num))
        assert len(asked) == size
        assert set(asked) <= among
        assert asked == sorted(record["sites"])
        assert sorted(laboratory.requests("evaluate", round_num)) == list(TAGS)


def test_the_draw_depends_on_seed_and_round_alone(laboratory: Laboratory) -> None:
    """The same seed draws the same sites whatever else is run, and each round draws anew."""
    third = {"fraction": 0.3}
    laboratory.run(rounds=6, seed=3, participation=third)
    drawn = laboratory.trained(6)
    assert len({tuple(each) for each in drawn}) > 1
    laboratory.run(
        rounds=6, seed=3, participation=third, training={**TRAINING, "learning_rate": 0.01}
    )
    assert laboratory.trained(6) == drawn
    laboratory.run(rounds=6, seed=4, participation=third)
    assert laboratory.trained(6) != drawn


def test_a_resumed_run_draws_the_same_sites(laboratory: Laboratory) -> None:
    """And ends with the same parameters."""
    changes: dict[str, Any] = {"rounds": 5, "participation": {"fraction": 0.3}}
    undisturbed = laboratory.run(**changes)
    drawn = laboratory.trained(5)
    with pytest.raises(KeyboardInterrupt):
        laboratory.run(StopAfter(1), **changes)
    resumed = laboratory.resume()
    assert laboratory.trained(5) == drawn
    assert resumed["parameters_sha256"] == undisturbed["parameters_sha256"]


def test_every_site_has_its_turn() -> None:
    """Over 300 rounds each of three sites is drawn about 100 times, whatever their order."""
    third, names = Participation(fraction=0.3), ["factory-3", "factory-1", "factory-2"]
    drawn = [third.draw(names, seed=0, round_num=round_num) for round_num in range(300)]
    turns = {name: drawn.count((name,)) for name in names}
    # The standard deviation of each is sqrt(300 * 1/3 * 2/3), about 8.
    assert sum(turns.values()) == 300
    assert all(60 < count < 140 for count in turns.values())
    assert drawn == [third.draw(sorted(names), seed=0, round_num=r) for r in range(300)]


@pytest.mark.parametrize(
    ("fraction", "sites", "size"),
    [(0.07, 100, 7), (0.55, 20, 11), (0.1, 3, 1), (1e-9, 3, 1), (1.0, 3, 3), (0.5, 3, 2)],
)
def test_a_fraction_is_taken_as_it_is_written(fraction: float, sites: int, size: int) -> None:
    """0.07 of 100 are 7 sites, although the float 0.07 * 100 is a little more."""
    assert Participation(fraction=fraction).draw_size(sites) == size


@pytest.mark.parametrize(
    ("participation", "said"),
    [
        (
            {"sites": ["factory-2", "factory-9"]},
            f"participation.sites: factory-9 not among the sites; there are: {', '.join(TAGS)}",
        ),
        (
            {"tags": ["press", "motor"]},
            "participation.tags: motor not among the sites; there are: new, old, press",
        ),
    ],
    ids=["name", "tag"],
)
def test_an_unknown_name_or_tag_is_refused_with_what_there_is(
    laboratory: Laboratory, participation: dict[str, Any], said: str
) -> None:
    """Before any site is called."""
    with pytest.raises(ConfigurationError) as caught:
        laboratory.run(participation=participation)
    assert str(caught.value) == said
    assert laboratory.asked == []


def without_training(site: Handler) -> Handler:
    """Let a site do everything but train."""

    def answer(request: bytes, email: str) -> bytes:
        if wire.decode(request)["kind"] == "train":
            raise CommunicationError("connection reset")
        return site(request, email)

    return answer


def test_fewer_sites_than_were_drawn_can_make_a_round(laboratory: Laboratory) -> None:
    """With min_sites 1, the drawn site that fails is missing by name, and the other counts."""
    broken = {"factory-2": without_training(laboratory.federation.handlers()["factory-2"])}
    results = laboratory.run(doors=broken, rounds=4, participation={"fraction": 0.6}, min_sites=1)
    drawn = laboratory.trained(4)
    assert {len(each) for each in drawn} == {2}
    for record, asked in zip(results["rounds"], drawn, strict=True):
        assert sorted(record["sites"]) == [name for name in asked if name != "factory-2"]
        assert sorted(record["missing"]) == [name for name in asked if name == "factory-2"]
    assert any("factory-2" in asked for asked in drawn)


def test_by_default_every_site_that_is_drawn_must_answer(laboratory: Laboratory) -> None:
    """Those that are not drawn need not be able to; the first draw of the broken one ends it."""
    broken = {"factory-2": without_training(laboratory.federation.handlers()["factory-2"])}
    with pytest.raises(CommunicationError, match=r"round \d: 1 of at least 2"):
        laboratory.run(doors=broken, rounds=4, participation={"fraction": 0.6})
    *fine, last = [asked for asked in laboratory.trained(4) if asked]
    assert "factory-2" in last
    assert all("factory-2" not in asked for asked in fine)
