"""What stays the same from round to round of a run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from core.exceptions import PlanError
from core.messages import ModelSpec, Preprocessing
from core.privacy import SecureAggregation
from orchestrator.algorithms import Algorithm
from orchestrator.fleet import Fleet
from orchestrator.participation import Participation
from orchestrator.stragglers import Stragglers
from orchestrator.travel import Travel
from orchestrator.waiting import Waiting


@dataclass(frozen=True, slots=True, kw_only=True)
class SecureSum:
    """What all plans of a run say of secure aggregation; every session is bound to it."""

    run_id: str
    settings: SecureAggregation


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundContext:
    """What stays the same from round to round.

    Attributes:
        plan_ids: The approved plan of each site.
        participants: The sites that may train, those among them that have no plan too: who is
            drawn for a round must not depend on who was there when the run started.
        participation: How many of them train in a round.
        rows: Rows that each site has registered.
        min_sites: Fewest updates that make a round; by default every site drawn for it.
        deadline_s: Longest a site may take for one request.
        waiting: How the run waits for sites that are away.
        stragglers: What is done about slow sites; by default they are waited for.
        travel: In which form parameters travel.
        secure: The sum that the sites' plans allow; None where single updates are sent.
    """

    fleet: Fleet
    plan_ids: Mapping[str, str]
    participants: tuple[str, ...]
    participation: Participation
    rows: Mapping[str, int]
    min_sites: int | None
    seed: int
    model: ModelSpec
    preprocessing: Preprocessing
    deadline_s: float
    waiting: Waiting
    stragglers: Stragglers | None = None
    travel: Travel = field(default_factory=Travel)
    secure: SecureSum | None = None

    def training(
        self, site_id: str, config: Mapping[str, Any], algorithm: Algorithm
    ) -> dict[str, Any]:
        """Give the fields of a `TrainRequest`, but for the tensors.

        Args:
            site_id: Whom to ask.
            config: `algorithm.configure_client_training`'s.
            algorithm: The run's.

        Raises:
            PlanError: The site has approved no plan.
        """
        if site_id not in self.plan_ids:
            raise PlanError(
                f"{site_id}: has approved no plan of this run: it was not reached when the run "
                "started, it refused, or its privacy budget does not allow the run",
                site_id=site_id,
            )
        return {
            "plan_id": self.plan_ids[site_id],
            "seed": self.seed,
            "model": self.model,
            "preprocessing": self.preprocessing,
            "deadline_s": self.deadline_s,
            **config,
            **algorithm.configure_site(site_id),
            **self._memory(site_id, algorithm),
            **self._limit(),
            **self.travel.form,
        }

    def _memory(self, site_id: str, algorithm: Algorithm) -> dict[str, int]:
        """Give the round after which the site kept what it had rounded off, where it did."""
        if self.travel.how.is_lossy and site_id in algorithm.counted:
            return {"state_round": algorithm.counted[site_id]}
        return {}

    def _limit(self) -> dict[str, float]:
        """Give after how long a site sends what it has, where the plan allows that."""
        stop_after_s = None if self.stragglers is None else self.stragglers.stop_after_s
        return {} if stop_after_s is None else {"stop_after_s": stop_after_s}
