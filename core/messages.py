"""Every message between orchestrator and site, as typed dictionaries.

A message is a plain `dict` whose `kind` says which of these it is; `core.wire` turns it into bytes
and back. Rules of change: a kind may be added, since a side that does not know it says so, and is
never removed; a field never changes its meaning, and a new field is optional (`NotRequired`);
anything else takes a new `core.wire.VERSION`.

Enumerations travel as their values (statuses as their names), times as ISO 8601 in UTC.
"""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired

import torch
from pydantic import Field, with_config
from typing_extensions import TypedDict

from core.fields import STRICT, Count, Facts, Fraction, Positive, Text
from core.oversight_messages import AuditPage, AuditRequest, PlansPage, PlansRequest
from core.privacy import SITE_KEY, PrivacySettings
from core.privacy_messages import PrivacyAccount, PrivacyRequest, PrivacyUnits
from core.secure_messages import SecureReply, SecureRequest

Parameters = dict[str, torch.Tensor]
"""A model's full `state_dict`, detached, on the CPU."""

CompressionName = Literal["zstd", "fp16", "int8"]
"""A value of `core.enums.Compression`; a message without it is not compressed."""


@with_config(STRICT)
class ModelSpec(TypedDict):
    """Which model to build: a `ModelType` value and its constructor's options."""

    type: Text
    options: Annotated[dict[Text, int], Field(max_length=64)]


@with_config(STRICT)
class AlgorithmSpec(TypedDict):
    """Which local objective to minimise: a `FederatedAlgorithm` value and its hyper-parameters."""

    name: Text
    hyperparameters: Annotated[dict[Text, float], Field(max_length=64)]


@with_config(STRICT)
class TrainingSettings(TypedDict):
    """How a site fits its model in one round.

    `focal_gamma` is the focal loss's exponent; 0 is cross entropy. `partial` allows requests that
    say after how long to stop.
    """

    local_epochs: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)]
    learning_rate: Positive
    optimizer: Text
    momentum: Fraction
    weight_decay: Annotated[float, Field(ge=0.0)]
    gradient_clip: Positive | None
    focal_gamma: Annotated[float, Field(ge=0.0)]
    partial: NotRequired[Literal[True]]


@with_config(STRICT)
class SplitSettings(TypedDict):
    """How a site divides its rows; the rest, `1 - test - validation`, is for training."""

    test: Fraction
    validation: Fraction
    seed: Count


@with_config(STRICT)
class Preprocessing(TypedDict):
    """Agreed once a run, the same at every site.

    `mean` and `scale` have one number for each feature: the model sees `(x - mean) / scale`.
    `positive_weight` multiplies the loss of failures.
    """

    mean: list[float]
    scale: list[Positive]
    positive_weight: Positive


@with_config(STRICT)
class DescribeRequest(TypedDict):
    """Who are you, and what do you offer?"""

    kind: Literal["describe"]


@with_config(STRICT)
class DatasetDescription(TypedDict):
    """One registered dataset, as a researcher may see it.

    `schema` is the JSON form of `core.schema.DataSchema`.
    """

    name: Text
    version: Annotated[int, Field(ge=1)]
    rows: Count
    schema: Facts


@with_config(STRICT)
class SiteDescription(TypedDict):
    """Answer to `DescribeRequest`.

    `status` is a `DataSiteStatus` name; `code_hash` is the SHA-256 of the training code installed
    at the site, which plans are bound to. `identity_key` is the site's Ed25519 key.
    """

    kind: Literal["site"]
    datasite_id: str
    status: str
    version: str
    code_hash: Text
    models: list[str]
    algorithms: list[str]
    datasets: list[DatasetDescription]
    identity_key: NotRequired[Annotated[str, Field(pattern=SITE_KEY)]]


@with_config(STRICT)
class PlanProposal(TypedDict):
    """What a researcher asks an operator to consent to, for one run.

    A plan's id is the SHA-256 of this content and of who proposed it: proposing the same again is
    asking for the state of the same plan. `compression` is the form in which parameters travel.
    `privacy` is what `privacy_level` needs to know; `none` has none.
    """

    kind: Literal["propose"]
    run_id: Text
    dataset: Text
    dataset_version: Annotated[int, Field(ge=1)]
    model: ModelSpec
    algorithm: AlgorithmSpec
    training: TrainingSettings
    split: SplitSettings
    privacy_level: Text
    rounds: Annotated[int, Field(ge=1)]
    code_hash: Text
    compression: NotRequired[CompressionName]
    privacy: NotRequired[PrivacySettings]


@with_config(STRICT)
class PlanQuery(TypedDict):
    """What has become of this plan?"""

    kind: Literal["plan_status"]
    plan_id: Text


@with_config(STRICT)
class PlanDecision(TypedDict):
    """Where a plan stands, as a `core.plans.PlanStatus` name, and the reason given."""

    kind: Literal["plan"]
    plan_id: Text
    status: str
    reason: str


@with_config(STRICT)
class StatisticsRequest(TypedDict):
    """Sums over the plan's dataset, to agree on one preprocessing."""

    kind: Literal["statistics"]
    plan_id: Text


@with_config(STRICT)
class SensorStatistics(TypedDict):
    """Answer to `StatisticsRequest`: one number for each feature, values clamped to their ranges.

    Over all rows whatever the plan's split, so that the sums of two plans cannot differ by a row.
    Where a label has fewer rows than the site tells of, `withheld` says that the label counts are
    0 instead.
    """

    kind: Literal["sensor_statistics"]
    datasite_id: str
    count: Count
    total: list[float]
    total_of_squares: list[float]
    label_counts: list[Count]
    withheld: NotRequired[list[Literal["label_counts"]]]


@with_config(STRICT)
class TrainRequest(TypedDict):
    """Fit the plan's model, starting from `parameters`, for one round.

    `seed` is the run's; the site's own draws come from (seed, round, site). The site stops after
    `deadline_s` seconds. `state_round` is the last round in which the orchestrator counted this
    site's update: what the site keeps for the algorithm is taken as it was after that round, and
    as nothing when it is absent. `control` is what the algorithm sends beside the model (SCAFFOLD:
    the control variate c). With a `compression`, both are as `core.compression.compress` gives
    them, and the answer's as `send` does. After `stop_after_s` the site ends its training, though
    not within the first epoch, and sends what it has; for `training` that is `partial` alone.
    """

    kind: Literal["train"]
    plan_id: Text
    round_num: Count
    seed: Count
    model: ModelSpec
    algorithm: AlgorithmSpec
    training: TrainingSettings
    preprocessing: Preprocessing
    deadline_s: Positive
    parameters: Parameters
    state_round: NotRequired[Count]
    control: NotRequired[Parameters]
    compression: NotRequired[CompressionName]
    stop_after_s: NotRequired[Positive]


@with_config(STRICT)
class ClientUpdate(TypedDict):
    """Answer to `TrainRequest`.

    `num_samples` is how many windows were trained on (the site's claim), `num_steps` how many
    optimiser steps were really done. `metrics` has `train_loss` (mean over the last epoch, as far
    as it went) and `fit_s` (wall time); and, where the plan's data are no first version of their
    dataset, `psi.<column>`, how far the column has drifted from it (see `core.drift`). Under
    differential privacy it has `fit_s` alone, since the others tell of rows. `control` answers a
    request's (SCAFFOLD: the change of c_k).
    `compression` is the request's: the parameters start from those received, `control` from 0.
    """

    kind: Literal["update"]
    datasite_id: str
    round_num: Count
    num_samples: Count
    num_steps: Count
    metrics: dict[str, float]
    parameters: Parameters
    control: NotRequired[Parameters]
    compression: NotRequired[CompressionName]


@with_config(STRICT)
class CancelRequest(TypedDict):
    """Stop what is asked for in this round of the plan; the answer is its `PlanDecision`."""

    kind: Literal["cancel"]
    plan_id: Text
    round_num: Count


@with_config(STRICT)
class EvaluateRequest(TypedDict):
    """Score `parameters` on the site's validation and test parts.

    With a `compression` they are as `core.compression.compress` gives them, as for training.
    """

    kind: Literal["evaluate"]
    plan_id: Text
    round_num: Count
    model: ModelSpec
    preprocessing: Preprocessing
    deadline_s: Positive
    parameters: Parameters
    compression: NotRequired[CompressionName]


@with_config(STRICT)
class ScoreCounts(TypedDict):
    """How a model scores one part of a site's data, as counts only.

    `negatives` and `positives` are histograms of the scores by true label over the bins of
    `core.evaluation`; `loss_total` is the sum of the losses of `count` windows.
    """

    count: Count
    loss_total: float
    negatives: list[Count]
    positives: list[Count]


@with_config(STRICT)
class EvaluationReport(TypedDict):
    """Answer to `EvaluateRequest`.

    Where a label has fewer windows in a part than the site tells of, `withheld` names the part,
    and all its counts are 0 instead.
    """

    kind: Literal["evaluation"]
    datasite_id: str
    round_num: Count
    validation: ScoreCounts
    test: ScoreCounts
    withheld: NotRequired[list[Literal["validation", "test"]]]


@with_config(STRICT)
class Failure(TypedDict):
    """An answer that is an error: its class by name, and what may be said outside the site."""

    kind: Literal["failure"]
    error: str
    message: str
    datasite_id: str
    round_num: NotRequired[Count]


Request = (
    DescribeRequest
    | PlanProposal
    | PlanQuery
    | StatisticsRequest
    | PrivacyRequest
    | TrainRequest
    | EvaluateRequest
    | CancelRequest
    | AuditRequest
    | PlansRequest
    | SecureRequest
)
Reply = (
    SiteDescription
    | PlanDecision
    | SensorStatistics
    | PrivacyAccount
    | ClientUpdate
    | EvaluationReport
    | AuditPage
    | PlansPage
    | SecureReply
    | Failure
)
Inside = PrivacyUnits
"""What the parts of a site tell each other, and nobody else."""

Message = Request | Reply | Inside
