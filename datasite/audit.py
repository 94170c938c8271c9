"""The audit log: append-only rows, each bound to the one before by SHA-256.

Changing, removing or reordering a row breaks the chain at that row; `verify` names it. That the end
was cut off, or the whole chain written anew, shows against an anchor: the newest hash at some time,
noted elsewhere. What was appended after the newest anchor is proven by the next one.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.auditchain import EMPTY, FIRST, HASHED, Head, digest, follow
from core.exceptions import ConfigurationError, SecurityError
from datasite.ledger import AuditRow, Ledger, Table, as_written, now
from datasite.statements import Executes

if TYPE_CHECKING:  # at run time it would bring PyTorch with it
    from core.messages import Message

_MESSAGE_SHOWN: Final = 1000
"""Characters of an error on the audit log: it may name what the request brought along."""

_TABLE = Table.metadata.tables[AuditRow.__tablename__]
_APPEND = _TABLE.insert()
_FIELDS: Final = (*HASHED[1:], "previous_sha256", "sha256")
_NEWEST = select(_TABLE.c.seq, _TABLE.c.sha256).order_by(_TABLE.c.seq.desc()).limit(1)

Written = Mapping[str, Any]
"""A row as it was written; its keys are the columns of `AuditRow`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What happened: who did what, under which plan, and how it ended.

    Attributes:
        who: The account, an approver, or `operator` for somebody with access to the site's files.
        action: One word or two: `train`, `plan approved`, `data registered`.
        outcome: `ok`, or the name of the error.
        detail: Facts for an auditor; never a value from a row of data. Of work under a plan they
            are `dataset`, `data_version`, `code_hash` and `bytes_out`, and mostly `round_num`.
    """

    who: str
    action: str
    plan_id: str | None = None
    outcome: str = "ok"
    detail: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Anchor:
    """How far a log went at some time; kept elsewhere, it proves every row up to there.

    Attributes:
        count: How many rows there were; None when only the hash was kept.
        sha256: The newest row's hash.
    """

    count: int | None
    sha256: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `str` gave, or the hash alone.

        Raises:
            ConfigurationError: It is neither.
        """
        found = re.fullmatch(r"(?:([0-9]+):)?([0-9a-f]{64})", text.strip())
        if found is None:
            raise ConfigurationError(
                f"{text!r} is no anchor; expected what 'datasite audit head' printed: "
                "the number of entries, a colon, and 64 hexadecimal digits"
            )
        return cls(int(found[1]) if found[1] else None, found[2])

    def __str__(self) -> str:
        return f"{self.count}:{self.sha256}"


def answered(
    who: str, action: str, plan_id: str | None, reply: "Message", detail: dict[str, Any]
) -> Entry:
    """Give what the audit log has of a request and its answer; of a refusal, how it began."""
    if reply["kind"] == "failure":
        detail = {**detail, "message": reply["message"][:_MESSAGE_SHOWN]}
    outcome = reply["error"] if reply["kind"] == "failure" else "ok"
    return Entry(who=who, action=action, plan_id=plan_id, outcome=outcome, detail=detail)


def append(connection: Executes, entry: Entry) -> None:
    """Add `entry` to the log within the caller's write transaction."""
    newest = connection.execute(_NEWEST).first()
    seq, sha256 = (newest.seq, newest.sha256) if newest else (0, FIRST)
    row = {
        "seq": seq + 1,
        "at": now(),
        "who": entry.who,
        "action": entry.action,
        "plan_id": entry.plan_id,
        "outcome": entry.outcome,
        "detail": entry.detail,
        "previous_sha256": sha256,
    }
    # Straight into the table: each round writes a row, and the session's bookkeeping costs more.
    connection.execute(_APPEND, {**row, "sha256": digest(row)})


def write(ledger: Ledger, entry: Entry) -> None:
    """Add `entry` to the log in a transaction of its own."""
    with ledger.transaction() as connection:
        append(connection, entry)


def written(session: Session) -> Iterator[Written]:
    """Give every row, oldest first.

    Raises:
        SecurityError: One cannot be read.
    """
    seq = 0
    # Row by row: what cannot be read is then known to be the row after the last that could.
    rows = session.scalars(select(AuditRow).order_by(AuditRow.seq).execution_options(yield_per=1))
    try:
        for row in rows:
            yield as_json(row)
            seq = row.seq
    except (ValueError, TypeError) as exc:
        raise _unreadable(seq + 1) from exc


def exported(file: Path) -> Iterator[Written]:
    """Give every row of an export, in the order of its lines.

    Raises:
        ConfigurationError: The file cannot be read.
        SecurityError: A line is not what `export` wrote.
    """
    seq = 0
    try:
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                if not _is_row(row):
                    raise _unreadable(seq + 1)
                yield row
                seq = row["seq"]
    except OSError as exc:
        raise ConfigurationError(f"{file}: {exc.strerror}") from exc
    except ValueError as exc:
        raise _unreadable(seq + 1) from exc


def _is_row(value: object) -> bool:
    if not isinstance(value, dict) or set(value) != set(_FIELDS):
        return False
    return type(value["seq"]) is int  # which True is not


def head(session: Session) -> Anchor:
    """Give how far the log goes now, without a look at the rows before."""
    newest = session.execute(_NEWEST).first()
    return Anchor(newest.seq, newest.sha256) if newest else Anchor(*EMPTY)


def verify(rows: Iterable[Written], anchor: Anchor | None = None) -> Anchor:
    """Check the whole chain and, against an `anchor`, its end; how far it goes.

    Raises:
        SecurityError: A row was changed, removed, moved or put in; the message names it. Or the
            chain does not lead to `anchor`.
    """
    last = EMPTY
    is_reached = anchor is None or _is_at(anchor, last)
    for row in rows:
        try:
            last = follow([row], last)
        except TypeError as exc:  # bytes, where the log has text
            raise _unreadable(last[0] + 1) from exc
        is_reached = is_reached or _is_at(anchor, last)
    if anchor is not None and not is_reached:
        raise SecurityError(_missed(anchor, last))
    return Anchor(*last)


def _is_at(anchor: Anchor | None, place: Head) -> bool:
    count, sha256 = place
    return anchor in {Anchor(count, sha256), Anchor(None, sha256)}


def _missed(anchor: Anchor, last: Head) -> str:
    if anchor.count is not None and anchor.count > last[0]:
        return (
            f"the log ends with row {last[0]}, and had {anchor.count} when the anchor was noted: "
            f"row {last[0] + 1} and those after it were cut off"
        )
    missing = "no row has" if anchor.count is None else f"row {anchor.count} does not have"
    return (
        f"{missing} the hash that was noted as the anchor, {anchor.sha256[:12]}...: the log was "
        "cut off before it or written anew, or the anchor is another site's"
    )


def find(
    session: Session,
    *,
    limit: int,
    since: datetime | None = None,
    plan_id: str | None = None,
    who: str | None = None,
) -> list[Written]:
    """Give the newest rows of those that fit, oldest of them first.

    Args:
        session: Of the ledger.
        limit: The most to give.
        since: Those at this time or later.
        plan_id: Those of plans whose id starts so.
        who: Those of this account.
    """
    query = select(AuditRow).order_by(AuditRow.seq.desc()).limit(limit)
    if since is not None:
        query = query.where(AuditRow.at >= as_written(since))
    if plan_id is not None:
        query = query.where(AuditRow.plan_id.startswith(plan_id, autoescape=True))
    if who is not None:
        query = query.where(AuditRow.who == who)
    return [as_json(row) for row in session.scalars(query)][::-1]


def as_json(row: AuditRow) -> Written:
    """Give a row as plain values, all that its hash is made of and the hash itself."""
    return {name: getattr(row, name) for name in _FIELDS}


def _unreadable(seq: int) -> SecurityError:
    return SecurityError(f"audit row {seq} cannot be read: it was changed")
