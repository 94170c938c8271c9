"""Whether a SQLite database has changed, for the price of a look at its header."""

import sqlite3
import threading
from pathlib import Path


class DatabaseChanges:
    """Watches one database file.

    SQLite's `data_version` differs for one connection whenever another has committed something;
    this connection does nothing else, so it sees what any other connection did.

    Args:
        database: The file, which exists.
    """

    def __init__(self, database: Path) -> None:
        self._connection = sqlite3.connect(database, check_same_thread=False)
        self._lock = threading.Lock()

    def version(self) -> int:
        """Give a number that is another one after each change."""
        with self._lock:
            return int(self._connection.execute("PRAGMA data_version").fetchone()[0])

    def close(self) -> None:
        """Stop watching."""
        self._connection.close()
