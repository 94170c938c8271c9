"""What a site must not forget: datasets, plans, replies, states, audit log, in one SQLite file.

The serving process and the operator's commands open the same file; SQLite keeps them apart (WAL,
one writer at a time). What belongs together is written in one transaction: a reply never stands
without its audit row.
"""

import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from sqlalchemy import (
    JSON,
    Delete,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    Select,
    TableClause,
    create_engine,
    delete,
    event,
    func,
    literal_column,
    select,
)
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from core.exceptions import DataSiteError
from datasite.statements import Driven

_PATIENCE_S: Final = 30.0
"""How long one writer waits for another."""


Mark = tuple[int, int]
"""How often a connection was opened, and SQLite's count of what others changed since."""


class Table(DeclarativeBase):
    """Base of the ledger's tables."""

    type_annotation_map = {dict[str, Any]: JSON}  # noqa: RUF012 - SQLAlchemy reads it off the class


class DatasetRow(Table):
    """One version of a registered dataset; `removed_at` is set instead of deleting the row."""

    __tablename__ = "datasets"

    name: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    rows: Mapped[int]
    file: Mapped[str]
    sha256: Mapped[str]
    schema: Mapped[dict[str, Any]]
    registered_at: Mapped[str]
    removed_at: Mapped[str | None] = mapped_column(default=None)


class CountsRow(Table):
    """What was counted of a version's rows at registration, and how far it is from the first's.

    A table of its own, and not columns of `datasets`: a ledger that was made before it opens, and
    the versions in it have no counts.
    """

    __tablename__ = "dataset_counts"

    name: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    counts: Mapped[dict[str, Any]]
    drift: Mapped[dict[str, Any]]


class PlanRow(Table):
    """A proposal and what the operator, or a rule, decided; `status` is a `PlanStatus` name."""

    __tablename__ = "plans"

    plan_id: Mapped[str] = mapped_column(primary_key=True)
    researcher: Mapped[str]
    proposal: Mapped[dict[str, Any]]
    status: Mapped[str]
    reason: Mapped[str]
    decided_by: Mapped[str]
    proposed_at: Mapped[str]
    decided_at: Mapped[str | None] = mapped_column(default=None)
    expires_at: Mapped[str]


class ApprovalRow(Table):
    """That a person approved a plan, which several must."""

    __tablename__ = "approvals"

    plan_id: Mapped[str] = mapped_column(ForeignKey("plans.plan_id"), primary_key=True)
    who: Mapped[str] = mapped_column(primary_key=True)
    at: Mapped[str]


class ReplyRow(Table):
    """What answered a request, so that asking again neither trains nor spends again.

    `request` is the request's name and `body_hash` the reply's body's (see `core.wire`). A large
    body lies in `file`, and `body` is empty.
    """

    __tablename__ = "answers"

    plan_id: Mapped[str] = mapped_column(ForeignKey("plans.plan_id"), primary_key=True)
    round_num: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    request: Mapped[str]
    head: Mapped[bytes] = mapped_column(LargeBinary)
    body: Mapped[bytes] = mapped_column(LargeBinary)
    body_hash: Mapped[bytes] = mapped_column(LargeBinary)
    file: Mapped[str | None] = mapped_column(default=None)


class StateRow(Table):
    """What the site keeps for an algorithm after a round it trained in (FedDyn: its dual).

    `follows` is the round whose state it was built on; -1 when it was built on nothing.
    """

    __tablename__ = "states"

    plan_id: Mapped[str] = mapped_column(ForeignKey("plans.plan_id"), primary_key=True)
    round_num: Mapped[int] = mapped_column(primary_key=True)
    follows: Mapped[int]
    state: Mapped[bytes] = mapped_column(LargeBinary)


class SecureRoundRow(Table):
    """A round that the site trained in under secure aggregation.

    `request` is the training request's name and `trained_on` what all sites must have trained on.
    `survivors` is a JSON list of the sites in whose sum the update is; empty while it is in none.
    """

    __tablename__ = "secure_rounds"

    plan_id: Mapped[str] = mapped_column(ForeignKey("plans.plan_id"), primary_key=True)
    round_num: Mapped[int] = mapped_column(primary_key=True)
    request: Mapped[str]
    trained_on: Mapped[str]
    survivors: Mapped[str]


class AuditRow(Table):
    """One thing that happened; `sha256` covers the row and the row before it (see `audit`)."""

    __tablename__ = "audit"
    __table_args__ = (Index("audit_by_plan", "plan_id"),)

    seq: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[str]
    who: Mapped[str]
    action: Mapped[str]
    plan_id: Mapped[str | None]
    outcome: Mapped[str]
    detail: Mapped[dict[str, Any]]
    previous_sha256: Mapped[str]
    sha256: Mapped[str]


_APPEND_ONLY: Final = [
    f"""CREATE TRIGGER IF NOT EXISTS audit_no_{change.lower()}
    BEFORE {change} ON audit {when}
    BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"""
    for change, when in (
        ("UPDATE", ""),
        ("DELETE", ""),
        # Without it, INSERT OR REPLACE would delete a row and fire no trigger for that.
        ("INSERT", "WHEN EXISTS (SELECT 1 FROM audit WHERE seq = NEW.seq)"),
    )
]
"""A guard rail against mistakes, which whoever may write the file can take down. The proof that the
log is whole is its chain (see `audit`)."""


class Ledger:
    """The open ledger file of one site.

    Args:
        path: The SQLite file; made, private to its owner, when it is not there.
        site_id: Named in errors.
    """

    def __init__(self, path: Path, *, site_id: str) -> None:
        try:
            if not path.exists():
                os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        except OSError as exc:
            raise DataSiteError(
                f"{site_id}: the ledger {path} cannot be made: {exc.strerror}", site_id=site_id
            ) from exc
        self._engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": _PATIENCE_S})
        event.listen(self._engine, "connect", _configure)
        event.listen(self._engine, "begin", _begin)
        self._writing = self._engine.execution_options(begin="BEGIN IMMEDIATE")
        self._reader, self._writer = _Driver(path), _Driver(path)
        self._translated = _Translated(site_id)
        with self._translated, self._writing.begin() as connection:
            Table.metadata.create_all(connection)
            for trigger in _APPEND_ONLY:
                connection.exec_driver_sql(trigger)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Give a session that sees one consistent state."""
        with self._translated, Session(self._engine, expire_on_commit=False) as session:
            yield session

    def rows(self, statement: Select[Any], **values: object) -> Sequence[Any]:
        """Give the rows of one query of columns, as they are now, without a session's cost."""
        with self._translated, self._reader as connection:
            return Driven(connection).execute(statement, values).all()

    def mark(self) -> Mark | None:
        """Give a mark that is another one after each change, but for those of `transaction`.

        None while one is under way, which may have to wait for another process.
        """
        with self._translated:
            return self._writer.mark_if_free()

    @contextmanager
    def transaction(self) -> Iterator[Driven]:
        """Give what writes, all or nothing as `write`, without a session's cost.

        For tables of which nothing is kept in memory, see `datasite.fresh`.
        """
        with self._translated, self._writer as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield Driven(connection, self._writer.mark(connection))
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Give a session whose changes are kept all at its end or, on any error, not at all."""
        with (
            self._translated,
            Session(self._writing, expire_on_commit=False) as session,
            session.begin(),
        ):
            session.connection()  # takes the lock now, and not at the first statement
            yield session

    def close(self) -> None:
        """Close the file."""
        self._reader.close()
        self._writer.close()
        self._engine.dispose()


class _Translated:
    """A context that makes SQLite's errors ours; any number of threads may be in it."""

    def __init__(self, site_id: str) -> None:
        self._site_id = site_id

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, SQLAlchemyError | sqlite3.Error):
            cause = getattr(error, "orig", None) or error
            raise DataSiteError(
                f"{self._site_id}: the ledger cannot be used ({cause}); is the disk full?",
                site_id=self._site_id,
                outside=f"{self._site_id}: the ledger cannot be used; is the disk full?",
            ) from error


class _Driver:
    """A kept connection of SQLite's driver, for one thread at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._opened = 0
        self._using = threading.Lock()

    def __enter__(self) -> sqlite3.Connection:
        """Give the connection; after an error of SQLite's it is made anew."""
        self._using.acquire()
        try:
            return self._connected()
        except BaseException:
            self._using.release()
            raise

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        try:
            if isinstance(error, sqlite3.Error):
                self._drop()
        finally:
            self._using.release()

    def mark_if_free(self) -> Mark | None:
        """Give a mark, see `mark`; None while another thread has the connection."""
        if not self._using.acquire(blocking=False):
            return None
        try:
            return self.mark(self._connected())
        except sqlite3.Error:
            self._drop()
            raise
        finally:
            self._using.release()

    def mark(self, connection: sqlite3.Connection) -> Mark:
        """Give a mark that is another one after each change that other connections made."""
        return self._opened, connection.execute("PRAGMA data_version").fetchone()[0]

    def close(self) -> None:
        with self._using:
            self._drop()

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = sqlite3.connect(
                self._path, timeout=_PATIENCE_S, check_same_thread=False
            )
            _configure(self._connection, None)
            self._opened += 1
        return self._connection

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def all_but_newest(table: TableClause, plans: int) -> Delete:
    """Give the statement that deletes a table's rows of all but the plans written last."""
    newest = func.max(literal_column("rowid", Integer))  # a row that is replaced gets a new one
    kept = select(table.c.plan_id).group_by(table.c.plan_id).order_by(newest.desc()).limit(plans)
    return delete(table).where(table.c.plan_id.not_in(kept))


def now() -> str:
    """Give the time in UTC, as the ledger writes it."""
    return as_written(datetime.now(UTC))


def as_written(time: datetime) -> str:
    """Give a time as the ledger writes it; what is written so sorts by time."""
    return time.astimezone(UTC).isoformat(timespec="milliseconds")


def _configure(connection: Any, _record: Any) -> None:  # noqa: ANN401 - SQLAlchemy's hook
    connection.isolation_level = None  # transactions begin where `_begin` says
    _write_ahead(connection)
    connection.execute("PRAGMA synchronous=FULL")  # a reply that left the site survives a power cut
    connection.execute("PRAGMA foreign_keys=ON")


def _write_ahead(connection: Any) -> None:  # noqa: ANN401 - as above
    end = time.monotonic() + _PATIENCE_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as exc:
            # Two processes make a new file at once: SQLite waits for every lock but this one.
            if exc.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
            time.sleep(0.01)
        else:
            return


def _begin(connection: Any) -> None:  # noqa: ANN401 - SQLAlchemy's hook
    statement = connection.get_execution_options().get("begin", "BEGIN")
    if statement:
        connection.exec_driver_sql(statement)
