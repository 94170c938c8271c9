"""A schema says everything about a dataset without a row, and refuses to say it unclearly."""

import re
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from core.schema import DataSchema

SCHEMAS = Path(__file__).parents[2] / "deploy" / "schemas"
NUMBER = {"name": "load", "range": [0, 10]}
CATEGORY = {"name": "oil", "type": "category", "values": ["mineral", "synthetic"]}


def schema(**changes: object) -> DataSchema:
    """Give a small schema with some of it changed."""
    content = {"name": "press", "label": {"column": "failure"}, "columns": [NUMBER, CATEGORY]}
    return DataSchema.model_validate(content | changes)


def derived(**changes: object) -> list[dict[str, object]]:
    """Give one derived column with some of it changed."""
    content = {"name": "x", "of": ["load", "load"], "formula": "sum", "range": [0, 20]}
    return [content | changes]


def test_the_ai4i_schema_has_eleven_features() -> None:
    """Three types, five sensors and three derived columns, in this order."""
    ai4i = DataSchema.model_validate(yaml.safe_load((SCHEMAS / "ai4i.yaml").read_text()))

    assert ai4i.features == (
        "Type=L",
        "Type=M",
        "Type=H",
        "Air temperature [K]",
        "Process temperature [K]",
        "Rotational speed [rpm]",
        "Torque [Nm]",
        "Tool wear [min]",
        "Temperature difference [K]",
        "Power [W]",
        "Strain [min Nm]",
    )
    assert (ai4i.machine, ai4i.window_steps, ai4i.label.column) == (None, 1, "Machine failure")


@pytest.mark.parametrize("path", sorted(SCHEMAS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_gives_a_range_for_each_feature(path: Path) -> None:
    """The shipped schemas load, and features and ranges go together."""
    preset = DataSchema.model_validate(yaml.safe_load(path.read_text()))

    assert preset.name == path.stem
    assert len(preset.features) == len(preset.ranges) == len(preset.usual)
    assert all(low < high for low, high in preset.ranges)


def test_the_schema_in_the_documentation_is_valid() -> None:
    """What people copy from must load."""
    text = (SCHEMAS.parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    documented = DataSchema.model_validate(yaml.safe_load(shown))
    assert documented.features == (
        "vibration",
        "strokes",
        "oil=mineral",
        "oil=synthetic",
        "heat",
    )


def test_a_schema_survives_the_journey_as_json() -> None:
    """A site sends it to a researcher in this form."""
    original = schema(derived=derived(), time={"column": "minute"}, window_steps=3)

    assert DataSchema.model_validate(original.model_dump(mode="json")) == original


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": []}, "at least 1 item"),
        ({"columns": [{"name": "load"}]}, "'load' is a number: give its `range`"),
        ({"columns": [NUMBER | {"range": [10, 0]}]}, "bound 10 is not below the upper bound 0"),
        ({"columns": [NUMBER | {"range": [0, float("inf")]}]}, "must both be finite"),
        ({"columns": [NUMBER | {"values": ["a"]}]}, "a `range`, not `values`"),
        ({"columns": [NUMBER | {"missing": 1}]}, "less than 1"),
        (
            {"columns": [NUMBER | {"usual": [-9e9, 1]}]},
            "'load': `usual` [-9000000000.0, 1.0] is not",
        ),
        ({"columns": [CATEGORY | {"usual": [0, 1]}]}, "it has `values`, not a `range`"),
        (
            {"columns": [NUMBER | {"type": "integer", "range": [0.2, 0.8]}]},
            "its `range` holds no whole number",
        ),
        ({"columns": [CATEGORY | {"values": ["a"]}]}, "at least two different `values`"),
        ({"columns": [CATEGORY | {"values": ["a", "b", "a"]}]}, "at least two different"),
        ({"columns": [CATEGORY | {"values": ["a", ""]}]}, "at least 1 character"),
        ({"columns": [CATEGORY | {"range": [0, 1]}]}, "it has `values`, not a `range`"),
        ({"columns": [NUMBER, NUMBER]}, "named more than once: 'load'"),
        ({"time": {"column": "failure"}}, "named more than once: 'failure'"),
        (
            {"columns": [CATEGORY, NUMBER | {"name": "oil=mineral"}]},
            "two features have the same name: 'oil=mineral'",
        ),
        ({"derived": derived(of=["load"])}, "at least 2 items"),
        ({"derived": derived(of=["load", "oil"])}, "'oil', which is no number column"),
        ({"derived": derived(of=["load"] * 3, formula="ratio")}, "takes exactly two columns"),
        ({"derived": derived(formula="power")}, "'sum', 'difference', 'product' or 'ratio'"),
        ({"derived": derived(factor=float("nan"))}, "finite number"),
        ({"window_steps": 0}, "greater than or equal to 1"),
        ({"label": {"column": "failure", "rate": 0}}, "greater than 0"),
        ({"windows": 3}, "Extra inputs are not permitted"),
    ],
)
def test_an_unclear_schema_is_refused(changes: dict[str, object], message: str) -> None:
    """The message names the column and says what to write instead."""
    with pytest.raises(ValidationError) as caught:
        schema(**changes)

    assert message in str(caught.value)
