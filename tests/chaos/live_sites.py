"""A live site that is hurt: `datasite serve`, and in front of it a network that can fail."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
from forked import Command, new_fuse
from proxy import FaultProxy

from orchestrator.testbed.presets import AI4I_SCHEMA
from orchestrator.testbed.settings import RESEARCHER, write_password, write_site_settings


class LiveSite:
    """One site.

    Args:
        folder: Everything of it lies there.
        site_id: Its name.
        port: Where it listens.
    """

    def __init__(self, folder: Path, site_id: str, port: int) -> None:
        self.site_id = site_id
        self.folder = folder
        self.config = folder / "site.yaml"
        self.state = folder / "state"
        self.fuse = new_fuse(folder / "last-moment")
        self.proxy = FaultProxy(port)
        self._url = f"http://127.0.0.1:{port}/api/v2/"
        self._command: Command | None = None
        for account in ("operator", "researcher"):
            write_password(folder / f"{account}.password")
        write_site_settings(
            self.config,
            site_id=site_id,
            state="state",
            host="127.0.0.1",
            port=port,
            operator_password="operator.password",
            researcher_password="researcher.password",
        )

    @property
    def address(self) -> dict[str, str]:
        """Its entry in a sites file."""
        return {
            "site_id": self.site_id,
            "url": f"http://127.0.0.1:{self.proxy.port}",
            "email": RESEARCHER,
            "password_file": str(self.folder / "researcher.password"),
        }

    def register(self, table: Path) -> Command:
        """Start to register its data, as the operator does."""
        options = ("--schema", AI4I_SCHEMA, "--name", "ai4i", "--config", self.config)
        arguments = ("data", "register", table, *options)
        return Command("datasite", arguments, output=self.folder / "data.log", fuse=self.fuse)

    def running(self) -> Command:
        """Give its process, a new one when the one before has ended; it may not answer yet."""
        if self._command is None or self._command.exit_code is not None:
            arguments = ("serve", "--config", self.config)
            output = self.folder / "site.log"
            self._command = Command("datasite", arguments, output=output, fuse=self.fuse)
        return self._command

    def answers(self) -> bool:
        """Say whether it answers."""
        self.running()
        try:
            return httpx.get(self._url, timeout=2, trust_env=False).is_success
        except httpx.TransportError:
            return False

    def end(self) -> None:
        """End it as its operator does, and its network."""
        if self._command is not None:
            assert self._command.end() == 0, self._command.said
        self.proxy.close()

    @contextmanager
    def without_room(self) -> Iterator[None]:
        """Let it write nothing into any file, as on a full disk."""
        process = psutil.Process(self.running().pid)
        before = process.rlimit(psutil.RLIMIT_FSIZE)
        process.rlimit(psutil.RLIMIT_FSIZE, (0, before[1]))
        try:
            yield
        finally:
            process.rlimit(psutil.RLIMIT_FSIZE, before)

    def rows(self) -> int:
        """Give how many rows its audit log has."""
        return int(self._asked("SELECT max(seq) AS newest FROM audit")[0]["newest"] or 0)

    def audit(self, after: int = 0) -> list[dict[str, Any]]:
        """Give the rows of its audit log after row `after`, as they lie in the file."""
        rows = self._asked("SELECT * FROM audit WHERE seq > ? ORDER BY seq", after)
        return [{**row, "detail": json.loads(row["detail"])} for row in rows]

    def _asked(self, query: str, *values: object) -> list[dict[str, Any]]:
        path = f"file:{self.state / 'ledger.db'}?mode=ro"
        with closing(sqlite3.connect(path, uri=True, timeout=30)) as ledger:
            ledger.row_factory = sqlite3.Row
            return [dict(row) for row in ledger.execute(query, values)]
