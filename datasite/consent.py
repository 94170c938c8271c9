"""What stands between a request and the data: an approved plan, its bounds, and unchanged data.

A request is held to its plan when it comes in; once more in its turn, for which it may have waited;
a few times a second while it is worked on; and in the transaction that keeps its result. Whatever
the operator revokes meanwhile is neither kept nor answered.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeGuard, cast

from core.codehash import installed_code_hash
from core.messages import EvaluateRequest, Message, StatisticsRequest, TrainRequest
from core.privacy_messages import PrivacyRequest
from core.secure_messages import SecureRequest
from datasite.caller import Caller
from datasite.plans import Plan
from datasite.records import Records
from datasite.registry import Dataset
from datasite.seals import Seals
from datasite.statements import Driven
from datasite.usage import Usage

DataRequest = TrainRequest | EvaluateRequest | StatisticsRequest
WorkRequest = DataRequest | PrivacyRequest
WORK: Final = frozenset({"train", "evaluate", "statistics", "privacy_account"})
"""The kinds of requests that need an approved plan."""


@dataclass(slots=True, kw_only=True)
class Grant:
    """Leave to work on one request.

    Attributes:
        plan: Its plan.
        dataset: The data that the plan names.
        request: The request.
        facts: What the audit log is to have of the work.
    """

    plan: Plan
    dataset: Dataset
    request: WorkRequest
    facts: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.facts = facts_of(self.plan, self.request)


class Consent:
    """Gives leave to work, and takes it back.

    Args:
        records: The site's.
    """

    def __init__(self, records: Records) -> None:
        site_id = records.config.site_id
        self._ledger = records.ledger
        self._plans = records.plans
        self._registry = records.registry
        self._seals = Seals(site_id=site_id)
        self._usage = Usage(records.ledger, site_id=site_id)

    def grant(self, request: WorkRequest, caller: Caller) -> Grant:
        """Give leave when the caller's plan covers the request.

        Raises:
            SecurityError: It does not, or the data are no longer what was registered.
            DataError: The plan's data are not registered any more.
        """
        mark = self._ledger.mark()
        plan = self._plans.require_approved(request["plan_id"], caller, mark)
        if is_of_a_round(request):
            self._plans.require_covers(plan, request)
        agreed = plan.proposal
        dataset = self._registry.find(agreed["dataset"], agreed["dataset_version"], mark)
        self._seals.require_unbroken(dataset)
        return Grant(plan=plan, dataset=dataset, request=request)

    def begin(self, grant: Grant) -> None:
        """Do nothing when the plan has room for the request, whose turn has come.

        Raises:
            PlanError: The plan is used up, or the run has another preprocessing.
        """
        if is_of_a_round(grant.request):
            sha256 = self._usage.require_left(grant.plan, grant.request)
            grant.facts["preprocessing"] = sha256

    def require_standing(self, grant: Grant) -> None:
        """Do nothing while the plan is neither revoked nor expired.

        Raises:
            PlanError: It is.
        """
        self._plans.require_standing(grant.plan.plan_id)

    @contextmanager
    def conclude(self, grant: Grant, reply: Message) -> Iterator[Driven]:
        """Give the transaction that keeps what came of the work.

        Raises:
            PlanError: The plan was revoked or expired meanwhile: nothing is kept.
        """
        with self._ledger.transaction() as connection:
            self._plans.require_standing(grant.plan.plan_id, connection)
            yield connection
        if is_of_a_round(grant.request) and reply["kind"] != "failure":
            self._usage.note(grant.plan.plan_id, grant.request, grant.facts["preprocessing"])


def facts_of(plan: Plan, request: WorkRequest | SecureRequest) -> dict[str, Any]:
    """Give what the audit log has of each request under a plan, done or refused."""
    facts: dict[str, Any] = {
        "dataset": plan.proposal["dataset"],
        "data_version": plan.proposal["dataset_version"],
        "code_hash": installed_code_hash(),
    }
    round_num = cast("Mapping[str, Any]", request).get("round_num")
    return facts if round_num is None else {**facts, "round_num": round_num}


def is_of_a_round(
    request: WorkRequest | SecureRequest,
) -> TypeGuard[TrainRequest | EvaluateRequest]:
    """Tell whether a request is one of those that a plan has in each round."""
    return request["kind"] in {"train", "evaluate"}
