"""What becomes of a proposal: the site's rules, the operator's decisions, and ids cut short."""

from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from sites import RESEARCHER, RIVAL, ROWS, proposal
from sqlalchemy import select

from core.codehash import installed_code_hash
from core.exceptions import PlanError
from core.plans import PlanStatus
from datasite.configuration import Rule
from datasite.ledger import AuditRow, Ledger, PlanRow
from datasite.plans import Plan, Plans

WAITING, APPROVED, DENIED, REVOKED = PlanStatus

PATHS: dict[PlanStatus, list[PlanStatus]] = {
    WAITING: [],
    APPROVED: [APPROVED],
    DENIED: [DENIED],
    REVOKED: [APPROVED, REVOKED],
}
"""How a plan comes to stand where it stands."""

MOVES = {(WAITING, APPROVED), (WAITING, DENIED), (APPROVED, REVOKED)}


def plans_of(ledger: Ledger, *rules: dict[str, Any], plan_days: int = 30) -> Plans:
    """Give the plans of a site with these rules."""
    policy = [Rule.model_validate(rule) for rule in rules]
    return Plans(ledger, policy=policy, plan_days=plan_days, site_id="factory-1")


def propose(plans: Plans, caller: Any = RESEARCHER, **changes: object) -> Plan:
    """Propose a plan of three rounds on `press`."""
    return plans.propose(cast("Any", proposal(**changes)), caller, rows=ROWS)


def plan_at(plans: Plans, status: PlanStatus) -> Plan:
    """Give a plan that stands at `status`."""
    plan = propose(plans)
    for step in PATHS[status]:
        plan = plans.decide(plan.plan_id, step, reason="so be it", by="operator")
    return plan


def add_row(ledger: Ledger, plan_id: str) -> None:
    """Put a plan with a chosen id into the ledger."""
    with ledger.write() as session:
        session.add(
            PlanRow(
                plan_id=plan_id,
                researcher=RESEARCHER.email,
                proposal=proposal(),
                status=WAITING.name,
                reason="",
                decided_by="",
                proposed_at="2026-01-01T00:00:00+00:00",
                expires_at="2099-01-01T00:00:00+00:00",
            )
        )


APPROVE_LAB = {"name": "lab", "decision": "approve", "researcher": RESEARCHER.email}
DENY_ALL = {"name": "closed", "decision": "deny"}


@pytest.mark.parametrize(
    ("rules", "status", "reason"),
    [
        ([], WAITING, "waits for the operator"),
        ([APPROVE_LAB, DENY_ALL], APPROVED, "by the site's rule 'lab'"),
        ([DENY_ALL, APPROVE_LAB], DENIED, "by the site's rule 'closed'"),
        ([APPROVE_LAB | {"dataset": "mill"}, DENY_ALL], DENIED, "by the site's rule 'closed'"),
    ],
    ids=["none", "approve first", "deny first", "the first that fits"],
)
def test_the_first_rule_that_fits_decides(
    ledger: Ledger, rules: list[dict[str, Any]], status: PlanStatus, reason: str
) -> None:
    """Rules are tried in order; the reason names the one that decided."""
    plan = propose(plans_of(ledger, *rules))
    assert (plan.status, plan.reason) == (status, reason)
    assert plan.decided_by == (reason.removeprefix("by the site's ") if rules else "")


@pytest.mark.parametrize(
    ("condition", "fits"),
    [
        ({}, True),
        ({"researcher": RIVAL.email}, False),
        ({"dataset": "press"}, True),
        ({"dataset": "mill"}, False),
        ({"max_rounds": 3}, True),
        ({"max_rounds": 2}, False),
        ({"dataset": "press", "max_rounds": 2}, False),
    ],
    ids=[
        "researcher",
        "another researcher",
        "dataset",
        "another dataset",
        "as many rounds",
        "too many rounds",
        "one of two conditions",
    ],
)
def test_a_rule_decides_where_each_of_its_conditions_holds(
    ledger: Ledger, condition: dict[str, Any], *, fits: bool
) -> None:
    """A plan of three rounds on `press` by the researcher, against one rule."""
    plan = propose(plans_of(ledger, APPROVE_LAB | condition))
    assert plan.status is (APPROVED if fits else WAITING)


def test_a_rule_that_came_later_does_not_decide_an_old_plan(ledger: Ledger) -> None:
    """A plan that waits goes on waiting for the operator, who has seen it."""
    propose(plans_of(ledger))
    assert propose(plans_of(ledger, APPROVE_LAB)).status is WAITING


@pytest.mark.parametrize("target", list(PlanStatus), ids=lambda status: f"to {status.name}")
@pytest.mark.parametrize("start", list(PlanStatus), ids=lambda status: f"from {status.name}")
def test_a_plan_moves_as_drawn_and_no_other_way(
    ledger: Ledger, start: PlanStatus, target: PlanStatus
) -> None:
    """Three moves of sixteen; each of the others is refused by name and changes nothing."""
    plans = plans_of(ledger)
    plan = plan_at(plans, start)
    if (start, target) in MOVES:
        moved = plans.decide(plan.plan_id, target, reason="because", by="operator")
        assert (moved.status, moved.reason, moved.decided_by) == (target, "because", "operator")
        assert plans.find(plan.plan_id) == moved
        return
    with pytest.raises(PlanError, match=f"is {start.name} and cannot become {target.name}"):
        plans.decide(plan.plan_id, target, reason="because", by="operator")
    assert plans.find(plan.plan_id) == plan


def test_every_move_is_in_the_audit_log(ledger: Ledger) -> None:
    """Who proposed, who approved, who revoked, and why."""
    plan = plan_at(plans_of(ledger), REVOKED)
    with ledger.read() as session:
        rows = session.scalars(select(AuditRow).order_by(AuditRow.seq)).all()
    assert [(row.who, row.action) for row in rows] == [
        (RESEARCHER.email, "plan proposed"),
        ("operator", "plan approved"),
        ("operator", "plan revoked"),
    ]
    assert {row.plan_id for row in rows} == {plan.plan_id}
    assert rows[-1].detail == {
        "run_id": "run-1",
        "dataset": "press",
        "data_version": 1,
        "code_hash": installed_code_hash(),
        "reason": "so be it",
    }


def test_a_plan_expires_after_its_days(ledger: Ledger) -> None:
    """Seven days from now, give or take a minute."""
    plan = propose(plans_of(ledger, plan_days=7))
    left = datetime.fromisoformat(plan.expires_at) - datetime.now(UTC)
    assert timedelta(days=7, minutes=-1) < left <= timedelta(days=7)
    assert not plan.is_expired


def test_the_days_count_from_the_approval(ledger: Ledger) -> None:
    """An operator who approves late gives the plan its whole time."""
    plans = plans_of(ledger, plan_days=7)
    add_row(ledger, "old")
    with ledger.write() as session:
        session.get_one(PlanRow, "old").expires_at = "2026-01-08T00:00:00+00:00"
    approved = plans.decide("old", PlanStatus.APPROVED, reason="late", by="operator")
    assert datetime.fromisoformat(approved.expires_at) > datetime.now(UTC) + timedelta(days=6)


def test_plans_are_listed_oldest_first(ledger: Ledger) -> None:
    """In the order in which they were proposed."""
    plans = plans_of(ledger)
    proposed = [propose(plans, run_id=f"run-{number}").plan_id for number in range(3)]
    assert [plan.plan_id for plan in plans.all()] == proposed


def test_the_start_of_an_id_finds_its_plan(ledger: Ledger) -> None:
    """Any start that only one plan has, down to the whole id."""
    for plan_id in ("ab" + "0" * 62, "ac" + "0" * 62):
        add_row(ledger, plan_id)
    plans = plans_of(ledger)
    assert plans.find("ab").plan_id == "ab" + "0" * 62
    assert plans.find("ac" + "0" * 62).plan_id == "ac" + "0" * 62


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        ("a", "more than one plan has an id that starts with 'a'"),
        ("b", "no plan has an id that starts with 'b'"),
        ("c", "no plan has an id that starts with 'c'"),
    ],
    ids=["ambiguous", "in the middle", "unknown"],
)
def test_a_start_that_does_not_tell_is_refused(ledger: Ledger, prefix: str, message: str) -> None:
    """The operator is told whether none or several plans start so."""
    for plan_id in ("ab" + "0" * 62, "ac" + "0" * 62):
        add_row(ledger, plan_id)
    with pytest.raises(PlanError, match=message):
        plans_of(ledger).find(prefix)


@pytest.mark.parametrize("prefix", ["%", "_", "a_", "%b", "/", "\\"])
def test_no_character_of_a_prefix_stands_for_others(ledger: Ledger, prefix: str) -> None:
    """`%` and `_` mean themselves: they decide no plan that nobody named."""
    add_row(ledger, "ab" + "0" * 62)
    with pytest.raises(PlanError, match="no plan has an id"):
        plans_of(ledger).find(prefix)


def test_an_empty_id_decides_nothing(ledger: Ledger) -> None:
    """A shell variable that was not set is not the name of the only plan."""
    plans = plans_of(ledger)
    plan = propose(plans)
    with pytest.raises(PlanError, match="the plan's id is empty"):
        plans.decide("", APPROVED, reason="oops", by="operator")
    assert plans.find(plan.plan_id).status is WAITING


def test_a_researcher_gives_the_whole_id(ledger: Ledger) -> None:
    """Only the operator may cut ids short: the start of an id is no plan of a researcher's."""
    plans = plans_of(ledger)
    plan = propose(plans)
    assert plans.query(plan.plan_id, RESEARCHER) == plan
    with pytest.raises(PlanError, match="has proposed no plan"):
        plans.query(plan.plan_id[:12], RESEARCHER)
