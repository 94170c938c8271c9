"""The live transport: the contract of `CommunicationInterface` over PySyft.

Importing PySyft takes seconds, so it happens at the first connection and not before.
"""

from collections.abc import Mapping
from pathlib import Path

from orchestrator.communication.base import Carrier, SiteCommunication
from orchestrator.configuration import ExperimentConfig


class PySyftCommunication(SiteCommunication):
    """Reaches sites by the URL of their PySyft server, each request a signed call."""

    def open_carrier(self, url: str, credentials: Mapping[str, str]) -> Carrier:
        """See `SiteCommunication.open_carrier`."""
        from orchestrator.communication.pysyft import PySyftCarrier  # noqa: PLC0415 - slow

        return PySyftCarrier.open(
            url,
            email=credentials["email"],
            password=credentials["password"],
            timeout_s=self.connect_s,
            ca_file=Path(credentials["ca_file"]) if "ca_file" in credentials else None,
        )


def over_pysyft(config: ExperimentConfig) -> PySyftCommunication:
    """Give the live transport of a run, within the run's limits."""
    return PySyftCommunication(connect_s=config.limits.connect_s, call_s=config.limits.call_s)
