"""A live site with an audit log, an operator, two researchers and an auditor, and one dataset."""

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import syft as sy
import yaml
from site_process import free_port, wait_until
from sites import APPROVE, BUDGET, SCHEMA, write_table
from sites import RESEARCHER as APPROVED
from syft.client.api import SyftAPICall, debox_signed_syftapicall_response
from syft.server.credentials import SyftSigningKey

from datasite.operator_door import OperatorDoor
from orchestrator.testbed.processes import run_datasite

SITE: Final = "factory-1"
OPERATOR: Final = "operator@factory.example.com"
RESEARCHER: Final = APPROVED.email
RIVAL: Final = "rival@lab.example.com"
AUDITOR: Final = "auditor@authority.example.com"
_BOOT_S: Final = 90


def password_of(email: str) -> str:
    """Give the password of one of the site's accounts."""
    return f"Password-of-{email}"


class LiveSite:
    """A `datasite serve`, to be started, asked and ended.

    Args:
        folder: Everything of it lies there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.state = folder / "state"
        self.config = folder / "site.yaml"
        self.log = folder / "site.log"
        self._process: subprocess.Popen[bytes] | None = None
        accounts = {"operator": [OPERATOR], "researchers": [RESEARCHER, RIVAL]}
        named: dict[str, Any] = {
            role: [{"email": email, "password": password_of(email)} for email in emails]
            for role, emails in {**accounts, "auditors": [AUDITOR]}.items()
        }
        settings = {
            "site_id": SITE,
            "state": str(self.state),
            "listen": {"port": self.port},
            "policy": APPROVE,
            "budget": BUDGET,
            **named,
            "operator": named["operator"][0],
        }
        self.config.write_text(yaml.safe_dump(settings), encoding="utf-8")

    def register(self) -> None:
        """Register the dataset `press`."""
        schema = self.folder / "press.yaml"
        schema.write_text(yaml.safe_dump(SCHEMA), encoding="utf-8")
        table = write_table(self.folder / "press.csv")
        options = ("--schema", str(schema), "--name", "press", "-c", str(self.config))
        run_datasite("data", "register", str(table), *options)

    def start(self) -> None:
        """Start it, and return when it answers."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "datasite", "serve", "--config", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        wait_until(self.answers, limit_s=_BOOT_S, what=f"the site answers; see {self.log}")

    def answers(self) -> bool:
        """Say whether the site answers; fail when its process has ended."""
        if self._process is None or self._process.poll() is not None:
            pytest.fail(f"the site ended:\n{self.log.read_text(encoding='utf-8')}")
        try:
            return httpx.get(f"{self.url}/api/v2/", timeout=2, trust_env=False).is_success
        except httpx.TransportError:
            return False

    def end(self) -> None:
        """End it as an operator does; ending again does nothing."""
        if self._process is not None:
            self._process.terminate()
            assert self._process.wait(timeout=30) == 0
            self._process = None

    def door(self) -> OperatorDoor:
        """Give the operator's door."""
        return OperatorDoor(site_id=SITE, state=self.state)

    def notebook(self, email: str) -> sy.DatasiteClient:
        """Log in as PySyft's own client does."""
        return sy.login(url=self.url, email=email, password=password_of(email))

    def audit(self) -> list[dict[str, Any]]:
        """Give the rows of the audit log, as they lie in its file."""
        with sqlite3.connect(f"file:{self.state / 'ledger.db'}?mode=ro", uri=True) as ledger:
            ledger.row_factory = sqlite3.Row
            rows = [dict(row) for row in ledger.execute("SELECT * FROM audit ORDER BY seq")]
        ledger.close()
        return [{**row, "detail": json.loads(row["detail"])} for row in rows]

    def refusals_of(self, who: str) -> int:
        """Give how many refusals of `who` the audit log tells of."""
        return sum(
            int(row["detail"].get("count", 1))
            for row in self.audit()
            if row["who"] == who and row["outcome"] != "ok"
        )


def signed_call(
    client: sy.DatasiteClient, path: str, *, key: SyftSigningKey | None = None, **kwargs: object
) -> Any:
    """Send a signed call past the client's own checks; what the site answers."""
    call = SyftAPICall(server_uid=client.id, path=path, args=[], kwargs=kwargs)
    signed = call.sign(credentials=key or client.credentials)
    return debox_signed_syftapicall_response(client.connection.make_call(signed)).unwrap()
