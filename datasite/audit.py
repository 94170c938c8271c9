"""The audit log: append-only rows, each bound to the one before by SHA-256.

Changing, removing or reordering a row breaks the chain at that row; `verify` names it. The newest
hash, noted elsewhere, also proves that none was cut off the end.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.exceptions import SecurityError
from datasite.ledger import AuditRow, Table, now
from datasite.statements import Executes

_FIRST = "0" * 64
_TABLE = Table.metadata.tables[AuditRow.__tablename__]
_APPEND = _TABLE.insert()
_HASHED = ("previous_sha256", "seq", "at", "who", "action", "plan_id", "outcome", "detail")
_NEWEST = select(_TABLE.c.seq, _TABLE.c.sha256).order_by(_TABLE.c.seq.desc()).limit(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What happened: who did what, under which plan, and how it ended.

    Attributes:
        who: The account, or `operator` for somebody with access to the site's files.
        action: One word or two: `train`, `plan approved`, `data registered`.
        outcome: `ok`, or the name of the error.
        detail: Facts for an auditor; never a value from a row of data.
    """

    who: str
    action: str
    plan_id: str | None = None
    outcome: str = "ok"
    detail: dict[str, Any]


def append(connection: Executes, entry: Entry) -> None:
    """Add `entry` to the log within the caller's write transaction."""
    newest = connection.execute(_NEWEST).first()
    seq, sha256 = (newest.seq, newest.sha256) if newest else (0, _FIRST)
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
    connection.execute(_APPEND, {**row, "sha256": _digest(row)})


def verify(session: Session) -> tuple[int, str]:
    """Check the whole chain; the number of rows and the newest hash.

    Raises:
        SecurityError: A row was changed, removed or moved; the message names it.
    """
    expected_seq, previous = 1, _FIRST
    # Row by row: what cannot be read is then known to be the row after the last that could.
    rows = session.scalars(select(AuditRow).order_by(AuditRow.seq).execution_options(yield_per=1))
    try:
        for row in rows:
            _require_next(row, expected_seq, previous)
            expected_seq, previous = row.seq + 1, row.sha256
    except (ValueError, TypeError) as exc:
        raise SecurityError(f"audit row {expected_seq} cannot be read: it was changed") from exc
    return expected_seq - 1, previous


def _require_next(row: AuditRow, expected_seq: int, previous: str) -> None:
    if row.seq != expected_seq:
        raise SecurityError(f"audit row {expected_seq} is missing: row {row.seq} comes next")
    if row.previous_sha256 != previous:
        raise SecurityError(f"audit row {row.seq} does not follow from the row before it")
    if row.sha256 != _digest({name: getattr(row, name) for name in _HASHED}):
        raise SecurityError(f"audit row {row.seq} was changed after it was written")


def as_json(row: AuditRow) -> dict[str, Any]:
    """Give a row as plain values."""
    return {
        "seq": row.seq,
        "at": row.at,
        "who": row.who,
        "action": row.action,
        "plan_id": row.plan_id,
        "outcome": row.outcome,
        "detail": row.detail,
        "sha256": row.sha256,
    }


def _digest(row: Mapping[str, Any]) -> str:
    text = json.dumps([row[name] for name in _HASHED], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
