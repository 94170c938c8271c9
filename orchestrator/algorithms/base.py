"""What the server halves share: the checks on updates, and state that moves in one place."""

from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

from core.exceptions import AggregationError, ModelError
from core.interfaces import FederatedAlgorithmInterface
from core.messages import AlgorithmSpec, ClientUpdate, Parameters
from core.parameters import require_finite, require_same_layout, require_updates


class Algorithm(FederatedAlgorithmInterface):
    """A server half: one pure step from (global parameters, updates) to the next global parameters.

    Args:
        parameters: The global parameters that the run starts from.
    """

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters

    @abstractmethod
    def spec(self) -> AlgorithmSpec:
        """Give what a site must know: the objective's name and its hyper-parameters."""

    @abstractmethod
    def _combine(self, updates: Sequence[ClientUpdate]) -> Parameters:
        """Give the next global parameters; `updates` are valid and in the order of their sites."""

    def aggregate(self, client_updates: list[dict[str, Any]]) -> Parameters:
        """See `FederatedAlgorithmInterface`."""
        return self._combine(self._valid(client_updates))

    def configure_client_training(self, round_num: int) -> dict[str, Any]:
        """See `FederatedAlgorithmInterface`."""
        return {"round_num": round_num, "algorithm": self.spec()}

    def update_algorithm_state(self, client_updates: list[dict[str, Any]]) -> None:
        """See `FederatedAlgorithmInterface`."""
        self.parameters = self.aggregate(client_updates)

    def _valid(self, client_updates: list[dict[str, Any]]) -> list[ClientUpdate]:
        require_updates(len(client_updates))
        updates = sorted(
            (cast("ClientUpdate", update) for update in client_updates),
            key=lambda update: update["datasite_id"],
        )
        names = [update["datasite_id"] for update in updates]
        for earlier, later in pairwise(names):
            if earlier == later:
                raise AggregationError(f"{later}: sent two updates for one round", site_id=later)
        for update in updates:
            self._require_valid(update)
        return updates

    def _require_valid(self, update: ClientUpdate) -> None:
        site_id = update["datasite_id"]
        if update["num_samples"] <= 0:
            raise AggregationError(f"{site_id}: trained on no samples", site_id=site_id)
        try:
            require_same_layout(update["parameters"], self.parameters, whose=site_id)
            require_finite(update["parameters"], whose=site_id)
        except ModelError as exc:
            raise AggregationError(str(exc), site_id=site_id) from exc
