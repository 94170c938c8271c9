"""What a plan with differential privacy costs, in plain words for who decides on it."""

from typing import TYPE_CHECKING

from datasite.cli.foreign import plain

if TYPE_CHECKING:
    from datasite.plans import Plan
    from datasite.records import Records


def cost_in_words(records: "Records", plan: "Plan") -> str:
    """Say what the plan would cost of its dataset's budget, and what is left; nothing if nothing.

    The noise depends on how many windows or machines the site trains on, which are counted when
    the plan is first worked on. Until then what it costs is told by its own (ε, δ).
    """
    from core.accounting import affordable, epsilon
    from datasite.mechanism import event_of, privately

    settings = privately(plan.proposal)
    if settings is None:
        return ""
    dataset = plan.proposal["dataset"]
    budget = records.budgets.of(dataset)
    name = plain(dataset)
    if budget is None:
        return (
            f"{name} has NO privacy budget: the plan does nothing until\n"
            f"'datasite budget set {name} --epsilon E --delta D --unit {settings['unit']}'."
        )
    if budget.unit != settings["unit"]:
        return (
            f"The budget of {name} protects each {budget.unit}, the plan each {settings['unit']}: "
            "it does nothing."
        )
    spent = records.budgets.spent(dataset)
    events = [each.event for each in spent]
    said = (
        f"Of the budget of {name}, ε = {budget.epsilon:g} per {budget.unit} at δ = "
        f"{budget.delta:g},\n{epsilon(events, budget.delta):.3f} are spent"
    )
    mechanism = records.budgets.mechanism(plan)
    if mechanism is None:
        return f"{said}. What the plan adds is computed when it is first worked on."
    trained = sum(each.plan_id == plan.plan_id for each in spent)
    left = plan.proposal["rounds"] - trained
    event = event_of(mechanism)
    whole = event._replace(steps=event.steps * left)
    with_all = epsilon([*events, whole], budget.delta)
    rounds = affordable(events, event, most=budget.epsilon, delta=budget.delta, wanted=left)
    return (
        f"{said}, {trained} of the plan's rounds among it. Its other {left}\nrounds would bring "
        f"it to {with_all:.3f}; the budget allows {rounds} of them."
    )
