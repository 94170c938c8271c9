"""The six contracts. Each method states the law that every implementation keeps.

`tests/contracts/` holds one suite per interface; an implementation is done when its suite passes.
`Any` appears because the specification gives these plain types; the typed messages that really
travel are in `core.messages`.

`torch` is named in annotations only, so that importing the contracts stays quick.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class ModelInterface(ABC):
    """A model whose whole state can be read and replaced."""

    @abstractmethod
    def get_parameters(self) -> dict[str, torch.Tensor]:
        """Give the full state, name to tensor, as copies.

        Changing what is returned does not change the model, and training the model does not
        change what was returned.
        """

    @abstractmethod
    def set_parameters(self, parameters: dict[str, torch.Tensor]) -> None:
        """Replace the full state; afterwards `get_parameters` gives equal tensors.

        Raises:
            ModelError: A name is missing or unknown, or a shape or dtype differs. The message
                names the tensor, and the model is left as it was.
        """

    @abstractmethod
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `x: (batch, window, sensors) float32` to logits `(batch, classes)`."""


class FederatedAlgorithmInterface(ABC):
    """The server's half of a federated algorithm."""

    @abstractmethod
    def aggregate(self, client_updates: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Combine the updates of one round into the next global parameters.

        Pure: same names, shapes and dtypes as each update's `parameters`; neither the updates nor
        the algorithm's state change; the order of the updates does not matter.

        Raises:
            AggregationError: No updates, or one whose layout, values or sample count do not fit;
                the error names its site.
        """

    @abstractmethod
    def configure_client_training(self, round_num: int) -> dict[str, Any]:
        """Give what sites need in round `round_num` (from 0) beyond the model; a new dict."""

    @abstractmethod
    def update_algorithm_state(self, client_updates: list[dict[str, Any]]) -> None:
        """Commit a round: state and global parameters move on as `aggregate` said.

        Call it once a round, after `aggregate` and with the same updates.

        Raises:
            AggregationError: As `aggregate`; the state is then unchanged.
        """


class DataSiteInterface(ABC):
    """One factory: its data, what may be done with them, and the training on them."""

    @abstractmethod
    def initialize_datasite(self, config: dict[str, Any]) -> None:
        """Set the site up from its configuration; its kept state is opened, or made when new.

        Raises:
            ConfigurationError: With every mistake in `config`.
        """

    @abstractmethod
    def register_data(self, data: dict[str, Any]) -> None:
        """Register sensor data as a dataset: validated, kept private, described by a mock.

        Args:
            data: `name`, `file` (path of a CSV or Parquet file) and `schema` (path or mapping).

        Raises:
            DataError: The data break their schema, or are already registered under `name`; nothing
                is kept.
        """

    @abstractmethod
    def train_local_model(
        self, global_model: ModelInterface, training_config: dict[str, Any]
    ) -> dict[str, Any]:
        """Train a copy of `global_model` on the site's data; `global_model` is not modified.

        Returns:
            A client update: at least `parameters`, `num_samples`, `num_steps`, `metrics`,
            `datasite_id`, `round_num`. Equal arguments give bit-equal parameters.

        Raises:
            DataSiteError: Training failed or took too long.
            DataError: The dataset is not registered here.
        """

    @abstractmethod
    def get_datasite_info(self) -> dict[str, Any]:
        """Say who the site is and what it offers; never anything derived from a single row."""


class OrchestratorInterface(ABC):
    """The centre: takes an experiment from configuration to results."""

    @abstractmethod
    def setup_experiment(self, config: dict[str, Any]) -> None:
        """Validate `config` and record a PENDING experiment; no site is contacted.

        Raises:
            ConfigurationError: With every mistake in `config`.
        """

    @abstractmethod
    def run_experiment(self, experiment_id: str) -> dict[str, Any]:
        """Run all remaining rounds and return the results; a COMPLETED one returns them again.

        Raises:
            ExperimentError: Unknown id, or the run failed; its status is then FAILED.
        """

    @abstractmethod
    def collect_results(self, experiment_id: str) -> dict[str, Any]:
        """Give the recorded results of an experiment, whatever its status; contacts no site.

        Raises:
            ExperimentError: Unknown id.
        """


class MetricsCollectorInterface(ABC):
    """What is known about a run, round by round."""

    @abstractmethod
    def collect_round_metrics(
        self, round_num: int, global_model: ModelInterface, client_updates: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """Give and record the metrics of one round; collecting a round again replaces it."""

    @abstractmethod
    def collect_experiment_metrics(self, experiment_results: dict[str, Any]) -> dict[str, Any]:
        """Give the metrics of a whole experiment from its results."""

    @abstractmethod
    def export_metrics(self, filepath: str) -> None:
        """Write the recorded rounds to `filepath`, as its suffix says (.json, .csv, .parquet).

        The file appears whole or not at all.

        Raises:
            ConfigurationError: Another suffix.
        """


class CommunicationInterface(ABC):
    """How the orchestrator reaches its sites. Failure is an error, never a value."""

    @abstractmethod
    def connect_to_datasite(self, datasite_url: str, credentials: dict[str, str]) -> bool:
        """Connect and log in; True, or an error. Connecting again replaces the connection.

        Raises:
            CommunicationError: Not reached; `AuthenticationError` when the log-in is refused.
        """

    @abstractmethod
    def send_model(self, model_parameters: dict[str, torch.Tensor], datasite_id: str) -> bool:
        """Hold `model_parameters` for the site's next request; True, or an error.

        Two calls by contract, one trip by implementation: the parameters are copied here and
        travel with `request_training`; changing them in between changes nothing.

        Raises:
            CommunicationError: Not connected to `datasite_id`.
        """

    @abstractmethod
    def request_training(self, training_config: dict[str, Any], datasite_id: str) -> dict[str, Any]:
        """Have the site train the model last sent; its client update.

        Raises:
            CommunicationError: Not connected, no model sent, or the site was not reached.
            FederatedLearningError: What the site answered, as the error it names.
        """

    @abstractmethod
    def disconnect_from_datasite(self, datasite_id: str) -> bool:
        """Forget the connection; False when there was none."""
