"""An experiment's course: here alone, and in `cancelling`, does an `ExperimentStatus` change."""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from core.configuration import parse
from core.enums import ExperimentStatus
from core.exceptions import FederatedLearningError
from core.interfaces import ModelInterface, OrchestratorInterface
from core.messages import EvaluationReport, Parameters
from core.parameters import digest
from orchestrator.agreement import model_spec
from orchestrator.algorithms import Algorithm, build_algorithm
from orchestrator.cancelling import how_to_go_on
from orchestrator.circuit import Circuits
from orchestrator.communication.base import SiteCommunication
from orchestrator.configuration import ExperimentConfig
from orchestrator.fleet import Fleet
from orchestrator.global_model import GlobalModel
from orchestrator.halting import Halt
from orchestrator.maintenance import Maintenance
from orchestrator.metrics import MetricsCollector
from orchestrator.observer import Observer
from orchestrator.preparation import Preparation
from orchestrator.private_runs import RunLedger
from orchestrator.round import evaluate_at_sites, run_round
from orchestrator.round_context import RoundContext, SecureSum
from orchestrator.runs import Checkpoint, RunStore
from orchestrator.stopping import Stopper
from orchestrator.travel import Travel
from orchestrator.waiting import Waiting

CommunicationFactory = Callable[[ExperimentConfig], SiteCommunication]


class ExperimentOrchestrator(OrchestratorInterface):
    """Takes experiments from configuration to results, and on again after a stop.

    Args:
        communicate: Makes the transport of one run.
        store: Where runs are kept.
        observer: Told of each run's course.
        halt: Whether a run is to stop before its end.
    """

    def __init__(
        self,
        communicate: CommunicationFactory,
        store: RunStore,
        observer: Observer | None = None,
        halt: Halt | None = None,
    ) -> None:
        self._communicate = communicate
        self._store = store
        self._observer = observer or Observer()
        self._halt = halt or Halt()

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
            self._halt.reset()
            self._move(experiment_id, ExperimentStatus.RUNNING)
            try:
                self._run(experiment_id, config)
            except KeyboardInterrupt:
                self._move(
                    experiment_id,
                    ExperimentStatus.CANCELLED,
                    how_to_go_on(experiment_id),
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
        saved, rounds = self._store.load_checkpoint(run_id), self._store.rounds(run_id)
        kept = _Kept(checkpoint=saved, rounds=rounds, stopper=_stopper(config, rounds, saved))
        if saved is not None and _is_over(saved.next_round, kept.stopper, config):
            self._store.move(run_id, ExperimentStatus.RUNNING, rounds_done=saved.next_round)
            self._finish(run_id, config, saved, kept.stopper)  # all that was left when it died
            return
        addresses = config.addresses()
        chosen = config.participation.choose(addresses)
        config.require_enough(len(chosen))
        attempts = config.limits.attempts
        fleet = Fleet(self._communicate(config), addresses, attempts=attempts, halt=self._halt)
        fleet.circuits.listeners.append(Maintenance(config.maintenance, run_id))
        fleet.keeper.chores += [
            partial(self._stop_when_asked, run_id),
            _board(self._store, run_id, fleet.circuits),
        ]
        fleet.keeper.start()
        try:
            self._run_rounds(run_id, config, fleet, chosen, kept)
        finally:
            self._halt.is_in_round = False
            fleet.close()

    def _stop_when_asked(self, run_id: str) -> None:
        if self._store.ownership(run_id).is_asked_to_stop():
            self._halt.at_once()

    def _run_rounds(
        self,
        run_id: str,
        config: ExperimentConfig,
        fleet: Fleet,
        chosen: tuple[str, ...],
        kept: "_Kept",
    ) -> None:
        saved = kept.checkpoint
        waiting = Waiting(
            fleet=fleet,
            limit_s=config.limits.sites_s,
            tell=lambda away, limit_s: self._observer.away(run_id, away, limit_s),
        )
        preparation = Preparation(
            run_id=run_id,
            config=config,
            chosen=chosen,
            folder=self._store.folder(run_id),
            waiting=waiting,
            observer=self._observer,
            start=self._store.start(run_id) if saved is None else None,
        )
        joining, model = preparation.agree()
        agreement = joining.agreement
        ledger = preparation.account(joining, kept.rounds)
        algorithm = build_algorithm(
            config.algorithm,
            model.get_parameters() if saved is None else saved.parameters,
            training=config.local_training(),
            num_sites=len(chosen),
        )
        if saved is not None:
            algorithm.state, algorithm.counted = saved.state, dict(saved.counted)
        held = GlobalModel(model, algorithm.broadcast())
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
                preparation.preprocessing(agreement) if saved is None else saved.preprocessing
            ),
            deadline_s=config.limits.call_s,
            waiting=waiting,
            stragglers=config.stragglers,
            travel=Travel(config.compression),
            secure=agreement.secure and SecureSum(run_id=run_id, settings=agreement.secure),
        )
        course = _Course(
            run_id=run_id,
            next_round=saved.next_round if saved else 0,
            algorithm=algorithm,
            context=context,
            stopper=kept.stopper,
            best=saved.best if saved else {},
            ledger=ledger,
        )
        if saved is None:
            self._save(course)
        self._store.move(run_id, ExperimentStatus.RUNNING, rounds_done=course.next_round)
        self._observer.started(run_id, course.next_round, config.rounds)
        while not _is_over(course.next_round, course.stopper, config):
            if self._halt.after_round:
                raise KeyboardInterrupt
            self._halt.is_in_round = True
            self._run_one(course, config, held)
        self._halt.is_in_round = False
        self._finish(run_id, config, _checkpoint(course), course.stopper)

    def _run_one(self, course: "_Course", config: ExperimentConfig, model: GlobalModel) -> None:
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

    def _save(self, course: "_Course") -> None:
        self._store.save_checkpoint(course.run_id, _checkpoint(course))

    def _finish(
        self, run_id: str, config: ExperimentConfig, last: Checkpoint, stopper: Stopper
    ) -> None:
        rounds = self._store.rounds(run_id)
        parameters = last.best or last.parameters
        chosen_round = stopper.best_round if last.best else None
        results = {
            "seed": config.seed,
            "dataset": config.dataset,
            "privacy_level": config.privacy.level,
            "parameters_sha256": digest(parameters),
            "stopped_early": last.next_round < config.rounds,
            **{name: value for name, value in rounds[-1].items() if name == "privacy"},
            "metrics": MetricsCollector().collect_experiment_metrics(
                {"rounds": rounds, "chosen_round": chosen_round}
            ),
        }
        self._store.save_results(run_id, results, parameters, last.preprocessing)

    def _move(self, run_id: str, status: ExperimentStatus, message: str = "") -> None:
        self._store.move(run_id, status, message=message)
        if status is not ExperimentStatus.RUNNING:
            self._observer.finished(run_id, status, message)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """What the disk has of a run when it begins or goes on."""

    checkpoint: Checkpoint | None
    rounds: Sequence[Mapping[str, Any]]
    stopper: Stopper


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


def _checkpoint(course: _Course) -> Checkpoint:
    algorithm = course.algorithm
    return Checkpoint(
        next_round=course.next_round,
        parameters=algorithm.parameters,
        preprocessing=course.context.preprocessing,
        state=algorithm.state,
        counted=algorithm.counted,
        best=course.best,
    )


def _is_over(next_round: int, stopper: Stopper, config: ExperimentConfig) -> bool:
    return next_round >= config.rounds or stopper.is_over


def _board(store: RunStore, run_id: str, circuits: Circuits) -> Callable[[], None]:
    """Give what keeps where the sites stand, when that has changed."""
    shown = -1

    def show() -> None:
        nonlocal shown
        if circuits.version != shown:
            shown = circuits.version
            store.save_sites(run_id, circuits.standings)

    return show


def _stopper(
    config: ExperimentConfig, rounds: Sequence[Mapping[str, Any]], saved: Checkpoint | None
) -> Stopper:
    """Give a stopper that has seen the rounds before the checkpoint."""
    done = saved.next_round if saved else 0
    return Stopper(config.early_stopping, [r for r in rounds if r["round_num"] < done])


def new_run_id(name: str) -> str:
    """Give an id that sorts by time and is not given twice."""
    return f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def _is_evaluated(round_num: int, config: ExperimentConfig) -> bool:
    return (round_num + 1) % config.evaluation.every == 0 or round_num + 1 == config.rounds


def _evaluator(
    context: RoundContext, algorithm: Algorithm
) -> Callable[[int, ModelInterface], Mapping[str, EvaluationReport]]:
    def evaluate(round_num: int, _model: ModelInterface) -> Mapping[str, EvaluationReport]:
        fewest = context.min_sites or len(context.plan_ids)
        return context.waiting.enough(
            lambda: evaluate_at_sites(round_num, algorithm.broadcast(), context),
            fewest,
            what=f"evaluation of round {round_num}",
        ).ok

    return evaluate
