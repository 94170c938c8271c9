"""Which methods there are, and how `experiment.yaml` chooses one.

aggregation: median
aggregation: {method: trimmed_mean, trim: 0.2, clip_norm: 5.0}
"""

import difflib
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny, ValidationError
from pydantic_core import InitErrorDetails

from orchestrator.aggregation.base import Aggregator
from orchestrator.aggregation.geometric_median import GeometricMedian
from orchestrator.aggregation.krum import Krum, MultiKrum
from orchestrator.aggregation.means import SimpleAverage, WeightedAverage
from orchestrator.aggregation.trimmed import Median, TrimmedMean

AGGREGATORS: dict[str, type[Aggregator]] = {
    aggregator.method: aggregator
    for aggregator in (
        WeightedAverage,
        SimpleAverage,
        Median,
        TrimmedMean,
        Krum,
        MultiKrum,
        GeometricMedian,
    )
}


def parse_aggregator(value: object) -> Aggregator:
    """Read a choice: a method's name, a mapping of `method` and its options, or what is one.

    Raises:
        ValueError: There is no such method, with those that there are; or, as pydantic's
            `ValidationError`, an option is unknown or out of its range.
    """
    if isinstance(value, Aggregator):
        return value
    if isinstance(value, Enum):
        value = value.value
    given = {"method": value} if isinstance(value, str) else value
    if not isinstance(given, Mapping) or "method" not in given:
        message = (
            "write the name of a method, or {method: its name, ...} with its options; "
            f"{_listing(AGGREGATORS)}"
        )
        raise ValueError(message)
    method = given["method"]
    if not isinstance(method, str) or method not in AGGREGATORS:
        message = f"there is no method {method!r}; {_suggestion(str(method), AGGREGATORS)}"
        raise ValueError(message)
    options = {name: option for name, option in given.items() if name != "method"}
    chosen = AGGREGATORS[method]
    try:
        return chosen.model_validate(options)
    except ValidationError as exc:
        raise ValidationError.from_exception_data(
            exc.title, [_with_options(error, chosen) for error in exc.errors()]
        ) from exc


AggregationChoice = Annotated[SerializeAsAny[Aggregator], BeforeValidator(parse_aggregator)]
"""A pydantic field's type; it is stored as a mapping with every option, and reads that back."""


def _with_options(error: Mapping[str, Any], chosen: type[Aggregator]) -> InitErrorDetails:
    """Give a mistake again; that of an unknown option with the options that there are."""
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        hint = _suggestion(str(error["loc"][0]), chosen.model_fields)
        kind, context = "value_error", {"error": f"{chosen.method} has no such option; {hint}"}
    return InitErrorDetails(type=kind, loc=error["loc"], input=error["input"], ctx=context)


def _suggestion(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {near[0]!r}? {_listing(known)}" if near else _listing(known)


def _listing(names: Iterable[str]) -> str:
    return f"known: {', '.join(names)}"
