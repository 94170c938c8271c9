"""A plan in plain words: what the researcher asks, and what that would tell of the data."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datasite.cli.foreign import plain
from datasite.cli.privacy_words import privacy_in_words

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from datasite.plan_changes import Change
    from datasite.plans import Plan
    from datasite.records import Records
    from datasite.registry import Dataset

_FLOAT_BYTES = {"none": 4, "zstd": 4, "fp16": 2, "int8": 1}

_FORMS = {
    "none": "not compressed",
    "zstd": "compressed by zstd, without loss",
    "fp16": "the change of each in 2 bytes (fp16); what is rounded off stays here until later",
    "int8": "the change of each in 1 byte (int8); what is rounded off stays here until later",
}

_MASKED = """\
  - the change of the model's parameters, the number of windows and of steps, and the loss, all
    under masks that only cancel in the sum of several sites; how, the privacy level says
  - the time that training took; keys, and sealed shares of the seeds of the masks"""

_TOLD = """\
  - the number of windows and of steps that it trained, the mean loss, the time taken
  - for a later version of the data, how far each column has drifted from the first (PSI)"""

_TOLD_PRIVATELY = "  - the number of windows and of steps that it trained, the time taken"

_SUMS = """\
Once, before round 0: per feature the sum and the sum of squares over all rows, and the
number of failures among them."""

_PRICE = """\
Before round 0: what the plan costs here, and what is left of the privacy budget."""

_BESIDE = {"scaffold": "\n  - the change of SCAFFOLD's control variate, as many numbers again"}
"""What an algorithm sends beside the parameters. What FedDyn remembers stays at the site."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A plan with what an operator would look up to judge it.

    Attributes:
        plan: The plan.
        dataset: The data that it names; None when they are not registered any more.
        is_installed: Whether the code that it is bound to is what is installed.
        numbers: How many a model has; None where the model is a third party's or cannot be built.
        unknown: Why, then.
        before: What had been approved last for the same person and dataset, if anything.
        changes: In what it differs from that.
        most: How often each kind of request is answered, all in all.
        minimum_count: The fewest rows of a label that are counted outside.
        cost: What it would cost of the dataset's privacy budget, in words; nothing if nothing.
    """

    plan: "Plan"
    dataset: "Dataset | None"
    is_installed: bool
    numbers: int | None
    unknown: str
    before: "Plan | None"
    changes: "Sequence[Change]"
    most: int
    minimum_count: int
    cost: str


def look_up(records: "Records", plan_id: str) -> Shown:
    """Find a plan and what belongs to it.

    Raises:
        PlanError: There is no such plan.
    """
    from core.codehash import installed_code_hash
    from core.exceptions import DataError
    from core.privacy import smallest_group
    from datasite.cli.cost_words import cost_in_words
    from datasite.plan_changes import changes_between, last_approved_before
    from datasite.usage import TIMES

    plan = records.plans.find(plan_id)
    asked = plan.proposal
    try:
        dataset = records.registry.find(asked["dataset"], asked["dataset_version"])
    except DataError:
        dataset = None
    numbers, unknown = _count_numbers(plan, dataset)
    before = last_approved_before(plan, records.plans.all())
    return Shown(
        plan=plan,
        dataset=dataset,
        is_installed=asked["code_hash"] == installed_code_hash(),
        numbers=numbers,
        unknown=unknown,
        before=before,
        changes=[] if before is None else changes_between(before, plan),
        most=TIMES * asked["rounds"],
        minimum_count=max(
            records.config.release.minimum_count, smallest_group(asked.get("privacy"))
        ),
        cost=cost_in_words(records, plan),
    )


def _count_numbers(plan: "Plan", dataset: "Dataset | None") -> tuple[int | None, str]:
    """Count a built-in model's numbers; a third party's code is not run to judge a plan by."""
    from core.exceptions import ConfigurationError
    from core.models import model_layout
    from core.models.registry import MODELS

    model = plan.proposal["model"]
    if dataset is None:
        return None, "as many as the model has for data that are not here"
    if model["type"] not in MODELS:
        return None, "as many as this third party's model has"
    schema = dataset.schema
    try:
        layout = model_layout(model, sensors=len(schema.features), window_steps=schema.window_steps)
    except ConfigurationError as exc:
        return None, f"none: it cannot be built ({exc})"
    return sum(tensor.numel() for tensor in layout.values()), ""


def as_json(shown: Shown) -> dict[str, Any]:
    """Give it for machines."""
    return {
        **plan_as_json(shown.plan),
        "dataset_rows": None if shown.dataset is None else shown.dataset.rows,
        "code_is_installed": shown.is_installed,
        "parameters": shown.numbers,
        "most_trainings": shown.most,
        "compared_with": None if shown.before is None else shown.before.plan_id,
        "changes": [change._asdict() for change in shown.changes],
    }


def plan_as_json(plan: "Plan") -> dict[str, Any]:
    """Give a plan alone for machines."""
    return {
        "plan_id": plan.plan_id,
        "status": plan.status.name,
        "reason": plan.reason,
        "researcher": plan.researcher,
        "decided_by": plan.decided_by,
        "proposed_at": plan.proposed_at,
        "decided_at": plan.decided_at,
        "expires_at": plan.expires_at,
        "proposal": plan.proposal,
    }


def in_words(shown: Shown) -> str:
    """Give it for the person who decides."""
    return "\n\n".join(
        [_who(shown.plan), _work(shown), _leaves(shown), _privacy(shown), _compared(shown)]
    )


def _who(plan: "Plan") -> str:
    expired = " (EXPIRED)" if plan.is_expired else ""
    run = plain(plan.proposal["run_id"])
    decided = (
        f"{plain(plan.decided_by)} at {(plan.decided_at or '')[:19]}"
        if plan.decided_by
        else "nobody yet"
    )
    return f"""\
Plan      {plan.plan_id}
Status    {plan.status.name}: {plain(plan.reason)}{expired}
Asked by  {plain(plan.researcher)} at {plan.proposed_at[:19]}, for run {run}
Decided   by {decided}
Expires   {plan.expires_at[:19]} (times are UTC)"""


def _work(shown: Shown) -> str:
    asked = shown.plan.proposal
    training, split = asked["training"], asked["split"]
    share = 1 - split["test"] - split["validation"]
    rows = "not registered any more" if shown.dataset is None else f"{shown.dataset.rows:,} rows"
    model = _with_settings(asked["model"]["type"], asked["model"]["options"])
    algorithm = _with_settings(asked["algorithm"]["name"], asked["algorithm"]["hyperparameters"])
    loss = f", focal loss {training['focal_gamma']:g}" if training["focal_gamma"] else ""
    partial = (
        "\n          a round may be cut short, and what was trained is sent"
        if training.get("partial")
        else ""
    )
    code = "which is installed" if shown.is_installed else "which is NOT installed: nothing runs"
    return f"""\
Data      {plain(asked["dataset"])}, version {asked["dataset_version"]}, {rows}: trains on \
{share:.0%} of them,
          chooses a threshold on {split["validation"]:.0%}, tests on {split["test"]:.0%}
Model     {plain(model)}
Training  {plain(algorithm)}, {asked["rounds"]} rounds of {training["local_epochs"]} epoch(s), \
batches of {training["batch_size"]},
          {plain(training["optimizer"])}: learning rate at most {training["learning_rate"]:g}, \
momentum {training["momentum"]:g},
          weight decay {training["weight_decay"]:g}, gradients clipped at \
{training["gradient_clip"] or "no norm"}{loss}{partial}
          (counting rounds that must be repeated, at most {shown.most} trainings in all)
Code      the installed training code, {asked["code_hash"][:16]}, {code}"""


def _with_settings(name: str, settings: "Mapping[str, float]") -> str:
    given = ", ".join(f"{setting} {value:g}" for setting, value in settings.items())
    return f"{name} ({given})" if given else name


def _leaves(shown: Shown) -> str:
    is_private = shown.plan.proposal["privacy_level"] == "differential_privacy"
    return f"""\
Leaves the site in each round:
{_of_training(shown)}
  - for each evaluation, counts of scores by true label, and the sum of the losses
{_PRICE if is_private else _SUMS}
Nothing else, and no count where a label has fewer than {shown.minimum_count} rows."""


def _of_training(shown: Shown) -> str:
    asked = shown.plan.proposal
    form, level = asked.get("compression", "none"), asked["privacy_level"]
    if level == "secure_aggregation":
        return _MASKED
    numbers = shown.unknown
    if shown.numbers is not None:
        size = _size(shown.numbers * _FLOAT_BYTES[form])
        numbers = f"{shown.numbers:,} numbers, about {size};\n    {_FORMS[form]}"
    beside = _BESIDE.get(asked["algorithm"]["name"], "")
    told = _TOLD_PRIVATELY if level == "differential_privacy" else _TOLD
    return f"""\
  - the model's parameters after training here: {_plain_lines(numbers)}{beside}
{told}"""


def _privacy(shown: Shown) -> str:
    said = f"Privacy level: {_plain_lines(privacy_in_words(shown.plan.proposal))}"
    return f"{said}\n{shown.cost}" if shown.cost else said


def _compared(shown: Shown) -> str:
    before = shown.before
    if before is None:
        return "Nothing was approved before for this person and dataset: all of it is new."
    when = f"{before.plan_id[:12]}, approved {(before.decided_at or '')[:19]}"
    run = plain(before.proposal["run_id"])
    begin = f"Changed since plan {when} for run {run}:"
    if not shown.changes:
        return f"{begin}\n  nothing but the run's id"
    width = max(len(change.field) for change in shown.changes)
    return "\n".join(
        [
            begin,
            *(
                f"  {plain(change.field):<{width}}  {_value(change.before)} -> "
                f"{_value(change.after)}"
                for change in shown.changes
            ),
        ]
    )


def _plain_lines(text: str) -> str:
    """Give our own text, whose line ends may stay, with all else spelt out."""
    return "\n".join(plain(line) for line in text.split("\n"))


def _value(value: object) -> str:
    return "not given" if value is None else plain(str(value))


def _size(size_bytes: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if size_bytes < 1000:  # noqa: PLR2004 - of SI
            return f"{size_bytes:.0f} {unit}" if unit == "bytes" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} GB"
