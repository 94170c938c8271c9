"""The last gate: nothing leaves the site but what stands in `datasite.fields`.

A reply with another field, or one beyond its bound, is withheld whole. Of what the trainer answers
more is asked: it must be an answer to the request, its metrics are those of `METRICS` and the drift
that the site itself found at registration, and its tensors have the names, and no more bytes, of
those of the plan's model.

No row is told. What is counted is withheld where it would be of few rows: `minimum_count` is the
smallest group that numbers may be about. The groups are the training part, and within the
validation part, the test part and the table the rows of each label. Where one of a part's two
labels has fewer rows, the whole part is withheld, since its other numbers would tell the missing
one by a subtraction. It goes by group and not by bin of a histogram: a bin says of a group that so
many of its rows had a score in there, and says it of scores, which are no readings. What scores
tell of readings to somebody who chooses the model is what privacy levels are for (SECURITY.md).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeVar, cast

from core import wire
from core.compression import SCALES, VALUES
from core.evaluation import BINS
from core.exceptions import SecurityError
from core.messages import Message, ScoreCounts
from core.models import model_layout
from core.packing import TENSOR_FIELDS, Entries
from datasite.fields import FIELDS, METRICS, excess_of
from datasite.training.objectives import PROBE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from core.messages import (
        EvaluateRequest,
        EvaluationReport,
        ModelSpec,
        Parameters,
        SensorStatistics,
        StatisticsRequest,
        TrainRequest,
    )
    from core.schema import DataSchema
    from core.wire import Parcel

M = TypeVar("M", bound=Message)

_ANSWER: Final = {"train": "update", "evaluate": "evaluation", "statistics": "sensor_statistics"}
MASKED: Final = "parameters/masked"
_PARTS: Final[tuple[Literal["validation"], Literal["test"]]] = ("validation", "test")
_NOTHING: Final = ScoreCounts(count=0, loss_total=0.0, negatives=[0] * BINS, positives=[0] * BINS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What the trainer's replies under one plan are held to.

    Attributes:
        minimum_count: The fewest rows that a number may be about.
        schema: Of the plan's data.
        drift: The metrics of drift that belong to the plan's data.
        metrics: Which others an update may have.
    """

    site_id: str
    minimum_count: int
    schema: DataSchema
    drift: Mapping[str, float] = field(default_factory=dict)
    metrics: frozenset[str] = METRICS
    _sizes: dict[bool, tuple[ModelSpec, _Size]] = field(default_factory=dict, init=False)

    def size_of(self, model: ModelSpec, *, is_compressed: bool) -> _Size:
        """Give how large an update of this model may be; a plan has one, so it is kept."""
        known, size = self._sizes.get(is_compressed, (None, None))
        if size is None or known != model:
            size = _size(_layout(model, self.schema), is_compressed=is_compressed)
            self._sizes[is_compressed] = model, size
        return size


class _Size(NamedTuple):
    """Which tensors an update may have, and the most bytes of those of each field."""

    names: frozenset[str]
    most_bytes: int


class Released(NamedTuple):
    """What leaves, and what it says, without its tensors."""

    message: Message
    parcel: Parcel


def require_listed(message: M, *, site_id: str) -> M:
    """Give `message` when all of its fields may leave the site.

    Raises:
        SecurityError: It holds what must not leave.
    """
    fields = FIELDS.get(message["kind"])
    if fields is None:
        raise SecurityError(f"{site_id}: a {message['kind']!r} message is no reply; withheld")
    excess = excess_of(cast("Mapping[str, Any]", message), fields)
    if excess is not None:
        raise SecurityError(
            f"{site_id}: of the {message['kind']!r} reply the field {excess!r} may not leave the "
            "site; withheld"
        )
    return message


def released(
    reply: Parcel, terms: Terms, request: TrainRequest | EvaluateRequest | StatisticsRequest
) -> Released:
    """Give the trainer's reply to `request`, as far as it may leave the site.

    Raises:
        SecurityError: It holds what must not leave, or is about too few rows.
        ProtocolError: It is no message at all.
    """
    message, entries = wire.glance(reply)
    if message["kind"] not in {_ANSWER[request["kind"]], "failure"}:
        raise SecurityError(
            f"{terms.site_id}: the trainer gave a {message['kind']!r} reply to a "
            f"{request['kind']!r} request; withheld"
        )
    require_listed(message, site_id=terms.site_id)
    said, asked = cast("Mapping[str, Any]", message), cast("Mapping[str, Any]", request)
    of_round = said.get("round_num")
    if said["datasite_id"] != terms.site_id or of_round not in {asked.get("round_num"), None}:
        raise SecurityError(f"{terms.site_id}: the trainer answered another request; withheld")
    if message["kind"] == "update":
        _require_known(message["metrics"], terms)
        training = cast("TrainRequest", request)
        if training["algorithm"]["name"] != PROBE:
            _require_enough(message["num_samples"], terms)  # the probe learns of no row
        size = terms.size_of(training["model"], is_compressed="compression" in message)
        _require_like_the_model(entries, len(reply.body), size, site_id=terms.site_id)
        return Released(message, reply)
    if entries or reply.body:
        raise SecurityError(f"{terms.site_id}: the trainer sent tensors with no update; withheld")
    if message["kind"] == "evaluation":
        return _again(message, _without_small_parts(message, terms), reply)
    if message["kind"] == "sensor_statistics":
        _require_as_many(message, terms)
        return _again(message, _without_small_labels(message, terms), reply)
    return Released(message, reply)


def require_mask(reply: Parcel, numbers: int, *, site_id: str) -> None:
    """Do nothing when a masked update is one tensor of so many numbers, of 8 bytes each.

    Raises:
        SecurityError: It holds more, or less.
    """
    _, entries = wire.glance(reply)
    size_bytes = 8 * numbers
    whole = {"dtype": "I64", "shape": [numbers], "data_offsets": [0, size_bytes]}
    if dict(entries) != {MASKED: whole} or len(reply.body) != size_bytes:
        raise SecurityError(
            f"{site_id}: the masked update is not {numbers} numbers, as the plan's model asks for; "
            "withheld"
        )


def _again(message: Message, left: Message, reply: Parcel) -> Released:
    return Released(left, reply if left is message else wire.encode(left))


def _require_known(metrics: Mapping[str, float], terms: Terms) -> None:
    others = {name: value for name, value in metrics.items() if name not in terms.metrics}
    unknown = sum(terms.drift.get(name) != value for name, value in others.items())
    if unknown:
        raise SecurityError(
            f"{terms.site_id}: {unknown} of the metrics may not leave the site; withheld"
        )


def _require_enough(num_samples: int, terms: Terms) -> None:
    if num_samples < terms.minimum_count:
        raise SecurityError(
            f"{terms.site_id}: the update rests on fewer than {terms.minimum_count} windows; "
            "withheld. Raise the share left by test and validation in the split"
        )


def _require_like_the_model(
    entries: Entries, size_bytes: int, size: _Size, *, site_id: str
) -> None:
    parts = {name.partition("/")[0] for name in entries}
    if not entries.keys() <= size.names or size_bytes > size.most_bytes * len(parts):
        raise SecurityError(
            f"{site_id}: the update's tensors are not those of the plan's model; withheld"
        )


def _size(layout: Parameters, *, is_compressed: bool) -> _Size:
    names = (*layout, *((VALUES, SCALES) if is_compressed else ()))
    most_bytes = sum(tensor.nbytes for tensor in layout.values())
    if is_compressed:  # what cannot be compressed becomes a little longer
        most_bytes += most_bytes // 64 + 4096
    full_names = frozenset(f"{part}/{name}" for part in TENSOR_FIELDS for name in names)
    return _Size(full_names, most_bytes)


def _layout(model: ModelSpec, schema: DataSchema) -> Parameters:
    """Give the model's parameters without values; the trainer has built the same model before."""
    sizes = {"sensors": len(schema.features), "window_steps": schema.window_steps}
    return model_layout(model, **sizes)


def _require_as_many(statistics: SensorStatistics, terms: Terms) -> None:
    sums = (statistics["total"], statistics["total_of_squares"])
    if any(len(each) != len(terms.schema.features) for each in sums):
        raise SecurityError(
            f"{terms.site_id}: the statistics are not one number for each feature; withheld"
        )


def _without_small_labels(statistics: SensorStatistics, terms: Terms) -> SensorStatistics:
    if min(statistics["label_counts"]) >= terms.minimum_count:
        return statistics
    return {**statistics, "label_counts": [0, 0], "withheld": ["label_counts"]}


def _without_small_parts(report: EvaluationReport, terms: Terms) -> EvaluationReport:
    small = [
        name
        for name in _PARTS
        if min(sum(report[name]["negatives"]), sum(report[name]["positives"])) < terms.minimum_count
    ]
    if not small:
        return report
    left: EvaluationReport = {**report, "withheld": small}
    for name in small:
        left[name] = _NOTHING
    return left
