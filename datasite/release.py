"""The last gate: nothing leaves the site but what stands here.

A reply of the trainer is one of three typed messages, whose fields `core.messages` lists; `decode`
refuses any other. Within them, only the metrics named below may stand, and the drift that the site
itself found at registration (`datasite.data.drift`), number by number.
"""

from collections.abc import Mapping

from core import wire
from core.exceptions import SecurityError
from core.messages import Message
from core.wire import Parcel

_KINDS = frozenset({"update", "evaluation", "sensor_statistics", "failure"})
_METRICS = frozenset({"train_loss", "fit_s"})


def released(reply: Parcel, *, site_id: str, drift: Mapping[str, float]) -> Message:
    """Give the trainer's reply, without its tensors, when it may leave the site.

    Args:
        reply: What the trainer answered.
        site_id: Named in errors.
        drift: The metrics of drift that belong to the plan's data.

    Raises:
        SecurityError: It holds what must not leave.
        ProtocolError: It is no message at all.
    """
    message = wire.peek(reply)
    if message["kind"] not in _KINDS:
        raise SecurityError(f"{site_id}: the trainer gave a {message['kind']!r} reply; withheld")
    if message["kind"] == "update":
        _require_known(message["metrics"], site_id, drift)
    return message


def _require_known(metrics: Mapping[str, float], site_id: str, drift: Mapping[str, float]) -> None:
    others = {name: value for name, value in metrics.items() if name not in _METRICS}
    unknown = sorted(name for name, value in others.items() if drift.get(name) != value)
    if unknown:
        raise SecurityError(f"{site_id}: the metrics {unknown} may not leave the site; withheld")
