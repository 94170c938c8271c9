"""Features, windows, parts and sums: small enough to check by hand, and as laws."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.exceptions import ConfigurationError, DataError
from core.messages import SplitSettings
from core.schema import DataSchema
from datasite.data.features import FeatureRows, make_features
from datasite.data.statistics import sum_statistics
from datasite.data.windows import Part, Parts, count_windows, prepare_parts, split_windows

SPLIT = SplitSettings(test=0.2, validation=0.2, seed=1)


def schema_of(window_steps: int, **changes: object) -> DataSchema:
    """Give a schema whose one sensor tells rows apart."""
    return DataSchema.model_validate(
        {
            "name": "press",
            "label": {"column": "failure"},
            "machine": {"column": "machine"},
            "time": {"column": "minute"},
            "window_steps": window_steps,
            "columns": [{"name": "row", "range": [0, 10_000]}],
            **changes,
        }
    )


def table_of(sizes: list[int]) -> pd.DataFrame:
    """Give machines of these sizes; `row` counts all rows, every second one fails."""
    machine = np.repeat([f"m{i}" for i in range(len(sizes))], sizes)
    minute = np.concatenate([np.arange(size) for size in sizes]).astype(float)
    row = np.arange(len(machine))
    return pd.DataFrame(
        {"machine": machine, "minute": minute, "row": row.astype(float), "failure": row % 2}
    )


def rows_of(sizes: list[int]) -> FeatureRows:
    """Give the features of `table_of`."""
    return make_features(table_of(sizes), schema_of(2))


def test_features_follow_the_order_of_the_schema() -> None:
    """Category, numbers, then derived: each of the four formulas worked out by hand."""
    derived = [
        {"name": formula, "of": ["a", "b"], "formula": formula, "factor": 2, "range": [-50, 50]}
        for formula in ("sum", "difference", "product", "ratio")
    ]
    columns = [
        {"name": "oil", "type": "category", "values": ["x", "y"]},
        {"name": "a", "range": [0, 10]},
        {"name": "b", "range": [0, 10]},
    ]
    schema = schema_of(1, columns=columns, derived=derived, machine=None, time=None)
    table = pd.DataFrame({"oil": ["y"], "a": [6.0], "b": [3.0], "failure": [1]})
    rows = make_features(table, schema)

    assert schema.features == ("oil=x", "oil=y", "a", "b", "sum", "difference", "product", "ratio")
    assert rows.x.dtype == np.float32
    # twice each of 6 + 3, 6 - 3, 6 times 3, and 6 over 3
    assert rows.x.tolist() == [[0.0, 1.0, 6.0, 3.0, 18.0, 6.0, 36.0, 4.0]]


def test_missing_and_extreme_values_stay_within_the_ranges() -> None:
    """A missing number is the middle, also in what derives from it; a ratio by zero is clamped."""
    columns = [
        {"name": "a", "range": [0, 10]},
        {"name": "b", "range": [0, 10]},
        {"name": "oil", "type": "category", "values": ["x", "y"], "missing": 0.5},
    ]
    derived = [{"name": "ratio", "of": ["a", "b"], "formula": "ratio", "range": [-1, 7]}]
    schema = schema_of(1, columns=columns, derived=derived, machine=None, time=None)
    table = pd.DataFrame(
        {"a": [np.nan, 4.0, 0.0], "b": [2.0, 0.0, 0.0], "oil": [None, "x", "y"], "failure": 0}
    )

    assert make_features(table, schema).x.tolist() == [
        [5.0, 2.0, 0.0, 0.0, 3.0],  # ratio of a missing number: middle of -1 to 7
        [4.0, 0.0, 1.0, 0.0, 7.0],  # 4 / 0 is infinite: the upper end
        [0.0, 0.0, 0.0, 1.0, 3.0],  # 0 / 0 is nothing: the middle
    ]


def test_rows_are_ordered_by_machine_and_time() -> None:
    """A file in any order gives the same rows."""
    table = table_of([3, 2])
    rows = make_features(table.iloc[[4, 1, 3, 0, 2]], schema_of(1))

    assert rows.x[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert rows.machine.tolist() == [0, 0, 0, 1, 1]
    assert rows.position.tolist() == [3, 1, 4, 2, 0]


def test_timestamps_order_rows_as_numbers_do() -> None:
    """Time may be a UTC timestamp, and is not compared as text."""
    table = table_of([12])
    minutes = pd.to_timedelta(table["minute"], unit="min")
    table["minute"] = pd.Timestamp("2024-05-01T00:00Z") + minutes
    rows = make_features(table.iloc[::-1], schema_of(1))

    assert rows.x[:, 0].tolist() == list(range(12))


def test_windows_end_at_their_label() -> None:
    """Ten rows at 60/20/20 in windows of two: six rows train, two validate, two test."""
    table = table_of([10, 10])
    table.loc[10:, "failure"] = 1 - table["failure"]  # the second machine fails at even rows
    parts = prepare_parts(table, schema_of(2), SPLIT, "factory-1")

    assert parts.train.x[:, :, 0].tolist() == [
        [0, 1], [1, 2], [2, 3], [3, 4], [4, 5], [10, 11], [11, 12], [12, 13], [13, 14], [14, 15],
    ]  # fmt: skip
    assert parts.train.y.tolist() == [1, 0, 1, 0, 1, 0, 1, 0, 1, 0]
    assert parts.validation.x[:, :, 0].tolist() == [[6, 7], [16, 17]]
    assert parts.test.x[:, :, 0].tolist() == [[8, 9], [18, 19]]
    assert parts.test.y.tolist() == [1, 0]
    assert parts.train.x.dtype == np.float32
    assert parts.train.y.dtype == np.int64


@pytest.mark.parametrize(
    ("failing", "message"),
    [
        ([13, 17], r"the train part .* has 11 windows, all with label 0; .* share left by test"),
        ([3, 19], r"the validation part .* has 3 windows, all with label 0; .* raise its fraction"),
        ([3, 14], r"the test part .* has 3 windows, all with label 0; .* register more rows"),
    ],
    ids=["train", "validation", "test"],
)
def test_each_part_needs_both_classes(failing: list[int], message: str) -> None:
    """Twenty rows: 0 to 11 train, 12 to 15 validate, 16 to 19 test."""
    table = table_of([20])
    table["failure"] = table["row"].isin(failing).astype(int)

    with pytest.raises(DataError, match=message):
        prepare_parts(table, schema_of(2), SPLIT, "factory-1")


def test_an_empty_part_is_refused() -> None:
    """Machines of six rows at 60/20/20 have one row in each later part: no window of two."""
    with pytest.raises(DataError, match="the validation part of 'press' has no windows"):
        prepare_parts(table_of([6] * 20), schema_of(2), SPLIT, "factory-1")


def test_fractions_that_leave_no_training_are_a_configuration_error() -> None:
    """Half and half is one half too much."""
    split = SplitSettings(test=0.5, validation=0.5, seed=0)

    with pytest.raises(ConfigurationError, match="leave nothing for training"):
        split_windows(rows_of([10]), 2, split, "factory-1")


def test_single_rows_are_split_at_random_and_stratified() -> None:
    """Of 80 and 20 rows a fifth each: 16 and 4 test, 16 and 4 validate, the rest trains."""
    table = table_of([100])
    table["failure"] = (table["row"] < 20).astype(int)
    parts = prepare_parts(table, schema_of(1), SPLIT, "factory-1")

    assert [np.bincount(part.y).tolist() for part in parts_in_order(parts)] == [
        [48, 12],
        [16, 4],
        [16, 4],
    ]
    ids = np.concatenate([part.x[:, 0, 0] for part in parts_in_order(parts)])
    assert sorted(ids) == list(range(100))


def test_the_random_split_depends_on_seed_and_site_alone() -> None:
    """Sites draw differently from one seed; the order of the file does not matter."""
    table, schema = table_of([100]), schema_of(1)

    def test_ids(split: SplitSettings, site_id: str, rows: pd.DataFrame = table) -> list[float]:
        return [float(row) for row in prepare_parts(rows, schema, split, site_id).test.x[:, 0, 0]]

    expected = test_ids(SPLIT, "factory-1")
    assert test_ids(SPLIT, "factory-1", table.iloc[::-1]) == expected
    assert test_ids(SPLIT, "factory-2") != expected
    assert test_ids(SplitSettings(test=0.2, validation=0.2, seed=2), "factory-1") != expected


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    window_steps=st.integers(1, 7),
    test=st.floats(0.0, 0.49),
    validation=st.floats(0.0, 0.49),
)
def test_no_row_is_in_two_parts_and_no_window_crosses_machines(
    sizes: list[int], window_steps: int, test: float, validation: float
) -> None:
    """For any machines, window and fractions: windows are consecutive rows of one machine."""
    rows = rows_of(sizes)
    split = SplitSettings(test=test, validation=validation, seed=0)
    starts = split_windows(rows, window_steps, split, "factory-1")
    used = [{start + step for start in part for step in range(window_steps)} for part in starts]

    assert sum(map(len, used)) == len(set.union(*used))
    for start in np.concatenate(starts):
        window = slice(start, start + window_steps)
        assert len(set(rows.machine[window])) == 1
        assert len(rows.machine[window]) == window_steps
    longest = count_windows(np.array(sizes), window_steps)
    dropped = longest - sum(map(len, starts))
    assert 0 <= dropped <= 2 * (window_steps - 1) * len(sizes)


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4))
def test_training_is_before_validation_before_test(sizes: list[int]) -> None:
    """Within each machine a model is only ever scored on what came later."""
    rows = rows_of(sizes)
    starts = split_windows(rows, 3, SPLIT, "factory-1")
    for machine in np.unique(rows.machine):
        own = [part[rows.machine[part] == machine].tolist() for part in starts]
        assert sum(own, []) == sorted(sum(own, []))  # noqa: RUF017 - three short lists


def test_windows_are_counted_within_machines() -> None:
    """5 rows make 3 windows of 3, 2 rows make none, 3 rows make one."""
    assert count_windows(np.array([5, 2, 3]), 3) == 4


def test_sums_are_over_the_rows_of_each_feature() -> None:
    """Two rows of two features: (2, 3) and (4, 5)."""
    x = np.array([[2, 3], [4, 5]], dtype=np.float32)
    sums = sum_statistics(x, np.array([0, 1]))

    assert sums.count == 2
    assert sums.total == [6.0, 8.0]
    assert sums.total_of_squares == [20.0, 34.0]  # 4 + 16, 9 + 25
    assert sums.label_counts == [1, 1]


def test_the_sums_of_two_halves_add_up_to_the_sums_of_all() -> None:
    """The law on which the federation's scaler rests."""
    x = np.arange(60, dtype=np.float32).reshape(10, 6)
    y = np.array([0, 1] * 5)
    whole, first, second = (sum_statistics(x[s], y[s]) for s in np.s_[:, :4, 4:])

    assert whole.total == [a + b for a, b in zip(first.total, second.total, strict=True)]
    assert whole.label_counts == [5, 5]


def parts_in_order(parts: Parts) -> list[Part]:
    """Give train, validation, test."""
    return [parts.train, parts.validation, parts.test]
