"""What an experiment can choose from, as data that a command prints.

All of it is read off the code: an algorithm's module tells its equations and its source, and its
settings tell their defaults and ranges.
"""

import inspect
import sys
from typing import Any

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from core.exceptions import ConfigurationError
from orchestrator.aggregation import AGGREGATORS
from orchestrator.algorithms import ALGORITHMS, AlgorithmSettings


def describe_algorithms() -> list[dict[str, Any]]:
    """Give each algorithm, as `describe_algorithm` does."""
    return [describe_algorithm(name) for name in ALGORITHMS]


def describe_algorithm(name: str) -> dict[str, Any]:
    """Give one algorithm.

    Returns:
        `name`, `summary` (a line), `text` (with equations and source), `aggregation` (the only one,
        or `any`), `needs` (of the sites' training), `hyperparameters` (with `default`, `range` and
        `description`).

    Raises:
        ConfigurationError: There is none of that name.
    """
    kind = ALGORITHMS.get(name)
    if kind is None:
        raise ConfigurationError(
            f"there is no algorithm {name!r}; there are: {', '.join(ALGORITHMS)}"
        )
    text = inspect.getdoc(sys.modules[kind.__module__]) or ""
    return {
        "name": name,
        "summary": text.split("\n", maxsplit=1)[0],
        "text": text,
        "aggregation": kind.default_aggregation if kind.only_aggregation else "any",
        "hyperparameters": _options(kind.Settings, AlgorithmSettings),
        "needs": kind.needs,
    }


def describe_aggregations() -> list[dict[str, Any]]:
    """Give of each way of combining updates `name`, `summary` and `options`."""
    return [
        {
            "name": name,
            "summary": (inspect.getdoc(kind) or "").split("\n", maxsplit=1)[0],
            "options": _options(kind),
        }
        for name, kind in AGGREGATORS.items()
    ]


def _options(model: type[BaseModel], base: type[BaseModel] | None = None) -> list[dict[str, Any]]:
    inherited = base.model_fields if base else {}
    return [
        {
            "name": name,
            "default": field.default,
            "range": _range(field),
            "description": field.description or "",
        }
        for name, field in model.model_fields.items()
        if name not in inherited
    ]


def _range(field: FieldInfo) -> str:
    signs = {
        annotated_types.Gt: ("gt", ">"),
        annotated_types.Ge: ("ge", "≥"),
        annotated_types.Lt: ("lt", "<"),
        annotated_types.Le: ("le", "≤"),
    }
    return ", ".join(
        f"{sign} {getattr(bound, attribute):g}"
        for bound in field.metadata
        for kind, (attribute, sign) in signs.items()
        if isinstance(bound, kind)
    )
