"""Who is told of a site in ERROR, and of what."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from core.exceptions import (
    AuthenticationError,
    CertificateError,
    CommunicationError,
    DataSiteError,
    FederatedLearningError,
    ModelError,
    PlanError,
    SecurityError,
)
from orchestrator.circuit import Circuits
from orchestrator.maintenance import Hooks, Maintenance, inspection

PATIENCE_S = 20.0


class Webhook:
    """Takes events in over HTTP.

    Attributes:
        url: Where.
        came: Set when one has.
        events: What came.
    """

    def __init__(self) -> None:
        self.came = threading.Event()
        self.events: list[dict[str, str]] = []
        webhook = self

        class Take(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                size_bytes = int(self.headers["Content-Length"])
                assert self.headers["Content-Type"] == "application/json"
                webhook.events.append(json.loads(self.rfile.read(size_bytes)))
                self.send_response(204)
                self.end_headers()
                webhook.came.set()

            def log_message(self, *_arguments: object) -> None:
                """Say nothing."""

        self._server = HTTPServer(("127.0.0.1", 0), Take)
        self.url = f"http://127.0.0.1:{self._server.server_port}/events"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        """Take no more."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    """A webhook that is there."""
    made = Webhook()
    yield made
    made.close()


def fail(circuits: Circuits, error: FederatedLearningError) -> None:
    """Have a request to the site fail."""
    with pytest.raises(type(error)), circuits.request("factory-1"):
        raise error


def test_a_webhook_is_posted_what_happened_and_what_to_inspect(webhook: Webhook) -> None:
    """Once for each time that a site comes to be in ERROR, and not for what heals by itself."""
    circuits = Circuits(["factory-1"])
    circuits.listeners.append(Maintenance(Hooks(webhook=webhook.url), "run-1"))
    for passing in (CommunicationError("reset"), PlanError("is DENIED")):
        fail(circuits, passing)
    for _ in range(2):
        fail(circuits, DataSiteError("factory-1: the disk is full"))
    assert webhook.came.wait(PATIENCE_S)
    (event,) = webhook.events
    assert event["at"] == circuits["factory-1"].since.isoformat(timespec="milliseconds")
    del event["at"]
    assert event == {
        "event": "site_error",
        "run": "run-1",
        "site": "factory-1",
        "error": "DataSiteError",
        "message": "factory-1: the disk is full",
        "inspect": "the site's log, disk and memory: 'datasite doctor' there",
    }


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (AuthenticationError("a"), "datasite users list"),
        (CertificateError("a"), "the site's certificate"),
        (ModelError("a"), "learning rate"),
        (SecurityError("a"), "datasite doctor"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_to_inspect_goes_by_what_happened(error: FederatedLearningError, what: str) -> None:
    """The finest kind that is known decides."""
    assert what in inspection(error)


@pytest.mark.parametrize("url", ["ftp://host/", "file:///etc/passwd", "maintenance"])
def test_a_webhook_is_an_http_url(url: str) -> None:
    """Nothing else is opened."""
    with pytest.raises(ValueError, match=r"is no http\(s\) URL"):
        Hooks(webhook=url)
