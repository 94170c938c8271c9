"""The pumps' failures follow from the order of their readings, and from nothing else."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from core.configuration import load_yaml
from core.enums import DataDistribution
from core.messages import SplitSettings
from core.schema import DataSchema
from datasite.data.table import check_table, load_table
from datasite.data.windows import Part, prepare_parts
from orchestrator.testbed.kinds import SampleKind
from orchestrator.testbed.samples import MACHINES_A_SITE, generate_table, write_samples
from orchestrator.testbed.vibration import TREND_MINUTES, generate_vibration, label_trends

SCHEMA = load_yaml(Path(__file__).parents[2] / "deploy" / "schemas" / "vibration.yaml", DataSchema)
SPLIT = SplitSettings(test=0.2, validation=0.1, seed=0)

Floats = npt.NDArray[np.float32]


class Windows(NamedTuple):
    """What a datasite makes of twelve pumps over a day, to learn from and to score on."""

    train: Part
    test: Part


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> Windows:
    """Give the windows, by way of a file and the datasite's own reading."""
    path = tmp_path_factory.mktemp("pumps") / "pumps.csv"
    generate_vibration(machines=12, minutes=1440, seed=0).to_csv(path, index=False)
    parts = prepare_parts(load_table(path, SCHEMA), SCHEMA, SPLIT, "factory-1")
    return Windows(parts.train, parts.test)


def overall(x: Floats) -> Floats:
    """Give (windows, steps): the overall vibration."""
    values: Floats = x[:, :, SCHEMA.features.index("vibration")]
    return values


def score(windows: Windows, train: Floats, test: Floats) -> float:
    """Give the ROC-AUC, on new windows, of a forest that saw `train`."""
    trees = ExtraTreesClassifier(50, min_samples_leaf=20, max_features=None, random_state=0)
    trees.fit(train, windows.train.y)
    return float(roc_auc_score(windows.test.y, trees.predict_proba(test)[:, 1]))


def test_the_slope_tells_a_failure(windows: Windows) -> None:
    """That of the eleven readings before the last, alone and untrained."""
    time = np.arange(TREND_MINUTES) - (TREND_MINUTES - 1) / 2
    slope = overall(windows.test.x)[:, :TREND_MINUTES] @ time

    assert roc_auc_score(windows.test.y, slope) > 0.97


def test_a_model_of_the_window_in_order_tells_a_failure(windows: Windows) -> None:
    """A linear one does, and so does the forest of the two tests below."""
    train, test = overall(windows.train.x), overall(windows.test.x)
    linear = LogisticRegression().fit(train, windows.train.y)

    assert roc_auc_score(windows.test.y, linear.predict_proba(test)[:, 1]) > 0.95
    assert score(windows, train, test) > 0.9


def test_the_last_row_tells_nothing(windows: Windows) -> None:
    """With all its sensors, of pumps that are known."""
    auc = score(windows, windows.train.x[:, -1], windows.test.x[:, -1])

    assert auc == pytest.approx(0.5, abs=0.04)


def test_a_window_without_its_order_tells_nothing(windows: Windows) -> None:
    """Its rows whole, but from the one that shakes least to the one that shakes most."""

    def unordered(x: Floats) -> Floats:
        order = overall(x).argsort(axis=1)[:, :, np.newaxis]
        return np.take_along_axis(x, order, axis=1).reshape(len(x), -1)

    auc = score(windows, unordered(windows.train.x), unordered(windows.test.x))

    assert auc == pytest.approx(0.5, abs=0.04)


def test_labels_follow_the_trend() -> None:
    """Rising readings fail as soon as eleven have been seen, falling and level ones never."""
    rising = np.arange(20.0)

    assert label_trends(rising).tolist() == [0] * 11 + [1] * 9
    assert label_trends(-rising).tolist() == [0] * 20
    assert label_trends(rising % 2).tolist() == [0] * 20
    assert label_trends(rising[:5]).tolist() == [0] * 5


def test_a_trend_is_one_from_a_rank_correlation_of_two_fifths() -> None:
    """Spearman's rho is 1 - 6 sum(d^2) / (11 * 120): 0.4 where the squares add up to 132.

    Swapping ranks that are d apart adds 2 d^2: 9 and 2 apart, 162 + 8 = 170, give 0.23; 8 and 1
    apart, 128 + 2 = 130, give 0.409; 8 and two of 1 apart, 132, give 0.4, which is not above it.
    """

    def label(*swaps: tuple[int, int]) -> int:
        readings = np.arange(12.0)
        for a, b in swaps:
            readings[[a, b]] = readings[[b, a]]
        return int(label_trends(readings)[-1])

    assert label((0, 9), (1, 3)) == 0
    assert label((0, 8), (9, 10)) == 1
    assert label((0, 8), (9, 10), (1, 2)) == 0


def test_a_row_has_no_say_in_its_own_label() -> None:
    """Whatever is read in the last minute, its label stays; and only ranks count."""
    readings = np.random.default_rng(0).normal(3.0, 0.4, 500)
    labels = label_trends(readings)

    for last in (0.0, 50.0):
        assert label_trends(np.append(readings[:-1], last)).tolist() == labels.tolist()
    assert label_trends(np.exp(readings)).tolist() == labels.tolist()


def test_the_labels_of_a_file_follow_from_its_rows(tmp_path: Path) -> None:
    """Read back with rounded values, pump by pump."""
    generate_vibration(machines=3, minutes=300, seed=4).to_csv(tmp_path / "p.csv", index=False)
    table = pd.read_csv(tmp_path / "p.csv")

    for _, pump in table.groupby("pump_id"):
        vibration = pump[["vibration_x", "vibration_y"]].to_numpy().sum(axis=1) / 2
        assert label_trends(vibration).tolist() == pump["failure"].tolist()


def test_every_pump_fails_about_one_row_in_nine() -> None:
    """So that which pump it is tells nothing; failures come in runs, hence the wide bounds."""
    rate = generate_vibration(machines=20, minutes=2000, seed=1).groupby("pump_id")["failure"]

    assert rate.mean().between(0.06, 0.17).all()
    assert rate.mean().mean() == pytest.approx(0.11, abs=0.01)


def test_a_pump_has_a_row_for_each_minute() -> None:
    """Times go up by a minute, and each pump begins at the same one."""
    table = generate_vibration(machines=3, minutes=50)
    times = pd.to_datetime(table["timestamp"]).dt.tz_localize(None).to_numpy().reshape(3, 50)

    assert table["pump_id"].tolist() == [f"pump-{n:02}" for n in (1, 2, 3) for _ in range(50)]
    assert (np.diff(times, axis=1) == np.timedelta64(1, "m")).all()
    assert len(set(times[:, 0])) == 1


def test_generation_repeats_with_its_seed() -> None:
    """The same seed gives the same rows, another seed others."""
    assert generate_vibration(2, 60, seed=1).equals(generate_vibration(2, 60, seed=1))
    assert not generate_vibration(2, 60, seed=1).equals(generate_vibration(2, 60, seed=2))


@pytest.mark.parametrize("distribution", list(DataDistribution), ids=lambda each: each.value)
def test_a_datasite_takes_the_files(tmp_path: Path, distribution: DataDistribution) -> None:
    """They keep the schema, hold whole pumps, and split into parts with both labels."""
    kind, sites = SampleKind.VIBRATION, 3
    table = generate_table(kind, rows=None, sites=sites, seed=0)
    paths = write_samples(
        table, tmp_path, sites=sites, distribution=distribution, seed=0, kind=kind
    )
    reports = [check_table(path, SCHEMA) for path in paths]

    assert [report.violations for report in reports] == [()] * sites
    assert [report.ignored for report in reports] == [()] * sites
    assert sum(len(report.balance) for report in reports) == sites * MACHINES_A_SITE
    for path, report in zip(paths, reports, strict=True):
        assert report.rows == 1440 * len(report.balance)
        prepare_parts(load_table(path, SCHEMA), SCHEMA, SPLIT, path.stem)
