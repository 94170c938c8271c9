"""`orchestrator doctor` says which step to which site fails, and what to do about it."""

import datetime as dt
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from authorities import authority, issue, redate, serving

from core.checkup import Outcome, Verdict
from orchestrator.doctor import examine

PASSWORD = "a-password-nobody-may-see"
METADATA = {"name": "factory-1", "id": "7a1c7b0e-5f3e-4a53-9f1e-0c53ac0b8a11", "verify_key": "00"}


@contextmanager
def answering(
    *, clock: dt.timedelta | None = None, health: int = 200, tls: ssl.SSLContext | None = None
) -> Iterator[str]:
    """Serve what a site says before a log-in, its clock off by `clock`; its address."""

    class Site(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_health = self.path == "/api/v2/"
            time = dt.datetime.now(tz=dt.UTC) + (clock or dt.timedelta())
            told = {"status": "ok", "time": time.isoformat()} if is_health else METADATA
            content = json.dumps(told).encode()
            self.send_response(health if is_health else 200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_POST(self) -> None:
            self.send_error(500)

        def log_message(self, *_args: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"{'http' if tls is None else 'https'}://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def examined(folder: Path, url: str, **changes: Any) -> dict[str, Verdict]:
    """Examine one site by a sites file; what was found, by check."""
    entry = {"site_id": "factory-1", "url": url, "email": "r@lab.example.com", "password": PASSWORD}
    file = folder / "sites.yaml"
    file.write_text(yaml.safe_dump({"sites": [{**entry, **changes}]}))
    found = examine(file, folder / "runs")
    assert PASSWORD not in repr(found)
    return {finding.check: finding.verdict for finding in found}


def test_without_a_sites_file_this_machine_is_looked_at(tmp_path: Path) -> None:
    """Nothing is made."""
    found = examine(None, tmp_path / "runs")
    assert [(f.check, f.verdict.outcome) for f in found] == [
        ("versions", Outcome.OK),
        ("runs", Outcome.OK),
        ("disk", Outcome.OK),
        ("sites", Outcome.SKIP),
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """A file stands in the way of the runs."""
    (tmp_path / "runs").touch()
    found = {f.check: f.verdict for f in examine(None, tmp_path / "runs")}
    assert found["runs"].outcome is Outcome.FAIL
    assert "Not a directory" in found["runs"].found
    assert "--runs" in found["runs"].advice


def test_a_broken_sites_file_is_told_with_its_mistakes(tmp_path: Path) -> None:
    """And this machine is looked at all the same."""
    found = examined(tmp_path, "nowhere")
    assert list(found) == ["versions", "runs", "disk", "sites"]
    assert found["sites"].outcome is Outcome.FAIL
    assert "sites[0].url" in found["sites"].found


def test_a_site_where_nobody_listens_is_not_asked_further(tmp_path: Path) -> None:
    """One failure with its reason, not four."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    found = examined(tmp_path, f"http://127.0.0.1:{port}")
    assert list(found)[4:] == ["factory-1 reached"]
    assert "not reached" in found["factory-1 reached"].found


@pytest.mark.parametrize(
    ("begin", "end", "said"),
    [(-9, -1, "has expired; ask the site's operator to renew it"), (1, 9, "is not valid yet")],
    ids=["expired", "not yet valid"],
)
def test_a_certificate_of_another_day_is_told(
    tmp_path: Path, begin: int, end: int, said: str
) -> None:
    """Nobody logs in."""
    issued = issue(authority(tmp_path / "ca"), tmp_path / "tls")
    redate(issued, begin=dt.timedelta(days=begin), end=dt.timedelta(days=end))
    with answering(tls=serving(issued)) as url:
        found = examined(tmp_path, url, ca_file=str(issued.ca_file))
    assert list(found)[4:] == ["factory-1 reached"]
    assert said in found["factory-1 reached"].found


def test_an_authority_that_is_not_known_here_is_told(tmp_path: Path) -> None:
    """With where to name it."""
    issued = issue(authority(tmp_path / "ca"), tmp_path / "tls")
    other = authority(tmp_path / "other") / "ca.crt"
    with answering(tls=serving(issued)) as url:
        found = examined(tmp_path, url, ca_file=str(other))
    assert "give it as ca_file in the sites file" in found["factory-1 reached"].found


def test_another_site_at_the_address_is_told(tmp_path: Path) -> None:
    """Before a password is sent to it."""
    with answering() as url:
        found = examined(tmp_path, url, site_id="factory-2")
    assert list(found)[4:] == ["factory-2 reached"]
    assert "is 'factory-1', expected 'factory-2'" in found["factory-2 reached"].found


@pytest.mark.parametrize(
    ("hours", "outcome"), [(0, "ok"), (1, "FAIL"), (-1, "FAIL"), (1 / 60, "warn")]
)
def test_clocks_that_differ_are_told(tmp_path: Path, hours: float, outcome: str) -> None:
    """A minute is a warning, an hour a failure, in either direction."""
    with answering(clock=dt.timedelta(hours=hours)) as url:
        found = examined(tmp_path, url)
    health = found["factory-1 health"]
    assert health.outcome.value == outcome
    assert f"differ by {abs(hours) * 3600:.0f}" in health.found
    assert ("NTP" in health.advice) == (outcome != "ok")


def test_a_site_that_is_not_well_is_told(tmp_path: Path) -> None:
    """It is reached, and its health is an error."""
    with answering(health=503) as url:
        found = examined(tmp_path, url)
    assert found["factory-1 reached"].outcome is Outcome.OK
    assert "HTTP 503" in found["factory-1 health"].found
    assert "factory-1 log-in" not in found
