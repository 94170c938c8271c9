"""`experiment.yaml`: what to run, where, and within which limits."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from core.configuration import load_yaml
from core.enums import Compression, ModelType, PrivacyLevel
from core.exceptions import ConfigurationError
from core.messages import TrainingSettings
from core.models import available_models
from orchestrator.aggregation import Aggregator
from orchestrator.algorithms import ALGORITHMS, AlgorithmChoice
from orchestrator.algorithms.fedavg import FedAvgSettings
from orchestrator.federation import SiteAddress, load_federation
from orchestrator.maintenance import Hooks
from orchestrator.participation import Participation
from orchestrator.privacy import NoPrivacy, Privacy, secure_refusals
from orchestrator.schedule import Constant, LocalTraining, ScheduleChoice
from orchestrator.section import Section
from orchestrator.simulation import Simulation, Transport
from orchestrator.stopping import EarlyStopping
from orchestrator.stragglers import Stragglers

_FOCAL_GAMMA = 2.0  # as its authors found best
_LARGEST_SEED = 2**53  # as far as every reader of JSON counts exactly


def _available_model(name: str) -> str:
    available = available_models()
    if name not in available:
        message = f"there is no model {name!r}; available: {', '.join(available)}"
        raise ValueError(message)
    return name


class ModelChoice(Section):
    """Which model, with the options of its architecture; see `orchestrator models`.

    Attributes:
        start: A safetensors file with the parameters to start from, such as a run's final model; by
            default they are drawn from the seed. A relative path starts at the current folder. The
            run keeps what the file has at its beginning, and a scaler in it comes along.
    """

    type: Annotated[str, AfterValidator(_available_model)] = ModelType.CNN.value
    options: dict[str, int] = Field(default_factory=dict)
    start: Annotated[Path, AfterValidator(Path.absolute)] | None = None


class ClassWeight(Enum):
    """How much more a failure counts than a non-failure, from the pooled label counts.

    `none` 1; `sqrt` the square root of non-failures per failure; `balanced` that number itself.
    """

    NONE = "none"
    SQRT = "sqrt"
    BALANCED = "balanced"


class Optimizer(Enum):
    """The local optimiser; fresh in each round."""

    SGD = "sgd"
    ADAM = "adam"


class Loss(Enum):
    """What a site minimises; both take class weights."""

    CROSS_ENTROPY = "cross_entropy"
    FOCAL = "focal"


class Training(Section):
    """How each site trains in a round.

    Attributes:
        schedule: How the learning rate falls over the rounds.
        gradient_clip: Largest l2 norm of the data's gradient over all parameters.
        positive_weight: How much a failure weighs in the loss.
        focal_gamma: With the focal loss, how much less counts what is already right; by default 2.
    """

    local_epochs: int = Field(default=1, ge=1)
    batch_size: int = Field(default=64, ge=1)
    learning_rate: float = Field(default=0.05, gt=0)
    schedule: ScheduleChoice = Constant()
    optimizer: Optimizer = Optimizer.SGD
    momentum: float = Field(default=0.0, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    gradient_clip: float | None = Field(default=None, gt=0)
    loss: Loss = Loss.CROSS_ENTROPY
    focal_gamma: float | None = Field(default=None, gt=0)
    positive_weight: ClassWeight = ClassWeight.NONE

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.optimizer is Optimizer.ADAM and self.momentum:
            message = "momentum belongs to sgd; with adam leave it out"
            raise ValueError(message)
        if self.loss is not Loss.FOCAL and self.focal_gamma is not None:
            message = "focal_gamma belongs to the focal loss; set loss: focal, or leave it out"
            raise ValueError(message)
        return self


class Split(Section):
    """How each site divides its rows; the rest is for training."""

    test: float = Field(default=0.2, gt=0, lt=1)
    validation: float = Field(default=0.1, gt=0, lt=1)
    seed: int | None = Field(default=None, ge=0, le=_LARGEST_SEED)

    @model_validator(mode="after")
    def _leaves_training_rows(self) -> Self:
        if self.test + self.validation >= 1:
            message = "test and validation together leave nothing to train on"
            raise ValueError(message)
        return self


class Evaluation(Section):
    """When the global model is scored at the sites: every so many rounds, and after the last."""

    every: int = Field(default=1, ge=1)


class Limits(Section):
    """How long to wait, in seconds, and how often to try again.

    Attributes:
        connect_s: For a log-in.
        call_s: For one request, training included.
        approval_s: For the operators to approve the plan.
        sites_s: For sites that are away, when there are fewer than a round needs; 0 for not at all.
        attempts: How often a request is sent at most, when the failure is worth another try.
    """

    connect_s: float = Field(default=15.0, gt=0)
    call_s: float = Field(default=600.0, gt=0)
    approval_s: float = Field(default=3600.0, gt=0)
    sites_s: float = Field(default=120.0, ge=0)
    attempts: int = Field(default=3, ge=1)


class ChannelKind(Enum):
    """How requests reach a live site.

    `session` with an HMAC and a counter each, in a session that a signed PySyft call opened;
    `signed` as signed PySyft calls, with PySyft's own signature on each update; they cost more.
    """

    SESSION = "session"
    SIGNED = "signed"


class ExperimentConfig(Section):
    """Everything in `experiment.yaml`.

    Attributes:
        transport: Over PySyft, or in memory.
        sites: Path of the sites file; a relative path starts at the current folder, and is kept
            in full, so that a run can be resumed from another. In memory it may be left out.
        simulation: In memory, and there only: the data of the sites.
        compression: In which form parameters travel; `fp16` and `int8` round what sites send.
        dataset: The name under which every site has registered its data.
        min_sites: Fewest updates that make a round; by default every site that was drawn for it
            must answer.
        stragglers: What is done about slow sites; by default they are waited for.
        maintenance: Who is told of a site that somebody must look at.
        runs: Folder for the run's record.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    seed: int = Field(default=0, ge=0, le=_LARGEST_SEED)
    rounds: int = Field(ge=1)
    dataset: str = Field(min_length=1)
    transport: Transport = Transport.LIVE
    sites: Annotated[Path, AfterValidator(Path.absolute)] | None = None
    simulation: Simulation | None = None
    participation: Participation = Participation()
    min_sites: int | None = Field(default=None, ge=1)
    algorithm: AlgorithmChoice = FedAvgSettings()
    model: ModelChoice = ModelChoice()
    training: Training = Training()
    split: Split = Split()
    privacy: Privacy = NoPrivacy()
    compression: Compression = Compression.NONE
    evaluation: Evaluation = Evaluation()
    early_stopping: EarlyStopping | None = None
    limits: Limits = Limits()
    stragglers: Stragglers | None = None
    maintenance: Hooks = Hooks()
    channel: ChannelKind = ChannelKind.SESSION
    runs: Path = Path("runs")

    @model_validator(mode="after")
    def _can_be_run(self) -> Self:
        mistakes = refusals(self)
        if mistakes:
            raise ValueError("; ".join(mistakes))
        return self

    def addresses(self) -> tuple[SiteAddress, ...]:
        """Give the sites of the federation, live or simulated.

        Raises:
            ConfigurationError: The sites file has mistakes, or a simulated site lacks its data.
        """
        if self.simulation is not None:
            return self.simulation.addresses(self.sites)
        assert self.sites is not None  # noqa: S101 - `_can_be_run` sees to it
        return load_federation(self.sites).sites

    def training_settings(self) -> TrainingSettings:
        """Give the training settings as messages hold them; the learning rate is the highest."""
        training = self.training
        settings = TrainingSettings(
            local_epochs=training.local_epochs,
            batch_size=training.batch_size,
            learning_rate=training.learning_rate,
            optimizer=training.optimizer.value,
            momentum=training.momentum,
            weight_decay=training.weight_decay,
            gradient_clip=training.gradient_clip,
            focal_gamma=(
                (training.focal_gamma or _FOCAL_GAMMA) if training.loss is Loss.FOCAL else 0.0
            ),
        )
        if self.stragglers is not None and self.stragglers.partial:
            settings["partial"] = True
        return settings

    def local_training(self) -> LocalTraining:
        """Give how sites train, round by round."""
        return LocalTraining(
            settings=self.training_settings(), schedule=self.training.schedule, rounds=self.rounds
        )

    def aggregator(self) -> Aggregator:
        """Give how updates are combined."""
        return ALGORITHMS[self.algorithm.name].build_aggregator(self.algorithm)

    def require_enough(self, sites: int) -> None:
        """Do nothing when `sites` sites that may train are enough for what is asked.

        Raises:
            ConfigurationError: They are not.
        """
        drawn = self.participation.draw_size(sites)
        for mistake in secure_refusals(self.privacy, drawn):
            raise ConfigurationError(mistake)
        for what, needed in (
            ("min_sites", self.min_sites or 1),
            (f"algorithm.aggregation {self.aggregator().method}", self.aggregator().fewest_sites()),
            ("participation.minimum", self.participation.minimum),
        ):
            if needed > drawn:
                raise ConfigurationError(
                    f"{what} needs {needed} sites in a round, and {drawn} of {sites} take part; "
                    "add sites, raise participation.fraction, or ask for less"
                )


def refusals(config: ExperimentConfig) -> list[str]:
    """Say which settings mean nothing together, each with the reason and what to choose instead."""
    kind, training = ALGORITHMS[config.algorithm.name], config.training_settings()
    level = PrivacyLevel(config.privacy.level)
    mistakes = [
        *_transport_refusals(config),
        *kind.refusals(config.algorithm, training),
        *kind.privacy_refusals(config.algorithm, level),
    ]
    if level is PrivacyLevel.DIFFERENTIAL_PRIVACY and config.training.gradient_clip is not None:
        mistakes.append(
            "training.gradient_clip: differential_privacy shortens the gradient of each window or "
            "machine to privacy.clip_norm; leave gradient_clip out"
        )
    if level is PrivacyLevel.BASIC and config.compression.is_lossy:
        mistakes.append(
            f"compression: {config.compression.value} with basic: what is rounded off in one round "
            "is sent with a later one, which then would be longer than clip_norm; choose none or "
            "zstd"
        )
    if level is PrivacyLevel.SECURE_AGGREGATION and config.compression is not Compression.NONE:
        mistakes.append(
            f"compression: {config.compression.value} with secure_aggregation: masked updates are "
            "as random as noise, which does not compress, and rounded masks would not cancel; "
            "choose compression none"
        )
    if level is PrivacyLevel.SECURE_AGGREGATION and config.transport is not Transport.LIVE:
        mistakes.append(
            "privacy.level: secure_aggregation of simulated sites: all of them are in the "
            "researcher's own process, where there is nobody to hide an update from; choose none, "
            "which comes to the same but for rounding"
        )
    if config.local_training().at(config.rounds - 1)["learning_rate"] == 0:
        mistakes.append(
            f"training.schedule: the learning rate falls below the smallest number within "
            f"{config.rounds} rounds; let it fall less, or run fewer rounds"
        )
    aggregator = config.aggregator()
    if config.min_sites is not None and config.min_sites < aggregator.fewest_sites():
        mistakes.append(
            f"min_sites is {config.min_sites}, and {aggregator.method} needs "
            f"{aggregator.fewest_sites()} updates; raise min_sites or choose another aggregation"
        )
    mistakes += _straggler_refusals(config)
    named = config.participation.sites
    if named and not config.participation.tags and (config.min_sites or 1) > len(named):
        mistakes.append(f"min_sites is {config.min_sites}, but only {len(named)} sites participate")
    return mistakes


def _straggler_refusals(config: ExperimentConfig) -> list[str]:
    if config.stragglers is None:
        return []
    mistakes = []
    if config.min_sites is None:
        mistakes.append(
            "stragglers: without min_sites every site is waited for; set min_sites to the fewest "
            "updates with which a round may go on"
        )
    if config.stragglers.partial and not ALGORITHMS[config.algorithm.name].keeps_partial_work:
        mistakes.append(
            f"stragglers.partial: {config.algorithm.name} takes sites to have done all their "
            "steps; choose fedprox or fednova, or leave it out"
        )
    return mistakes


def _transport_refusals(config: ExperimentConfig) -> list[str]:
    is_live, has_data = config.transport is Transport.LIVE, config.simulation is not None
    mistakes = []
    if is_live and config.sites is None:
        mistakes.append(
            "sites: missing; name the sites file, or simulate the sites with transport: memory"
        )
    if is_live and has_data:
        mistakes.append(
            "simulation: is for transport: memory, and transport is live; leave out one or set the "
            "other"
        )
    if not is_live and not has_data:
        mistakes.append(
            "simulation: missing; transport: memory needs `simulation: {data: FOLDER, schema: "
            "FILE}`, a folder with a file for each site"
        )
    return mistakes


def load_experiment(path: Path) -> ExperimentConfig:
    """Read `experiment.yaml`.

    Raises:
        ConfigurationError: With every mistake and its place in the file.
    """
    return load_yaml(path, ExperimentConfig)
