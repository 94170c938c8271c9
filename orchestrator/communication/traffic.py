"""How many bytes passed, as contents of requests and answers; headers are not counted."""

import threading
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bytes:
    """Bytes sent to sites and received from them."""

    sent: int = 0
    received: int = 0

    def __sub__(self, earlier: "Bytes") -> "Bytes":
        return Bytes(self.sent - earlier.sent, self.received - earlier.received)


class Traffic:
    """Counts bytes; any number of threads may count at once."""

    def __init__(self) -> None:
        self._so_far = Bytes()
        self._counting = threading.Lock()

    def add(self, *, sent: int, received: int) -> None:
        """Count one exchange."""
        with self._counting:
            before = self._so_far
            self._so_far = Bytes(before.sent + sent, before.received + received)

    def so_far(self) -> Bytes:
        """Give what passed until now."""
        return self._so_far
