"""Who watches a run: the display, a log, a test. Every method may be left as it is."""

from collections.abc import Mapping, Sequence
from typing import Any

from core.enums import ExperimentStatus
from core.privacy_messages import PrivacyAccount


class Observer:
    """Told of a run's course; does nothing."""

    def connected(self, run_id: str, site_ids: Sequence[str], missing: Mapping[str, str]) -> None:
        """The sites were asked to log in; `missing` says why some are not there."""

    def waiting(self, run_id: str, site_ids: Sequence[str]) -> None:
        """The run waits for the operators of these sites to approve its plan."""

    def accounted(self, run_id: str, accounts: Mapping[str, PrivacyAccount]) -> None:
        """Under differential privacy: what the run costs at each site, and what is left there."""

    def away(self, run_id: str, away: Mapping[str, str], limit_s: float) -> None:
        """Too few sites are there: the run waits for these, which says why, so long at most."""

    def started(self, run_id: str, first_round: int, rounds: int) -> None:
        """Rounds `first_round` to `rounds - 1` follow."""

    def round_done(self, run_id: str, record: Mapping[str, Any]) -> None:
        """A round is committed; `record` is what `collect_round_metrics` gave."""

    def finished(self, run_id: str, status: ExperimentStatus, message: str) -> None:
        """The run stopped, for now or for good."""
