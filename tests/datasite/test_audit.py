"""The audit log: whole it verifies, and the first row that was touched is named."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text

from core.exceptions import SecurityError
from datasite import audit
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


def verify(ledger: Ledger) -> tuple[int, str]:
    """Check the chain in a session of its own."""
    with ledger.read() as session:
        return audit.verify(session)


def tamper(*statements: str) -> Callable[[Ledger], None]:
    """Give somebody with access to the file, who runs these statements."""

    def run(ledger: Ledger) -> None:
        with ledger.write() as session:
            for statement in statements:
                session.execute(text(statement))

    return run


def test_an_empty_log_is_whole(ledger: Ledger) -> None:
    """Nothing happened, and nothing is missing."""
    assert verify(ledger) == (0, "0" * 64)


def test_a_long_chain_verifies(ledger: Ledger) -> None:
    """200 rows; each carries on from the hash of the one before."""
    append(ledger, 200)
    count, newest = verify(ledger)
    assert count == 200
    with ledger.read() as session:
        last = session.execute(text("SELECT sha256 FROM audit WHERE seq = 200")).scalar_one()
    assert newest == last


def test_the_newest_hash_tells_of_a_cut_end(ledger: Ledger) -> None:
    """A log cut off at its end is whole in itself: only a hash noted elsewhere shows it."""
    append(ledger, 3)
    noted = verify(ledger)
    tamper("DELETE FROM audit WHERE seq = 3")(ledger)
    count, newest = verify(ledger)
    assert count == 2
    assert newest != noted[1]


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
    ledger: Ledger, attack: Callable[[Ledger], None], message: str
) -> None:
    """Five rows, one attack on the file, and the row where the chain breaks."""
    append(ledger, 5)
    attack(ledger)
    with pytest.raises(SecurityError, match=f"^{message}$"):
        verify(ledger)


def test_a_row_forged_with_its_own_hash_breaks_the_next(ledger: Ledger) -> None:
    """Who knows how hashes are made can rewrite a row, but then row 4 does not follow from it."""
    append(ledger, 5)
    with ledger.write() as session:
        row = session.get_one(audit.AuditRow, 3)
        row.who = "nobody"
        row.sha256 = audit._digest({name: getattr(row, name) for name in audit._HASHED})
    with pytest.raises(SecurityError, match="audit row 4 does not follow from the row before it"):
        verify(ledger)


def test_what_fails_leaves_no_row(ledger: Ledger) -> None:
    """An entry is part of the transaction that it tells of."""

    def fail() -> None:
        with ledger.transaction() as connection:
            audit.append(connection, audit.Entry(who="x", action="train", detail={}))
            raise ZeroDivisionError

    append(ledger, 1)
    with pytest.raises(ZeroDivisionError):
        fail()
    assert verify(ledger)[0] == 1


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
        assert verify(ledger)[0] == 80
    finally:
        ledger.close()
