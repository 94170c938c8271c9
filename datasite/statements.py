"""Statements of SQLAlchemy, compiled once and run by SQLite's own driver.

A round runs half a dozen of them at each site. SQLAlchemy's way from a statement to its rows takes
many times as long as SQLite does over it, and more where sites share a machine.
"""

import sqlite3
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol, cast

from sqlalchemy import ClauseElement, Select
from sqlalchemy.dialects import sqlite

if TYPE_CHECKING:
    from sqlalchemy.sql.compiler import SQLCompiler

_DIALECT = sqlite.dialect(paramstyle="named")  # type: ignore[no-untyped-call]  # SQLAlchemy's


class Executes(Protocol):
    """What statements are run on, within a transaction: a `Driven`, or SQLAlchemy's connection."""

    def execute(self, statement: Any, parameters: Any = None, /) -> Any:  # noqa: ANN401 - rows
        """Run a statement; the rows it gives."""


class Driven:
    """Runs statements on a connection of SQLite's driver.

    Args:
        connection: The connection.
        mark: How things stand in its transaction, see `Ledger.mark`.
    """

    def __init__(self, connection: sqlite3.Connection, mark: tuple[int, int] = (0, 0)) -> None:
        self._connection = connection
        self.mark = mark

    def execute(
        self, statement: ClauseElement, parameters: Mapping[str, object] | None = None, /
    ) -> "Found":
        """Run a statement; the rows it gives."""
        return _compiled(statement).run(self._connection, parameters or {})


class Found:
    """The rows that a statement gave."""

    def __init__(self, rows: Sequence[Any]) -> None:
        self._rows = rows

    def first(self) -> Any | None:  # noqa: ANN401 - a row
        """Give the first row, or None."""
        return self._rows[0] if self._rows else None

    def all(self) -> Sequence[Any]:
        """Give every row."""
        return self._rows

    def __iter__(self) -> Any:  # noqa: ANN401 - of rows
        return iter(self._rows)


class _Compiled:
    """One statement: its text, and what turns values into SQLite's and back."""

    def __init__(self, statement: ClauseElement) -> None:
        compiled = cast("SQLCompiler", statement.compile(dialect=_DIALECT))
        self._text = str(compiled)
        self._fixed = {
            name: compiled.params[name]
            for bound, name in compiled.bind_names.items()
            if not bound.required
        }
        self._to_sqlite = {
            name: convert
            for bound, name in compiled.bind_names.items()
            if (convert := bound.type.dialect_impl(_DIALECT).bind_processor(_DIALECT)) is not None
        }
        columns = list(statement.selected_columns) if isinstance(statement, Select) else []
        names = [column.key or f"column_{place}" for place, column in enumerate(columns)]
        self._row = namedtuple("Row", names, rename=True)  # type: ignore[misc]  # noqa: PYI024 - of any columns
        self._from_sqlite: list[tuple[int, Callable[[Any], Any]]] = [
            (place, convert)
            for place, column in enumerate(columns)
            if (convert := column.type.dialect_impl(_DIALECT).result_processor(_DIALECT, None))
            is not None
        ]

    def run(self, connection: sqlite3.Connection, values: Mapping[str, object]) -> Found:
        given = {**self._fixed, **values}
        for name, convert in self._to_sqlite.items():
            if name in given:
                given[name] = convert(given[name])
        return Found([self._as_row(row) for row in connection.execute(self._text, given)])

    def _as_row(self, values: Sequence[Any]) -> Any:  # noqa: ANN401 - a row
        if self._from_sqlite:
            values = list(values)
            for place, convert in self._from_sqlite:
                values[place] = convert(values[place])
        return self._row(*values)


@lru_cache(maxsize=64)
def _compiled(statement: ClauseElement) -> _Compiled:
    return _Compiled(statement)
