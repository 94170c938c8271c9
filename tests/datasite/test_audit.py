"""The audit log: whole it verifies, and the first row that was touched is named."""

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from core.auditchain import digest
from core.exceptions import ConfigurationError, DataSiteError, SecurityError
from datasite import audit
from datasite.audit import Anchor
from datasite.ledger import Ledger

COPY_2_AS_3 = """INSERT INTO audit SELECT 3, at, who, action, plan_id, outcome, detail,
    previous_sha256, sha256 FROM audit WHERE seq = 2"""
COPY_5_AS_6 = """INSERT INTO audit SELECT 6, at, who, action, plan_id, outcome, detail,
    previous_sha256, sha256 FROM audit WHERE seq = 5"""


def append(ledger: Ledger, count: int) -> None:
    """Write `count` rows."""
    for number in range(count):
        with ledger.transaction() as connection:
            entry = audit.Entry(who="r@lab.example.com", action="train", detail={"n": number})
            audit.append(connection, entry)


def verify(ledger: Ledger, anchor: Anchor | None = None) -> Anchor:
    """Check the chain in a session of its own."""
    with ledger.read() as session:
        return audit.verify(audit.written(session), anchor)


def head(ledger: Ledger) -> Anchor:
    """Give how far the log goes."""
    with ledger.read() as session:
        return audit.head(session)


Attack = Callable[[Path], None]


def tamper(*statements: str) -> Attack:
    """Give somebody who may write the file: takes down the guard rail, then runs these."""

    def run(path: Path) -> None:
        with sqlite3.connect(path) as connection:
            for change in ("update", "delete", "insert"):
                connection.execute(f"DROP TRIGGER audit_no_{change}")
            for statement in statements:
                connection.execute(statement)
        connection.close()

    return run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The ledger's file."""
    return tmp_path / "ledger.db"


def test_an_empty_log_is_whole(ledger: Ledger) -> None:
    """Nothing happened, and nothing is missing."""
    assert verify(ledger) == head(ledger) == Anchor(0, "0" * 64)
    assert verify(ledger, head(ledger)) == head(ledger)


def test_a_long_chain_verifies(ledger: Ledger) -> None:
    """200 rows; each carries on from the hash of the one before."""
    append(ledger, 200)
    with ledger.read() as session:
        last = session.execute(text("SELECT sha256 FROM audit WHERE seq = 200")).scalar_one()
    assert verify(ledger) == head(ledger) == Anchor(200, last)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET who = 'nobody' WHERE seq = 2",
        "UPDATE OR REPLACE audit SET seq = 1 WHERE seq = 2",
        "DELETE FROM audit WHERE seq = 3",
        "DELETE FROM audit",
        COPY_2_AS_3,
        COPY_2_AS_3.replace("INSERT", "INSERT OR REPLACE"),
    ],
    ids=["update", "move", "delete", "empty", "insert", "replace"],
)
def test_a_row_is_neither_changed_nor_removed_by_mistake(
    ledger: Ledger, path: Path, statement: str
) -> None:
    """The file itself refuses it, whoever asks; appending goes on."""
    append(ledger, 3)
    with (
        sqlite3.connect(path) as connection,
        pytest.raises(sqlite3.IntegrityError, match="the audit log is append-only"),
    ):
        connection.execute(statement)
    connection.close()
    append(ledger, 1)
    assert verify(ledger).count == 4


def test_a_ledger_from_before_gets_the_guard_rail_and_still_verifies(path: Path) -> None:
    """Opening it once is enough; its rows are as they were."""
    old = Ledger(path, site_id="factory-1")
    append(old, 3)
    kept = head(old)
    old.close()
    tamper("DROP TABLE approvals")(path)  # as before there were either
    opened = Ledger(path, site_id="factory-1")
    try:
        assert verify(opened, kept) == kept
        with pytest.raises(DataSiteError, match="append-only"), opened.write() as session:
            session.execute(text("DELETE FROM audit"))
    finally:
        opened.close()


CHANGED = "audit row 3 was changed after it was written"


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (tamper("UPDATE audit SET who = 'nobody' WHERE seq = 3"), CHANGED),
        (tamper("UPDATE audit SET action = 'evaluate' WHERE seq = 3"), CHANGED),
        (tamper("UPDATE audit SET at = '2020-01-01' WHERE seq = 3"), CHANGED),
        (tamper("UPDATE audit SET plan_id = 'p' WHERE seq = 3"), CHANGED),
        (tamper("UPDATE audit SET outcome = 'PlanError' WHERE seq = 3"), CHANGED),
        (tamper("""UPDATE audit SET detail = '{"n": 9}' WHERE seq = 3"""), CHANGED),
        (tamper("UPDATE audit SET sha256 = 'f' WHERE seq = 3"), CHANGED),
        (
            tamper("UPDATE audit SET previous_sha256 = 'f' WHERE seq = 3"),
            "audit row 3 does not follow from the row before it",
        ),
        (
            tamper("UPDATE audit SET seq = 99 WHERE seq = 3"),
            "audit row 3 is missing: row 4 comes next",
        ),
        (tamper("DELETE FROM audit WHERE seq = 3"), "audit row 3 is missing: row 4 comes next"),
        (tamper("DELETE FROM audit WHERE seq = 1"), "audit row 1 is missing: row 2 comes next"),
        (
            tamper(
                "DELETE FROM audit WHERE seq = 3",
                "UPDATE audit SET seq = seq - 1 WHERE seq > 3",
            ),
            "audit row 3 does not follow from the row before it",
        ),
        (
            tamper(
                "UPDATE audit SET seq = 99 WHERE seq = 3",
                "UPDATE audit SET seq = 3 WHERE seq = 4",
                "UPDATE audit SET seq = 4 WHERE seq = 99",
            ),
            "audit row 3 does not follow from the row before it",
        ),
        (
            tamper(
                "UPDATE audit SET seq = seq + 100 WHERE seq >= 3",
                "UPDATE audit SET seq = seq - 99 WHERE seq >= 103",
                COPY_2_AS_3,
            ),
            "audit row 3 does not follow from the row before it",
        ),
        (
            tamper(COPY_5_AS_6),
            "audit row 6 does not follow from the row before it",
        ),
        (
            tamper("UPDATE audit SET detail = '{' WHERE seq = 3"),
            "audit row 3 cannot be read: it was changed",
        ),
        (
            tamper("UPDATE audit SET who = x'ff' WHERE seq = 3"),
            "audit row 3 cannot be read: it was changed",
        ),
    ],
    ids=[
        "who",
        "action",
        "time",
        "plan",
        "outcome",
        "detail",
        "hash",
        "previous hash",
        "number",
        "removed",
        "first removed",
        "removed and renumbered",
        "swapped",
        "inserted",
        "copied to the end",
        "unreadable detail",
        "bytes for text",
    ],
)
def test_a_touched_row_is_found_and_named(
    ledger: Ledger, path: Path, attack: Attack, message: str
) -> None:
    """Five rows, one attack on the file, and the row where the chain breaks."""
    append(ledger, 5)
    attack(path)
    with pytest.raises(SecurityError, match=f"^{message}$"):
        verify(ledger)


def forged(row: audit.Written, **changes: object) -> dict[str, Any]:
    """Give the row changed, with a hash to match, as one who knows how hashes are made."""
    changed = {**row, **changes}
    return {**changed, "sha256": digest(changed)}


def rows_of(ledger: Ledger) -> list[audit.Written]:
    """Give every row."""
    with ledger.read() as session:
        return list(audit.written(session))


def test_a_row_forged_with_its_own_hash_breaks_the_next(ledger: Ledger) -> None:
    """Who knows how hashes are made can rewrite a row, but then row 4 does not follow from it."""
    append(ledger, 5)
    rows = rows_of(ledger)
    rows[2] = forged(rows[2], who="nobody")
    with pytest.raises(SecurityError, match="audit row 4 does not follow from the row before it"):
        audit.verify(rows)


@pytest.mark.parametrize("form", ["count and hash", "hash"])
def test_an_anchor_tells_of_a_cut_end(ledger: Ledger, path: Path, form: str) -> None:
    """A log cut off at its end is whole in itself: only what was kept elsewhere shows it."""
    append(ledger, 3)
    noted = Anchor.parse(str(head(ledger)) if form == "count and hash" else head(ledger).sha256)
    append(ledger, 2)
    assert verify(ledger, noted).count == 5
    tamper("DELETE FROM audit WHERE seq >= 3")(path)
    assert verify(ledger).count == 2
    expected = (
        "the log ends with row 2, and had 3 when the anchor was noted: "
        "row 3 and those after it were cut off"
        if form == "count and hash"
        else "no row has the hash that was noted as the anchor"
    )
    with pytest.raises(SecurityError, match=expected):
        verify(ledger, noted)


def test_an_anchor_tells_of_a_log_written_anew(ledger: Ledger) -> None:
    """Three rows rewritten with all their hashes are a whole chain, and not the one there was."""
    append(ledger, 3)
    rows, noted = rows_of(ledger), head(ledger)
    anew: list[audit.Written] = []
    for row in rows:
        before = anew[-1]["sha256"] if anew else "0" * 64
        anew.append(forged(row, who="nobody", previous_sha256=before))
    assert audit.verify(anew).count == 3
    with pytest.raises(SecurityError, match=r"row 3 does not have the hash .* or written anew"):
        audit.verify(anew, noted)


@pytest.mark.parametrize(
    "anchor",
    ["", "12", "12:", ":" + "a" * 64, "x:" + "a" * 64, "a" * 63, "A" * 64, "-1:" + "a" * 64],
)
def test_an_anchor_that_is_none_is_refused(anchor: str) -> None:
    """A slip of the hand is not taken for a proof."""
    with pytest.raises(ConfigurationError, match="is no anchor; expected what 'datasite audit"):
        Anchor.parse(anchor)


def export(ledger: Ledger, file: Path) -> list[str]:
    """Export the log; its lines."""
    lines = [json.dumps(row) for row in rows_of(ledger)]
    file.write_text("".join(f"{line}\n" for line in lines))
    return lines


def test_an_export_verifies_as_the_log_does(ledger: Ledger, tmp_path: Path) -> None:
    """Offline, with nothing but the file; whatever text is in it."""
    append(ledger, 2)
    with ledger.transaction() as connection:
        detail = {"näme": "\u2028 \x1b[2J", "share": 0.1, "none": None}
        audit.append(connection, audit.Entry(who="r", action="train", detail=detail))
    export(ledger, tmp_path / "audit.jsonl")
    exported = audit.exported(tmp_path / "audit.jsonl")
    assert audit.verify(exported, head(ledger)) == head(ledger)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [lines[0], lines[1].replace("train", "evaluate"), lines[2]], "row 2 was ch"),
        (lambda lines: [lines[0], lines[2]], "row 2 is missing: row 3 comes next"),
        (lambda lines: [lines[0], lines[2], lines[1]], "row 2 is missing: row 3 comes next"),
        (lambda lines: [lines[0], lines[0], *lines[1:]], "row 2 is missing: row 1 comes next"),
        (lambda lines: [lines[0], "{", lines[2]], "row 2 cannot be read"),
        (lambda lines: [lines[0], "[]", lines[2]], "row 2 cannot be read"),
        (lambda lines: [lines[0], lines[1].replace('"seq": 2, ', "")], "row 2 cannot be read"),
        (lambda lines: [lines[0].replace('"seq": 1', '"seq": true')], "row 1 cannot be read"),
    ],
    ids=["changed", "removed", "swapped", "twice", "no JSON", "no row", "no number", "true for 1"],
)
def test_a_touched_export_is_found_and_its_row_named(
    ledger: Ledger, tmp_path: Path, change: Callable[[list[str]], list[str]], message: str
) -> None:
    """An export is checked as the log is."""
    append(ledger, 3)
    file = tmp_path / "audit.jsonl"
    lines = change(export(ledger, file))
    file.write_text("\n".join(lines))
    with pytest.raises(SecurityError, match=f"audit {message}"):
        audit.verify(audit.exported(file))


def test_the_newest_rows_that_fit_are_found(ledger: Ledger) -> None:
    """By time, by the start of a plan's id, by account; oldest first, and no more than asked."""
    for who, plan_id in (("a", "ab1"), ("b", "ab2"), ("a", None), ("a", "a%")):
        entry = audit.Entry(who=who, action="train", plan_id=plan_id, detail={})
        with ledger.transaction() as connection:
            audit.append(connection, entry)

    def found(**conditions: Any) -> list[int]:
        with ledger.read() as session:
            return [row["seq"] for row in audit.find(session, **{"limit": 9, **conditions})]

    assert found() == [1, 2, 3, 4]
    assert found(limit=2) == [3, 4]
    assert found(plan_id="ab") == [1, 2]
    assert found(plan_id="a%") == [4]
    assert found(who="a", limit=2) == [3, 4]
    hour = timedelta(hours=1)
    assert found(since=datetime.now(UTC) - hour) == [1, 2, 3, 4]
    assert found(since=datetime.now(UTC) + hour) == []


def test_what_fails_leaves_no_row(ledger: Ledger) -> None:
    """An entry is part of the transaction that it tells of."""

    def fail() -> None:
        with ledger.transaction() as connection:
            audit.append(connection, audit.Entry(who="x", action="train", detail={}))
            raise ZeroDivisionError

    append(ledger, 1)
    with pytest.raises(ZeroDivisionError):
        fail()
    assert verify(ledger).count == 1


WRITER = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from datasite import audit
from datasite.ledger import Ledger

print("ready", flush=True)
sys.stdin.read(1)
ledger = Ledger(Path(sys.argv[1]), site_id="factory-1")
for number in range(40):
    entry = audit.Entry(who=sys.argv[2], action="train", detail={{"n": number}})
    with ledger.transaction() as connection:
        audit.append(connection, entry)
"""


def test_two_processes_that_append_at_once_leave_one_chain(tmp_path: Path) -> None:
    """The serving site and the operator's command share a new file: 2 x 40 rows, all in order."""
    path = tmp_path / "ledger.db"
    script = WRITER.format(root=str(Path(__file__).resolve().parents[2]))
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(path), who],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for who in ("site", "operator")
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write(b"x")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=60)
        assert writer.returncode == 0
    ledger = Ledger(path, site_id="factory-1")
    try:
        assert verify(ledger).count == 80
    finally:
        ledger.close()
