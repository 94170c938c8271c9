"""Configuration files: YAML read safely, `${VAR}` resolved, every mistake reported at once.

`${VAR}` is the environment variable VAR and must be set; `${VAR:-default}` may be unset or empty.
Variables are resolved in text values only, after parsing, so a value can never add structure: it
is text, which a setting that takes a number reads as one.
"""

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from yaml.constructor import ConstructorError
from yaml.error import MarkedYAMLError

from core.exceptions import ConfigurationError

Model = TypeVar("Model", bound=BaseModel)

_KINDS = {type(None): "nothing", list: "a list", str: "a text"}

_PLAINLY = {
    "tuple_type": "expected a list",
    "list_type": "expected a list",
    "model_type": "expected settings (key: value)",
    "dict_type": "expected settings (key: value)",
    "string_type": "expected a text; put it in quotes",
    "too_short": "expected {min_length} or more, found {actual_length}",
    "too_long": "expected no more than {max_length}, found {actual_length}",
}
"""Our words for what pydantic says of Python's types, by its name for the mistake."""

_VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}")
_QUOTED = re.compile(r"""(?P<quote>['"])(?P<text>.*?)(?P=quote)""")


def load_yaml(path: Path, model: type[Model], env: Mapping[str, str] | None = None) -> Model:
    """Read the YAML file at `path` into `model`.

    Raises:
        ConfigurationError: The file cannot be read, or it has mistakes: the message lists them all,
            each with its path in the file.
    """
    return parse(read_yaml(path), model, source=str(path), env=env)


def read_yaml(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds; `parse` judges it
    """Read the YAML file at `path` as plain values; variables are not resolved yet.

    Raises:
        ConfigurationError: It cannot be read, is not UTF-8 text, or is not YAML.
    """
    try:
        return _Loader(path.read_text(encoding="utf-8")).get_single_data()
    except FileNotFoundError as exc:
        raise ConfigurationError(f"{path}: no such file") from exc
    except OSError as exc:
        raise ConfigurationError(f"{path}: cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigurationError(f"{path}: is not UTF-8 text; save it as UTF-8") from exc
    except yaml.YAMLError as exc:
        raise ConfigurationError(f"{path}: is not valid YAML: {_place(exc)}") from exc
    except (ValueError, RecursionError) as exc:
        raise ConfigurationError(
            f"{path}: is not valid YAML: an impossible date or number, or too deep a nesting"
        ) from exc


def parse(
    raw: Any,  # noqa: ANN401 - anything may stand in a file
    model: type[Model],
    *,
    source: str,
    env: Mapping[str, str] | None = None,
) -> Model:
    """Validate plain values as `model`; `source` is named in the error.

    Raises:
        ConfigurationError: With every mistake and its path.
    """
    if not isinstance(raw, dict):
        # Its kind alone: a password file, given by mistake, is a text too.
        found = _KINDS.get(type(raw), "a single value")
        raise ConfigurationError(f"{source}: expected settings (key: value), found {found}")
    unset: dict[str, str] = {}
    resolved = _resolve(raw, os.environ if env is None else env, "", unset)
    mistakes = [f"{path}: {message}" for path, message in unset.items()]
    try:
        result = model.model_validate(resolved)
    except ValidationError as exc:
        errors = exc.errors(include_url=False)
        mistakes.extend(
            _mistake(error, model)
            for error in errors
            if _path(error["loc"]) not in unset and not _follows(error, errors)
        )
    if mistakes:
        listing = "".join(f"\n  {mistake}" for mistake in mistakes)
        raise ConfigurationError(f"{source}: {len(mistakes)} mistake(s):{listing}")
    return result


def _resolve(value: Any, env: Mapping[str, str], path: str, unset: dict[str, str]) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        return {k: _resolve(v, env, f"{path}.{k}".lstrip("."), unset) for k, v in value.items()}
    if isinstance(value, list):
        return [_resolve(v, env, f"{path}[{i}]", unset) for i, v in enumerate(value)]
    if not isinstance(value, str):
        return value

    def substitute(match: re.Match[str]) -> str:
        found = env.get(match["name"], "")
        if found or (match["default"] is None and match["name"] in env):
            return found
        if match["default"] is not None:
            return match["default"]
        unset[path] = (
            f"the environment variable {match['name']} is not set; "
            f"set it, or give a default as ${{{match['name']}:-value}}"
        )
        return "unset"

    return _VARIABLE.sub(substitute, value)


class _Loader(yaml.SafeLoader):
    """YAML's plain values; a key that is given twice is a mistake and not an override."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:  # noqa: ANN401, FBT001, FBT002 - PyYAML's signature
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen and key.value != "<<":
                problem = f"the key {key.value} is given twice"
                raise ConstructorError(problem=problem, problem_mark=key.start_mark)
            if isinstance(key.value, str):
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def _place(error: yaml.YAMLError) -> str:
    """Say what is wrong and where, but show nothing of the text: it may be a password."""
    if not isinstance(error, MarkedYAMLError) or error.problem_mark is None:
        return type(error).__name__
    mark = error.problem_mark
    if "'\\t'" in (error.problem or ""):
        problem = "a tab; indent with spaces"
    elif error.problem == "but found another document":
        problem = "a second document begins; keep one"
    else:
        problem = _QUOTED.sub(_marks_only, error.problem or "")
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"


def _marks_only(quoted: re.Match[str]) -> str:
    return quoted[0] if len(quoted["text"]) == 1 or quoted["text"].startswith("<") else "..."


def _follows(error: Any, errors: Sequence[Any]) -> bool:  # noqa: ANN401 - pydantic's dictionaries
    """Tell whether `error` only says that a list is short of its own members with mistakes."""
    depth = len(error["loc"])
    return error["type"] == "too_short" and any(
        len(other["loc"]) > depth and other["loc"][:depth] == error["loc"] for other in errors
    )


def _mistake(error: Any, model: type[BaseModel]) -> str:  # noqa: ANN401 - pydantic's error dictionary
    path = _path(error["loc"])
    if error["type"] == "extra_forbidden":
        known = _fields_at(model, error["loc"][:-1])
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
        return f"{path}: unknown key; {hint}"
    if error["type"] == "missing":
        return f"{path}: missing"
    plainly = _PLAINLY.get(error["type"], "").format(**error.get("ctx", {}))
    message = plainly or error["msg"].removeprefix("Value error, ")
    is_leaf = not isinstance(error["input"], (dict, list)) and error["type"] != "value_error"
    secret = any(word in path.lower() for word in ("password", "secret", "key"))
    found = f" (found {_shown(error['input'])})" if is_leaf and not secret else ""
    return f"{path}: {message}{found}" if path else message


def _fields_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Names of the fields that stand at `loc`; empty where the types do not tell."""
    here: Any = model
    for part in loc:
        if isinstance(part, int) or not hasattr(here, "model_fields"):
            continue
        field = here.model_fields.get(part)
        here = _model_in(field.annotation) if field else None
    return list(here.model_fields) if hasattr(here, "model_fields") else []


def _model_in(annotation: Any) -> Any:  # noqa: ANN401 - any annotation
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _model_in(argument)
        if found is not None:
            return found
    return None


def _path(loc: tuple[int | str, ...]) -> str:
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".")


def _shown(value: Any) -> str:  # noqa: ANN401 - anything may stand in a file
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."  # noqa: PLR2004 - one line's worth
