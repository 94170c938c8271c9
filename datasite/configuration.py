"""`site.yaml`: who a site is, where it listens and keeps its state, what it approves by rule."""

import os
from enum import Enum
from pathlib import Path
from typing import Annotated, Self, TypeVar

from pydantic import BaseModel, ConfigDict, EmailStr, Field, SecretStr, model_validator

from core.configuration import load_yaml
from core.enums import PrivacyLevel
from core.exceptions import ConfigurationError
from core.privacy import SITE_KEY, Unit
from datasite.approvers import SCRYPT_FORM
from datasite.modes import private_directory, require_private_tree, require_secret


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


_TAKEN_NAMES = frozenset({"operator", "policy"})

SiteId = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]


class Tls(_Strict):
    """What the site proves with who it is to those who connect; relative paths as all.

    Attributes:
        certificate: PEM: the site's certificate first, then those between it and the authority.
        key: PEM, without a passphrase: the certificate's private key.
    """

    certificate: Path
    key: Path


class Listen(_Strict):
    """Where the site's PySyft server listens; with `tls`, it speaks https and nothing else."""

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=1, le=65535)
    tls: Tls | None = None


class Credentials(_Strict):
    """What an account logs in with.

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


Account = TypeVar("Account", bound=Credentials)


class Operator(Credentials):
    """The account that owns the site; when its password changes here, so does the account's."""


class Researcher(Credentials):
    """An account that the site opens when it starts without one of this e-mail.

    One that is there, disabled or not, keeps the password and the role that it has.
    """


class Auditor(Credentials):
    """Likewise an account that reads plans and the audit log, and does nothing else."""


class Decision(Enum):
    """What a rule decides."""

    APPROVE = "approve"
    DENY = "deny"
    ASK = "ask"


class Rule(_Strict):
    """Decides plans without the operator; each condition that is given must hold.

    Attributes:
        name: Written into the audit log with the decision.
        decision: `ask` leaves the plan to the operator, whatever later rules would do.
        researcher: The e-mail of the account that proposes.
        dataset: The dataset's name.
        model: The model's type.
        algorithm: The algorithm's name.
        min_privacy_level: The least that is done to updates; `datasite.policy` has the order.
        max_rounds: The most rounds that the plan may have.
        min_rows: The fewest rows that the dataset may have.
        bypasses_approvals: Said by a rule that approves where several persons must otherwise.
    """

    name: str = Field(min_length=1)
    decision: Decision
    researcher: EmailStr | None = None
    dataset: str | None = None
    model: str | None = None
    algorithm: str | None = None
    min_privacy_level: PrivacyLevel | None = None
    max_rounds: int | None = Field(default=None, ge=1)
    min_rows: int | None = Field(default=None, ge=1)
    bypasses_approvals: bool = False

    @model_validator(mode="after")
    def _has_a_condition(self) -> Self:
        if self.decision is Decision.APPROVE and self.researcher is None:
            message = f"rule {self.name!r} would approve anybody's plans: name a `researcher`"
            raise ValueError(message)
        return self


class Approver(_Strict):
    """A person whose approval counts.

    Attributes:
        name: Stands in the audit log for who approved.
        password_hash: As `datasite plans approver` prints it; the password is that person's own.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9._-]{0,63}$")
    password_hash: Annotated[str, Field(pattern=SCRYPT_FORM), Field(repr=False)]

    @model_validator(mode="after")
    def _is_no_other(self) -> Self:
        if self.name in _TAKEN_NAMES:
            message = f"{self.name!r} stands for somebody else in the audit log; choose another"
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


class Release(_Strict):
    """What may leave the site of few rows.

    Attributes:
        minimum_count: The fewest rows that a number may be about; `datasite.release` says which
            numbers. Every dataset has 50 windows or more, so that all of it is never too few.
    """

    minimum_count: int = Field(default=5, ge=1, le=50)


class Budget(_Strict):
    """What may be told of one unit of a dataset, by all that is ever trained on it.

    Attributes:
        epsilon: ε, all rounds of all plans together.
        delta: δ at which it is counted: well below one over the units.
        unit: Whose presence is hidden: one training window, or all those of one machine.
    """

    epsilon: float = Field(gt=0, allow_inf_nan=False)
    delta: float = Field(gt=0, lt=1)
    unit: Unit = "window"


class SecureAggregation(_Strict):
    """Under which plans the site adds its updates to a sum.

    Attributes:
        trusts_orchestrator: Whether it is trusted to relay honestly; then more than half of a
            round's sites are enough for the threshold, and else more than two thirds are asked for.
        peers: The identity keys of the other sites, as `datasite identity` prints them there. Where
            there are some, a plan's roster may name no other site.
    """

    trusts_orchestrator: bool = False
    peers: dict[SiteId, Annotated[str, Field(pattern=SITE_KEY)]] = Field(default_factory=dict)


class SiteConfig(_Strict):
    """Everything in `site.yaml`; a relative path starts at the file's own folder.

    Attributes:
        site_id: The site's name in the federation: lower-case letters, digits and dashes.
        state: Folder for identity, accounts, data and ledger; private to its owner.
        researchers: Accounts to be opened at the start, as `datasite users add` would later.
        auditors: Likewise, with the role of an auditor.
        policy: Rules tried in order; the first that fits decides. Without one that fits, a plan
            waits for the operator.
        plan_days: Days until an approved plan expires.
        approvals: How many persons must approve a plan that no rule decides.
        approvers: Who they are. Where there are some, nobody else approves.
        budget: The privacy budget of each dataset, unless `datasite budget set` gave it another;
            without one, plans with differential privacy are not worked on.
    """

    site_id: SiteId
    state: Path
    listen: Listen = Listen()
    operator: Operator
    researchers: tuple[Researcher, ...] = ()
    auditors: tuple[Auditor, ...] = ()
    policy: tuple[Rule, ...] = ()
    plan_days: int = Field(default=30, ge=1, le=3650)
    approvals: int = Field(default=1, ge=1, le=9)
    approvers: tuple[Approver, ...] = ()
    training: Training = Training()
    release: Release = Release()
    budget: Budget | None = None
    secure_aggregation: SecureAggregation = SecureAggregation()

    def accounts(self) -> dict[str, Credentials]:
        """Give the accounts that are named, by where: `operator`, `researchers[0]`."""
        return {
            "operator": self.operator,
            **{f"researchers[{index}]": each for index, each in enumerate(self.researchers)},
            **{f"auditors[{index}]": each for index, each in enumerate(self.auditors)},
        }

    @model_validator(mode="after")
    def _one_account_per_email(self) -> Self:
        accounts = self.accounts().values()
        emails = [account.email.casefold() for account in accounts]
        repeated = sorted({email for email in emails if emails.count(email) > 1})
        if repeated:
            message = (
                "`operator`, `researchers` and `auditors` name more than once: "
                f"{', '.join(repeated)}"
            )
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _enough_approvers(self) -> Self:
        names = {approver.name for approver in self.approvers}
        hashes = {approver.password_hash for approver in self.approvers}
        if min(len(names), len(hashes)) < len(self.approvers):
            message = "`approvers` names a person twice, or two with one password hash"
            raise ValueError(message)
        if self.approvals > max(1, len(names)):
            message = (
                f"`approvals: {self.approvals}` needs at least {self.approvals} `approvers`; "
                "'datasite plans approver NAME' makes the entry of one"
            )
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _rules_say_what_they_do(self) -> Self:
        names = [rule.name for rule in self.policy]
        for index, rule in enumerate(self.policy):
            if rule.name in names[:index]:
                message = f"policy[{index}]: another rule is named {rule.name!r} already"
                raise ValueError(message)
            alone = rule.decision is Decision.APPROVE and not rule.bypasses_approvals
            if self.approvals > 1 and alone:
                message = (
                    f"policy[{index}]: rule {rule.name!r} would approve without the "
                    f"{self.approvals} persons that `approvals` asks for; take it out, or say "
                    "`bypasses_approvals: true` in it"
                )
                raise ValueError(message)
        return self


def load_site_config(path: Path) -> SiteConfig:
    """Read `site.yaml`.

    Raises:
        ConfigurationError: With every mistake and its place in the file.
    """
    config = load_yaml(path, SiteConfig)
    base = path.resolve().parent
    return config.model_copy(
        update={
            "state": base / config.state,
            "listen": _listening_with_files(base, config.listen),
            "operator": _starting_at(base, config.operator),
            "researchers": tuple(_starting_at(base, each) for each in config.researchers),
            "auditors": tuple(_starting_at(base, each) for each in config.auditors),
        }
    )


def _listening_with_files(base: Path, listen: Listen) -> Listen:
    if listen.tls is None:
        return listen
    tls = Tls(certificate=base / listen.tls.certificate, key=base / listen.tls.key)
    return listen.model_copy(update={"tls": tls})


def _starting_at(base: Path, account: Account) -> Account:
    if account.password_file is None:
        return account
    return account.model_copy(update={"password_file": base / account.password_file})


def password_of(account: Credentials, *, entry: str) -> str:
    """Give the account's password from where the configuration says.

    Args:
        account: One of the configuration.
        entry: Where it stands in site.yaml, for messages: `operator`, `researchers[0]`.

    Raises:
        ConfigurationError: Its file cannot be read as text.
    """
    if account.password is not None:
        return account.password.get_secret_value()
    place = f"{entry}.password_file: {account.password_file}"
    try:
        return Path(str(account.password_file)).read_text(encoding="utf-8").strip()
    except OSError as exc:
        raise ConfigurationError(f"{place} cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigurationError(f"{place} is not UTF-8 text") from exc


def open_state(config: SiteConfig) -> Path:
    """Give the state folder, made when it is not there; from here on files are made private.

    Raises:
        ConfigurationError: It cannot be made, belongs to somebody else, or others may enter it.
    """
    os.umask(0o077)
    try:
        return private_directory(config.state)
    except ConfigurationError as exc:
        raise ConfigurationError(f"state: {exc}") from exc


def require_private(config: SiteConfig) -> None:
    """Check that nobody but this account reads or changes what the site keeps secret.

    Raises:
        ConfigurationError: The state, a password's file or the TLS key is open to others.
    """
    try:
        require_private_tree(config.state)
    except ConfigurationError as exc:
        raise ConfigurationError(f"state: {exc}") from exc
    for entry, path in secret_files(config).items():
        require_secret(path, entry=entry)


def secret_files(config: SiteConfig) -> dict[str, Path]:
    """Give the files with secrets that `site.yaml` names, by where it names them."""
    files = {
        f"{entry}.password_file": account.password_file
        for entry, account in config.accounts().items()
    }
    if config.listen.tls is not None:
        files["listen.tls.key"] = config.listen.tls.key
    return {entry: path for entry, path in files.items() if path is not None}
