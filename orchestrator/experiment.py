"""An experiment's course: the only place where an `ExperimentStatus` changes."""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from core.configuration import parse
from core.enums import ExperimentStatus
from core.exceptions import FederatedLearningError
from core.interfaces import ModelInterface, OrchestratorInterface
from core.messages import EvaluationReport, Parameters, Preprocessing
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
    wait_for_approval,
)
from orchestrator.algorithms import ALGORITHMS, Algorithm, build_algorithm
from orchestrator.communication.base import SiteCommunication
from orchestrator.configuration import ExperimentConfig
from orchestrator.fleet import Answers, Fleet
from orchestrator.metrics import MetricsCollector
from orchestrator.observer import Observer
from orchestrator.privacy import DifferentialPrivacy
from orchestrator.private_runs import RunLedger, ask_accounts, preprocessing_of
from orchestrator.roster import pinned
from orchestrator.round import evaluate_at_sites, run_round
from orchestrator.round_context import RoundContext, SecureSum
from orchestrator.runs import Checkpoint, RunStore
from orchestrator.stopping import Stopper
from orchestrator.travel import Travel

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
        addresses = config.addresses()
        chosen = config.participation.choose(addresses)
        config.require_enough(len(chosen))
        fleet = Fleet(self._communicate(config), addresses, attempts=config.limits.attempts)
        try:
            self._run_rounds(run_id, config, fleet, chosen)
        finally:
            fleet.close()

    def _run_rounds(
        self, run_id: str, config: ExperimentConfig, fleet: Fleet, chosen: tuple[str, ...]
    ) -> None:
        saved = self._store.load_checkpoint(run_id)
        agreement, model = self._agree(run_id, config, fleet, chosen)
        agreement, ledger = self._account(run_id, config, fleet, agreement, chosen)
        algorithm = build_algorithm(
            config.algorithm,
            model.get_parameters() if saved is None else saved.parameters,
            training=config.local_training(),
            num_sites=len(chosen),
        )
        if saved is not None:
            algorithm.state, algorithm.counted = saved.state, dict(saved.counted)
        model.hold(algorithm.broadcast())
        context = RoundContext(
            fleet=fleet,
            plan_ids=agreement.plan_ids,
            participants=chosen,
            participation=config.participation,
            rows=agreement.rows,
            min_sites=config.min_sites,
            seed=config.seed,
            model=model_spec(config),
            preprocessing=(
                saved.preprocessing
                if saved is not None
                else _preprocessing(config, fleet, agreement, chosen)
            ),
            deadline_s=config.limits.call_s,
            travel=Travel(config.compression),
            secure=agreement.secure and SecureSum(run_id=run_id, settings=agreement.secure),
        )
        course = _Course(
            run_id=run_id,
            next_round=saved.next_round if saved else 0,
            algorithm=algorithm,
            context=context,
            stopper=_stopper(config, self._store.rounds(run_id), saved),
            best=saved.best if saved else {},
            ledger=ledger,
        )
        if saved is None:
            self._save(course)
        self._store.move(run_id, ExperimentStatus.RUNNING, rounds_done=course.next_round)
        self._observer.started(run_id, course.next_round, config.rounds)
        while course.next_round < config.rounds and not course.stopper.is_over:
            self._run_one(course, config, model)
        self._finish(course, config)

    def _run_one(self, course: "_Course", config: ExperimentConfig, model: TorchModel) -> None:
        """Run the next round, and have it on disk before anybody is told."""
        round_num, algorithm = course.next_round, course.algorithm
        is_evaluated = _is_evaluated(round_num, config)
        collector = MetricsCollector(
            _evaluator(course.context, algorithm) if is_evaluated else None
        )
        record = run_round(
            round_num, context=course.context, algorithm=algorithm, model=model, collector=collector
        )
        if course.stopper.see(record) and course.stopper.restores:
            course.best = algorithm.parameters
        course.next_round = round_num + 1
        if course.ledger is not None:
            record["privacy"] = course.ledger.after(record)
        self._store.append_round(course.run_id, record)
        self._save(course)
        self._store.move(course.run_id, ExperimentStatus.RUNNING, rounds_done=course.next_round)
        self._observer.round_done(course.run_id, record)

    def _agree(
        self, run_id: str, config: ExperimentConfig, fleet: Fleet, chosen: tuple[str, ...]
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
        spec = ALGORITHMS[config.algorithm.name].spec(config.algorithm)
        known = Answers(ok=sites, failed={**logins.failed, **described.failed})
        secure = pinned(config, known, chosen, self._store.folder(run_id))
        proposed = propose(fleet, sites, config, spec, run_id=run_id, secure=secure)
        proposed.require(fewest, what="proposal of the plan")
        approved = wait_for_approval(
            fleet,
            proposed.ok,
            limit_s=config.limits.approval_s,
            waiting=lambda site_ids: self._observer.waiting(run_id, site_ids),
        )
        approved.require(fewest, what="approval of the plan")
        failed = {**logins.failed, **described.failed, **proposed.failed, **approved.failed}
        Answers(
            ok={site: plan for site, plan in approved.ok.items() if site in chosen},
            failed={site: error for site, error in failed.items() if site in chosen},
        ).require(config.min_sites or len(chosen), what="preparation of the participants")
        agreement = Agreement(
            schema=schema,
            plan_ids={site: decision["plan_id"] for site, decision in approved.ok.items()},
            rows={site: find_dataset(sites[site], config.dataset)["rows"] for site in approved.ok},
            secure=secure,
        )
        return agreement, model

    def _account(
        self,
        run_id: str,
        config: ExperimentConfig,
        fleet: Fleet,
        agreement: Agreement,
        chosen: tuple[str, ...],
    ) -> tuple[Agreement, RunLedger | None]:
        """Ask what the run costs, under differential privacy; go on with the sites that can pay."""
        if not isinstance(config.privacy, DifferentialPrivacy):
            return agreement, None
        there = [site_id for site_id in chosen if site_id in agreement.plan_ids]
        answers = ask_accounts(fleet, agreement.plan_ids, there, config)
        self._observer.accounted(run_id, answers.ok)
        answers.require(config.min_sites or len(chosen), what="privacy budget")
        plan_ids = {
            site_id: plan_id
            for site_id, plan_id in agreement.plan_ids.items()
            if site_id not in answers.failed
        }
        ledger = RunLedger(answers.ok, self._store.rounds(run_id))
        return replace(agreement, plan_ids=plan_ids), ledger

    def _save(self, course: "_Course") -> None:
        algorithm = course.algorithm
        checkpoint = Checkpoint(
            next_round=course.next_round,
            parameters=algorithm.parameters,
            preprocessing=course.context.preprocessing,
            state=algorithm.state,
            counted=algorithm.counted,
            best=course.best,
        )
        self._store.save_checkpoint(course.run_id, checkpoint)

    def _finish(self, course: "_Course", config: ExperimentConfig) -> None:
        rounds = self._store.rounds(course.run_id)
        parameters = course.best or course.algorithm.parameters
        chosen_round = course.stopper.best_round if course.best else None
        results = {
            "seed": config.seed,
            "dataset": config.dataset,
            "privacy_level": config.privacy.level,
            "parameters_sha256": digest(parameters),
            "stopped_early": course.next_round < config.rounds,
            **({} if course.ledger is None else {"privacy": course.ledger.so_far()}),
            "metrics": MetricsCollector().collect_experiment_metrics(
                {"rounds": rounds, "chosen_round": chosen_round}
            ),
        }
        self._store.save_results(course.run_id, results, parameters)

    def _move(self, run_id: str, status: ExperimentStatus, message: str = "") -> None:
        self._store.move(run_id, status, message=message)
        if status is not ExperimentStatus.RUNNING:
            self._observer.finished(run_id, status, message)


@dataclass(slots=True, kw_only=True)
class _Course:
    """Where a run stands: what changes from round to round, and a checkpoint keeps."""

    run_id: str
    next_round: int
    algorithm: Algorithm
    context: RoundContext
    stopper: Stopper
    best: Parameters
    ledger: RunLedger | None


def _stopper(
    config: ExperimentConfig, rounds: Sequence[Mapping[str, Any]], saved: Checkpoint | None
) -> Stopper:
    """Give a stopper that has seen the rounds before the checkpoint."""
    done = saved.next_round if saved else 0
    return Stopper(config.early_stopping, [r for r in rounds if r["round_num"] < done])


def new_run_id(name: str) -> str:
    """Give an id that sorts by time and is not given twice."""
    return f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def _initial_model(config: ExperimentConfig, schema: DataSchema) -> TorchModel:
    return build_model(
        model_spec(config),
        sensors=len(schema.features),
        window_steps=schema.window_steps,
        seed=config.seed,
    )


def _preprocessing(
    config: ExperimentConfig, fleet: Fleet, agreement: Agreement, chosen: tuple[str, ...]
) -> Preprocessing:
    if isinstance(config.privacy, DifferentialPrivacy):
        return preprocessing_of(agreement.schema, config.training.positive_weight)
    there = [site_id for site_id in chosen if site_id in agreement.plan_ids]
    answers = collect_statistics(fleet, agreement.plan_ids, there)
    answers.require(config.min_sites or len(chosen), what="statistics")
    return agree_on_preprocessing(list(answers.ok.values()), config.training.positive_weight)


def _is_evaluated(round_num: int, config: ExperimentConfig) -> bool:
    return (round_num + 1) % config.evaluation.every == 0 or round_num + 1 == config.rounds


def _evaluator(
    context: RoundContext, algorithm: Algorithm
) -> Callable[[int, ModelInterface], Mapping[str, EvaluationReport]]:
    def evaluate(round_num: int, _model: ModelInterface) -> Mapping[str, EvaluationReport]:
        answers = evaluate_at_sites(round_num, algorithm.broadcast(), context)
        fewest = context.min_sites or len(context.plan_ids)
        answers.require(fewest, what=f"evaluation of round {round_num}")
        return answers.ok

    return evaluate
