"""The live transport: the contract of `CommunicationInterface` over PySyft.

Importing PySyft takes seconds, so it happens at the first connection and not before.
"""

from collections.abc import Mapping
from pathlib import Path

from core.exceptions import ConfigurationError
from core.imports import uncollected
from orchestrator.communication.base import Carrier, SiteCommunication
from orchestrator.communication.session import SessionCarrier
from orchestrator.configuration import ChannelKind, ExperimentConfig
from orchestrator.simulation import Transport


class PySyftCommunication(SiteCommunication):
    """Reaches sites by the URL of their PySyft server.

    Args:
        channel: How requests are carried; a log-in is the same in both.
        connect_s: Seconds for a log-in.
        call_s: Seconds for a request that names no deadline of its own.
    """

    def __init__(
        self,
        *,
        channel: ChannelKind = ChannelKind.SESSION,
        connect_s: float = 15.0,
        call_s: float = 600.0,
    ) -> None:
        super().__init__(connect_s=connect_s, call_s=call_s)
        self._channel = channel

    def open_carrier(self, url: str, credentials: Mapping[str, str]) -> Carrier:
        """See `SiteCommunication.open_carrier`."""
        with uncollected():
            from orchestrator.communication.pysyft import PySyftCarrier  # noqa: PLC0415 - slow

        signed = PySyftCarrier.open(
            url,
            email=credentials["email"],
            password=credentials["password"],
            timeout_s=self.connect_s,
            ca_file=Path(credentials["ca_file"]) if "ca_file" in credentials else None,
            traffic=self.traffic,
        )
        if self._channel is ChannelKind.SIGNED:
            return signed
        return SessionCarrier(signed, lambda size_bytes: self.admit(signed.site_id, size_bytes))


def over_pysyft(config: ExperimentConfig) -> PySyftCommunication:
    """Give the live transport of a run, within the run's limits.

    Raises:
        ConfigurationError: The run's sites are simulated.
    """
    if config.transport is not Transport.LIVE:
        raise ConfigurationError(
            f"transport: {config.transport.value}; its sites are simulated and not to be reached "
            "over PySyft: run it with 'orchestrator run', or by `over_memory`"
        )
    return PySyftCommunication(
        channel=config.channel,
        connect_s=config.limits.connect_s,
        call_s=config.limits.call_s,
    )
