"""What a site writes down of each piece of work: for the audit log, and for its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

from datasite import audit

if TYPE_CHECKING:
    from core.messages import Message
    from datasite.caller import Caller
    from datasite.consent import Grant
    from datasite.training.work import Done

_MESSAGE_SHOWN: Final = 1000
"""Characters of an error on the audit log: it may name what the request brought along."""


def worked(grant: Grant, caller: Caller, reply: Message, done: Done) -> audit.Entry:
    """Give the audit log's row of work that was done."""
    facts = {**grant.facts, "bytes_out": len(done.reply)}
    return entry(caller.email, grant.request["kind"], grant.plan.plan_id, reply, facts)


def entry(
    who: str, action: str, plan_id: str | None, reply: Message, detail: dict[str, Any]
) -> audit.Entry:
    """Give the audit log's row of what was answered."""
    if reply["kind"] == "failure":
        detail = {**detail, "message": reply["message"][:_MESSAGE_SHOWN]}
    outcome = reply["error"] if reply["kind"] == "failure" else "ok"
    return audit.Entry(who=who, action=action, plan_id=plan_id, outcome=outcome, detail=detail)


def summary(reply: Message) -> str:
    """Give a line for the site's log."""
    if reply["kind"] == "failure":
        return f"{reply['error']}: {reply['message']}"
    update = cast("dict[str, Any]", reply)
    loss = update["metrics"].get("train_loss")
    return f"{update['num_steps']} steps" + ("" if loss is None else f", loss {loss:.4f}")
