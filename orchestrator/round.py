"""One round, from the algorithm's configuration to the committed global model."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, cast

from loguru import logger

from core.exceptions import AggregationError, FederatedLearningError
from core.messages import (
    CancelRequest,
    ClientUpdate,
    EvaluateRequest,
    EvaluationReport,
    PlanDecision,
)
from core.wire import Packed
from orchestrator.algorithms import Algorithm, Gathered, Gathering, Summed
from orchestrator.fleet import Answers
from orchestrator.global_model import GlobalModel
from orchestrator.metrics import MetricsCollector
from orchestrator.round_context import RoundContext
from orchestrator.secure_round import sum_at_sites
from orchestrator.stragglers import Patience

_TENSORS = {"parameters", "control"}
_CALL_OFF_S = 2.0


def run_round(
    round_num: int,
    *,
    context: RoundContext,
    algorithm: Algorithm,
    model: GlobalModel,
    collector: MetricsCollector,
) -> dict[str, Any]:
    """Train at the sites, aggregate, commit, evaluate; the round's record.

    Afterwards `algorithm.parameters` are the new global parameters, and `model` holds them.

    Raises:
        ExperimentError: Fewer than `min_sites` sent an update that fits; it names who is missing
            and why.
        AggregationError: The updates cannot be combined.
    """
    begin, traffic = time.perf_counter(), context.fleet.communication.traffic
    before = traffic.so_far()
    drawn = context.participation.draw(context.participants, seed=context.seed, round_num=round_num)
    answers, gathered = _enough_updates(round_num, drawn, context, algorithm)
    trained = time.perf_counter()

    algorithm.commit(gathered)
    pooled = {"loss": gathered.loss} if isinstance(gathered, Summed) else {}
    del gathered
    model.hold(algorithm.broadcast())
    aggregated = time.perf_counter()

    record = collector.collect_round_metrics(round_num, model, list(answers.ok.values()))
    record["training"].update(pooled)
    record["aggregation"] = {
        "method": algorithm.aggregator.method,
        "sites": dict(algorithm.last_shares),
    }
    record["missing"] = {site_id: str(error) for site_id, error in answers.failed.items()}
    record["bytes"] = asdict(traffic.so_far() - before)
    record["seconds"] = {
        "train": trained - begin,
        "aggregate": aggregated - trained,
        "evaluate": time.perf_counter() - aggregated,
        "round": time.perf_counter() - begin,
    }
    return record


def _enough_updates(
    round_num: int, drawn: Sequence[str], context: RoundContext, algorithm: Algorithm
) -> tuple[Answers[dict[str, Any]], Gathered]:
    """Give the updates of a round; when sites have to be waited for, they are gathered anew."""
    newest: list[Gathered] = []

    def train() -> Answers[dict[str, Any]]:
        gathered, answers = gather(round_num, drawn, context, algorithm)
        newest[:] = [gathered]
        return answers

    fewest = context.min_sites or len(drawn)
    answers = context.waiting.enough(train, fewest, what=f"round {round_num}", round_num=round_num)
    return answers, newest.pop()


def gather(
    round_num: int, site_ids: Sequence[str], context: RoundContext, algorithm: Algorithm
) -> tuple[Gathered, Answers[dict[str, Any]]]:
    """Have these sites train; what came of it, all together and, without tensors, by site."""
    if context.secure is not None:
        patience = _patience(round_num, "round", context)
        return sum_at_sites(
            round_num, site_ids, context, algorithm, secure=context.secure, patience=patience
        )
    gathered = algorithm.gather()
    return gathered, train_at_sites(round_num, site_ids, context, algorithm, gathered)


def train_at_sites(
    round_num: int,
    site_ids: Sequence[str],
    context: RoundContext,
    algorithm: Algorithm,
    gathered: Gathering,
) -> Answers[dict[str, Any]]:
    """Send the global model to these sites and gather their updates; one that does not fit failed.

    Returns:
        The updates without their tensors, which were added to `gathered` and are not kept.
    """
    config = algorithm.configure_client_training(round_num)
    config.pop("control", None)  # it is part of what is broadcast
    model = algorithm.broadcast()
    sent = context.travel.outgoing(model)

    def train(site_id: str) -> tuple[ClientUpdate, float]:
        request = context.training(site_id, config, algorithm)
        communication = context.fleet.communication
        communication.send_model(sent, site_id)
        try:
            answer = communication.request_training(request, site_id)
        finally:
            communication.forget_model(site_id)
        update = context.travel.incoming(cast("ClientUpdate", answer), model)
        delta_norm = algorithm.require_valid(update)
        if update["num_samples"] > context.rows[site_id]:
            raise AggregationError(
                f"{site_id}: claims {update['num_samples']} samples, "
                f"has registered {context.rows[site_id]} rows",
                site_id=site_id,
            )
        return update, delta_norm

    def add(_site_id: str, answer: tuple[ClientUpdate, float]) -> dict[str, Any]:
        update, delta_norm = answer
        gathered.add(update, delta_norm)
        return {name: value for name, value in update.items() if name not in _TENSORS}

    return context.fleet.take(site_ids, train, add, _patience(round_num, "round", context))


def evaluate_at_sites(
    round_num: int, model: Packed, context: RoundContext
) -> Answers[EvaluationReport]:
    """Have every site of the federation score `model`."""
    parameters = context.travel.outgoing(Packed(model) if model.control else model)

    def evaluate(site_id: str) -> EvaluationReport:
        request = EvaluateRequest(
            kind="evaluate",
            plan_id=context.plan_ids[site_id],
            round_num=round_num,
            model=context.model,
            preprocessing=context.preprocessing,
            deadline_s=context.deadline_s,
            parameters=parameters,
            **context.travel.form,
        )
        return context.fleet.communication.request(request, EvaluationReport, site_id)

    patience = _patience(round_num, "evaluation of round", context)
    return context.fleet.ask(context.plan_ids, evaluate, patience)


def _patience(round_num: int, what: str, context: RoundContext) -> Patience:
    """Give how long the sites are waited for, and how one is told that it need not go on."""

    def call_off(site_id: str) -> None:
        request = CancelRequest(
            kind="cancel", plan_id=context.plan_ids[site_id], round_num=round_num
        )
        try:
            context.fleet.communication.request(
                request, PlanDecision, site_id, deadline_s=_CALL_OFF_S
            )
        except FederatedLearningError as exc:
            logger.bind(site_id=site_id).warning("{} was not told to stop: {}", site_id, exc)

    return Patience(
        what=f"{what} {round_num}",
        call_off=call_off,
        cutoff_s=math.inf if context.stragglers is None else context.stragglers.cutoff_s,
        minimum=context.min_sites or 1,
    )
