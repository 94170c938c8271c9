"""`datasite plans`: what researchers ask for, and what the operator decides."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from core.commands import echo_json, echo_table
from core.plans import PlanStatus
from datasite.cli.foreign import plain
from datasite.cli.options import AsJson, ConfigFile, Reason, open_records

if TYPE_CHECKING:
    from datasite.records import Records

app = typer.Typer(help="See and decide what may be trained on the data.", no_args_is_help=True)

_VARIABLE = "DATASITE_APPROVER_PASSWORD"

PlanId = Annotated[str, typer.Argument(help="The plan's id, or how it starts.", show_default=False)]


@app.command(name="list")
def list_(config: ConfigFile, as_json: AsJson = False) -> None:
    """List the plans, oldest first.

    Example: datasite plans list -c site.yaml
    """
    from datasite.cli.plan_words import plan_as_json

    plans = open_records(config).plans.all()
    if as_json:
        echo_json([plan_as_json(plan) for plan in plans])
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
    from datasite.cli.plan_words import as_json as shown_as_json
    from datasite.cli.plan_words import in_words, look_up

    shown = look_up(open_records(config), plan_id)
    if as_json:
        echo_json(shown_as_json(shown))
    else:
        typer.echo(in_words(shown))


@app.command()
def approve(
    plan_id: PlanId,
    config: ConfigFile,
    reason: Reason = "approved",
    name: Annotated[
        str, typer.Option("--as", help="Who approves, where site.yaml names `approvers`.")
    ] = "",
    password_file: Annotated[
        Path | None, typer.Option("--password-file", help="Read that person's password from it.")
    ] = None,
) -> None:
    """Let a waiting plan run; where several persons must approve, count one's approval.

    The password of --as comes from a prompt, a file, or $DATASITE_APPROVER_PASSWORD.

    Example: datasite plans approve 3f2a -c site.yaml
    """
    records = open_records(config)
    by = _approver(records, plan_id, name, password_file)
    _decide(records, plan_id, PlanStatus.APPROVED, reason, by=by)


@app.command()
def deny(
    plan_id: PlanId,
    config: ConfigFile,
    reason: Annotated[str, typer.Option("--reason", show_default=False)],
) -> None:
    """Refuse a waiting plan; the researcher is told the reason.

    Example: datasite plans deny 3f2a --reason "maintenance week" -c site.yaml
    """
    _decide(open_records(config), plan_id, PlanStatus.DENIED, reason)


@app.command()
def revoke(
    plan_id: PlanId,
    config: ConfigFile,
    reason: Annotated[str, typer.Option("--reason", show_default=False)],
) -> None:
    """Take back an approval: nothing more is done under the plan, and work under way is stopped.

    Example: datasite plans revoke 3f2a --reason "contract ended" -c site.yaml
    """
    _decide(open_records(config), plan_id, PlanStatus.REVOKED, reason)


@app.command()
def approver(
    name: Annotated[
        str, typer.Argument(help="Stands in the log for who approved.", show_default=False)
    ],
    password_file: Annotated[
        Path | None, typer.Option("--password-file", help="Read the password from this file.")
    ] = None,
) -> None:
    """Print what site.yaml keeps of a person whose approval counts; that person types the password.

    Example: datasite plans approver anna
    """
    from core.configuration import parse
    from datasite.approvers import hash_password
    from datasite.cli.options import read_password
    from datasite.configuration import Approver
    from datasite.identity import require_strong_password

    password = read_password(password_file, variable=_VARIABLE, confirm=True)
    require_strong_password(password, email=name)
    entry = {"name": name, "password_hash": hash_password(password)}
    parse(entry, Approver, source="approver")
    typer.echo(f"  - {{name: {name}, password_hash: '{entry['password_hash']}'}}")


def _approver(records: "Records", plan_id: str, name: str, password_file: Path | None) -> str:
    """Give who approves, once that is known for sure."""
    from core.exceptions import ConfigurationError, SecurityError
    from datasite import audit
    from datasite.approvers import require_approver
    from datasite.cli.options import read_password
    from datasite.records import OPERATOR

    approvers, site_id = records.config.approvers, records.config.site_id
    if not approvers:
        if name:
            raise ConfigurationError(f"--as: {site_id} has no `approvers` in its site.yaml")
        return OPERATOR
    if not name:
        known = ", ".join(approver.name for approver in approvers)
        raise ConfigurationError(f"{site_id}: say who approves with --as; one of {known}")
    plan = records.plans.find(plan_id)
    try:
        password = read_password(password_file, variable=_VARIABLE, confirm=False)
        require_approver(approvers, name, password, site_id=site_id)
    except SecurityError as exc:
        detail = {"message": str(exc)}
        entry = audit.Entry(
            who=OPERATOR,
            action="plan approval refused",
            plan_id=plan.plan_id,
            outcome=type(exc).__name__,
            detail=detail,
        )
        audit.write(records.ledger, entry)
        raise
    return name


def _decide(
    records: "Records", plan_id: str, status: PlanStatus, reason: str, *, by: str = "operator"
) -> None:
    plan = records.plans.decide(plan_id, status, reason=reason, by=by)
    typer.echo(f"plan {plan.plan_id[:12]} is {plan.status.name}: {plan.reason}")
