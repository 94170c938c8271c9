"""A setting that is one of several kinds, each with options of its own; named alone or with them.

    aggregation: median
    aggregation: {method: trimmed_mean, trim: 0.2}

pydantic's own tagged unions put the tag into the path of every mistake, where no file has it.
"""

import difflib
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import InitErrorDetails

Chosen = TypeVar("Chosen", bound=BaseModel)


def parse_choice(
    value: object, table: Mapping[str, type[Chosen]], *, tag: str, noun: str
) -> Chosen:
    """Read a choice: the name of a kind, a mapping of `tag` and its options, or what is one.

    The class in `table` is given all options, and the tag where it has a field for it. `noun` says
    in mistakes what it is that has a name.

    Raises:
        ValueError: There is no such kind, with those that there are; or, as pydantic's
            `ValidationError`, an option is unknown or out of its range.
    """
    for kind in table.values():
        if isinstance(value, kind):
            return value
    if isinstance(value, Enum):
        value = value.value
    given = {tag: value} if isinstance(value, str) else value
    if not isinstance(given, Mapping) or tag not in given:
        message = f"write a name, or {{{tag}: the name, ...}} with its options; {_known(table)}"
        raise ValueError(message)
    name = given[tag]
    if not isinstance(name, str) or name not in table:
        message = f"there is no {noun} {name!r}; {_suggestion(str(name), table)}"
        raise ValueError(message)
    chosen = table[name]
    fields = {option for option in chosen.model_fields if option != tag}
    try:
        return chosen.model_validate(
            {k: v for k, v in given.items() if k != tag or tag in chosen.model_fields}
        )
    except ValidationError as exc:
        errors = [_with_options(error, name, fields) for error in exc.errors()]
        raise ValidationError.from_exception_data(exc.title, errors) from exc


def _with_options(error: Mapping[str, Any], name: str, fields: set[str]) -> InitErrorDetails:
    """Give a mistake again; that of an unknown option with the options that there are."""
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        hint = _suggestion(str(error["loc"][-1]), sorted(fields))
        kind, context = "value_error", {"error": f"{name} has no such option; {hint}"}
    return InitErrorDetails(type=kind, loc=error["loc"], input=error["input"], ctx=context)


def _suggestion(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {near[0]!r}? {_known(known)}" if near else _known(known)


def _known(names: Iterable[str]) -> str:
    return f"there are: {', '.join(names) or 'none'}"
