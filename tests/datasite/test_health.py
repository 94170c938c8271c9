"""The health probe, as a container's engine runs it."""

import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from authorities import authority, issue, serving

ROOT = Path(__file__).resolve().parents[2]


class Site(BaseHTTPRequestHandler):
    """Answers as a site does, fails, or leads elsewhere, by path."""

    def do_GET(self) -> None:
        """Answer."""
        self.send_response({"/api/v2/": 200, "/elsewhere": 302}.get(self.path, 503))
        self.send_header("Location", "/api/v2/")
        self.end_headers()

    def log_message(self, *_args: object) -> None:
        """Log nothing."""


def serve(context: ssl.SSLContext | None = None) -> Iterator[str]:
    """Serve from a thread; the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"{'http' if context is None else 'https'}://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def plain() -> Iterator[str]:
    """A site without TLS."""
    yield from serve()


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[str]:
    """A site with a certificate for another host, by an authority that nobody here trusts."""
    yield from serve(serving(issue(authority(tmp_path / "ca"), tmp_path, "factory-1")))


def probe(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the probe."""
    kept = {name: value for name, value in os.environ.items() if name != "DATASITE_HEALTH_URL"}
    return subprocess.run(
        [sys.executable, "-m", "datasite.health", *arguments],
        cwd=ROOT,
        env={**kept, **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


@pytest.mark.parametrize("site", ["plain", "secured"])
def test_a_site_that_answers_is_healthy(site: str, request: pytest.FixtureRequest) -> None:
    """Given as argument or by the environment, of which the argument counts; nothing is printed.

    A certificate is not verified, and a proxy of the environment not used.
    """
    url = f"{request.getfixturevalue(site)}/api/v2/"
    for done in (
        probe(url),
        probe(DATASITE_HEALTH_URL=url),
        probe(url, DATASITE_HEALTH_URL="http://127.0.0.1:1/"),
        probe(url, http_proxy="http://127.0.0.1:1/", https_proxy="http://127.0.0.1:1/"),
    ):
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(("path", "status"), [("/broken", 503), ("/elsewhere", 302)])
def test_any_other_answer_is_not_healthy(plain: str, path: str, status: int) -> None:
    """An error is one, and so is being led elsewhere."""
    done = probe(f"{plain}{path}")
    assert (done.returncode, done.stderr) == (1, f"{plain}{path}: HTTP {status}\n")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1:1/", "Connection refused"),
        ("ftp://127.0.0.1/", "not an http(s) URL"),
        ("127.0.0.1:8080", "not an http(s) URL"),
        ("http://127.0.0.1:port/", "Port could not be cast"),
        ("http://[::1", "Invalid IPv6 URL"),
    ],
    ids=["closed", "scheme", "no scheme", "port", "host"],
)
def test_what_cannot_be_asked_is_not_healthy(url: str, said: str) -> None:
    """With one line on standard error that says where and why."""
    done = probe(url)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{url}: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_https_at_a_plain_site_is_not_healthy(plain: str) -> None:
    """A site whose TLS went missing must not pass for one that has it."""
    done = probe(f"{plain.replace('http', 'https')}/api/v2/")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1


def test_a_silent_site_is_given_up() -> None:
    """After three seconds, by the probe itself."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        done = probe(url)
    assert (done.returncode, done.stderr) == (1, f"{url}: timed out\n")


def test_the_probe_loads_nothing_heavy() -> None:
    """It runs every few seconds beside a site that trains."""
    heavy = ("pydantic", "yaml", "typer", "httpx", "loguru", "cryptography", "core")
    script = f"import sys, datasite.health; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
