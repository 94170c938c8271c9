"""`datasite plans`: what researchers ask for, and what the operator decides."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.commands import echo_json, echo_table
from core.plans import PlanStatus
from datasite.cli.foreign import plain
from datasite.cli.options import AsJson, ConfigFile, Reason, open_records

if TYPE_CHECKING:
    from pathlib import Path

    from datasite.plans import Plan

app = typer.Typer(help="See and decide what may be trained on the data.", no_args_is_help=True)

PlanId = Annotated[str, typer.Argument(help="The plan's id, or how it starts.", show_default=False)]


@app.command(name="list")
def list_(config: ConfigFile, as_json: AsJson = False) -> None:
    """List the plans, oldest first.

    Example: datasite plans list -c site.yaml
    """
    plans = open_records(config).plans.all()
    if as_json:
        echo_json([_as_json(plan) for plan in plans])
        return
    echo_table(
        ("plan", "status", "researcher", "dataset", "algorithm", "rounds", "proposed"),
        [
            (
                plan.plan_id[:12],
                plan.status.name,
                plain(plan.researcher),
                plain(plan.proposal["dataset"]),
                plan.proposal["algorithm"]["name"],
                plan.proposal["rounds"],
                plan.proposed_at[:19],
            )
            for plan in plans
        ],
        empty="no plan has been proposed",
    )


@app.command()
def show(plan_id: PlanId, config: ConfigFile, as_json: AsJson = False) -> None:
    """Show in plain words what a plan asks for, and where it stands.

    Example: datasite plans show 3f2a -c site.yaml
    """
    plan = open_records(config).plans.find(plan_id)
    if as_json:
        echo_json(_as_json(plan))
    else:
        typer.echo(_in_words(plan))


@app.command()
def approve(plan_id: PlanId, config: ConfigFile, reason: Reason = "approved") -> None:
    """Let a waiting plan run.

    Example: datasite plans approve 3f2a -c site.yaml
    """
    _decide(config, plan_id, PlanStatus.APPROVED, reason)


@app.command()
def deny(
    plan_id: PlanId,
    config: ConfigFile,
    reason: Annotated[str, typer.Option("--reason", show_default=False)],
) -> None:
    """Refuse a waiting plan; the researcher is told the reason.

    Example: datasite plans deny 3f2a --reason "maintenance week" -c site.yaml
    """
    _decide(config, plan_id, PlanStatus.DENIED, reason)


@app.command()
def revoke(
    plan_id: PlanId,
    config: ConfigFile,
    reason: Annotated[str, typer.Option("--reason", show_default=False)],
) -> None:
    """Take back an approval: nothing more is done under the plan from now on.

    Example: datasite plans revoke 3f2a --reason "contract ended" -c site.yaml
    """
    _decide(config, plan_id, PlanStatus.REVOKED, reason)


def _decide(config: "Path", plan_id: str, status: PlanStatus, reason: str) -> None:
    plan = open_records(config).plans.decide(plan_id, status, reason=reason, by="operator")
    typer.echo(f"plan {plan.plan_id[:12]} is {plan.status.name}: {plan.reason}")


def _as_json(plan: "Plan") -> dict[str, Any]:
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


def _in_words(plan: "Plan") -> str:
    asked = plan.proposal
    training, split = asked["training"], asked["split"]
    share = 1 - split["test"] - split["validation"]
    model = f"{asked['model']['type']} {asked['model']['options'] or ''}".rstrip()
    settings = asked["algorithm"]["hyperparameters"]
    algorithm = f"{asked['algorithm']['name']} {plain(str(settings or ''))}".rstrip()
    expired = " (EXPIRED)" if plan.is_expired else ""
    return f"""\
Plan      {plan.plan_id}
Status    {plan.status.name}: {plan.reason}{expired}
Asked by  {plain(plan.researcher)} at {plan.proposed_at[:19]}, for run {plain(asked["run_id"])}
Expires   {plan.expires_at[:19]}

Data      {asked["dataset"]}, version {asked["dataset_version"]}: trains on {share:.0%} of the rows,
          chooses a threshold on {split["validation"]:.0%}, tests on {split["test"]:.0%}
Model     {model}
Training  {algorithm}, {asked["rounds"]} rounds of {training["local_epochs"]} epoch(s), \
batches of {training["batch_size"]},
          {plain(training["optimizer"])}: learning rate at most {training["learning_rate"]:g}, \
momentum {training["momentum"]:g},
          weight decay {training["weight_decay"]:g}, gradients clipped at \
{training["gradient_clip"] or "no norm"}
Travels   {_FORMS[asked.get("compression", "none")]}
Code      the installed training code, {asked["code_hash"][:16]}

Leaves the site in each round: the model's parameters after training here, the number of
training windows, the mean training loss and the training time; and, for each evaluation,
counts of scores by true label. Once, before round 0: per feature the sum and the sum of
squares over all rows, and the number of failures among them.
Privacy level: {_LEVELS[asked["privacy_level"]]}"""


_FORMS = {
    "none": "as it is (not compressed)",
    "zstd": "compressed by zstd, without loss",
    "fp16": "rounded to 2 bytes a number (fp16); what is rounded off is kept here and sent later",
    "int8": "rounded to 1 byte a number (int8); what is rounded off is kept here and sent later",
}

_LEVELS = {
    "none": "none (no formal guarantee: a model's parameters can tell of its training data)",
}
