"""An experiment's course: the only place where an `ExperimentStatus` changes."""

import secrets
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from core.configuration import parse
from core.enums import ExperimentStatus
from core.exceptions import ConfigurationError, FederatedLearningError
from core.interfaces import ModelInterface, OrchestratorInterface
from core.messages import EvaluationReport, Preprocessing
from core.models import TorchModel, build_model
from core.parameters import digest
from core.schema import DataSchema
from orchestrator.agreement import (
    Agreement,
    agree_on_preprocessing,
    collect_statistics,
    describe_sites,
    find_dataset,
    model_spec,
    propose,
    require_alike,
    training_settings,
    wait_for_approval,
)
from orchestrator.algorithms import Algorithm, build_algorithm
from orchestrator.communication.base import SiteCommunication
from orchestrator.configuration import ExperimentConfig, load_federation
from orchestrator.fleet import Answers, Fleet
from orchestrator.metrics import MetricsCollector
from orchestrator.observer import Observer
from orchestrator.round import RoundContext, evaluate_at_sites, run_round
from orchestrator.runs import Checkpoint, RunStore

CommunicationFactory = Callable[[ExperimentConfig], SiteCommunication]


class ExperimentOrchestrator(OrchestratorInterface):
    """Takes experiments from configuration to results, and on again after a stop.

    Args:
        communicate: Makes the transport of one run.
        store: Where runs are kept.
        observer: Told of each run's course.
    """

    def __init__(
        self,
        communicate: CommunicationFactory,
        store: RunStore,
        observer: Observer | None = None,
    ) -> None:
        self._communicate = communicate
        self._store = store
        self._observer = observer or Observer()

    def setup_experiment(self, config: dict[str, Any]) -> None:
        """See `OrchestratorInterface`.

        `config` is the content of an `experiment.yaml`; it may also have `experiment_id`, the id
        to record the experiment under.
        """
        settings = {name: value for name, value in config.items() if name != "experiment_id"}
        parsed = parse(settings, ExperimentConfig, source="experiment configuration")
        self.setup(parsed, str(config.get("experiment_id") or new_run_id(parsed.name)))

    def setup(self, config: ExperimentConfig, run_id: str) -> None:
        """Record a PENDING run of `config`."""
        self._store.create(run_id, config)

    def run_experiment(self, experiment_id: str) -> dict[str, Any]:
        """See `OrchestratorInterface`; a run that stopped goes on from its last checkpoint."""
        row = self._store.find(experiment_id)
        if row.status == ExperimentStatus.COMPLETED.name:
            return self.collect_results(experiment_id)
        config = self._store.config(experiment_id)
        with self._store.owned(experiment_id):
            self._move(experiment_id, ExperimentStatus.RUNNING)
            try:
                self._run(experiment_id, config)
            except KeyboardInterrupt:
                self._move(
                    experiment_id,
                    ExperimentStatus.CANCELLED,
                    f"stopped; to go on: orchestrator resume {experiment_id}",
                )
                raise
            except FederatedLearningError as exc:
                self._move(experiment_id, ExperimentStatus.FAILED, str(exc))
                raise
            except BaseException as exc:
                self._move(experiment_id, ExperimentStatus.FAILED, f"{type(exc).__name__}: {exc}")
                raise
            self._move(experiment_id, ExperimentStatus.COMPLETED)
        return self.collect_results(experiment_id)

    def collect_results(self, experiment_id: str) -> dict[str, Any]:
        """See `OrchestratorInterface`."""
        return self._store.results(experiment_id)

    def _run(self, run_id: str, config: ExperimentConfig) -> None:
        fleet = Fleet(
            self._communicate(config),
            load_federation(config.sites).sites,
            attempts=config.limits.attempts,
        )
        try:
            _require_known(config, fleet)
            self._run_rounds(run_id, config, fleet)
        finally:
            fleet.close()

    def _run_rounds(self, run_id: str, config: ExperimentConfig, fleet: Fleet) -> None:
        saved = self._store.load_checkpoint(run_id)
        agreement, model = self._agree(run_id, config, fleet)
        if saved is not None:
            model.set_parameters(saved.parameters)
        algorithm = build_algorithm(config.algorithm.name, model.get_parameters())
        participants = tuple(
            site_id
            for site_id in config.participants or fleet.site_ids
            if site_id in agreement.plan_ids
        )
        preprocessing = (
            saved.preprocessing
            if saved is not None
            else _statistics(config, fleet, agreement, participants)
        )
        context = RoundContext(
            fleet=fleet,
            plan_ids=agreement.plan_ids,
            participants=participants,
            rows=agreement.rows,
            min_sites=_min_sites(config, fleet),
            seed=config.seed,
            model=model_spec(config),
            training=training_settings(config),
            preprocessing=preprocessing,
            deadline_s=config.limits.call_s,
        )
        first = saved.next_round if saved else 0
        if saved is None:
            self._save(run_id, 0, algorithm, context)
        self._observer.started(run_id, first, config.rounds)
        for round_num in range(first, config.rounds):
            is_evaluated = _is_evaluated(round_num, config)
            collector = MetricsCollector(_evaluator(context) if is_evaluated else None)
            record = run_round(
                round_num, context=context, algorithm=algorithm, model=model, collector=collector
            )
            self._store.append_round(run_id, record)
            self._save(run_id, round_num + 1, algorithm, context)
            self._store.move(run_id, ExperimentStatus.RUNNING, rounds_done=round_num + 1)
            self._observer.round_done(run_id, record)
        self._finish(run_id, config, algorithm)

    def _agree(
        self, run_id: str, config: ExperimentConfig, fleet: Fleet
    ) -> tuple[Agreement, TorchModel]:
        """Log in, propose the plan, wait for its approval; and build the starting model."""
        fewest = config.min_sites or len(fleet.site_ids)
        logins = fleet.connect()
        self._observer.connected(
            run_id, list(logins.ok), {site: str(error) for site, error in logins.failed.items()}
        )
        logins.require(fewest, what="log-in")
        described = describe_sites(fleet, list(logins.ok))
        described.require(fewest, what="description")
        sites = described.ok
        schema = require_alike(sites, config.dataset)
        model = _initial_model(config, schema)
        algorithm = build_algorithm(config.algorithm.name, model.get_parameters())
        proposed = propose(fleet, sites, config, algorithm, run_id=run_id)
        proposed.require(fewest, what="proposal of the plan")
        approved = wait_for_approval(
            fleet,
            proposed.ok,
            limit_s=config.limits.approval_s,
            waiting=lambda site_ids: self._observer.waiting(run_id, site_ids),
        )
        approved.require(fewest, what="approval of the plan")
        wanted = set(config.participants or fleet.site_ids)
        failed = {**logins.failed, **described.failed, **proposed.failed, **approved.failed}
        Answers(
            ok={site: plan for site, plan in approved.ok.items() if site in wanted},
            failed={site: error for site, error in failed.items() if site in wanted},
        ).require(_min_sites(config, fleet), what="preparation of the participants")
        agreement = Agreement(
            schema=schema,
            plan_ids={site: decision["plan_id"] for site, decision in approved.ok.items()},
            rows={site: find_dataset(sites[site], config.dataset)["rows"] for site in approved.ok},
        )
        return agreement, model

    def _save(
        self, run_id: str, next_round: int, algorithm: Algorithm, context: RoundContext
    ) -> None:
        checkpoint = Checkpoint(
            next_round=next_round,
            parameters=algorithm.parameters,
            preprocessing=context.preprocessing,
        )
        self._store.save_checkpoint(run_id, checkpoint)

    def _finish(self, run_id: str, config: ExperimentConfig, algorithm: Algorithm) -> None:
        rounds = self._store.rounds(run_id)
        results = {
            "seed": config.seed,
            "dataset": config.dataset,
            "parameters_sha256": digest(algorithm.parameters),
            "metrics": MetricsCollector().collect_experiment_metrics({"rounds": rounds}),
        }
        self._store.save_results(run_id, results, algorithm.parameters)

    def _move(self, run_id: str, status: ExperimentStatus, message: str = "") -> None:
        self._store.move(run_id, status, message=message)
        if status is not ExperimentStatus.RUNNING:
            self._observer.finished(run_id, status, message)


def new_run_id(name: str) -> str:
    """Give an id that sorts by time and is not given twice."""
    return f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def _require_known(config: ExperimentConfig, fleet: Fleet) -> None:
    unknown = sorted(set(config.participants or ()) - set(fleet.site_ids))
    if unknown:
        raise ConfigurationError(
            f"participants: {', '.join(unknown)} not in {config.sites}; "
            f"there are: {', '.join(fleet.site_ids)}"
        )
    if config.min_sites is not None and config.min_sites > len(fleet.site_ids):
        raise ConfigurationError(
            f"min_sites is {config.min_sites}, but {config.sites} has {len(fleet.site_ids)} sites"
        )


def _min_sites(config: ExperimentConfig, fleet: Fleet) -> int:
    return config.min_sites or len(config.participants or fleet.site_ids)


def _initial_model(config: ExperimentConfig, schema: DataSchema) -> TorchModel:
    return build_model(
        model_spec(config),
        sensors=len(schema.features),
        window_steps=schema.window_steps,
        seed=config.seed,
    )


def _statistics(
    config: ExperimentConfig, fleet: Fleet, agreement: Agreement, participants: tuple[str, ...]
) -> Preprocessing:
    answers = collect_statistics(fleet, agreement.plan_ids, participants)
    answers.require(_min_sites(config, fleet), what="statistics")
    return agree_on_preprocessing(list(answers.ok.values()), config.training.positive_weight)


def _is_evaluated(round_num: int, config: ExperimentConfig) -> bool:
    return (round_num + 1) % config.evaluation.every == 0 or round_num + 1 == config.rounds


def _evaluator(
    context: RoundContext,
) -> Callable[[int, ModelInterface], Mapping[str, EvaluationReport]]:
    def evaluate(round_num: int, model: ModelInterface) -> Mapping[str, EvaluationReport]:
        answers = evaluate_at_sites(round_num, model, context)
        answers.require(context.min_sites, what=f"evaluation of round {round_num}")
        return answers.ok

    return evaluate
