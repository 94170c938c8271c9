"""The ledger through SQLite's own driver: what SQLAlchemy's sessions read and write."""

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import JSON, LargeBinary, Table, bindparam, func, insert, select

from core.exceptions import DataSiteError
from datasite.ledger import AuditRow, Ledger, PlanRow, StateRow
from datasite.ledger import Table as Base

TABLES: Final = Base.metadata.sorted_tables
"""Each after those that it refers to."""

PLAN: Final = "p" * 64

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
whole = st.integers(-(2**63), 2**63 - 1)
_OF_TYPE: Final[dict[type, st.SearchStrategy[Any]]] = {
    int: whole,
    float: st.floats(allow_nan=False),
    str: text,
}
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=5,
)


def values_of(table: Table) -> st.SearchStrategy[dict[str, Any]]:
    """Rows of a table: any JSON, any bytes, NULL wherever the table allows it."""
    columns = {}
    for column in table.columns:
        if isinstance(column.type, JSON):
            values: st.SearchStrategy[Any] = st.dictionaries(text, anything, max_size=3)
        elif isinstance(column.type, LargeBinary):
            values = st.binary(max_size=50)
        else:
            values = _OF_TYPE[column.type.python_type]
        if column.foreign_keys:
            values = st.just(PLAN)
        columns[column.key] = st.none() | values if column.nullable else values
    return st.fixed_dictionaries(columns)


def plan(plan_id: str = PLAN, **changes: object) -> dict[str, Any]:
    """Give the row of a plan."""
    return {
        "plan_id": plan_id,
        "researcher": "r",
        "proposal": {"rounds": 3},
        "status": "APPROVED",
        "reason": "",
        "decided_by": "operator",
        "proposed_at": "now",
        "decided_at": None,
        "expires_at": "then",
        **changes,
    }


PLANS: Final = Base.metadata.tables["plans"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    """One ledger for many examples, without what keeps rows of its log from being deleted."""
    path = tmp_path_factory.mktemp("ledger") / "ledger.db"
    opened = Ledger(path, site_id="factory-1")
    with sqlite3.connect(path) as connection:
        for change in ("update", "delete", "insert"):
            connection.execute(f"DROP TRIGGER audit_no_{change}")
    connection.close()
    yield opened
    opened.close()


def emptied(ledger: Ledger) -> None:
    """Leave nothing in it but a plan, for what refers to one."""
    with ledger.transaction() as connection:
        for table in reversed(TABLES):
            connection.execute(table.delete())
        connection.execute(insert(PLANS), plan())


def through_sqlalchemy(ledger: Ledger, table: Table) -> list[dict[str, Any]]:
    """Read a table by a session."""
    with ledger.read() as session:
        return [dict(row) for row in session.execute(select(table)).mappings()]


def through_the_driver(ledger: Ledger, table: Table) -> list[dict[str, Any]]:
    """Read a table by the driver."""
    return [
        {column.key: getattr(row, column.key) for column in table.columns}
        for row in ledger.rows(select(*table.columns))
    ]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_the_driver_reads_and_writes_what_sqlalchemy_does(shared: Ledger, table: Table) -> None:
    """For each table: written either way, a row comes out the same in both, types included."""

    @settings(max_examples=40, derandomize=True, deadline=None, database=None)
    @given(row=values_of(table))
    def holds(row: dict[str, Any]) -> None:
        for by_driver in (True, False):
            emptied(shared)
            others = len(through_sqlalchemy(shared, table))
            if by_driver:
                with shared.transaction() as connection:
                    connection.execute(insert(table), row)
            else:
                with shared.write() as session:
                    session.execute(insert(table), row)
            found = through_sqlalchemy(shared, table)
            assert row in found
            assert through_the_driver(shared, table) == found
            assert len(found) == others + 1
            (same,) = [other for other in found if other == row][:1]
            assert {key: type(value) for key, value in same.items()} == {
                key: type(value) for key, value in row.items()
            }

    holds()


def test_a_query_gives_rows_by_name_and_by_place(ledger: Ledger) -> None:
    """Values are bound by their names; what is not a column of a table is there as well."""
    with ledger.transaction() as connection:
        for number in range(3):
            connection.execute(insert(PLANS), plan(f"plan-{number}", reason=f"reason {number}"))
    named = select(PLANS.c.plan_id, PLANS.c.proposal).where(PLANS.c.reason == bindparam("why"))
    (row,) = ledger.rows(named, why="reason 1")
    assert (row.plan_id, row.proposal, row[0]) == ("plan-1", {"rounds": 3}, "plan-1")
    assert ledger.rows(named, why="no reason") == []
    fixed = select(func.count(), func.max(PLANS.c.plan_id)).where(PLANS.c.reason != "reason 0")
    assert [tuple(row) for row in ledger.rows(fixed)] == [(2, "plan-2")]


class UnexpectedError(Exception):
    """What nobody reckoned with."""


@pytest.mark.parametrize("error", [UnexpectedError, KeyboardInterrupt], ids=lambda e: e.__name__)
def test_a_transaction_that_raises_leaves_nothing(
    ledger: Ledger, error: type[BaseException]
) -> None:
    """Neither of several rows; the error is the caller's own, and the next transaction is kept."""

    def breaks_off() -> None:
        with ledger.transaction() as connection:
            connection.execute(insert(PLANS), plan("first"))
            connection.execute(insert(PLANS), plan("second"))
            raise error

    with pytest.raises(error):
        breaks_off()
    assert through_the_driver(ledger, PLANS) == []
    with ledger.transaction() as connection:
        connection.execute(insert(PLANS), plan("third"))
    assert [row["plan_id"] for row in through_sqlalchemy(ledger, PLANS)] == ["third"]


def test_what_is_not_committed_is_seen_by_nobody(ledger: Ledger) -> None:
    """Neither by the driver's reader nor by a session; afterwards by both."""
    with ledger.transaction() as connection:
        connection.execute(insert(PLANS), plan())
        assert through_the_driver(ledger, PLANS) == through_sqlalchemy(ledger, PLANS) == []
        assert [row.plan_id for row in connection.execute(select(PLANS.c.plan_id))] == [PLAN]
    assert len(through_the_driver(ledger, PLANS)) == len(through_sqlalchemy(ledger, PLANS)) == 1


@pytest.mark.parametrize("by", ["rows", "transaction"])
def test_after_an_error_of_sqlites_the_next_call_works(ledger: Ledger, by: str) -> None:
    """The error is the site's, with its cause; nothing of the transaction is kept."""

    def lacks_a_value() -> None:
        ledger.rows(select(PLANS.c.plan_id).where(PLANS.c.plan_id == bindparam("unsaid")))

    def repeats_a_key() -> None:
        with ledger.transaction() as connection:
            connection.execute(insert(PLANS), plan())
            connection.execute(insert(PLANS), plan())

    for _ in range(2):
        with pytest.raises(DataSiteError, match="factory-1: the ledger cannot be used") as caught:
            (lacks_a_value if by == "rows" else repeats_a_key)()
        assert caught.value.site_id == "factory-1"
        assert isinstance(caught.value.__cause__, sqlite3.Error)
        assert through_the_driver(ledger, PLANS) == []
    with ledger.transaction() as connection:
        connection.execute(insert(PLANS), plan())
    assert len(through_the_driver(ledger, PLANS)) == 1


def test_the_driver_keeps_what_belongs_together(ledger: Ledger) -> None:
    """A state of no plan is refused, as by a session."""
    states = Base.metadata.tables[StateRow.__tablename__]
    row = {"plan_id": "of none", "round_num": 0, "follows": -1, "state": b""}
    with (
        pytest.raises(DataSiteError, match="FOREIGN KEY"),
        ledger.transaction() as connection,
    ):
        connection.execute(insert(states), row)
    assert through_the_driver(ledger, states) == []


def test_a_ledger_that_was_closed_opens_again_when_it_is_asked(ledger: Ledger) -> None:
    """Closing twice does nothing; what was written is there."""
    with ledger.transaction() as connection:
        connection.execute(insert(PLANS), plan())
    ledger.close()
    ledger.close()
    assert len(through_the_driver(ledger, PLANS)) == 1


def test_threads_take_turns(ledger: Ledger) -> None:
    """Eight write and read at once, in both ways; every row is there, and none twice."""
    meeting = threading.Barrier(8)
    audit = Base.metadata.tables[AuditRow.__tablename__]
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            meeting.wait(20)
            for turn in range(5):
                seq = number * 100 + turn
                if number % 2:
                    with ledger.transaction() as connection:
                        connection.execute(insert(audit), entry(seq))
                else:
                    with ledger.write() as session:
                        session.execute(insert(audit), entry(seq))
                assert ledger.rows(select(audit.c.seq).where(audit.c.seq == bindparam("s")), s=seq)
        except BaseException as exc:  # noqa: BLE001 - told below
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(through_the_driver(ledger, audit)) == 40


def entry(seq: int) -> dict[str, Any]:
    """Give a row of the audit log."""
    return {
        "seq": seq,
        "at": "now",
        "who": "somebody",
        "action": "test",
        "plan_id": None,
        "outcome": "ok",
        "detail": {},
        "previous_sha256": "",
        "sha256": "",
    }


WRITER = """
import sys
from pathlib import Path
from sqlalchemy import func, insert, select
from datasite.ledger import Ledger, Table

ledger = Ledger(Path(sys.argv[1]), site_id="factory-1")
audit = Table.metadata.tables["audit"]
print("ready", flush=True)
sys.stdin.readline()
for _ in range(100):
    with ledger.transaction() as connection:
        (row,) = connection.execute(select(func.max(audit.c.seq)))
        seq = (row[0] or 0) + 1
        values = dict.fromkeys(["at", "action", "outcome", "previous_sha256", "sha256"], "")
        connection.execute(
            insert(audit),
            {**values, "seq": seq, "who": sys.argv[2], "plan_id": None, "detail": {}},
        )
ledger.close()
"""


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    """Each continues the other's count: of two hundred rows none is lost or twice."""
    path = tmp_path / "ledger.db"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), name],
            cwd=Path(__file__).resolve().parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("server", "operator")
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=60)
        assert writer.returncode == 0
    ledger = Ledger(path, site_id="factory-1")
    audit = Base.metadata.tables[AuditRow.__tablename__]
    rows = ledger.rows(select(audit.c.seq, audit.c.who).order_by(audit.c.seq))
    ledger.close()
    assert [row.seq for row in rows] == list(range(1, 201))
    assert sorted({row.who for row in rows}) == ["operator", "server"]


def test_every_column_of_a_plan_is_read_as_the_plans_class_reads_it(ledger: Ledger) -> None:
    """JSON as a dictionary, and NULL as None."""
    with ledger.write() as session:
        session.add(PlanRow(**plan(proposal={"a": [1, None, "ü"], "b": {}})))
    (row,) = ledger.rows(select(*PLANS.columns))
    assert row.proposal == {"a": [1, None, "ü"], "b": {}}
    assert row.decided_at is None
