"""How a site becomes part of a run that is under way: it was away, or not there at first."""

from collections.abc import Callable
from dataclasses import dataclass

from core.messages import AlgorithmSpec, PlanDecision, SiteDescription
from orchestrator.agreement import (
    Agreement,
    describe,
    find_dataset,
    proposal_to,
    require_approved,
    require_like,
)
from orchestrator.configuration import ExperimentConfig
from orchestrator.fleet import Fleet


@dataclass(frozen=True, slots=True, kw_only=True)
class Joining:
    """Has one site after the other join a run.

    Attributes:
        algorithm: As plans name it.
        agreement: Of the run; who joins is added to it.
        example: A site that is part of it: the others must be like it.
        admit: Given a site and its approved plan; raises when it cannot take part for all that.
    """

    fleet: Fleet
    config: ExperimentConfig
    run_id: str
    algorithm: AlgorithmSpec
    agreement: Agreement
    example: SiteDescription
    admit: Callable[[str, str], None] = lambda _site_id, _plan_id: None

    def __call__(self, site_id: str) -> None:
        """Log in, compare what the site offers, propose the run: the same again is the same plan.

        Raises:
            CommunicationError: It is not reached, or not logged in to.
            DataError: Its data are of another schema, or are not there.
            ConfigurationError: It runs other training code.
            PlanError: Its operator has not approved the plan, or not yet.
            PrivacyBudgetError: Its privacy budget is too small for the run.
        """
        self.fleet.log_in(site_id)
        site = describe(self.fleet.communication, site_id)
        require_like(site, self.example, self.config.dataset)
        proposal = proposal_to(
            site, self.config, self.algorithm, run_id=self.run_id, secure=self.agreement.secure
        )
        decision = self.fleet.communication.request(proposal, PlanDecision, site_id)
        plan_id = require_approved(decision, site_id)
        self.admit(site_id, plan_id)
        self.agreement.rows[site_id] = find_dataset(site, self.config.dataset)["rows"]
        self.agreement.plan_ids[site_id] = plan_id
