"""The learning rate over the rounds, by numbers that can be worked out by hand."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from core import ConfigurationError
from core.configuration import parse
from orchestrator.configuration import ExperimentConfig
from orchestrator.schedule import (
    SCHEDULES,
    Constant,
    Cosine,
    Exponential,
    LocalTraining,
    Schedule,
    Step,
)

KINDS = [
    Constant(),
    Cosine(),
    Cosine(final=1 / 3),
    Cosine(final=1.0),
    Exponential(),
    Exponential(final=0.3),
    Step(every=1),
    Step(every=3, by=0.9),
    Step(every=2, by=1.0),
]


def training(schedule: object, *, rounds: int = 5, learning_rate: float = 1.0) -> LocalTraining:
    """Give how sites train when `experiment.yaml` has this schedule."""
    return config(schedule, rounds=rounds, learning_rate=learning_rate).local_training()


def config(schedule: object, *, rounds: int, learning_rate: float = 1.0) -> ExperimentConfig:
    """Give the experiment with this schedule."""
    content: dict[str, Any] = {
        "name": "test",
        "rounds": rounds,
        "dataset": "ai4i",
        "sites": "sites.yaml",
        "training": {"learning_rate": learning_rate, "schedule": schedule},
    }
    return parse(content, ExperimentConfig, source="experiment.yaml", env={})


def rates(local: LocalTraining) -> list[float]:
    """Give the rate of each round."""
    return [local.at(round_num)["learning_rate"] for round_num in range(local.rounds)]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1.0, 1.0, 1.0]),
        # 0.01 + 0.99 (1 + cos(π t)) / 2 at t = 0, 1/2, 1
        ("cosine", [1.0, 0.505, 0.01]),
        ({"kind": "cosine", "final": 0.2}, [1.0, 0.6, 0.2]),
        # 0.01^t
        ("exponential", [1.0, 0.1, 0.01]),
        ({"kind": "exponential", "final": 0.25}, [1.0, 0.5, 0.25]),
        # 0.5^⌊round / 2⌋ at rounds 0, 2, 4
        ({"kind": "step", "every": 2}, [1.0, 0.5, 0.25]),
        ({"kind": "step", "every": 3, "by": 0.1}, [1.0, 1.0, 0.1]),
    ],
    ids=str,
)
@pytest.mark.parametrize("learning_rate", [1.0, 0.2], ids=["one", "a fifth"])
def test_first_middle_and_last_round(
    schedule: object, expected: list[float], learning_rate: float
) -> None:
    """Of five rounds; the rate is the start times the factor."""
    first, _, middle, _, last = rates(training(schedule, learning_rate=learning_rate))
    assert first == learning_rate
    assert [first, middle, last] == pytest.approx([learning_rate * e for e in expected], rel=1e-12)


def test_a_cosine_is_slow_at_both_ends() -> None:
    """At a quarter of the way it has fallen by 15 %, at three quarters by 85 %."""
    # (1 + cos(π/4)) / 2 = 0.85355...; nearly nothing is left at the end.
    assert rates(training({"kind": "cosine", "final": 1e-9}))[1] == pytest.approx(
        0.853553, abs=1e-6
    )
    assert rates(training({"kind": "cosine", "final": 1e-9}))[3] == pytest.approx(
        0.146447, abs=1e-6
    )


def test_a_step_falls_after_every_so_many_rounds() -> None:
    """Rounds 0 to 2, 3 to 5, and 6 have a rate each."""
    local = training({"kind": "step", "every": 3}, rounds=7)
    assert rates(local) == [1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25]


@pytest.mark.parametrize("schedule", KINDS, ids=str)
def test_no_schedule_exceeds_its_start_or_rises(schedule: Schedule) -> None:
    """A site accepts no rate above the plan's, by not even the last bit."""
    for rounds in range(1, 50):
        factors = [schedule.factor(round_num, rounds) for round_num in range(rounds)]
        assert factors[0] == 1.0
        assert all(later <= earlier for earlier, later in pairwise(factors))
        assert factors[-1] > 0


@pytest.mark.parametrize("schedule", KINDS, ids=str)
def test_one_round_alone_has_the_whole_rate(schedule: Schedule) -> None:
    """It is the first, and not the last."""
    assert rates(training(schedule, rounds=1)) == [1.0]


def test_every_kind_is_tried_here() -> None:
    """A kind that is added must keep the laws above."""
    assert {type(schedule) for schedule in KINDS} == set(SCHEDULES.values())
    assert {name: kind.model_fields["kind"].default for name, kind in SCHEDULES.items()} == {
        name: name for name in SCHEDULES
    }


def test_nothing_but_the_rate_changes() -> None:
    """The settings of the plan are left as they are, whichever round was asked for before."""
    local = training("cosine", learning_rate=0.2)
    before = local.settings.copy()
    last = local.at(4)
    assert local.settings == before
    assert {**last, "learning_rate": 0.2} == before
    assert local.at(0) == before


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("constant", Constant()),
        ("cosine", Cosine(final=0.01)),
        ({"kind": "cosine"}, Cosine(final=0.01)),
        ({"kind": "cosine", "final": 0.5}, Cosine(final=0.5)),
        ("exponential", Exponential(final=0.01)),
        ({"kind": "step", "every": 10}, Step(every=10, by=0.5)),
        ({"kind": "step", "every": 10, "by": 0.1}, Step(every=10, by=0.1)),
    ],
    ids=str,
)
def test_a_schedule_is_a_name_or_a_name_with_options(written: object, expected: Schedule) -> None:
    """Both forms of the file; stored with every option, it is the same again."""
    read = config(written, rounds=5)
    assert read.training.schedule == expected
    assert ExperimentConfig.model_validate_json(read.model_dump_json()) == read


def test_without_a_schedule_the_rate_is_constant() -> None:
    """It is an option."""
    least = ExperimentConfig(name="test", rounds=5, dataset="ai4i", sites=Path("sites.yaml"))
    assert least.training.schedule == Constant()


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (
            "cosin",
            "training.schedule: there is no schedule 'cosin'; did you mean 'cosine'? there are: ",
        ),
        ({"kind": "linear"}, "training.schedule: there is no schedule 'linear'; there are: const"),
        ({"every": 3}, "training.schedule: write a name, or {kind: the name, ...}"),
        (0.1, "training.schedule: write a name, or {kind: the name, ...}"),
        (None, "training.schedule: write a name, or {kind: the name, ...}"),
        ("step", "training.schedule.every: missing"),
        (
            {"kind": "step", "evry": 3},
            "training.schedule.evry: step has no such option; did you mean 'every'? there are: by,",
        ),
        (
            {"kind": "cosine", "every": 3},
            "training.schedule.every: cosine has no such option; there are: final",
        ),
        (
            {"kind": "constant", "final": 0.5},
            "training.schedule.final: constant has no such option; there are: none",
        ),
        ({"kind": "cosine", "final": 0}, "training.schedule.final: Input should be greater than 0"),
        ({"kind": "exponential", "final": 1.5}, "training.schedule.final: Input should be less"),
        ({"kind": "step", "every": 0}, "training.schedule.every: Input should be greater than or"),
        ({"kind": "step", "every": 1, "by": 2}, "training.schedule.by: Input should be less than"),
    ],
    ids=str,
)
def test_a_wrong_schedule_is_refused_with_its_place(written: object, said: str) -> None:
    """The path is that of the file, and what may stand there is listed."""
    with pytest.raises(ConfigurationError) as caught:
        config(written, rounds=5)
    assert f"\n  {said}" in str(caught.value)


@pytest.mark.parametrize("rounds", [1075, 1076], ids=["the last that can", "one more"])
def test_a_rate_that_falls_to_nothing_is_refused(rounds: int) -> None:
    """At 0 a site would refuse to train: known here, and not after a thousand rounds."""
    # The smallest number above 0 is 2^-1074, which a rate of 1 reaches in round 1074.
    halving = {"kind": "step", "every": 1}
    if rounds == 1075:
        assert rates(training(halving, rounds=rounds))[-1] == 2.0**-1074
    else:
        with pytest.raises(ConfigurationError, match=r"training\.schedule: .* let it fall less"):
            config(halving, rounds=rounds)
