"""What may leave the site: every field of every kind of reply, each with its bound."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from core import exceptions
from core.enums import Compression, DataSiteStatus
from core.evaluation import BINS
from core.exceptions import FederatedLearningError
from core.jsontext import as_json
from core.plans import PlanStatus
from core.privacy import UNITS
from datasite.failures import LONGEST_MESSAGE

Bound = Callable[[Any], bool]
"""Whether a value may leave."""

_MOST: Final = 1000
"""Of datasets, models and algorithms that a site offers."""

_MOST_FEATURES: Final = 100_000
_MOST_BYTES: Final = 1 << 20
_LONGEST_REASON: Final = 10_000
_EXACT: Final = 2**53


def _text(longest: int) -> Bound:
    return lambda value: isinstance(value, str) and len(value) <= longest


def _one_of(*values: str) -> Bound:
    known = frozenset(values)
    return lambda value: isinstance(value, str) and value in known


def _count(value: object) -> bool:
    return type(value) is int and 0 <= value <= _EXACT


def _number(value: object) -> bool:
    return type(value) in {int, float}


def _plain(value: object) -> bool:
    return isinstance(value, dict) and len(as_json(value)) <= _MOST_BYTES


def _listed(each: Bound, most: int) -> Bound:
    return lambda value: (
        isinstance(value, list) and len(value) <= most and all(each(item) for item in value)
    )


def _counts(number: int) -> Bound:
    """Bound a list to so many counts; `core.messages` has looked at each."""
    return lambda value: isinstance(value, list) and len(value) == number


def _of(fields: Mapping[str, Bound]) -> Bound:
    return lambda value: isinstance(value, dict) and excess_of(value, fields) is None


def _by_site(longest: int) -> Bound:
    """Bound one text for each site."""
    bound = _text(longest)
    return lambda value: len(value) <= _MOST and all(map(bound, value.values()))


def _or_none(bound: Bound) -> Bound:
    return lambda value: value is None or bound(value)


def excess_of(value: Mapping[str, Any], fields: Mapping[str, Bound]) -> str | None:
    """Give the first field that may not leave as it is; None when there is none."""
    for name, item in value.items():
        bound = fields.get(name)
        if bound is None or not bound(item):
            return name if name in fields else "an unknown one"
    return None


_NAME: Final = _text(256)
_ID: Final = _text(64)
_TIME: Final = _text(64)
_TENSORS: Final[Bound] = lambda value: value == {}  # noqa: E731 - read without them, see `datasite.release`
_REPLY: Final[Mapping[str, Bound]] = {"kind": _NAME, "datasite_id": _text(63)}

METRICS: Final = frozenset({"train_loss", "fit_s"})
"""Mean loss of the last epoch and seconds of the fit; beside them the drift, `psi.<column>`."""

PRIVATE_METRICS: Final = frozenset({"fit_s"})
"""Under differential privacy: neither the loss nor the drift, which are computed from the rows."""

_SCORES: Final[Mapping[str, Bound]] = {
    "count": _count,
    "loss_total": _number,
    "negatives": _counts(BINS),
    "positives": _counts(BINS),
}
_DATASET: Final[Mapping[str, Bound]] = {
    "name": _NAME,
    "version": _count,
    "rows": _count,
    "schema": _plain,
}
_AUDIT_ROW: Final[Mapping[str, Bound]] = {
    "seq": _count,
    "at": _TIME,
    "who": _text(1000),
    "action": _text(1000),
    "plan_id": _or_none(_text(1000)),
    "outcome": _NAME,
    "detail": _plain,
    "previous_sha256": _ID,
    "sha256": _ID,
}
_PLAN: Final[Mapping[str, Bound]] = {
    "plan_id": _ID,
    "researcher": _text(1000),
    "status": _one_of(*(status.name for status in PlanStatus)),
    "reason": _text(_LONGEST_REASON),
    "decided_by": _text(1000),
    "proposed_at": _TIME,
    "decided_at": _or_none(_TIME),
    "expires_at": _TIME,
    "proposal": _plain,
}
_ROUND: Final[Mapping[str, Bound]] = {**_REPLY, "round_num": _count}
_KEYS: Final[Mapping[str, Bound]] = {
    "sharing": _ID,
    "masking": _ID,
    "commitment": _ID,
    "signature": _text(128),
}
_ERRORS: Final = frozenset(
    name
    for name, kind in vars(exceptions).items()
    if isinstance(kind, type) and issubclass(kind, FederatedLearningError)
)

FIELDS: Final[Mapping[str, Mapping[str, Bound]]] = MappingProxyType(
    {
        "site": {
            **_REPLY,
            "status": _one_of(*(status.name for status in DataSiteStatus)),
            "version": _ID,
            "code_hash": _ID,
            "models": _listed(_NAME, _MOST),
            "algorithms": _listed(_NAME, _MOST),
            "datasets": _listed(_of(_DATASET), _MOST),
            "identity_key": _ID,
        },
        "plan": {
            "kind": _NAME,
            "plan_id": _ID,
            "status": _PLAN["status"],
            "reason": _PLAN["reason"],
        },
        "sensor_statistics": {
            **_REPLY,
            "count": _count,
            "total": _listed(_number, _MOST_FEATURES),
            "total_of_squares": _listed(_number, _MOST_FEATURES),
            "label_counts": _counts(2),
            "withheld": _listed(_one_of("label_counts"), 1),
        },
        "privacy_spent": {
            **_REPLY,
            "unit": _one_of(*UNITS),
            "units": _count,
            "windows_per_reading": _count,
            "noise_multiplier": _number,
            "sample_rate": _number,
            "steps": _count,
            "epsilon": _number,
            "delta": _number,
            "rounds_trained": _count,
            "rounds_left": _count,
            "budget": _of({"epsilon": _number, "delta": _number, "spent": _number}),
        },
        "update": {
            **_REPLY,
            "round_num": _count,
            "num_samples": _count,
            "num_steps": _count,
            "metrics": lambda metrics: all(map(_number, metrics.values())),
            "parameters": _TENSORS,
            "control": _TENSORS,
            "compression": _one_of(*(how.value for how in Compression)),
        },
        "evaluation": {
            **_REPLY,
            "round_num": _count,
            "validation": _of(_SCORES),
            "test": _of(_SCORES),
            "withheld": _listed(_one_of("validation", "test"), 2),
        },
        "trained": {**_ROUND, "metrics": _of({"fit_s": _number})},
        "public_keys": {**_ROUND, "keys": _of(_KEYS), "bound_to": _listed(_NAME, _MOST)},
        "sealed_shares": {**_ROUND, "sealed": _by_site(96)},
        "masked_update": {**_ROUND, "parameters": _TENSORS},
        "confirmation": {**_ROUND, "signature": _text(128)},
        "unmasking": {**_ROUND, "shares": _by_site(32)},
        "failure": {
            **_REPLY,
            "error": _one_of(*_ERRORS),
            "message": _text(LONGEST_MESSAGE),
            "round_num": _count,
        },
        "audit_page": {**_REPLY, "rows": _listed(_of(_AUDIT_ROW), 500), "newest": _count},
        "plans_page": {**_REPLY, "plans": _listed(_of(_PLAN), 50), "total": _count},
    }
)
"""What may leave, by the kind of reply."""
