"""How far a version of a dataset is from the first: found once, told with each update, and no more.

PSI is Σ (q − p) ln(q / p) over the cells of two histograms.
"""

import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sites import SCHEMA, ask, planned, register, train_request, write_table

from core.drift import flagged
from core.parameters import largest_difference
from core.schema import DataSchema
from datasite.data.drift import MINIMUM_ROWS, Counting, TableCounts, drift_metrics, psi
from datasite.ledger import Ledger
from datasite.registry import Registry
from datasite.site import FactoryDataSite

OpenSite = Callable[..., FactoryDataSite]

PRESS = DataSchema.model_validate(SCHEMA)
PUMP = DataSchema.model_validate(
    {
        "name": "pump",
        "label": {"column": "failure"},
        "columns": [
            {"name": "load", "range": [0, 10], "missing": 0.5},
            {"name": "oil", "type": "category", "values": ["mineral", "synthetic"]},
        ],
    }
)
ROWS = 500


def counted(load: list[float], oil: str = "mineral", schema: DataSchema = PUMP) -> TableCounts:
    """Count rows with these loads."""
    counting = Counting(schema)
    counting.add(pd.DataFrame({"load": load, "oil": oil, "failure": 0}))
    return counting.counts()


def drift(before: TableCounts, now: TableCounts) -> dict[str, float]:
    """Give the metrics of a version whose schema is the first's."""
    return drift_metrics(PUMP, now, PUMP, before)


def test_psi_is_as_worked_out_by_hand() -> None:
    """From (1/2, 1/2) to (3/4, 1/4): 1/4 ln(3/2) − 1/4 ln(1/2) = 1/4 ln 3 = 0.27465."""
    assert psi([10**6, 10**6], [3 * 10**6, 10**6]) == pytest.approx(0.27465, abs=1e-5)
    assert psi([7, 3], [70, 30]) == pytest.approx(0.0, abs=1e-2)


def test_a_value_falls_into_its_tenth_of_the_range() -> None:
    """Both ends belong to the outer tenths; a missing value has a cell of its own."""
    counts = counted([0.0, 0.99, 1.0, 5.0, 9.99, 10.0, float("nan")])
    assert counts["sensors"]["load"] == [2, 1, 0, 0, 0, 1, 0, 0, 0, 2, 1]
    assert counts["sensors"]["oil"] == [7, 0, 0]
    assert (counts["rows"], counts["labels"]) == (7, [7, 0])


def test_chunks_add_up() -> None:
    """Counted in two pieces it is what it is in one."""
    whole, pieces = Counting(PRESS), Counting(PRESS)
    table = pd.DataFrame({"load": np.arange(10.0), "heat": 5.0, "failure": np.arange(10) % 2})
    whole.add(table)
    pieces.add(table[:3])
    pieces.add(table[3:])
    assert pieces.counts() == whole.counts()


def test_what_has_moved_is_told_by_column() -> None:
    """The load went to the other half, the oil stayed, and so did the label."""
    found = drift(counted([2.0] * ROWS), counted([7.0] * ROWS))
    assert found.keys() == {"psi.load", "psi.oil", "psi.failure"}
    assert found["psi.load"] > 1
    assert (found["psi.oil"], found["psi.failure"]) == (0.0, 0.0)
    assert list(flagged(found)) == ["load"]


def test_a_sensor_that_goes_silent_drifts() -> None:
    """Half of its values are missing now; those that are there are as before."""
    found = drift(counted([2.0] * ROWS), counted([2.0, float("nan")] * (ROWS // 2)))
    assert found["psi.load"] > 0.25


def test_few_rows_are_not_compared() -> None:
    """On either side: their numbers would say more of chance, and of the rows, than of drift."""
    few, many = counted([2.0] * (MINIMUM_ROWS - 1)), counted([7.0] * MINIMUM_ROWS)
    assert drift(few, many) == drift(many, few) == {}
    assert drift(many, many) != {}


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_the_same_source_raises_no_alarm(seed: int) -> None:
    """Two draws of the fewest rows from one distribution, over all ten tenths of the range."""
    random = np.random.default_rng(seed)
    before, now = (counted(random.uniform(0, 10, MINIMUM_ROWS).tolist()) for _ in range(2))
    assert flagged(drift(before, now)) == {}


def test_a_column_that_means_something_else_is_not_compared() -> None:
    """Its tenths are of another range."""
    wider = PUMP.model_validate(
        {
            **PUMP.model_dump(),
            "columns": [{"name": "load", "range": [0, 20]}, PUMP.columns[1].model_dump()],
        }
    )
    now = counted([7.0] * ROWS, schema=wider)
    assert drift_metrics(wider, now, PUMP, counted([2.0] * ROWS)).keys() == {
        "psi.oil",
        "psi.failure",
    }


def versions(site: FactoryDataSite, folder: Path) -> None:
    """Register 500 rows, and then 500 whose load is at the other end of its range."""
    for shift in (0.0, 6.0):
        register(site, folder, rows=ROWS, load=[i % 40 / 10 + shift for i in range(ROWS)])


def test_each_update_tells_of_the_drift_of_its_plans_version(
    open_site: OpenSite, tmp_path: Path
) -> None:
    """Version 2 against version 1; version 1 has nothing to be compared with."""
    site = open_site()
    versions(site, tmp_path)
    first, second = (
        ask(site, train_request(planned(site, dataset_version=version)))["metrics"]
        for version in (1, 2)
    )
    assert first.keys() == {"train_loss", "fit_s"}
    assert second.keys() == {"train_loss", "fit_s", "psi.load", "psi.heat", "psi.failure"}
    assert (second["psi.heat"], second["psi.failure"]) == (0.0, 0.0)
    assert second["psi.load"] > 1
    assert round(second["psi.load"], 2) == second["psi.load"]


def test_drift_changes_nothing_in_training(open_site: OpenSite, tmp_path: Path) -> None:
    """The parameters are those of a site to which these data are the first, to the bit."""
    site = open_site()
    versions(site, tmp_path)
    site.registry.remove("press", 1, who="operator")
    with_drift = ask(site, train_request(planned(site, dataset_version=2)))
    site.registry.remove("press", who="operator")
    register(site, tmp_path, rows=ROWS, load=[i % 40 / 10 + 6.0 for i in range(ROWS)])
    without = ask(site, train_request(planned(site, dataset_version=3)))
    assert largest_difference(with_drift["parameters"], without["parameters"]) == 0
    assert "psi.load" in with_drift["metrics"]
    assert "psi.load" not in without["metrics"]


def test_what_is_compared_with_is_the_first_version_that_is_left(
    ledger: Ledger, tmp_path: Path
) -> None:
    """Once version 1 is removed, nothing that was counted of it is kept."""
    registry = Registry(ledger, tmp_path / "data", site_id="factory-1")

    def registered(shift: float) -> dict[str, float]:
        load = [i % 40 / 10 + shift for i in range(ROWS)]
        file = write_table(tmp_path / "press.csv", rows=ROWS, load=load)
        return registry.drift(registry.register(file, PRESS, name="press", who="operator"))

    assert registered(0.0) == {}
    assert list(flagged(registered(6.0))) == ["load"]
    registry.remove("press", 1, who="operator")
    assert registered(5.9) == {
        "psi.load": pytest.approx(0, abs=0.1),
        "psi.heat": 0,
        "psi.failure": 0,
    }


def test_a_ledger_from_before_versions_were_counted_opens(tmp_path: Path) -> None:
    """Its datasets are found; what is registered after them has nothing to be compared with."""
    ledger = Ledger(tmp_path / "ledger.db", site_id="factory-1")
    registry = Registry(ledger, tmp_path / "data", site_id="factory-1")
    file = write_table(tmp_path / "press.csv", rows=ROWS)
    first = registry.register(file, PRESS, name="press", who="operator")
    ledger.close()
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        connection.execute("DROP TABLE dataset_counts")

    ledger = Ledger(tmp_path / "ledger.db", site_id="factory-1")
    registry = Registry(ledger, tmp_path / "data", site_id="factory-1")
    assert registry.find("press", 1) == first
    assert registry.drift(first) == {}
    write_table(file, rows=ROWS, load=9.0)
    second = registry.register(file, PRESS, name="press", who="operator")
    assert (second.version, registry.drift(second)) == (2, {})
    ledger.close()
