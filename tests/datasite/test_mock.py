"""A mock table shows a dataset's shape and nothing of its rows."""

import hashlib
import inspect
from pathlib import Path

import pandas as pd
import pytest
import yaml

from core.schema import DataSchema
from datasite.data.mock import make_mock
from datasite.data.table import check_table

SCHEMAS = Path(__file__).parents[2] / "deploy" / "schemas"


def preset(name: str) -> DataSchema:
    """Read a schema that the project ships."""
    return DataSchema.model_validate(yaml.safe_load((SCHEMAS / name).read_text()))


@pytest.mark.parametrize("name", ["ai4i.yaml", "vibration.yaml"])
def test_a_mock_keeps_its_own_schema(name: str, tmp_path: Path) -> None:
    """Written as a file, it passes the check that private data must pass."""
    make_mock(preset(name)).to_csv(tmp_path / "mock.csv", index=False)
    report = check_table(tmp_path / "mock.csv", preset(name))

    assert report.violations == ()
    assert report.rows == 100
    assert report.ignored == ()


def test_a_mock_is_the_same_whatever_rows_a_site_has(tmp_path: Path) -> None:
    """Two factories with different private files under one schema show one and the same mock."""
    schema = preset("ai4i.yaml")
    shown = []
    for factory, shift in (("a", 0.0), ("b", 3.0)):
        path = tmp_path / f"{factory}.csv"
        private = make_mock(schema, rows=200)
        private["Torque [Nm]"] = private["Torque [Nm]"] * 0.5 + shift
        private.to_csv(path, index=False)
        assert check_table(path, schema).violation_count == 0
        shown.append(make_mock(schema).to_csv())

    assert shown[0] == shown[1]
    assert list(inspect.signature(make_mock).parameters) == ["schema", "rows"]


def test_a_mock_is_the_same_on_every_machine() -> None:
    """Its content is fixed by the schema's name, not by a process's hash seed or the time."""
    text = make_mock(preset("vibration.yaml"), rows=10).round(6).to_csv(lineterminator="\n")

    assert hashlib.sha256(text.encode()).hexdigest() == (
        "764c72a4423b5bcecb2fadf84648d649c7869cae3ecc5444a2736a99c173d717"
    )


def test_schemas_of_different_names_show_different_rows() -> None:
    """The seed is the name's."""
    schema = preset("ai4i.yaml")
    other = schema.model_copy(update={"name": "other"})

    assert not make_mock(schema).equals(make_mock(other))


def test_a_mock_has_the_failures_that_the_schema_expects() -> None:
    """3 % of 100 rows are 3; of 10 rows it is still one, so that code can be tried."""
    schema = preset("ai4i.yaml")

    assert make_mock(schema)["Machine failure"].sum() == 3
    assert make_mock(schema, rows=10)["Machine failure"].sum() == 1


def test_a_mock_has_two_machines_with_a_clock_each() -> None:
    """Ten rows are minutes 0 to 4 of two pumps."""
    mock = make_mock(preset("vibration.yaml"), rows=10)

    assert isinstance(mock, pd.DataFrame)
    assert mock["pump_id"].tolist() == ["machine-1"] * 5 + ["machine-2"] * 5
    assert mock["timestamp"].tolist() == [0, 1, 2, 3, 4] * 2
