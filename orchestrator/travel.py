"""The form in which this run's parameters travel, seen from the orchestrator."""

from typing import NotRequired, TypedDict

import torch

from core.compression import compress, receive
from core.enums import Compression
from core.exceptions import AggregationError, ProtocolError
from core.messages import ClientUpdate, CompressionName
from core.wire import Packed


class Form(TypedDict):
    """A field of messages; what is not compressed has none."""

    compression: NotRequired[CompressionName]


class Travel:
    """Makes what is sent smaller, and what comes what it was.

    Args:
        how: In which form parameters travel.
    """

    def __init__(self, how: Compression = Compression.NONE) -> None:
        self.how = how
        self._sent: tuple[bytes, Packed] | None = None

    @property
    def form(self) -> Form:
        """What messages say of it."""
        return {} if self.how is Compression.NONE else {"compression": self.how.value}

    def outgoing(self, model: Packed) -> Packed:
        """Give the model as all sites get it; compressed once, however often it is asked for."""
        if self.how is Compression.NONE:
            return model
        if self._sent is None or self._sent[0] != model.body_hash:
            control = compress(model.control) if model.control else None
            self._sent = model.body_hash, Packed(compress(model), control)
        return self._sent[1]

    def incoming(self, update: ClientUpdate, model: Packed) -> ClientUpdate:
        """Give the update as the site had it, but for what was rounded off.

        Args:
            update: The answer to a request that `outgoing(model)` went with.
            model: What the site started from.

        Raises:
            AggregationError: It is in another form, or its sizes are not the model's.
        """
        site_id = update["datasite_id"]
        if update.get("compression") != self.form.get("compression"):
            raise AggregationError(
                f"{site_id}: sent its update with compression "
                f"{update.get('compression', 'none')!r}, asked for {self.how.value!r}",
                site_id=site_id,
            )
        if self.how is Compression.NONE:
            return update
        plain = update.copy()
        try:
            plain["parameters"] = receive(update["parameters"], model, self.how)
            if "control" in update:
                zeros = {name: torch.zeros_like(c) for name, c in model.control.items()}
                plain["control"] = receive(update["control"], zeros, self.how)
        except ProtocolError as exc:
            raise AggregationError(f"{site_id}: {exc}", site_id=site_id) from exc
        return plain
