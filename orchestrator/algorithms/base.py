"""What the server halves share: settings, checks on updates, and one pure step a round."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Annotated, Any, ClassVar, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny

from core.enums import AggregationMethod, PrivacyLevel
from core.exceptions import AggregationError, ModelError
from core.interfaces import FederatedAlgorithmInterface
from core.messages import AlgorithmSpec, ClientUpdate, Parameters, TrainingSettings
from core.parameters import (
    add,
    as_float64,
    cast_like,
    distance,
    require_finite,
    require_same_layout,
    require_updates,
)
from core.privacy import Weighting
from core.wire import Packed
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


class Gathered(ABC):
    """What a round's updates come to, whoever has added them up.

    Attributes:
        counted: The round of each update that is in it, by its site.
        samples: Σ n_k.
        effective: Σ n_k ‖a_k‖₁, see `Algorithm.amount`.
        normalised: Σ n_k / ‖a_k‖₁.
        control: The sum of what the updates brought beside their parameters, in float64.
    """

    def __init__(self) -> None:
        self.counted: dict[str, int] = {}
        self.samples = 0
        self.effective: Fraction | int = 0
        self.normalised: Fraction | int = 0
        self.control: Parameters = {}

    @abstractmethod
    def combined(self) -> Combined:
        """Give the updates as one.

        Raises:
            AggregationError: They are too few.
        """


class Gathering(Gathered):
    """The updates of one round, added as they come in, in the order of their sites.

    Args:
        algorithm: Of which it is a round.
    """

    def __init__(self, algorithm: "Algorithm") -> None:
        super().__init__()
        self._algorithm = algorithm
        self._accumulator = algorithm.aggregator.start(algorithm.parameters)

    def add(self, update: ClientUpdate, delta_norm: float | None = None) -> None:
        """Add a valid update; nothing of it is held unless the aggregation compares updates.

        Args:
            update: Fits, see `Algorithm.require_valid`.
            delta_norm: What `Algorithm.require_valid` gave for it.

        Raises:
            AggregationError: Its site has sent one already.
        """
        site_id = update["datasite_id"]
        if self.counted and site_id <= next(reversed(self.counted)):
            raise AggregationError(f"{site_id}: sent two updates for one round", site_id=site_id)
        samples, amount = update["num_samples"], self._algorithm.amount(update)
        contribution = Contribution(
            site_id=site_id,
            parameters=update["parameters"],
            weight=samples / amount,
            delta_norm=delta_norm,
        )
        self._accumulator.add(contribution)
        if "control" in update:
            brought = update["control"]
            self.control = add(self.control, brought) if self.control else as_float64(brought)
        self.counted[site_id] = update["round_num"]
        self.samples += samples
        if amount == 1.0:
            self.effective += samples
            self.normalised += samples
        else:  # exactly, so that equal amounts cancel
            self.effective += samples * Fraction(amount)
            self.normalised += samples / Fraction(amount)

    def combined(self) -> Combined:
        """See `Gathered.combined`."""
        return self._accumulator.combined()


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
        keeps_partial_work: Whether its law holds for sites that did only some of their steps.
    """

    Settings: ClassVar[type[AlgorithmSettings]]
    objective: ClassVar[str] = "fedavg"
    site_hyperparameters: ClassVar[tuple[str, ...]] = ()
    default_aggregation: ClassVar[str] = AggregationMethod.WEIGHTED_AVERAGE.value
    only_aggregation: ClassVar[str] = ""
    needs: ClassVar[str] = ""
    proven_under_dp: ClassVar[bool] = True
    keeps_site_state: ClassVar[bool] = False
    keeps_partial_work: ClassVar[bool] = False

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
    def _step(self, gathered: Gathered) -> Step:
        """Give the next step."""

    @classmethod
    def weighting(cls, settings: AlgorithmSettings) -> Weighting:
        """Give what a site counts its update by, where it does so itself."""
        is_equal = cls.build_aggregator(settings).method == AggregationMethod.SIMPLE_AVERAGE.value
        return "equal" if is_equal else "samples"

    def amount(self, update: ClientUpdate) -> float:
        """Give ‖a_k‖₁, what the local steps of an update amount to, by which its weight is divided.

        By default 1: the weight of an update is its samples.
        """
        del update
        return 1.0

    def aggregate(self, client_updates: list[dict[str, Any]]) -> Parameters:
        """See `FederatedAlgorithmInterface`."""
        return self._step(self._gathered(client_updates)).parameters

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
        self.commit(self._gathered(client_updates))

    def gather(self) -> Gathering:
        """Begin a round; what is gathered in it is combined by `commit`."""
        return Gathering(self)

    def commit(self, gathered: Gathered) -> None:
        """Make the step of a round.

        Raises:
            AggregationError: The updates cannot be combined.
        """
        step = self._step(gathered)
        self.parameters, self.state, self.last_shares = step.parameters, step.state, step.sites
        self.counted |= gathered.counted

    def broadcast(self) -> Packed:
        """Give what is sent to the sites, encoded; the global parameters then lie in its memory."""
        if not isinstance(self.parameters, Packed):
            self.parameters = Packed.over(self.parameters, self.sent_beside())
        return self.parameters

    def sent_beside(self) -> Parameters:
        """Give what the sites get beside the parameters; nothing by default."""
        return {}

    def require_valid(self, update: ClientUpdate) -> float:
        """Give how far `update` is from the global parameters, when it can be combined with others.

        Raises:
            AggregationError: It cannot; the error names its site.
        """
        site_id = update["datasite_id"]
        if update["num_samples"] <= 0:
            raise AggregationError(f"{site_id}: trained on no samples", site_id=site_id)
        try:
            require_same_layout(update["parameters"], self.parameters, whose=site_id)
            delta_norm = distance(update["parameters"], self.parameters)
            if not math.isfinite(delta_norm):
                require_finite(update["parameters"], whose=site_id)
        except ModelError as exc:
            raise AggregationError(str(exc), site_id=site_id) from exc
        return delta_norm

    def as_global(self, parameters: Parameters) -> Parameters:
        """Give `parameters` in the dtypes of the global ones."""
        return cast_like(parameters, self.parameters)

    def _gathered(self, client_updates: list[dict[str, Any]]) -> Gathering:
        require_updates(len(client_updates))
        updates = sorted(
            (cast("ClientUpdate", update) for update in client_updates),
            key=lambda update: update["datasite_id"],
        )
        gathered = self.gather()
        for update in updates:
            gathered.add(update, self.require_valid(update))
        return gathered
