"""Configuration files: YAML read safely, `${VAR}` resolved, every mistake reported at once.

`${VAR}` is the environment variable VAR and must be set; `${VAR:-default}` may be unset or empty.
Variables are resolved in text values only, after parsing, so a value can never add structure.
"""

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from core.exceptions import ConfigurationError

Model = TypeVar("Model", bound=BaseModel)

_VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}")


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
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise ConfigurationError(f"{path}: no such file") from exc
    except OSError as exc:
        raise ConfigurationError(f"{path}: cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigurationError(f"{path}: is not UTF-8 text") from exc
    except yaml.YAMLError as exc:
        raise ConfigurationError(f"{path}: is not valid YAML: {exc}") from exc


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
        raise ConfigurationError(f"{source}: expected settings (key: value), found {_shown(raw)}")
    unset: list[str] = []
    resolved = _resolve(raw, os.environ if env is None else env, "", unset)
    mistakes = list(unset)
    try:
        result = model.model_validate(resolved)
    except ValidationError as exc:
        mistakes.extend(_mistake(error, model) for error in exc.errors(include_url=False))
    if mistakes:
        listing = "".join(f"\n  {mistake}" for mistake in mistakes)
        raise ConfigurationError(f"{source}: {len(mistakes)} mistake(s):{listing}")
    return result


def _resolve(value: Any, env: Mapping[str, str], path: str, unset: list[str]) -> Any:  # noqa: ANN401
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
        unset.append(
            f"{path}: the environment variable {match['name']} is not set; "
            f"set it, or give a default as ${{{match['name']}:-value}}"
        )
        return "unset"

    whole = _VARIABLE.fullmatch(value)
    text = _VARIABLE.sub(substitute, value)
    # A value that is nothing but a variable means what it would written out: 3 is a number.
    return yaml.safe_load(text) if whole and _is_scalar(text) else text


def _is_scalar(text: str) -> bool:
    try:
        return isinstance(yaml.safe_load(text), (int, float, bool))
    except yaml.YAMLError:
        return False


def _mistake(error: Any, model: type[BaseModel]) -> str:  # noqa: ANN401 - pydantic's error dictionary
    path = _path(error["loc"])
    if error["type"] == "extra_forbidden":
        known = _fields_at(model, error["loc"][:-1])
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
        return f"{path}: unknown key; {hint}"
    if error["type"] == "missing":
        return f"{path}: missing"
    message = error["msg"].removeprefix("Value error, ")
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
