"""What becomes of a proposal: the site's rules, the operator's decisions, and ids cut short."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from sites import RESEARCHER, RIVAL, ROWS, TRAINING, proposal
from sqlalchemy import select

from core.codehash import installed_code_hash
from core.enums import PrivacyLevel
from core.exceptions import PlanError
from core.plans import PlanStatus
from datasite.configuration import Rule
from datasite.ledger import AuditRow, Ledger, PlanRow, now
from datasite.plan_changes import changes_between, last_approved_before
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
        ({"model": "cnn"}, True),
        ({"model": "lstm"}, False),
        ({"algorithm": "fedavg"}, True),
        ({"algorithm": "feddyn"}, False),
        ({"min_rows": 100}, True),
        ({"min_rows": 101}, False),
        ({"min_privacy_level": "none"}, True),
        ({"min_privacy_level": "basic"}, False),
        ({"dataset": "press", "max_rounds": 2}, False),
    ],
    ids=[
        "researcher",
        "another researcher",
        "dataset",
        "another dataset",
        "as many rounds",
        "too many rounds",
        "model",
        "another model",
        "algorithm",
        "another algorithm",
        "as many rows",
        "too few rows",
        "enough privacy",
        "too little privacy",
        "one of two conditions",
    ],
)
def test_a_rule_decides_where_each_of_its_conditions_holds(
    ledger: Ledger, condition: dict[str, Any], *, fits: bool
) -> None:
    """A plan of three rounds on the 100 rows of `press` by the researcher, against one rule."""
    plan = propose(plans_of(ledger, APPROVE_LAB | condition))
    assert plan.status is (APPROVED if fits else WAITING)


@pytest.mark.parametrize("least", PrivacyLevel, ids=lambda level: f"at least {level.value}")
def test_the_levels_of_privacy_are_in_order(ledger: Ledger, least: PrivacyLevel) -> None:
    """None < basic < differential privacy; secure aggregation stands for itself and for none."""
    none, basic, differential, aggregated = PrivacyLevel
    enough = {
        none: {none, basic, differential, aggregated},
        basic: {basic, differential},
        differential: {differential},
        aggregated: {aggregated},
    }
    plans = plans_of(ledger, APPROVE_LAB | {"min_privacy_level": least.value})
    approved = {
        level
        for level in PrivacyLevel
        if propose(plans, privacy_level=level.value).status is APPROVED
    }
    assert approved == enough[least]


def test_a_rule_may_leave_a_plan_to_the_operator(ledger: Ledger) -> None:
    """Long runs are looked at by a person, whatever the rules after it would say."""
    ask = {"name": "not over CNNs alone", "decision": "ask", "model": "cnn"}
    plan = propose(plans_of(ledger, ask, APPROVE_LAB))
    assert (plan.status, plan.decided_by) == (WAITING, "")
    assert plan.reason == "waits for the operator, by the site's rule 'not over CNNs alone'"


@pytest.mark.parametrize(
    ("rule", "action"),
    [
        (APPROVE_LAB, "plan approved"),
        (DENY_ALL, "plan denied"),
        ({"name": "look", "decision": "ask"}, "plan left to the operator"),
    ],
    ids=["approve", "deny", "ask"],
)
def test_the_deciding_rule_is_named_in_the_log(
    ledger: Ledger, rule: dict[str, Any], action: str
) -> None:
    """By its name, as a fact of its own."""
    never = {"name": "never", "decision": "deny", "dataset": "mill"}
    plan = propose(plans_of(ledger, never, rule))
    with ledger.read() as session:
        row = session.scalars(select(AuditRow).order_by(AuditRow.seq.desc())).first()
    assert row is not None
    assert (row.who, row.action, row.plan_id) == ("policy", action, plan.plan_id)
    assert row.detail["rule"] == rule["name"]


def by_two(ledger: Ledger, *approvers: str, rules: Sequence[dict[str, Any]] = ()) -> Plans:
    """Give the plans of a site where two persons must approve."""
    policy = [Rule.model_validate(rule) for rule in rules]
    return Plans(
        ledger,
        policy=policy,
        plan_days=30,
        approvals=2,
        approvers=approvers,
        site_id="factory-1",
    )


def test_two_persons_approve_a_plan(ledger: Ledger) -> None:
    """The first approval is counted, the second lets it run; both are named, and on the log."""
    plans = by_two(ledger, "anna", "bert")
    plan = propose(plans)
    counted = plans.decide(plan.plan_id, APPROVED, reason="good", by="anna")
    assert (counted.status, counted.decided_by) == (WAITING, "")
    assert counted.reason == "approved by anna; waits for 1 more to approve"
    with pytest.raises(PlanError, match=r"is WAITING \(approved by anna; waits for 1 more"):
        plans.require_approved(plan.plan_id, RESEARCHER)
    approved = plans.decide(plan.plan_id, APPROVED, reason="fine", by="bert")
    assert (approved.status, approved.reason) == (APPROVED, "fine")
    assert approved.decided_by == "anna, bert"
    assert plans.require_approved(plan.plan_id, RESEARCHER) == approved
    with ledger.read() as session:
        rows = session.scalars(select(AuditRow).order_by(AuditRow.seq)).all()
    assert [(row.who, row.action) for row in rows[1:]] == [
        ("anna", "plan approval counted"),
        ("bert", "plan approved"),
    ]


def test_a_person_does_not_approve_twice(ledger: Ledger) -> None:
    """The second time is refused, also after a restart; the plan goes on waiting."""
    plan = propose(by_two(ledger, "anna", "bert"))
    by_two(ledger, "anna", "bert").decide(plan.plan_id, APPROVED, reason="good", by="anna")
    plans = by_two(ledger, "anna", "bert")
    with pytest.raises(PlanError, match=r"anna approved plan .* already; 2 different persons must"):
        plans.decide(plan.plan_id, APPROVED, reason="good", by="anna")
    assert plans.find(plan.plan_id).status is WAITING


def test_who_is_no_approver_does_not_approve(ledger: Ledger) -> None:
    """Not even the operator, where others are named."""
    plans = by_two(ledger, "anna", "bert")
    plan = propose(plans)
    with pytest.raises(PlanError, match="factory-1: operator is no approver"):
        plans.decide(plan.plan_id, APPROVED, reason="good", by="operator")


def test_who_is_no_approver_any_more_does_not_count(ledger: Ledger) -> None:
    """Anna left before the second approval: two of those who are there must have approved."""
    plan = propose(by_two(ledger, "anna", "bert"))
    by_two(ledger, "anna", "bert").decide(plan.plan_id, APPROVED, reason="good", by="anna")
    plans = by_two(ledger, "bert", "carl")
    counted = plans.decide(plan.plan_id, APPROVED, reason="good", by="bert")
    assert counted.reason == "approved by bert; waits for 1 more to approve"
    assert plans.decide(plan.plan_id, APPROVED, reason="good", by="carl").status is APPROVED


@pytest.mark.parametrize("target", [DENIED, REVOKED], ids=["deny", "revoke"])
def test_to_stop_takes_one_person(ledger: Ledger, target: PlanStatus) -> None:
    """Denied after one approval, or revoked after two: by one, at once."""
    plans = by_two(ledger, "anna", "bert")
    plan = propose(plans)
    approvers = ["anna"] if target is DENIED else ["anna", "bert"]
    for person in approvers:
        plans.decide(plan.plan_id, APPROVED, reason="good", by=person)
    stopped = plans.decide(plan.plan_id, target, reason="no", by="operator")
    assert (stopped.status, stopped.decided_by) == (target, "operator")


def test_a_rule_that_says_so_approves_in_the_place_of_persons(ledger: Ledger) -> None:
    """The file has to say it (see the tests of `site.yaml`); then it is the rule's decision."""
    rule = APPROVE_LAB | {"bypasses_approvals": True}
    plan = propose(by_two(ledger, "anna", "bert", rules=[rule]))
    assert (plan.status, plan.decided_by) == (APPROVED, "rule 'lab'")


def changed(plans: Plans, plan: Plan) -> dict[str, tuple[object, object]]:
    """Give what differs from the plan approved last."""
    before = last_approved_before(plan, plans.all())
    assert before is not None
    return {change.field: (change.before, change.after) for change in changes_between(before, plan)}


def test_only_what_differs_from_the_last_approved_plan_is_a_change(ledger: Ledger) -> None:
    """Nested fields by their path; what one of them does not have is None there."""
    plans = plans_of(ledger)
    first = propose(plans)
    assert last_approved_before(first, plans.all()) is None
    plans.decide(first.plan_id, APPROVED, reason="yes", by="operator")
    assert changed(plans, propose(plans, run_id="run-2")) == {}
    other = propose(
        plans,
        run_id="run-3",
        rounds=50,
        training=TRAINING | {"learning_rate": 0.5},
        model={"type": "cnn", "options": {"channels": 2, "bins": 0}},
        compression="int8",
    )
    assert changed(plans, other) == {
        "rounds": (3, 50),
        "training.learning_rate": (0.1, 0.5),
        "model.options.blocks": (1, None),
        "model.options.bins": (None, 0),
        "compression": (None, "int8"),
    }


def test_a_plan_is_compared_with_what_was_agreed_to_when_it_was_decided(ledger: Ledger) -> None:
    """Of the same person and dataset; neither a later plan nor one that was revoked or waits."""
    plans = plans_of(ledger)
    approved: list[Plan] = []
    for number in range(3):
        plan = propose(plans, run_id=f"run-{number}", rounds=number + 1)
        approved.append(plans.decide(plan.plan_id, APPROVED, reason="yes", by="operator"))
        wait_a_tick(approved[-1])
    propose(plans, RIVAL, run_id="rival")
    propose(plans, run_id="other data", dataset="mill")
    waiting = propose(plans, run_id="waiting")

    def before(plan: Plan) -> Plan | None:
        return last_approved_before(plan, plans.all())

    assert before(waiting) == approved[2]
    assert before(approved[1]) == approved[0]
    assert before(approved[0]) is None
    plans.decide(approved[2].plan_id, REVOKED, reason="no", by="operator")
    assert before(waiting) == approved[1]


def wait_a_tick(plan: Plan) -> None:
    """Return when the ledger's clock, of milliseconds, shows another time than the decision's."""
    while now() == plan.decided_at:
        pass


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
