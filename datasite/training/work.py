"""The trainer's work: an assignment in, a reply out. Pure but for a cache of prepared data.

The same function runs in the site's trainer process and, for whole federations in memory, in the
caller's own.
"""

import json
import math
import time
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple, NotRequired

import numpy as np
import torch
from torch.nn import functional
from typing_extensions import TypedDict

from core import wire
from core.clipping import clip_factor, shorten
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
from core.parameters import cast_like, distance, moved, require_finite
from core.privacy import PrivacySettings, is_private
from core.privacy_messages import PrivacyUnits
from core.schema import DataSchema
from core.seeds import derive_seed
from core.wire import Parcel
from datasite.data.copy import count_copy, read_copy
from datasite.data.features import FeatureRows, gather_features
from datasite.data.statistics import describe_rows
from datasite.data.windows import cut_parts
from datasite.failures import as_failure
from datasite.mechanism import Mechanism
from datasite.registry import file_sha256
from datasite.training.fit import Fitted, fit
from datasite.training.objectives import PROBE, PROBE_STEP, Objective, Task, build_objective
from datasite.training.sending import Memory, Sending, opened
from datasite.training.tensors import Tensors, prepare

_KEPT = 4
_EVALUATION_BATCH = 4096


class Job(TypedDict):
    """What the site adds to a request: where the plan's data lie and how they divide.

    `drift` has the metrics of `datasite.data.drift`, which go with every update; `privacy` is the
    plan's, None where nothing is done to updates; under differential privacy, `mechanism` is the
    plan's at this site.
    """

    site_id: str
    file: str
    sha256: str
    schema: dict[str, object]
    split: SplitSettings
    drift: dict[str, float]
    privacy: PrivacySettings | None
    mechanism: NotRequired[Mechanism]


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


class Worker:
    """Performs jobs one at a time; keeps the data that it prepared last, as tensors.

    Args:
        allocate: Gives the memory for what is answered.
    """

    def __init__(self, allocate: Allocate = bytearray) -> None:
        self._allocate = allocate
        self._prepared: OrderedDict[str, dict[str, Tensors]] = OrderedDict()

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
            case "privacy_account":
                return Done(wire.encode(self._units(job)))
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
        model = _build(request, data)
        objective = _objective(request, memory.state)
        fitted = _fitted(model, data, job, request, objective)
        parameters = model.given_up()
        require_finite(parameters, whose=job["site_id"])
        parameters = _shortened(parameters, request["parameters"], job["privacy"])
        sending = Sending(request, memory)
        arrived = sending.parameters(parameters)
        control = sending.control(objective.control(parameters, fitted.num_steps))
        update = _update(job, request, sending, fitted, begin)
        kept = sending.memory(objective.state(arrived, control))
        return Done(wire.encode(update, self._allocate), kept)

    def _evaluate(self, job: Job, request: EvaluateRequest) -> EvaluationReport:
        request = opened(request, job["schema"])
        model = _build(request, self._standardised(job, "test", request["preprocessing"]))
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
        return describe_rows(self._features(job), job["site_id"])

    def _units(self, job: Job) -> PrivacyUnits:
        """Count what differential privacy protects in the training part: windows, or machines."""
        schema = DataSchema.model_validate(job["schema"])
        part = cut_parts(self._features(job), schema, job["split"], job["site_id"]).train
        privacy = job["privacy"]
        by_machine = is_private(privacy) and privacy["unit"] == "machine"
        count = len(np.unique(part.machine)) if by_machine else len(part.y)
        return PrivacyUnits(kind="privacy_units", datasite_id=job["site_id"], units=count)

    def _features(self, job: Job) -> FeatureRows:
        return _features(job)

    def _standardised(self, job: Job, name: str, preprocessing: Preprocessing) -> Tensors:
        key = f"{_identity(job)} {preprocessing}"
        if key not in self._prepared:
            self._prepared[key] = prepare(
                self._features(job),
                DataSchema.model_validate(job["schema"]),
                job["split"],
                preprocessing,
                site_id=job["site_id"],
            )
            if len(self._prepared) > _KEPT:
                self._prepared.popitem(last=False)
        self._prepared.move_to_end(key)
        return self._prepared[key][name]


def perform(worker: Worker, assignment: Assignment) -> Done:
    """Have `worker` do it; what goes wrong in the work comes as an encoded `Failure`."""
    try:
        return worker.perform(assignment)
    except FederatedLearningError as exc:
        return Done(wire.encode(as_failure(exc, site_id=assignment.job["site_id"])))


def _identity(job: Job) -> str:
    """Give what decides the prepared data; equal rows under another schema are other data."""
    return json.dumps([job["sha256"], job["schema"], job["split"], job["site_id"]], sort_keys=True)


def _features(job: Job) -> FeatureRows:
    """Read the rows, which must be those that were registered."""
    path = Path(job["file"])
    if not path.exists() or file_sha256(path) != job["sha256"]:
        raise DataSiteError(
            f"{job['site_id']}: the registered data changed on disk since registration; "
            "the operator must remove and register them again"
        )
    schema = DataSchema.model_validate(job["schema"])
    return gather_features(read_copy(path), schema, rows=count_copy(path))


def _build(request: TrainRequest | EvaluateRequest, data: Tensors) -> TorchModel:
    return load_model(
        request["model"],
        request["parameters"],
        sensors=data.sensors,
        window_steps=data.window_steps,
    )


def _fitted(
    model: TorchModel, data: Tensors, job: Job, request: TrainRequest, objective: Objective
) -> Fitted:
    """Train the model in place, as the plan's privacy level says."""
    privacy = job["privacy"]
    positive_weight = request["preprocessing"]["positive_weight"]
    if is_private(privacy):
        from datasite.training.private_fit import fit_privately  # noqa: PLC0415 - Opacus is slow

        return fit_privately(
            model,
            data,
            settings=request["training"],
            positive_weight=positive_weight,
            objective=objective,
            privacy=privacy,
            mechanism=job["mechanism"],
        )
    return fit(
        model,
        data,
        settings=request["training"],
        positive_weight=positive_weight,
        objective=objective,
        seed=derive_seed(request["seed"], request["round_num"], job["site_id"], "batches"),
        stop_after_s=request.get("stop_after_s", math.inf),
    )


def _shortened(
    fitted: Parameters, received: Parameters, privacy: PrivacySettings | None
) -> Parameters:
    """Give the parameters as far from those received as the plan allows."""
    if privacy is None or privacy["level"] != "basic":
        return fitted
    factor = clip_factor(distance(fitted, received), privacy["clip_norm"])
    return cast_like(shorten(fitted, received, factor), received)


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
            metrics={
                **({} if fitted.train_loss is None else {"train_loss": fitted.train_loss}),
                "fit_s": time.perf_counter() - begin,
                **job["drift"],
            },
            parameters={},
        )
    )


def _probe(job: Job, request: TrainRequest, sending: Sending, begin: float) -> ClientUpdate:
    sending.parameters(moved(request["parameters"], PROBE_STEP))
    fitted = Fitted(num_samples=1, num_steps=1, train_loss=0.0)
    return _update(job, request, sending, fitted, begin)


@torch.no_grad()
def _score(model: TorchModel, data: Tensors) -> ScoreCounts:
    batches = torch.split(data.starts, _EVALUATION_BATCH)
    logits = torch.cat([model(data.windows(batch)) for batch in batches]).to(torch.float64)
    losses = functional.cross_entropy(logits, data.labels, reduction="none")
    scores = logits[:, 1] - logits[:, 0]
    return count_scores(scores.numpy(), data.labels.numpy(), losses.numpy())
