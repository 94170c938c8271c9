"""What a run needs before its first round, a new one or a resumed one: sites, plans, budgets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.messages import Preprocessing
from core.models import TorchModel, build_model
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
from orchestrator.algorithms import ALGORITHMS
from orchestrator.configuration import ExperimentConfig
from orchestrator.fleet import Answers
from orchestrator.joining import Joining
from orchestrator.observer import Observer
from orchestrator.privacy import DifferentialPrivacy
from orchestrator.private_runs import RunLedger, ask_account, ask_accounts, preprocessing_of
from orchestrator.roster import pinned
from orchestrator.start import Start
from orchestrator.waiting import Waiting


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """Has enough sites take part in a run; whoever is missing, and was not needed, joins later.

    Attributes:
        chosen: The sites that may train.
        folder: The run's.
        waiting: How it is waited for those that are away.
        observer: Told who is there, and what it costs.
        start: What the run starts from; None for its seed, or for a checkpoint.
    """

    run_id: str
    config: ExperimentConfig
    chosen: tuple[str, ...]
    folder: Path
    waiting: Waiting
    observer: Observer
    start: Start | None = None

    def agree(self) -> tuple[Joining, TorchModel]:
        """Log in, propose the plan, wait for its approval; and build the starting model.

        Raises:
            ConfigurationError: `start` does not fit the model or the data.
            FederatedLearningError: Too few sites take part; it says who is missing and why.
        """
        fleet, config, waiting = self.waiting.fleet, self.config, self.waiting
        fewest = config.min_sites or len(fleet.site_ids)
        logins = waiting.enough(self._connect, fewest, what="log-in")
        there = list(logins.ok)
        described = waiting.enough(lambda: describe_sites(fleet, there), fewest, what="description")
        sites = described.ok
        schema = require_alike(sites, config.dataset)
        model = _initial_model(config, schema)
        if self.start is not None:
            self.start.fill(model)
        spec = ALGORITHMS[config.algorithm.name].spec(config.algorithm)
        known = Answers(ok=sites, failed={**logins.failed, **described.failed})
        secure = pinned(config, known, self.chosen, self.folder)
        proposed = waiting.enough(
            lambda: propose(fleet, sites, config, spec, run_id=self.run_id, secure=secure),
            fewest,
            what="proposal of the plan",
        )
        approved = wait_for_approval(
            fleet,
            proposed.ok,
            limit_s=config.limits.approval_s,
            waiting=lambda site_ids: self.observer.waiting(self.run_id, site_ids),
        )
        approved.require(fewest, what="approval of the plan")
        failed = {**known.failed, **proposed.failed, **approved.failed}
        Answers(
            ok={site: plan for site, plan in approved.ok.items() if site in self.chosen},
            failed={site: error for site, error in failed.items() if site in self.chosen},
        ).require(self._fewest, what="preparation of the participants")
        agreement = Agreement(
            schema=schema,
            plan_ids={site: decision["plan_id"] for site, decision in approved.ok.items()},
            rows={site: find_dataset(sites[site], config.dataset)["rows"] for site in approved.ok},
            secure=secure,
        )
        joining = fleet.keeper.join = Joining(
            fleet=fleet,
            config=config,
            run_id=self.run_id,
            algorithm=spec,
            agreement=agreement,
            example=sites[min(agreement.plan_ids)],
        )
        for site, error in failed.items():
            fleet.keeper.send_out(site, error)
        return joining, model

    def account(self, joining: Joining, rounds: Sequence[Mapping[str, Any]]) -> RunLedger | None:
        """Ask what the run costs, under differential privacy; go on with the sites that can pay.

        Args:
            joining: What `agree` gave; who joins later is asked too.
            rounds: The records of the rounds that were run before.

        Raises:
            FederatedLearningError: Too few sites can pay; it says who cannot and why.
        """
        if not isinstance(self.config.privacy, DifferentialPrivacy):
            return None
        fleet, plan_ids = self.waiting.fleet, joining.agreement.plan_ids
        there = self._there(joining.agreement)
        answers = self.waiting.enough(
            lambda: ask_accounts(fleet, plan_ids, there, self.config),
            self._fewest,
            what="privacy budget",
        )
        self.observer.accounted(self.run_id, answers.ok)
        for site_id in answers.failed:
            del plan_ids[site_id]
        ledger = RunLedger(answers.ok, rounds)

        def admit(site_id: str, plan_id: str) -> None:
            ledger.enter(site_id, ask_account(fleet, plan_id, self.config, site_id))

        fleet.keeper.join = replace(joining, admit=admit)
        return ledger

    def preprocessing(self, agreement: Agreement) -> Preprocessing:
        """Give one scaler and one class weight, from the sites' sums or from the schema alone.

        The scaler of a start goes before both: its parameters were fitted to data in that scale.

        Raises:
            ConfigurationError: The scaler of the start is for other features.
            FederatedLearningError: Too few sites tell their sums, or nothing follows from them.
        """
        agreed = self._of_data(agreement)
        return agreed if self.start is None else self.start.scaled(agreed)

    def _of_data(self, agreement: Agreement) -> Preprocessing:
        weighting = self.config.training.positive_weight
        if isinstance(self.config.privacy, DifferentialPrivacy):
            return preprocessing_of(agreement.schema, weighting)
        there = self._there(agreement)
        answers = self.waiting.enough(
            lambda: collect_statistics(self.waiting.fleet, agreement.plan_ids, there),
            self._fewest,
            what="statistics",
        )
        return agree_on_preprocessing(list(answers.ok.values()), weighting)

    @property
    def _fewest(self) -> int:
        """How many of the chosen sites are enough."""
        return self.config.min_sites or len(self.chosen)

    def _there(self, agreement: Agreement) -> list[str]:
        return [site_id for site_id in self.chosen if site_id in agreement.plan_ids]

    def _connect(self) -> Answers[bool]:
        logins = self.waiting.fleet.connect()
        failed = {site: str(error) for site, error in logins.failed.items()}
        self.observer.connected(self.run_id, list(logins.ok), failed)
        return logins


def _initial_model(config: ExperimentConfig, schema: DataSchema) -> TorchModel:
    return build_model(
        model_spec(config),
        sensors=len(schema.features),
        window_steps=schema.window_steps,
        seed=config.seed,
    )
