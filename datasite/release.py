"""The last gate: nothing leaves the site but what stands here.

A reply of the trainer is one of three typed messages, whose fields `core.messages` lists; `decode`
refuses any other. Within them, only the metrics named below may stand.
"""

from core import wire
from core.exceptions import SecurityError
from core.messages import Message
from core.wire import Parcel

_KINDS = frozenset({"update", "evaluation", "sensor_statistics", "failure"})
_METRICS = frozenset({"train_loss", "fit_s"})


def released(reply: Parcel, *, site_id: str) -> Message:
    """Give the trainer's reply, without its tensors, when it may leave the site.

    Raises:
        SecurityError: It holds what must not leave.
        ProtocolError: It is no message at all.
    """
    message = wire.peek(reply)
    if message["kind"] not in _KINDS:
        raise SecurityError(f"{site_id}: the trainer gave a {message['kind']!r} reply; withheld")
    if message["kind"] == "update" and not message["metrics"].keys() <= _METRICS:
        unknown = sorted(message["metrics"].keys() - _METRICS)
        raise SecurityError(f"{site_id}: the metrics {unknown} may not leave the site; withheld")
    return message
