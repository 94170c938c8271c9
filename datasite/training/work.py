"""The trainer's work: an assignment in, a reply out. Pure but for a cache of prepared data.

The same function runs in the site's trainer process and, for whole federations in memory, in the
caller's own.
"""

import json
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch.nn import functional
from typing_extensions import TypedDict

from core import wire
from core.evaluation import count_scores
from core.exceptions import DataSiteError, FederatedLearningError
from core.messages import (
    ClientUpdate,
    EvaluateRequest,
    EvaluationReport,
    Parameters,
    Preprocessing,
    ScoreCounts,
    SensorStatistics,
    SplitSettings,
    TrainRequest,
)
from core.models import TorchModel, load_model
from core.packing import Allocate
from core.parameters import require_finite
from core.schema import DataSchema
from core.seeds import derive_seed
from core.wire import Parcel
from datasite.data.features import make_features
from datasite.data.statistics import describe_rows
from datasite.data.windows import Part, Parts, prepare_parts
from datasite.failures import as_failure
from datasite.registry import file_sha256
from datasite.training.fit import Fitted, fit
from datasite.training.objectives import PROBE, PROBE_STEP, Objective, Task, build_objective
from datasite.training.sending import Memory, Sending, opened

T = TypeVar("T")

_KEPT = 4
_EVALUATION_BATCH = 4096


class Job(TypedDict):
    """What the site adds to a request: where the plan's data lie and how they divide."""

    site_id: str
    file: str
    sha256: str
    schema: dict[str, object]
    split: SplitSettings


class Assignment(NamedTuple):
    """One piece of work.

    Attributes:
        job: Where the data lie.
        request: The request.
        state: What the site keeps for the algorithm, as `Done.state` was; empty for nothing.
    """

    job: Job
    request: Parcel
    state: bytes = b""


class Done(NamedTuple):
    """What came of it.

    Attributes:
        reply: What is answered.
        state: To be kept at the site for the algorithm's next round; empty for nothing.
    """

    reply: Parcel
    state: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensors:
    """One part of a site's data, as a model sees it.

    Attributes:
        inputs: (n, window, sensors) float32, standardised.
        labels: (n,) int64 in {0, 1}.
    """

    inputs: torch.Tensor
    labels: torch.Tensor


class Worker:
    """Performs jobs one at a time; keeps the data that it prepared last, as tensors.

    Args:
        allocate: Gives the memory for what is answered.
    """

    def __init__(self, allocate: Allocate = bytearray) -> None:
        self._allocate = allocate
        self._parts: OrderedDict[str, Parts] = OrderedDict()
        self._tensors: OrderedDict[str, Tensors] = OrderedDict()

    def perform(self, assignment: Assignment) -> Done:
        """Do the work.

        Raises:
            FederatedLearningError: As the work demands; the carrier turns it into a `Failure`.
        """
        job = assignment.job
        message = wire.decode(assignment.request)
        match message["kind"]:
            case "train":
                return self._train(job, message, assignment.state)
            case "evaluate":
                return Done(wire.encode(self._evaluate(job, message)))
            case "statistics":
                return Done(wire.encode(self._statistics(job)))
            case kind:
                raise DataSiteError(f"{job['site_id']}: a {kind!r} request is no work")

    def _train(self, job: Job, request: TrainRequest, state: bytes) -> Done:
        begin = time.perf_counter()
        request = opened(request, job["schema"])
        memory = Memory.read(state)
        if request["algorithm"]["name"] == PROBE:
            sending = Sending(request, memory)
            update = _probe(job, request, sending, begin)
            return Done(wire.encode(update, self._allocate), sending.memory({}))
        data = self._standardised(job, "train", request["preprocessing"])
        model = _build(request, data.inputs)
        objective = _objective(request, memory.state)
        fitted = fit(
            model,
            data.inputs,
            data.labels,
            settings=request["training"],
            positive_weight=request["preprocessing"]["positive_weight"],
            objective=objective,
            seed=derive_seed(request["seed"], request["round_num"], job["site_id"], "batches"),
        )
        parameters = model.get_parameters()
        require_finite(parameters, whose=job["site_id"])
        sending = Sending(request, memory)
        arrived = sending.parameters(parameters)
        control = sending.control(objective.control(parameters, fitted.num_steps))
        update = _update(job, request, sending, fitted, begin)
        kept = sending.memory(objective.state(arrived, control))
        return Done(wire.encode(update, self._allocate), kept)

    def _evaluate(self, job: Job, request: EvaluateRequest) -> EvaluationReport:
        request = opened(request, job["schema"])
        model = _build(request, self._standardised(job, "test", request["preprocessing"]).inputs)
        model.eval()
        validation, test = (
            _score(model, self._standardised(job, part, request["preprocessing"]))
            for part in ("validation", "test")
        )
        return EvaluationReport(
            kind="evaluation",
            datasite_id=job["site_id"],
            round_num=request["round_num"],
            validation=validation,
            test=test,
        )

    def _statistics(self, job: Job) -> SensorStatistics:
        rows = make_features(_read(job), DataSchema.model_validate(job["schema"]))
        return describe_rows(rows, job["site_id"])

    def _prepared(self, job: Job) -> Parts:
        key = _identity(job)
        if key not in self._parts:
            _keep(self._parts, key, _prepare(job))
        self._parts.move_to_end(key)
        return self._parts[key]

    def _standardised(self, job: Job, name: str, preprocessing: Preprocessing) -> Tensors:
        key = f"{_identity(job)} {name} {preprocessing}"
        if key not in self._tensors:
            part: Part = getattr(self._prepared(job), name)
            _keep(self._tensors, key, standardise(part, preprocessing), limit=3 * _KEPT)
        self._tensors.move_to_end(key)
        return self._tensors[key]


def perform(worker: Worker, assignment: Assignment) -> Done:
    """Have `worker` do it; what goes wrong in the work comes as an encoded `Failure`."""
    try:
        return worker.perform(assignment)
    except FederatedLearningError as exc:
        return Done(wire.encode(as_failure(exc, site_id=assignment.job["site_id"])))


def _keep(kept: OrderedDict[str, T], key: str, value: T, limit: int = _KEPT) -> None:
    kept[key] = value
    while len(kept) > limit:
        kept.popitem(last=False)


def _identity(job: Job) -> str:
    """Give what decides the prepared data; equal rows under another schema are other data."""
    return json.dumps([job["sha256"], job["schema"], job["split"], job["site_id"]], sort_keys=True)


def _prepare(job: Job) -> Parts:
    schema = DataSchema.model_validate(job["schema"])
    return prepare_parts(_read(job), schema, job["split"], job["site_id"])


def _read(job: Job) -> pd.DataFrame:
    path = Path(job["file"])
    if not path.exists() or file_sha256(path) != job["sha256"]:
        raise DataSiteError(
            f"{job['site_id']}: the registered data changed on disk since registration; "
            "the operator must remove and register them again"
        )
    return pd.read_parquet(path)


def standardise(part: Part, preprocessing: Preprocessing) -> Tensors:
    """Give a part's windows as (x - mean) / scale.

    Raises:
        DataSiteError: The preprocessing is for another number of features.
    """
    mean, scale = np.asarray(preprocessing["mean"]), np.asarray(preprocessing["scale"])
    if not len(mean) == len(scale) == part.x.shape[-1]:
        raise DataSiteError(
            f"the preprocessing is for {len(mean)} features, the data have {part.x.shape[-1]}"
        )
    inputs: npt.NDArray[np.float32] = ((part.x - mean) / scale).astype(np.float32)
    return Tensors(inputs=torch.from_numpy(inputs), labels=torch.from_numpy(part.y))


def _build(request: TrainRequest | EvaluateRequest, inputs: torch.Tensor) -> TorchModel:
    _, window_steps, sensors = inputs.shape
    return load_model(
        request["model"], request["parameters"], sensors=sensors, window_steps=window_steps
    )


def _objective(request: TrainRequest, state: Parameters) -> Objective:
    task = Task(
        hyperparameters=request["algorithm"]["hyperparameters"],
        received=request["parameters"],
        learning_rate=request["training"]["learning_rate"],
        control=request.get("control", {}),
        state=state,
    )
    return build_objective(request["algorithm"], request["training"], task)


def _update(
    job: Job, request: TrainRequest, sending: Sending, fitted: Fitted, begin: float
) -> ClientUpdate:
    return sending.put_into(
        ClientUpdate(
            kind="update",
            datasite_id=job["site_id"],
            round_num=request["round_num"],
            num_samples=fitted.num_samples,
            num_steps=fitted.num_steps,
            metrics={"train_loss": fitted.train_loss, "fit_s": time.perf_counter() - begin},
            parameters={},
        )
    )


def _probe(job: Job, request: TrainRequest, sending: Sending, begin: float) -> ClientUpdate:
    parameters = {
        name: tensor + PROBE_STEP if tensor.is_floating_point() else tensor
        for name, tensor in request["parameters"].items()
    }
    sending.parameters(parameters)
    fitted = Fitted(num_samples=1, num_steps=1, train_loss=0.0)
    return _update(job, request, sending, fitted, begin)


@torch.no_grad()
def _score(model: TorchModel, data: Tensors) -> ScoreCounts:
    batches = torch.split(data.inputs, _EVALUATION_BATCH)
    logits = torch.cat([model(batch) for batch in batches]).to(torch.float64)
    losses = functional.cross_entropy(logits, data.labels, reduction="none")
    scores = logits[:, 1] - logits[:, 0]
    return count_scores(scores.numpy(), data.labels.numpy(), losses.numpy())
