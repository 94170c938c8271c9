"""Configuration files: what they may say, and how their mistakes are told."""

from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from core.configuration import load_yaml, parse
from core.exceptions import ConfigurationError


class Strict(BaseModel):
    """What our own models are like."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Colour(Enum):
    """Two colours."""

    RED = "red"
    GREEN = "green"


class Motor(Strict):
    """One motor."""

    power: float = Field(gt=0)
    colour: Colour = Colour.RED


class Plant(Strict):
    """A plant with motors."""

    name: str
    floors: int = Field(default=1, ge=1)
    password: SecretStr = SecretStr("")
    motors: tuple[Motor, ...] = Field(default=(), min_length=0)


class Crowd(Strict):
    """At least one motor."""

    motors: tuple[Motor, ...] = Field(min_length=1)


def plant(**settings: Any) -> dict[str, Any]:
    """Give a plant's settings."""
    return {"name": "north", **settings}


def mistakes_in(settings: object, env: dict[str, str] | None = None) -> list[str]:
    """Give the mistakes that are found, one a line."""
    with pytest.raises(ConfigurationError) as caught:
        parse(settings, Plant, source="plant.yaml", env=env or {})
    first, *rest = str(caught.value).splitlines()
    assert first == f"plant.yaml: {len(rest)} mistake(s):"
    return [line.strip() for line in rest]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Give the path of a file to write."""
    return tmp_path / "plant.yaml"


def test_a_variable_gives_its_value() -> None:
    """Alone or within a text, once or twice."""
    env = {"HALL": "north", "NO": "2"}
    read = parse({"name": "${HALL}-${NO}"}, Plant, source="plant.yaml", env=env)
    assert read.name == "north-2"


@pytest.mark.parametrize(
    ("env", "expected"),
    [({}, "south"), ({"HALL": ""}, "south"), ({"HALL": "north"}, "north")],
    ids=["unset", "empty", "set"],
)
def test_a_default_stands_in_for_a_variable_unset_or_empty(
    env: dict[str, str], expected: str
) -> None:
    """As in a shell."""
    assert parse({"name": "${HALL:-south}"}, Plant, source="", env=env).name == expected


def test_a_default_may_be_empty() -> None:
    """Nothing is something."""
    assert parse({"name": "a${HALL:-}"}, Plant, source="", env={}).name == "a"


def test_a_variable_may_be_set_to_nothing() -> None:
    """Without a default, an empty variable is empty and not a mistake."""
    assert parse({"name": "${HALL}"}, Plant, source="", env={"HALL": ""}).name == ""


def test_variables_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default that of the process."""
    monkeypatch.setenv("TEST_PLANT_NAME", "east")
    assert parse({"name": "${TEST_PLANT_NAME}"}, Plant, source="").name == "east"


def test_an_unset_variable_is_named_with_its_place_and_only_once() -> None:
    """Not as an unset variable and then also as a bad number."""
    settings = plant(floors="${FLOORS}", motors=[{"power": "${POWER}"}])
    assert mistakes_in(settings) == [
        f"{place}: the environment variable {name} is not set; "
        f"set it, or give a default as ${{{name}:-value}}"
        for place, name in [("floors", "FLOORS"), ("motors[0].power", "POWER")]
    ]


def test_a_variable_is_a_number_where_one_is_asked_for() -> None:
    """Also as the default, and in a list."""
    settings = plant(floors="${FLOORS}", motors=[{"power": "${POWER:-1.5}"}])
    read = parse(settings, Plant, source="", env={"FLOORS": "3"})
    assert (read.floors, read.motors[0].power) == (3, 1.5)


@pytest.mark.parametrize("value", ["12345678", "0777", "1e5", "true", "no", "null"])
def test_a_variable_is_text_where_text_is_asked_for(value: str) -> None:
    """A password of digits alone is a password, and `no` is the word."""
    settings = {"name": "${V}", "password": "${V}"}
    read = parse(settings, Plant, source="", env={"V": value})
    assert (read.name, read.password.get_secret_value()) == (value, value)


@pytest.mark.parametrize(
    "value", ["[1, 2]", "{power: 1}", "a: b", "- a", "!!python/name:os", "x\ny: 1"], ids=repr
)
def test_a_variable_cannot_add_structure(value: str) -> None:
    """Whatever it says, it is one text."""
    read = parse({"name": "${V}"}, Plant, source="", env={"V": value})
    assert read == Plant(name=value)


def test_a_variable_is_not_resolved_twice() -> None:
    """A value that looks like a variable is left as it is."""
    assert parse({"name": "${A}"}, Plant, source="", env={"A": "${B}", "B": "b"}).name == "${B}"


def test_every_mistake_is_told_at_once_with_its_place() -> None:
    """Nobody mends a file line by line."""
    settings = {
        "floors": 0,
        "motors": [{"power": 1}, {"power": -2, "colour": "blue", "weight": 3}],
    }
    assert mistakes_in(settings) == [
        "name: missing",
        "floors: Input should be greater than or equal to 1 (found 0)",
        "motors[1].power: Input should be greater than 0 (found -2)",
        "motors[1].colour: Input should be 'red' or 'green' (found 'blue')",
        "motors[1].weight: unknown key; known: colour, power",
    ]


def test_a_typo_in_a_key_is_told_with_the_key_that_was_meant() -> None:
    """At the top and further in."""
    settings = plant(flors=2, motors=[{"power": 1, "color": "red"}])
    assert mistakes_in(settings) == [
        "motors[0].color: unknown key; did you mean 'colour'?",
        "flors: unknown key; did you mean 'floors'?",
    ]


def test_a_list_is_not_called_short_for_its_members_mistakes() -> None:
    """One mistake is told as one."""
    with pytest.raises(ConfigurationError) as caught:
        parse({"motors": [{"power": -1}]}, Crowd, source="crowd.yaml")
    assert "1 mistake(s)" in str(caught.value)
    assert "motors[0].power" in str(caught.value)
    with pytest.raises(ConfigurationError, match="motors: expected 1 or more, found 0"):
        parse({"motors": []}, Crowd, source="crowd.yaml")


def test_a_long_value_is_cut_short() -> None:
    """An error is for reading."""
    (mistake,) = mistakes_in(plant(floors="x" * 1000))
    assert len(mistake) < 200


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "expected settings (key: value), found nothing"),
        ("# only a comment\n", "expected settings (key: value), found nothing"),
        ("- a\n- b\n", "expected settings (key: value), found a list"),
        ("just words\n", "expected settings (key: value), found a text"),
        ("3\n", "expected settings (key: value), found a single value"),
        ("name: [a\n", "is not valid YAML: line 2, column 1"),
        ("name: a\n\tfloors: 2\n", "is not valid YAML: line 2, column 1"),
        ("name: a\nfloors: 1\nfloors: 2\n", "line 3, column 1: the key floors is given twice"),
        ("motors:\n- {power: 1, power: 2}\n", "line 2, column 14: the key power is given twice"),
        ("name: *unknown\n", "is not valid YAML: line 1, column 7"),
        ("name: !!python/object/apply:os.getcwd []\n", "is not valid YAML: line 1, column 7"),
        ("name: 2026-02-30\n", "is not valid YAML: an impossible date or number"),
        ("[" * 5000, "too deep a nesting"),
        ("name: a\0b\n", "is not valid YAML"),
    ],
    ids=[
        "empty",
        "comment",
        "list",
        "words",
        "number",
        "open bracket",
        "tab",
        "key twice",
        "key twice, further in",
        "unknown alias",
        "Python tag",
        "30 February",
        "deep",
        "control character",
    ],
)
def test_a_file_that_holds_no_settings_is_told_with_the_place(
    file: Path, content: str, said: str
) -> None:
    """The file is named, and what is wrong with it."""
    file.write_text(content)
    with pytest.raises(ConfigurationError) as caught:
        load_yaml(file, Plant)
    assert str(caught.value).startswith(f"{file}: ")
    assert said in str(caught.value)


def test_a_file_that_is_not_there_is_named(file: Path) -> None:
    """The path as it was asked for."""
    with pytest.raises(ConfigurationError, match=r"plant\.yaml: no such file"):
        load_yaml(file, Plant)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    """The system's own words say why."""
    with pytest.raises(ConfigurationError, match="cannot be read: Is a directory"):
        load_yaml(tmp_path, Plant)


def test_bytes_that_are_no_text_are_told(file: Path) -> None:
    """A Parquet file given by mistake, for one."""
    file.write_bytes(b"PAR1\xff\xfe")
    with pytest.raises(ConfigurationError, match="is not UTF-8 text"):
        load_yaml(file, Plant)


def test_a_merge_key_may_stand_beside_another(file: Path) -> None:
    """YAML's own way to share settings is no key given twice."""
    file.write_text("name: a\nmotors:\n- &m {power: 2, colour: green}\n- {<<: *m, power: 3}\n")
    first, second = load_yaml(file, Plant).motors
    assert (first.power, second.power, second.colour) == (2.0, 3.0, Colour.GREEN)


@pytest.mark.parametrize(
    "content",
    [
        "name: a\npassword: [hunter2]\n",
        "name: a\npassword: {a: hunter2}\n",
        "name: a\npassword: 7.5\nfloors: x\n",
        "name: a\npasword: hunter2\n",
        "name: a\npassword: 'hunter2\n",
        "name: a\npassword: hunter2: x\n",
        "name: a\npassword: *hunter2\n",
        "name: a\npassword: !hunter2 x\n",
        "name: a\npassword: @hunter2\n",
        "name: a\npassword: %hunter2\n",
        "hunter2\n",
        "- hunter2\n",
    ],
    ids=[
        "list",
        "mapping",
        "number",
        "typo",
        "open quote",
        "colon",
        "alias",
        "tag",
        "at sign",
        "percent",
        "password file",
        "list of passwords",
    ],
)
def test_a_password_is_never_shown(file: Path, content: str) -> None:
    """Errors end up in logs and in tickets."""
    file.write_text(content)
    with pytest.raises(ConfigurationError) as caught:
        load_yaml(file, Plant)
    assert "hunter2" not in str(caught.value)
    assert "7.5" not in str(caught.value)
