"""Early stopping on numbers that can be followed by eye: each list is a metric, round by round."""

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from core import ConfigurationError
from core.configuration import parse
from orchestrator.configuration import ExperimentConfig
from orchestrator.stopping import EarlyStopping, Judged, Stopper

NAN = math.nan


def settings(**early_stopping: Any) -> EarlyStopping:
    """Give the section as `experiment.yaml` would have it."""
    content: dict[str, Any] = {
        "name": "test",
        "rounds": 9,
        "dataset": "ai4i",
        "sites": "sites.yaml",
    }
    config = parse(
        {**content, "early_stopping": early_stopping}, ExperimentConfig, source="test", env={}
    )
    assert config.early_stopping is not None
    return config.early_stopping


def history(values: Iterable[float | None], metric: str = "pr_auc") -> list[dict[str, Any]]:
    """Give the records of rounds with these values; None is a round without evaluation."""
    others = {judged.value: 0.5 for judged in Judged}
    return [
        {"round_num": round_num, "training": {"loss": 1.0}}
        if value is None
        else {
            "round_num": round_num,
            "validation": {**others, metric: value},
            "global": {**others, metric: -value},
        }
        for round_num, value in enumerate(values)
    ]


def watch(chosen: EarlyStopping | None, records: Iterable[dict[str, Any]]) -> tuple[int, Stopper]:
    """Give how many rounds are run, and the stopper afterwards."""
    stopper = Stopper(chosen)
    seen = 0
    for record in records:
        if stopper.is_over:
            break
        stopper.see(record)
        seen += 1
    return seen, stopper


@pytest.mark.parametrize("metric", [judged.value for judged in Judged])
@pytest.mark.parametrize("mode", ["min", "max", None], ids=["min", "max", "natural"])
def test_a_metric_is_better_one_way(metric: str, mode: str | None) -> None:
    """By nature the loss when it is smaller and all else when it is larger; or as is said."""
    _, stopper = watch(settings(metric=metric, mode=mode), history([0.5, 0.2, 0.7, 0.4], metric))
    is_min = mode == "min" or (mode is None and metric == "loss")
    assert stopper.best_round == (1 if is_min else 2)


def test_only_the_chosen_metric_counts() -> None:
    """Of the validation parts: all others stay the same, and the test parts say the opposite."""
    records = history([0.1, 0.2, 0.3, 0.4], "f1")
    assert watch(settings(metric="f1", patience=1), records)[1].best_round == 3
    assert watch(settings(metric="mcc", patience=1), records)[0] == 2


@pytest.mark.parametrize(
    ("patience", "rounds"), [(1, 2), (2, 5), (3, 9), (4, 10)], ids=["one", "two", "three", "four"]
)
def test_so_many_rounds_in_a_row_without_improvement_end_the_run(
    patience: int, rounds: int
) -> None:
    """An improvement begins the count anew; the last of them ends the run at once."""
    # Without improvement are: one round after 0.5, two after the first 0.6, three after 0.7.
    values = [0.5, 0.4, 0.6, 0.5, 0.6, 0.7, 0.7, 0.6, 0.5, 0.8]
    seen, stopper = watch(settings(patience=patience), history(values))
    assert seen == rounds
    assert stopper.is_over is (patience < 4)


def test_an_improvement_is_more_than_min_delta() -> None:
    """Just as much is none. Small ones add up, as the best before them is what they are held to."""
    chosen = settings(min_delta=0.125, patience=9)
    assert watch(chosen, history([0.5, 0.625]))[1].best_round == 0
    assert watch(chosen, history([0.5, 0.626]))[1].best_round == 1
    assert watch(chosen, history([0.5, 0.5625, 0.625, 0.6875]))[1].best_round == 3
    falling = settings(metric="loss", min_delta=0.125, patience=9)
    assert watch(falling, history([0.5, 0.375], "loss"))[1].best_round == 0
    assert watch(falling, history([0.5, 0.374], "loss"))[1].best_round == 1


def test_small_improvements_use_up_the_patience() -> None:
    """0.51 and 0.52 are less than 0.125 above 0.5."""
    chosen = settings(min_delta=0.125, patience=2)
    assert watch(chosen, history([0.5, 0.51, 0.52, 0.9]))[0] == 3


@pytest.mark.parametrize("metric", ["pr_auc", "loss"])
@pytest.mark.parametrize(
    ("values", "best_round", "rounds"),
    [
        ([NAN, NAN, NAN, NAN], None, 3),
        ([NAN, NAN, 0.1, 0.1, 0.1, 0.1], 2, 6),
        ([0.5, NAN, NAN, NAN, NAN], 0, 4),
        ([0.5, NAN, 0.5, NAN, NAN], 0, 4),
    ],
    ids=["never", "at first", "afterwards", "in between"],
)
def test_what_is_not_a_number_is_no_improvement(
    metric: str, values: list[float], best_round: int | None, rounds: int
) -> None:
    """Neither the best nor a reason to go on, and any number is better."""
    seen, stopper = watch(settings(metric=metric, patience=3), history(values, metric))
    assert (stopper.best_round, seen) == (best_round, rounds)


def test_rounds_without_evaluation_say_nothing() -> None:
    """Neither good nor bad: the patience is in evaluations."""
    values = [None, 0.5, None, 0.4, None, None, 0.3, None, 0.9]
    seen, stopper = watch(settings(patience=2), history(values))
    assert (stopper.best_round, seen) == (1, 7)


def test_the_best_so_far_is_told_when_it_is_seen() -> None:
    """Then its parameters are kept."""
    stopper = Stopper(settings())
    values = [0.5, 0.4, 0.6, None, NAN, 0.7]
    told = [stopper.see(record) for record in history(values)]
    assert told == [True, False, True, False, False, True]


def test_without_early_stopping_nothing_is_watched() -> None:
    """The run has all its rounds, and the last is its result."""
    seen, stopper = watch(None, history([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]))
    assert (seen, stopper.best_round, stopper.restores) == (7, None, False)


@pytest.mark.parametrize("restore_best", [True, False], ids=["best", "last"])
def test_which_round_is_restored_is_a_setting(*, restore_best: bool) -> None:
    """When it stops does not depend on it."""
    chosen = settings(restore_best=restore_best, patience=2)
    seen, stopper = watch(chosen, history([0.5, 0.4, 0.3, 0.2]))
    assert (stopper.restores, seen, stopper.best_round) == (restore_best, 3, 0)


@pytest.mark.parametrize(
    "values",
    [
        [0.5, 0.4, 0.6, 0.5, 0.6, 0.7],
        [NAN, 0.1, NAN, NAN, 0.05, 0.02],
        [None, 0.5, None, 0.4, 0.3, None],
        [NAN, NAN, NAN],
    ],
    ids=["numbers", "no numbers", "without evaluation", "nothing"],
)
def test_a_history_that_is_replayed_equals_rounds_that_were_seen(
    values: Sequence[float | None],
) -> None:
    """Wherever the run was stopped; the history comes from disk, as JSON."""
    chosen = settings(patience=3)
    records = history(values)
    live = Stopper(chosen)
    course = [(live.see(record), live.is_over, live.best_round) for record in records]
    for done in range(len(records)):
        replayed = Stopper(chosen, json.loads(json.dumps(records[:done])))
        rest = [(replayed.see(r), replayed.is_over, replayed.best_round) for r in records[done:]]
        assert rest == course[done:]
    replayed = Stopper(chosen, json.loads(json.dumps(records)))
    assert (replayed.is_over, replayed.best_round) == course[-1][1:]


def test_the_section_may_be_empty() -> None:
    """Every setting has a default."""
    chosen = settings()
    assert (chosen.metric, chosen.mode) == (Judged.PR_AUC, None)
    assert (chosen.patience, chosen.min_delta, chosen.restore_best) == (5, 0.0, True)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"metric": "accuracy"}, "early_stopping.metric: Input should be 'loss', 'pr_auc', "),
        ({"mode": "up"}, "early_stopping.mode: Input should be 'max' or 'min'"),
        ({"patience": 0}, "early_stopping.patience: Input should be greater than or equal to 1"),
        ({"min_delta": -0.1}, "early_stopping.min_delta: Input should be greater than or equal"),
        ({"min_delta": NAN}, "early_stopping.min_delta: Input should be a finite number"),
        ({"patiense": 3}, "early_stopping.patiense: unknown key; did you mean 'patience'?"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_refused_with_its_place(wrong: dict[str, Any], said: str) -> None:
    """And with what may stand there."""
    with pytest.raises(ConfigurationError) as caught:
        settings(**wrong)
    assert f"\n  {said}" in str(caught.value)
