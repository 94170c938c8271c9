"""What may be combined: the table of the design, cell by cell, through `experiment.yaml`."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from core import ConfigurationError, ExperimentStatus
from core.enums import PrivacyLevel
from core.exceptions import CommunicationError
from orchestrator.aggregation import AGGREGATORS
from orchestrator.algorithms import ALGORITHMS
from orchestrator.communication.memory import MemoryCommunication
from orchestrator.configuration import load_experiment
from orchestrator.experiment import ExperimentOrchestrator
from orchestrator.runs import RunStore

AGGREGATION = """
         weighted_average simple_average median trimmed_mean krum multi_krum geometric_median
fedavg   yes              yes            yes    yes          yes  yes        yes
fedprox  yes              yes            yes    yes          yes  yes        yes
feddyn   no               yes            no     no           no   no         no
fednova  yes              no             no     no           no   no         no
fedavgm  yes              yes            yes    yes          yes  yes        yes
fedadam  yes              yes            yes    yes          yes  yes        yes
scaffold no               yes            no     no           no   no         no
"""

PRIVACY = """
         none basic differential_privacy secure_aggregation
fedavg   yes  yes   yes                  yes
fedprox  yes  yes   yes                  yes
feddyn   yes  yes   no                   yes
fednova  yes  yes   no                   yes
fedavgm  yes  yes   yes                  yes
fedadam  yes  yes   yes                  yes
scaffold yes  yes   no                   sum
"""
"""Each algorithm with the aggregation of its paper; `sum` takes more than a sum."""

SECURE_AGGREGATION = """
       weighted_average simple_average median trimmed_mean krum multi_krum geometric_median
fedavg yes              yes            no     no           no   no         no
"""

ONLY = {
    "feddyn": ("h is the plain mean of the sites' duals", "choose simple_average"),
    "fednova": ("weighted by construction", "choose weighted_average"),
    "scaffold": ("control variates are plain means over the sites", "choose simple_average"),
}
"""Why an algorithm has but one aggregation, and which."""

LEVELS: dict[str, dict[str, Any]] = {
    level.value: {"level": level.value} for level in PrivacyLevel
} | {"differential_privacy": {"level": "differential_privacy", "epsilon": 8.0}}
"""The least that a section `privacy` says for each level."""


def cells(table: str) -> list[tuple[str, str, str]]:
    """Give the cells of a table as (row, column, what stands there)."""
    head, *rows = (line.split() for line in table.strip().splitlines())
    return [(row[0], *cell) for row in rows for cell in zip(head, row[1:], strict=True)]


def where(table: str, *words: str) -> list[Any]:
    """Give the cells in which one of `words` stands, for `parametrize`."""
    return [
        pytest.param(row, column, id=f"{row}-{column}")
        for row, column, word in cells(table)
        if word in words
    ]


def settings(**changes: Any) -> dict[str, Any]:
    """Give the least that an experiment must say."""
    return {"name": "test", "rounds": 2, "dataset": "ai4i", "sites": "sites.yaml", **changes}


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """Give the path of an experiment file to write."""
    return tmp_path / "experiment.yaml"


def refusal(path: Path, **changes: Any) -> str:
    """Give what the experiment is refused with, without the name of the file."""
    path.write_text(yaml.safe_dump(settings(**changes)))
    with pytest.raises(ConfigurationError) as caught:
        load_experiment(path)
    first, _, mistakes = str(caught.value).partition("\n  ")
    assert first == f"{path}: 1 mistake(s):"
    return mistakes


@pytest.mark.parametrize(
    ("table", "rows", "columns"),
    [
        (AGGREGATION, ALGORITHMS, AGGREGATORS),
        (PRIVACY, ALGORITHMS, [level.value for level in PrivacyLevel]),
        (SECURE_AGGREGATION, ["fedavg"], AGGREGATORS),
    ],
    ids=["aggregation", "privacy", "secure aggregation"],
)
def test_the_tables_are_complete(table: str, rows: Any, columns: Any) -> None:
    """An algorithm, a method or a level that is added must say what it goes with."""
    expected = {(row, column) for row in rows for column in columns}
    assert {(row, column) for row, column, _ in cells(table)} == expected


@pytest.mark.parametrize(("algorithm", "method"), where(AGGREGATION, "yes"))
def test_an_aggregation_that_fits_is_taken(experiment: Path, algorithm: str, method: str) -> None:
    """And is the one that the run will use."""
    choice = {"name": algorithm, "aggregation": method}
    experiment.write_text(yaml.safe_dump(settings(algorithm=choice)))
    config = load_experiment(experiment)
    assert (config.algorithm.name, config.aggregator().method) == (algorithm, method)


@pytest.mark.parametrize(("algorithm", "method"), where(AGGREGATION, "no"))
def test_an_aggregation_that_breaks_the_algorithm_is_refused(
    experiment: Path, algorithm: str, method: str
) -> None:
    """With what it would break, and the one that does not."""
    said = refusal(experiment, algorithm={"name": algorithm, "aggregation": method})
    reason, alternative = ONLY[algorithm]
    assert said.startswith(f"algorithm.aggregation: {algorithm} with {method}: ")
    assert reason in said
    assert said.endswith(f"{alternative} (its default) or another algorithm")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_clipping_is_refused_where_only_the_plain_mean_will_do(
    experiment: Path, algorithm: str
) -> None:
    """`clip_norm` makes of that mean something else; elsewhere it is taken."""
    default = ALGORITHMS[algorithm].default_aggregation
    choice = {"name": algorithm, "aggregation": {"method": default, "clip_norm": 5.0}}
    if algorithm in ONLY:
        said = refusal(experiment, algorithm=choice)
        reason, alternative = ONLY[algorithm]
        assert f"{algorithm} with {default} with clip_norm: " in said
        assert reason in said
        assert alternative in said
    else:
        experiment.write_text(yaml.safe_dump(settings(algorithm=choice)))
        assert load_experiment(experiment).aggregator().clip_norm == 5.0


@pytest.mark.parametrize(("algorithm", "level"), where(PRIVACY, "yes"))
def test_a_level_that_fits_is_taken(experiment: Path, algorithm: str, level: str) -> None:
    """With the least that its section must say."""
    experiment.write_text(yaml.safe_dump(settings(algorithm=algorithm, privacy=LEVELS[level])))
    assert load_experiment(experiment).privacy.level == level


@pytest.mark.parametrize(("algorithm", "level"), where(PRIVACY, "no"))
def test_a_level_that_breaks_the_algorithm_is_refused(
    experiment: Path, algorithm: str, level: str
) -> None:
    """With what to choose instead."""
    said = refusal(experiment, algorithm=algorithm, privacy=LEVELS[level])
    unproven = f"privacy.level: {algorithm} is not proven under {level}; choose fedavg or fedprox"
    assert said == unproven


@pytest.mark.parametrize(("algorithm", "level"), where(PRIVACY, "sum"))
def test_what_goes_beside_an_update_is_not_masked(
    experiment: Path, algorithm: str, level: str
) -> None:
    """SCAFFOLD sends the change of its control variates, which shows what the update would."""
    said = refusal(experiment, algorithm=algorithm, privacy={"level": level})
    assert "send the change of their control variates beside the update" in said
    assert "choose fedavg, fedprox, feddyn, fednova, fedavgm or fedadam" in said


def test_simulated_sites_have_nobody_to_hide_from(experiment: Path, tmp_path: Path) -> None:
    """All of them are in the researcher's own process; the plain level comes to the same."""
    simulation = {"data": str(tmp_path), "schema": "schema.yaml"}
    secure = {"level": "secure_aggregation"}
    said = refusal(experiment, transport="memory", simulation=simulation, privacy=secure)
    assert "nobody to hide an update from; choose none" in said


@pytest.mark.parametrize(("algorithm", "method"), where(SECURE_AGGREGATION, "yes"))
def test_a_sum_is_enough_for_a_mean(experiment: Path, algorithm: str, method: str) -> None:
    """Secure aggregation and the means go together."""
    choice = {"name": algorithm, "aggregation": method}
    said = settings(algorithm=choice, privacy={"level": "secure_aggregation"})
    experiment.write_text(yaml.safe_dump(said))
    assert load_experiment(experiment).aggregator().method == method


@pytest.mark.parametrize(("algorithm", "method"), where(SECURE_AGGREGATION, "no"))
def test_a_sum_is_not_enough_to_tell_a_liar(experiment: Path, algorithm: str, method: str) -> None:
    """The robust methods look at single updates, which secure aggregation hides."""
    choice = {"name": algorithm, "aggregation": method}
    said = refusal(experiment, algorithm=choice, privacy={"level": "secure_aggregation"})
    assert f"a sum and no single update, which {method} needs" in said
    assert said.endswith("choose weighted_average or simple_average, without clip_norm")


@pytest.mark.parametrize(
    ("algorithm", "training", "reason", "alternative"),
    [
        (
            "fednova",
            {"optimizer": "adam"},
            "training.optimizer: fednova with adam: its steps cannot be normalised",
            "choose sgd, with or without momentum, or another algorithm",
        ),
        (
            "scaffold",
            {"optimizer": "adam"},
            "training.optimizer: scaffold's control variates are means of gradients",
            "choose sgd with momentum 0, or another algorithm",
        ),
        (
            "scaffold",
            {"momentum": 0.9},
            "training.optimizer: scaffold's control variates are means of gradients",
            "choose sgd with momentum 0, or another algorithm",
        ),
        (
            "feddyn",
            {"optimizer": "adam", "weight_decay": 0.01},
            "training.weight_decay: feddyn counts it as part of each site's objective",
            "choose sgd, or weight_decay 0",
        ),
    ],
    ids=["fednova-adam", "scaffold-adam", "scaffold-momentum", "feddyn-adam-decay"],
)
def test_an_optimizer_that_breaks_the_algorithm_is_refused(
    experiment: Path, algorithm: str, training: dict[str, Any], reason: str, alternative: str
) -> None:
    """Before any site trains with it."""
    said = refusal(experiment, algorithm=algorithm, training=training)
    assert said.startswith(reason)
    assert said.endswith(alternative)


@pytest.mark.parametrize(
    ("algorithm", "training"),
    [
        *[(name, {}) for name in ALGORITHMS],
        *[(name, {"optimizer": "adam"}) for name in ALGORITHMS if name not in ONLY],
        ("feddyn", {"optimizer": "adam"}),
        ("feddyn", {"weight_decay": 0.01}),
        ("fednova", {"momentum": 0.9}),
        ("scaffold", {"weight_decay": 0.01}),
    ],
    ids=str,
)
def test_an_optimizer_that_fits_is_taken(
    experiment: Path, algorithm: str, training: dict[str, Any]
) -> None:
    """What is refused is the combination, and not its parts."""
    experiment.write_text(yaml.safe_dump(settings(algorithm=algorithm, training=training)))
    assert load_experiment(experiment).algorithm.name == algorithm


@pytest.mark.parametrize(
    ("aggregation", "fewest"),
    [
        ("krum", 5),
        ({"method": "krum", "byzantine": 2}, 7),
        ({"method": "multi_krum", "keep": 6}, 7),
        ("trimmed_mean", 5),
    ],
    ids=str,
)
def test_min_sites_is_at_least_what_the_aggregation_needs(
    experiment: Path, aggregation: Any, fewest: int
) -> None:
    """A round that would be too small to combine is not waited for."""
    choice = {"name": "fedavg", "aggregation": aggregation}
    said = refusal(experiment, algorithm=choice, min_sites=fewest - 1)
    assert said.startswith(f"min_sites is {fewest - 1}, and ")
    assert f"needs {fewest} updates; raise min_sites or choose another aggregation" in said
    experiment.write_text(yaml.safe_dump(settings(algorithm=choice, min_sites=fewest)))
    assert load_experiment(experiment).min_sites == fewest


def test_all_sites_and_tags_at_once_are_refused(experiment: Path) -> None:
    """All sites are all sites: tags beside them would choose nothing, or too few."""
    said = refusal(experiment, participation={"sites": "all", "tags": ["old"]})
    assert said.startswith("participation: with `sites: all` no tag is left to choose by")


def test_everything_that_does_not_fit_is_said_at_once(experiment: Path) -> None:
    """Nobody has to run into one refusal after the other."""
    said = refusal(
        experiment,
        algorithm={"name": "fednova", "aggregation": "krum"},
        training={"optimizer": "adam"},
        privacy={"level": "differential_privacy", "epsilon": 1.0},
        min_sites=2,
    )
    for part in (
        "fednova with krum: ",
        "fednova with adam: ",
        "fednova is not proven under differential_privacy",
        "krum needs 5 updates",
    ):
        assert part in said


class Door:
    """A site that is down, and notes who came."""

    def __init__(self) -> None:
        self.callers: list[str] = []

    def __call__(self, request: bytes, email: str) -> bytes:
        """Fail as a transport does."""
        self.callers.append(email)
        raise CommunicationError("connection refused", site_id="")


class Laboratory:
    """An orchestrator and the doors of three sites."""

    def __init__(self, folder: Path) -> None:
        self.doors = {f"factory-{number}": Door() for number in (1, 2, 3)}
        self.connected: list[str] = []
        self.store = RunStore(folder / "runs")
        self.sites_file = folder / "sites.yaml"
        sites = [
            {
                "site_id": site_id,
                "url": f"memory://{site_id}",
                "email": "researcher@lab.example.com",
                "password": "in memory",
            }
            for site_id in self.doors
        ]
        self.sites_file.write_text(yaml.safe_dump({"sites": sites}))

    def run(self, **changes: Any) -> None:
        """Run an experiment from its configuration to its end."""
        orchestrator = ExperimentOrchestrator(
            lambda _config: MemoryCommunication(self.doors), self.store
        )
        limits = {"attempts": 1, "sites_s": 0}
        content = settings(sites=str(self.sites_file), limits=limits, **changes)
        orchestrator.setup_experiment({**content, "experiment_id": "one"})
        orchestrator.run_experiment("one")

    @property
    def callers(self) -> list[str]:
        """Whoever came to any door."""
        return [caller for door in self.doors.values() for caller in door.callers]


@pytest.fixture
def laboratory(tmp_path: Path) -> Laboratory:
    """Three sites that nobody has called yet."""
    return Laboratory(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"min_sites": 4}, "min_sites needs 4 sites in a round, and 3 of 3 take part"),
        (
            {"algorithm": {"aggregation": "krum"}},
            "algorithm.aggregation krum needs 5 sites in a round, and 3 of 3 take part",
        ),
        (
            {"algorithm": {"aggregation": {"method": "trimmed_mean", "trim": 0.34}}}
            | {"participation": {"fraction": 0.5}},
            "algorithm.aggregation trimmed_mean needs 3 sites in a round, and 2 of 3 take part",
        ),
        (
            {"participation": {"minimum": 4}},
            "participation.minimum needs 4 sites in a round, and 3 of 3 take part",
        ),
        (
            {"participation": {"sites": ["factory-1"], "minimum": 2}},
            "participation.minimum needs 2 sites in a round, and 1 of 1 take part",
        ),
        (
            {"participation": {"fraction": 0.5}, "min_sites": 3},
            "min_sites needs 3 sites in a round, and 2 of 3 take part",
        ),
    ],
    ids=["min_sites", "krum", "fraction", "minimum", "named", "min_sites of a fraction"],
)
def test_too_few_sites_are_said_before_any_is_called(
    laboratory: Laboratory, changes: dict[str, Any], said: str
) -> None:
    """From the sites file alone it is known that no round could succeed."""
    with pytest.raises(ConfigurationError) as caught:
        laboratory.run(**changes)
    assert str(caught.value).startswith(said)
    assert "add sites, raise participation.fraction, or ask for less" in str(caught.value)
    assert laboratory.callers == []
    row = laboratory.store.find("one")
    assert (row.status, row.message) == (ExperimentStatus.FAILED.name, str(caught.value))


def test_just_enough_sites_are_called(laboratory: Laboratory) -> None:
    """The limit is where it is said to be."""
    changes = {"algorithm": {"aggregation": {"method": "trimmed_mean", "trim": 0.34}}}
    with pytest.raises(CommunicationError, match="connection refused"):
        laboratory.run(**changes, min_sites=3, participation={"minimum": 3})
    assert all(door.callers for door in laboratory.doors.values())


def test_clipping_at_the_orchestrator_needs_single_updates(experiment: Path) -> None:
    """Under secure aggregation there are none, however the sum is weighted."""
    message = refusal(
        experiment,
        algorithm={"name": "fedavg", "aggregation": {"method": "simple_average", "clip_norm": 1}},
        privacy={"level": "secure_aggregation"},
    )
    assert "no single update, which clip_norm needs; choose" in message
