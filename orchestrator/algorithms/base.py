"""What the server halves share: settings, checks on updates, and one pure step a round."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Any, ClassVar, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny

from core.enums import AggregationMethod, PrivacyLevel
from core.exceptions import AggregationError, ModelError
from core.interfaces import FederatedAlgorithmInterface
from core.messages import AlgorithmSpec, ClientUpdate, Parameters, TrainingSettings
from core.parameters import cast_like, require_finite, require_same_layout, require_updates
from orchestrator.aggregation import (
    Aggregator,
    Combined,
    Contribution,
    SiteShare,
    parse_aggregator,
)
from orchestrator.schedule import LocalTraining


def _aggregator(value: object) -> Aggregator | None:
    return None if value is None else parse_aggregator(value)


class AlgorithmSettings(BaseModel):
    """The section `algorithm` of an experiment: each algorithm adds its hyper-parameters.

    Attributes:
        name: Which algorithm.
        aggregation: How updates are combined; by default as the algorithm's paper has it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str
    aggregation: Annotated[SerializeAsAny[Aggregator] | None, BeforeValidator(_aggregator)] = Field(
        default=None, description="how updates are combined"
    )

    def hyperparameters(self) -> dict[str, float]:
        """Give what the algorithm adds, by name."""
        return {
            name: float(getattr(self, name))
            for name in type(self).model_fields
            if name not in AlgorithmSettings.model_fields
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What a round makes of the algorithm.

    Attributes:
        parameters: The next global parameters.
        state: What else the algorithm carries to the next round, by its symbol, in float64.
        sites: How much each site counted.
    """

    parameters: Parameters
    state: Mapping[str, Parameters] = field(default_factory=dict)
    sites: Mapping[str, SiteShare]


class Algorithm(FederatedAlgorithmInterface):
    """A server half: one pure step from (global parameters, state, updates) to the next.

    A new one is a file with a subclass and a line in the table of this package; where sites train
    in a way of its own, also a client half in `datasite.training.objectives`.

    Args:
        parameters: The global parameters that the run starts from.
        settings: The section `algorithm` of the experiment.
        training: How the sites train.
        num_sites: How many sites take part in all, though perhaps not in each round: m.

    Attributes:
        Settings: Name and hyper-parameters.
        objective: The client half, by its name in the sites' catalogue.
        site_hyperparameters: Those of the hyper-parameters that the client half takes.
        default_aggregation: How updates are combined when the experiment does not say.
        only_aggregation: Why no other will do, and what to choose; empty where any will.
        needs: What it asks of the sites' training, for people; empty for nothing.
        proven_under_dp: Whether its law holds with noise added at the sites.
        keeps_site_state: Whether sites keep something from round to round.
    """

    Settings: ClassVar[type[AlgorithmSettings]]
    objective: ClassVar[str] = "fedavg"
    site_hyperparameters: ClassVar[tuple[str, ...]] = ()
    default_aggregation: ClassVar[str] = AggregationMethod.WEIGHTED_AVERAGE.value
    only_aggregation: ClassVar[str] = ""
    needs: ClassVar[str] = ""
    proven_under_dp: ClassVar[bool] = True
    keeps_site_state: ClassVar[bool] = False

    def __init__(
        self,
        parameters: Parameters,
        settings: AlgorithmSettings,
        *,
        training: LocalTraining,
        num_sites: int,
    ) -> None:
        self.parameters = parameters
        self.settings = settings
        self.training = training
        self.num_sites = num_sites
        self.aggregator = self.build_aggregator(settings)
        self.state: Mapping[str, Parameters] = self.initial_state(parameters)
        self.counted: dict[str, int] = {}
        self.last_shares: Mapping[str, SiteShare] = {}

    @classmethod
    def build_aggregator(cls, settings: AlgorithmSettings) -> Aggregator:
        """Give how updates are combined under `settings`."""
        return settings.aggregation or parse_aggregator(cls.default_aggregation)

    @classmethod
    def spec(cls, settings: AlgorithmSettings) -> AlgorithmSpec:
        """Give what a site must know: the objective's name and its hyper-parameters."""
        known = settings.hyperparameters()
        return AlgorithmSpec(
            name=cls.objective,
            hyperparameters={name: known[name] for name in cls.site_hyperparameters},
        )

    @classmethod
    def refusals(cls, settings: AlgorithmSettings, training: TrainingSettings) -> list[str]:
        """Say why the algorithm cannot be run so, and what to choose; empty when it can."""
        del training
        aggregator = cls.build_aggregator(settings)
        if not cls.only_aggregation:
            return []
        if aggregator.method != cls.default_aggregation or aggregator.clip_norm is not None:
            asked = aggregator.method + (" with clip_norm" if aggregator.clip_norm else "")
            return [f"algorithm.aggregation: {settings.name} with {asked}: {cls.only_aggregation}"]
        return []

    @classmethod
    def privacy_refusals(cls, settings: AlgorithmSettings, level: PrivacyLevel) -> list[str]:
        """Say why the algorithm cannot be run at this level, and what to choose."""
        if level is PrivacyLevel.DIFFERENTIAL_PRIVACY and not cls.proven_under_dp:
            return [
                (
                    f"privacy.level: {settings.name} is not proven under differential_privacy; "
                    "choose fedavg or fedprox"
                )
            ]
        aggregator = cls.build_aggregator(settings)
        means = {AggregationMethod.WEIGHTED_AVERAGE.value, AggregationMethod.SIMPLE_AVERAGE.value}
        is_sum = aggregator.method in means and aggregator.clip_norm is None
        if level is PrivacyLevel.SECURE_AGGREGATION and not is_sum:
            what = "clip_norm" if aggregator.method in means else aggregator.method
            return [
                (
                    f"privacy.level: secure_aggregation gives the orchestrator a sum and no single "
                    f"update, which {what} needs; choose weighted_average or simple_average, "
                    "without clip_norm"
                )
            ]
        return []

    def initial_state(self, parameters: Parameters) -> Mapping[str, Parameters]:
        """Give the state before round 0; nothing by default."""
        del parameters
        return {}

    @abstractmethod
    def _step(self, updates: Sequence[ClientUpdate]) -> Step:
        """Give the next step; `updates` are valid and in the order of their sites."""

    def aggregate(self, client_updates: list[dict[str, Any]]) -> Parameters:
        """See `FederatedAlgorithmInterface`."""
        return self._step(self._valid(client_updates)).parameters

    def configure_client_training(self, round_num: int) -> dict[str, Any]:
        """See `FederatedAlgorithmInterface`."""
        return {
            "round_num": round_num,
            "algorithm": self.spec(self.settings),
            "training": self.training.at(round_num),
        }

    def configure_site(self, site_id: str) -> dict[str, Any]:
        """Give what this site needs beyond `configure_client_training`."""
        if self.keeps_site_state and site_id in self.counted:
            return {"state_round": self.counted[site_id]}
        return {}

    def update_algorithm_state(self, client_updates: list[dict[str, Any]]) -> None:
        """See `FederatedAlgorithmInterface`."""
        updates = self._valid(client_updates)
        step = self._step(updates)
        self.parameters, self.state, self.last_shares = step.parameters, step.state, step.sites
        self.counted |= {update["datasite_id"]: update["round_num"] for update in updates}

    def require_valid(self, update: ClientUpdate) -> None:
        """Do nothing when `update` can be combined with others.

        Raises:
            AggregationError: It cannot; the error names its site.
        """
        site_id = update["datasite_id"]
        if update["num_samples"] <= 0:
            raise AggregationError(f"{site_id}: trained on no samples", site_id=site_id)
        try:
            require_same_layout(update["parameters"], self.parameters, whose=site_id)
            require_finite(update["parameters"], whose=site_id)
        except ModelError as exc:
            raise AggregationError(str(exc), site_id=site_id) from exc

    def combine(self, contributions: Sequence[Contribution]) -> Combined:
        """Combine contributions as the experiment says."""
        return self.aggregator.combine(contributions, self.parameters)

    def as_global(self, parameters: Parameters) -> Parameters:
        """Give `parameters` in the dtypes of the global ones."""
        return cast_like(parameters, self.parameters)

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
            self.require_valid(update)
        return updates


def contribution(update: ClientUpdate) -> Contribution:
    """Give an update as it is, weighing as many samples as it was trained on."""
    return Contribution(
        site_id=update["datasite_id"],
        parameters=update["parameters"],
        weight=update["num_samples"],
    )
