"""`experiment.yaml` and the sites file: what to run, where, and within which limits."""

import math
import re
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    EmailStr,
    Field,
    SecretStr,
    model_validator,
)

from core.configuration import load_yaml, parse, read_yaml
from core.enums import ModelType, PrivacyLevel
from core.exceptions import ConfigurationError
from core.messages import TrainingSettings
from core.models import available_models
from orchestrator.aggregation import Aggregator
from orchestrator.algorithms import ALGORITHMS, AlgorithmChoice
from orchestrator.algorithms.fedavg import FedAvgSettings
from orchestrator.schedule import Constant, Schedule

_FOCAL_GAMMA = 2.0  # as its authors found best
_LARGEST_SEED = 2**53  # as far as every reader of JSON counts exactly


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _site_url(url: str) -> str:
    if "@" in url:
        message = "a URL holds no account; give it as `email` and `password`"
        raise ValueError(message)
    try:
        parts = urlsplit(url)
        fits = parts.scheme in {"http", "https", "memory"} and parts.hostname and parts.port != 0
    except ValueError:  # a port that is none
        fits = False
    if not fits or parts.path not in {"", "/"} or re.search(r"[\s?#]", url):
        message = f"{url!r} is no address of a site; write http://host:port or https://host:port"
        raise ValueError(message)
    return url


class SiteAddress(_Strict):
    """How to reach one site, and as whom.

    Attributes:
        site_id: The name that the site itself must give.
        url: Of its PySyft server, such as `http://127.0.0.1:8081`.
        password: Given by a variable, as `${FACTORY_1_PASSWORD}`.
        password_file: Or read from a file; a relative path starts at the sites file.
        tags: Words by which an experiment can choose its sites.
    """

    site_id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    url: Annotated[str, AfterValidator(_site_url)]
    email: EmailStr
    password: SecretStr | None = None
    password_file: Path | None = None
    tags: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_password(self) -> Self:
        if (self.password is None) == (self.password_file is None):
            message = "give either `password` (as ${VARIABLE}) or `password_file`"
            raise ValueError(message)
        return self

    def credentials(self) -> dict[str, str]:
        """Give what `connect_to_datasite` takes.

        Raises:
            ConfigurationError: The password's file cannot be read.
        """
        if self.password is not None:
            password = self.password.get_secret_value()
        else:
            try:
                password = Path(str(self.password_file)).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as exc:
                reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8 text"
                raise ConfigurationError(
                    f"{self.site_id}: password_file {self.password_file} cannot be read: {reason}"
                ) from exc
        return {"site_id": self.site_id, "email": self.email, "password": password}


def _different(sites: tuple[SiteAddress, ...]) -> tuple[SiteAddress, ...]:
    names = [site.site_id for site in sites]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        message = f"named more than once: {', '.join(repeated)}"
        raise ValueError(message)
    return sites


class Federation(_Strict):
    """The sites file: who belongs to the federation."""

    sites: Annotated[tuple[SiteAddress, ...], Field(min_length=1), AfterValidator(_different)]


def _available_model(name: str) -> str:
    available = available_models()
    if name not in available:
        message = f"there is no model {name!r}; available: {', '.join(available)}"
        raise ValueError(message)
    return name


class ModelChoice(_Strict):
    """Which model, with the options of its architecture; see `orchestrator models`."""

    type: Annotated[str, AfterValidator(_available_model)] = ModelType.CNN.value
    options: dict[str, int] = {}


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


class Training(_Strict):
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
    schedule: Schedule = Constant()
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


class Split(_Strict):
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


def _names(value: Any) -> Any:  # noqa: ANN401 - a YAML value, judged by the field's type
    return None if value == "all" else value


def _each_once(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if names is not None and (not names or len(set(names)) != len(names)):
        message = "name each once, and at least one"
        raise ValueError(message)
    return names


class Participation(_Strict):
    """Which sites train, and how many of them in a round. All sites of the federation evaluate.

    Attributes:
        sites: Names of sites, or `all`; by default all, unless tags are given.
        tags: Sites with any of these tags, beside those that are named.
        fraction: Share of them that trains in a round, drawn anew each time from the run's seed.
        minimum: Fewest that are drawn.
    """

    sites: Annotated[
        tuple[str, ...] | None, BeforeValidator(_names), AfterValidator(_each_once)
    ] = None
    tags: Annotated[tuple[str, ...] | None, AfterValidator(_each_once)] = None
    fraction: float = Field(default=1.0, gt=0, le=1)
    minimum: int = Field(default=1, ge=1)

    def choose(self, sites: Sequence[SiteAddress]) -> tuple[str, ...]:
        """Give the names of the sites that may train, sorted.

        Raises:
            ConfigurationError: A name or a tag fits no site.
        """
        known, tags = {site.site_id for site in sites}, {tag for site in sites for tag in site.tags}
        for what, asked, there in (("sites", self.sites, known), ("tags", self.tags, tags)):
            unknown = sorted(set(asked or ()) - there)
            if unknown:
                raise ConfigurationError(
                    f"participation.{what}: {', '.join(unknown)} not in the sites file; "
                    f"there are: {', '.join(sorted(there)) or 'none'}"
                )
        if self.sites is None and self.tags is None:
            return tuple(sorted(known))
        tagged = {site.site_id for site in sites if set(site.tags) & set(self.tags or ())}
        return tuple(sorted(tagged | set(self.sites or ())))

    def draw_size(self, sites: int) -> int:
        """Give how many of `sites` sites train in a round."""
        return min(sites, max(self.minimum, math.ceil(self.fraction * sites)))


class Judged(Enum):
    """What early stopping looks at: a metric of the pooled validation parts."""

    LOSS = "loss"
    PR_AUC = "pr_auc"
    ROC_AUC = "roc_auc"
    F1 = "f1"
    MCC = "mcc"


class Mode(Enum):
    """Whether a metric is better when it is larger."""

    MAX = "max"
    MIN = "min"


class EarlyStopping(_Strict):
    """When a run ends before its last round. Test parts are never looked at.

    Attributes:
        metric: Of the pooled validation parts.
        mode: By default `min` for the loss and `max` for all else.
        patience: Evaluations in a row without improvement that end the run.
        min_delta: What counts as an improvement must be more than this.
        restore_best: Whether the best round's model is the run's; else it is the last.
    """

    metric: Judged = Judged.PR_AUC
    mode: Mode | None = None
    patience: int = Field(default=5, ge=1)
    min_delta: float = Field(default=0.0, ge=0)
    restore_best: bool = True


class Evaluation(_Strict):
    """When the global model is scored at the sites: every so many rounds, and after the last."""

    every: int = Field(default=1, ge=1)


class Limits(_Strict):
    """How long to wait, in seconds, and how often to try again.

    Attributes:
        connect_s: For a log-in.
        call_s: For one request, training included.
        approval_s: For the operators to approve the plan.
        attempts: How often a request is sent at most, when the failure is worth another try.
    """

    connect_s: float = Field(default=15.0, gt=0)
    call_s: float = Field(default=600.0, gt=0)
    approval_s: float = Field(default=3600.0, gt=0)
    attempts: int = Field(default=3, ge=1)


class Privacy(_Strict):
    """What is done to updates before they leave a site."""

    level: PrivacyLevel = PrivacyLevel.NONE


class ExperimentConfig(_Strict):
    """Everything in `experiment.yaml`.

    Attributes:
        sites: Path of the sites file; a relative path starts at the current folder, and is kept
            in full, so that a run can be resumed from another.
        dataset: The name under which every site has registered its data.
        min_sites: Fewest updates that make a round; by default every site that was drawn for it
            must answer.
        runs: Folder for the run's record.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    seed: int = Field(default=0, ge=0, le=_LARGEST_SEED)
    rounds: int = Field(ge=1)
    dataset: str = Field(min_length=1)
    sites: Annotated[Path, AfterValidator(Path.absolute)]
    participation: Participation = Participation()
    min_sites: int | None = Field(default=None, ge=1)
    algorithm: AlgorithmChoice = FedAvgSettings()
    model: ModelChoice = ModelChoice()
    training: Training = Training()
    split: Split = Split()
    privacy: Privacy = Privacy()
    evaluation: Evaluation = Evaluation()
    early_stopping: EarlyStopping | None = None
    limits: Limits = Limits()
    runs: Path = Path("runs")

    @model_validator(mode="after")
    def _can_be_run(self) -> Self:
        mistakes = refusals(self)
        if mistakes:
            raise ValueError("; ".join(mistakes))
        return self

    def training_settings(self) -> TrainingSettings:
        """Give the training settings as messages hold them; the learning rate is the highest."""
        training = self.training
        return TrainingSettings(
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

    def aggregator(self) -> Aggregator:
        """Give how updates are combined."""
        return ALGORITHMS[self.algorithm.name].build_aggregator(self.algorithm)

    def require_enough(self, sites: int) -> None:
        """Do nothing when `sites` sites that may train are enough for what is asked.

        Raises:
            ConfigurationError: They are not.
        """
        drawn = self.participation.draw_size(sites)
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
    level = config.privacy.level
    mistakes = [
        *kind.refusals(config.algorithm, training),
        *kind.privacy_refusals(config.algorithm, level),
    ]
    if level is not PrivacyLevel.NONE:
        mistakes.append(
            f"privacy.level {level.value!r} is not available in this version; choose 'none'"
        )
    aggregator = config.aggregator()
    if config.min_sites is not None and config.min_sites < aggregator.fewest_sites():
        mistakes.append(
            f"min_sites is {config.min_sites}, and {aggregator.method} needs "
            f"{aggregator.fewest_sites()} updates; raise min_sites or choose another aggregation"
        )
    named = config.participation.sites
    if named and not config.participation.tags and (config.min_sites or 1) > len(named):
        mistakes.append(f"min_sites is {config.min_sites}, but only {len(named)} sites participate")
    return mistakes


def load_experiment(path: Path) -> ExperimentConfig:
    """Read `experiment.yaml`.

    Raises:
        ConfigurationError: With every mistake and its place in the file.
    """
    return load_yaml(path, ExperimentConfig)


def load_federation(path: Path) -> Federation:
    """Read a sites file.

    Raises:
        ConfigurationError: With every mistake and its place in the file.
    """
    federation = parse(read_yaml(path), Federation, source=str(path))
    base = path.resolve().parent
    sites = [
        site.model_copy(update={"password_file": base / site.password_file})
        if site.password_file
        else site
        for site in federation.sites
    ]
    return Federation(sites=tuple(sites))
