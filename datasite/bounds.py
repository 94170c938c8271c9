"""What an approved plan covers: the bounds that every request is held to.

Between the requests of a plan these may vary: the round, within those approved; the parameters and
what the algorithm sends beside them; a learning rate that is lower than approved, for a schedule;
the seed and the deadline, which let nothing more be learned. All else is as it was approved. The
preprocessing cannot stand in a plan, since it comes of all sites' sums; the first request that is
answered settles it (see `datasite.usage`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.codehash import installed_code_hash
from core.exceptions import PlanError

if TYPE_CHECKING:  # at run time they would bring PyTorch with them, which a command can do without
    from core.messages import EvaluateRequest, PlanProposal, TrainRequest


def excess_of(request: TrainRequest | EvaluateRequest, agreed: PlanProposal) -> str:
    """Say in what `request` goes beyond what was agreed; nothing when it stays within.

    The learning rate may be lower than in the plan, for a schedule; all else must be equal.
    """
    if request["round_num"] >= agreed["rounds"]:
        return f"covers rounds 0 to {agreed['rounds'] - 1}, not {request['round_num']}"
    if request["model"] != agreed["model"]:
        return "was approved for another model"
    if request.get("compression") != agreed.get("compression"):
        return (
            f"was approved for compression {agreed.get('compression', 'none')!r}, "
            f"not {request.get('compression', 'none')!r}"
        )
    return "" if request["kind"] == "evaluate" else _excess_of_training(request, agreed)


def _excess_of_training(request: TrainRequest, agreed: PlanProposal) -> str:
    if request["algorithm"] != agreed["algorithm"]:
        return "was approved for another algorithm"
    asked, allowed = request["training"], agreed["training"]
    highest = allowed["learning_rate"]
    if asked["learning_rate"] > highest or {**asked, "learning_rate": highest} != allowed:
        return "was approved for other training settings"
    if "stop_after_s" in request and not allowed.get("partial"):
        return "was approved for whole rounds of training, not for parts of them"
    return ""


def plan_refusal(site_id: str, plan_id: str, why: str) -> PlanError:
    """Give the error of a request that the plan does not allow; `why` goes on after its name."""
    return PlanError(f"{site_id}: plan {plan_id[:12]} {why}", site_id=site_id)


def require_installed_code(code_hash: str, *, site_id: str) -> None:
    """Do nothing when a plan is bound to the training code that is installed here.

    Raises:
        PlanError: It is bound to other code.
    """
    if code_hash != installed_code_hash():
        raise PlanError(
            f"{site_id}: the plan is bound to training code {code_hash[:12]}, installed "
            f"is {installed_code_hash()[:12]}; start a new run to propose a new plan",
            site_id=site_id,
        )
