"""`site.yaml`: who a site is, where it listens and keeps its state, what it approves by rule."""

import os
from enum import Enum
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, EmailStr, Field, SecretStr, model_validator

from core.configuration import load_yaml
from core.exceptions import ConfigurationError


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


SiteId = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]


class Listen(_Strict):
    """Where the site's PySyft server listens."""

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=1, le=65535)


class Operator(_Strict):
    """The account that owns the site; the password counts at the very first start only.

    Attributes:
        password: Given by a variable, as `${OPERATOR_PASSWORD}`.
        password_file: Or read from a file; a relative path starts at site.yaml.
    """

    email: EmailStr
    password: SecretStr | None = None
    password_file: Path | None = None

    @model_validator(mode="after")
    def _one_password(self) -> Self:
        if (self.password is None) == (self.password_file is None):
            message = "give either `password` (as ${VARIABLE}) or `password_file`"
            raise ValueError(message)
        return self


class Decision(Enum):
    """What a rule decides."""

    APPROVE = "approve"
    DENY = "deny"


class Rule(_Strict):
    """Decides plans without the operator; each condition that is given must hold.

    Attributes:
        name: Written into the audit log with the decision.
        researcher: The e-mail of the account that proposes.
        dataset: The dataset's name.
        max_rounds: The most rounds that the plan may have.
    """

    name: str = Field(min_length=1)
    decision: Decision
    researcher: EmailStr | None = None
    dataset: str | None = None
    max_rounds: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _has_a_condition(self) -> Self:
        if self.decision is Decision.APPROVE and self.researcher is None:
            message = f"rule {self.name!r} would approve anybody's plans: name a `researcher`"
            raise ValueError(message)
        return self


class Training(_Strict):
    """How the site trains.

    Attributes:
        deadline_s: Longest a single request may take, whatever it asks for.
        threads: CPU threads of the trainer; results are bit-equal only for equal numbers.
    """

    deadline_s: float = Field(default=3600.0, gt=0)
    threads: int = Field(default=1, ge=1)


class SiteConfig(_Strict):
    """Everything in `site.yaml`; a relative path starts at the file's own folder.

    Attributes:
        site_id: The site's name in the federation: lower-case letters, digits and dashes.
        state: Folder for identity, accounts, data and ledger; private to its owner.
        policy: Rules tried in order; the first that fits decides. Without one that fits, a plan
            waits for the operator.
        plan_days: Days until an approved plan expires.
    """

    site_id: SiteId
    state: Path
    listen: Listen = Listen()
    operator: Operator
    policy: tuple[Rule, ...] = ()
    plan_days: int = Field(default=30, ge=1, le=3650)
    training: Training = Training()


def load_site_config(path: Path) -> SiteConfig:
    """Read `site.yaml`.

    Raises:
        ConfigurationError: With every mistake and its place in the file.
    """
    config = load_yaml(path, SiteConfig)
    base = path.resolve().parent
    operator = config.operator
    if operator.password_file is not None:
        operator = operator.model_copy(update={"password_file": base / operator.password_file})
    return config.model_copy(update={"state": base / config.state, "operator": operator})


def operator_password(config: SiteConfig) -> str:
    """Give the operator's password from where the configuration says.

    Raises:
        ConfigurationError: Its file cannot be read as text.
    """
    operator = config.operator
    if operator.password is not None:
        return operator.password.get_secret_value()
    try:
        return Path(str(operator.password_file)).read_text(encoding="utf-8").strip()
    except OSError as exc:
        raise ConfigurationError(
            f"operator.password_file: {operator.password_file} cannot be read: {exc.strerror}"
        ) from exc
    except UnicodeDecodeError as exc:
        raise ConfigurationError(
            f"operator.password_file: {operator.password_file} is not UTF-8 text"
        ) from exc


def open_state(config: SiteConfig) -> Path:
    """Give the state folder, made when it is not there, and private (0700).

    Raises:
        ConfigurationError: It cannot be made, or it belongs to somebody else.
    """
    os.umask(0o077)
    try:
        config.state.mkdir(parents=True, exist_ok=True)
        config.state.chmod(0o700)
    except OSError as exc:
        raise ConfigurationError(f"state: {config.state} cannot be made: {exc.strerror}") from exc
    return config.state
