"""`experiment.yaml` and the sites file: what to run, where, and within which limits."""

import re
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
from core.enums import AggregationMethod, FederatedAlgorithm, ModelType, PrivacyLevel
from core.exceptions import ConfigurationError

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
    """

    site_id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    url: Annotated[str, AfterValidator(_site_url)]
    email: EmailStr
    password: SecretStr | None = None
    password_file: Path | None = None

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


class Algorithm(_Strict):
    """How updates become the next global model."""

    name: FederatedAlgorithm = FederatedAlgorithm.FEDAVG
    aggregation: AggregationMethod = AggregationMethod.WEIGHTED_AVERAGE


class ModelChoice(_Strict):
    """Which model, with the options of its architecture."""

    type: ModelType = ModelType.CNN
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


class Training(_Strict):
    """How each site trains in a round."""

    local_epochs: int = Field(default=1, ge=1)
    batch_size: int = Field(default=64, ge=1)
    learning_rate: float = Field(default=0.05, gt=0)
    optimizer: Optimizer = Optimizer.SGD
    momentum: float = Field(default=0.0, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    gradient_clip: float | None = Field(default=None, gt=0)
    positive_weight: ClassWeight = ClassWeight.NONE

    @model_validator(mode="after")
    def _momentum_is_sgds(self) -> Self:
        if self.optimizer is Optimizer.ADAM and self.momentum:
            message = "momentum belongs to sgd; with adam leave it out"
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


def _names(value: Any) -> Any:  # noqa: ANN401 - a YAML value, judged by the field's type
    return None if value == "all" else value


def _each_once(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if names is not None and (not names or len(set(names)) != len(names)):
        message = "name each participant once, at least one, or write all"
        raise ValueError(message)
    return names


class ExperimentConfig(_Strict):
    """Everything in `experiment.yaml`.

    Attributes:
        sites: Path of the sites file; a relative path starts at the current folder, and is kept
            in full, so that a run can be resumed from another.
        dataset: The name under which every site has registered its data.
        participants: Which sites train: `all`, or a list of their names. All of them evaluate.
        min_sites: Fewest updates that make a round; by default every participant must answer.
        runs: Folder for the run's record.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    seed: int = Field(default=0, ge=0, le=_LARGEST_SEED)
    rounds: int = Field(ge=1)
    dataset: str = Field(min_length=1)
    sites: Annotated[Path, AfterValidator(Path.absolute)]
    participants: Annotated[
        tuple[str, ...] | None, BeforeValidator(_names), AfterValidator(_each_once)
    ] = None
    min_sites: int | None = Field(default=None, ge=1)
    algorithm: Algorithm = Algorithm()
    model: ModelChoice = ModelChoice()
    training: Training = Training()
    split: Split = Split()
    privacy: Privacy = Privacy()
    evaluation: Evaluation = Evaluation()
    limits: Limits = Limits()
    runs: Path = Path("runs")

    @model_validator(mode="after")
    def _can_be_run(self) -> Self:
        mistakes = [*_not_available(self), *_participation_mistakes(self)]
        if mistakes:
            raise ValueError("; ".join(mistakes))
        return self


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


def _not_available(config: ExperimentConfig) -> list[str]:
    """What this version cannot do, said before anything is started."""
    asked = [
        ("algorithm.name", config.algorithm.name, FederatedAlgorithm.FEDAVG),
        ("algorithm.aggregation", config.algorithm.aggregation, AggregationMethod.WEIGHTED_AVERAGE),
        ("model.type", config.model.type, ModelType.CNN),
        ("privacy.level", config.privacy.level, PrivacyLevel.NONE),
    ]
    return [
        f"{path} {value.value!r} is not available in this version; choose {only.value!r}"
        for path, value, only in asked
        if value is not only
    ]


def _participation_mistakes(config: ExperimentConfig) -> list[str]:
    named = config.participants
    if named is None or config.min_sites is None or config.min_sites <= len(named):
        return []
    return [f"min_sites is {config.min_sites}, but only {len(named)} sites participate"]
