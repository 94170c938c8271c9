"""One round, from the algorithm's configuration to the committed global model."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.exceptions import AggregationError
from core.interfaces import ModelInterface
from core.messages import (
    EvaluateRequest,
    EvaluationReport,
    ModelSpec,
    Preprocessing,
    TrainingSettings,
)
from orchestrator.algorithms import Algorithm
from orchestrator.fleet import Answers, Fleet
from orchestrator.metrics import MetricsCollector


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundContext:
    """What stays the same from round to round.

    Attributes:
        plan_ids: The approved plan of each site.
        participants: The sites that train.
        rows: Rows that each site has registered.
        min_sites: Fewest updates that make a round.
        deadline_s: Longest a site may take for one request.
    """

    fleet: Fleet
    plan_ids: Mapping[str, str]
    participants: tuple[str, ...]
    rows: Mapping[str, int]
    min_sites: int
    seed: int
    model: ModelSpec
    training: TrainingSettings
    preprocessing: Preprocessing
    deadline_s: float


def run_round(
    round_num: int,
    *,
    context: RoundContext,
    algorithm: Algorithm,
    model: ModelInterface,
    collector: MetricsCollector,
) -> dict[str, Any]:
    """Train at the sites, aggregate, commit, evaluate; the round's record.

    Afterwards `algorithm.parameters` and `model` hold the new global parameters.

    Raises:
        ExperimentError: Fewer than `min_sites` answered; it names who is missing and why.
        AggregationError: An update does not fit; it names the site.
    """
    begin = time.perf_counter()
    answers = train_at_sites(round_num, context, algorithm)
    answers.require(context.min_sites, what=f"round {round_num}", round_num=round_num)
    updates = list(answers.ok.values())
    trained = time.perf_counter()

    algorithm.update_algorithm_state(updates)
    model.set_parameters(algorithm.parameters)
    aggregated = time.perf_counter()

    record = collector.collect_round_metrics(round_num, model, updates)
    record["missing"] = {site_id: str(error) for site_id, error in answers.failed.items()}
    record["seconds"] = {
        "train": trained - begin,
        "aggregate": aggregated - trained,
        "evaluate": time.perf_counter() - aggregated,
        "round": time.perf_counter() - begin,
    }
    return record


def train_at_sites(
    round_num: int, context: RoundContext, algorithm: Algorithm
) -> Answers[dict[str, Any]]:
    """Send the global model to every participant and give their updates."""
    config = algorithm.configure_client_training(round_num)

    def train(site_id: str) -> dict[str, Any]:
        communication = context.fleet.communication
        communication.send_model(algorithm.parameters, site_id)
        update = communication.request_training(
            {
                "plan_id": context.plan_ids[site_id],
                "seed": context.seed,
                "model": context.model,
                "training": context.training,
                "preprocessing": context.preprocessing,
                "deadline_s": context.deadline_s,
                **config,
            },
            site_id,
        )
        if update["num_samples"] > context.rows[site_id]:
            raise AggregationError(
                f"{site_id}: claims {update['num_samples']} samples, "
                f"has registered {context.rows[site_id]} rows",
                site_id=site_id,
            )
        return update

    return context.fleet.ask(context.participants, train)


def evaluate_at_sites(
    round_num: int, model: ModelInterface, context: RoundContext
) -> Answers[EvaluationReport]:
    """Have every site of the federation score `model`."""
    parameters = model.get_parameters()

    def evaluate(site_id: str) -> EvaluationReport:
        request = EvaluateRequest(
            kind="evaluate",
            plan_id=context.plan_ids[site_id],
            round_num=round_num,
            model=context.model,
            preprocessing=context.preprocessing,
            deadline_s=context.deadline_s,
            parameters=parameters,
        )
        return context.fleet.communication.request(request, EvaluationReport, site_id)

    return context.fleet.ask(context.plan_ids, evaluate)
