"""What a site writes down of each piece of work: for the audit log, and for its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from datasite import audit

if TYPE_CHECKING:
    from core.messages import Message
    from datasite.caller import Caller
    from datasite.consent import Grant
    from datasite.training.work import Done


def worked(grant: Grant, caller: Caller, reply: Message, done: Done) -> audit.Entry:
    """Give the audit log's row of work that was done."""
    facts = {**grant.facts, "bytes_out": len(done.reply)}
    return audit.answered(caller.email, grant.request["kind"], grant.plan.plan_id, reply, facts)


def summary(reply: Message) -> str:
    """Give a line for the site's log."""
    if reply["kind"] == "failure":
        return f"{reply['error']}: {reply['message']}"
    update = cast("dict[str, Any]", reply)
    loss = update["metrics"].get("train_loss")
    return f"{update['num_steps']} steps" + ("" if loss is None else f", loss {loss:.4f}")
