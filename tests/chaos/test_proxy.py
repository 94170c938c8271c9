"""The network that fails on purpose: a test that nothing was cut in would prove nothing."""

import http.client
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from proxy import Cut, FaultProxy, Mode, Point

BODY = b"x" * 1000
PATH = "/api/v2/session"


class Echo(BaseHTTPRequestHandler):
    """Answers with what it was sent."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Echo."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def proxy() -> Iterator[FaultProxy]:
    """Give a proxy before a server that echoes."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    made = FaultProxy(server.server_address[1])
    yield made
    made.close()
    server.shutdown()
    server.server_close()


def asked(connection: http.client.HTTPConnection) -> bytes:
    """Give the answer to a request, or the error that came of it, by name."""
    try:
        connection.request("POST", PATH, BODY)
        return connection.getresponse().read()
    except (OSError, http.client.HTTPException) as exc:
        return type(exc).__name__.encode()


def connected(proxy: FaultProxy) -> http.client.HTTPConnection:
    """Give a patient connection through the proxy."""
    return http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=0.5)


def test_what_is_not_cut_passes(proxy: FaultProxy) -> None:
    """Any number of requests, over one connection and over another."""
    first, second = connected(proxy), connected(proxy)
    assert [asked(each) for each in (first, second, first)] == [BODY] * 3


def test_the_request_that_was_named_is_cut_and_no_other(proxy: FaultProxy) -> None:
    """The second, at any connection; a new one then passes."""
    proxy.cut(Cut(Point.COMPUTING, Mode.RESET, request=2))
    kept = connected(proxy)
    assert asked(kept) == BODY
    assert asked(kept) in {b"ConnectionResetError", b"RemoteDisconnected"}
    assert asked(connected(proxy)) == BODY
    assert proxy.mend()


def test_a_cut_that_did_not_come_is_told(proxy: FaultProxy) -> None:
    """Whoever counts on it must see that nothing was cut."""
    proxy.cut(Cut(Point.SENDING, Mode.RESET, request=2))
    assert asked(connected(proxy)) == BODY
    assert not proxy.mend()


@pytest.mark.parametrize("point", [Point.SENDING, Point.COMPUTING, Point.RECEIVING])
@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        pytest.param(Mode.BLACK_HOLE, {b"TimeoutError"}, id="black-hole"),
        pytest.param(Mode.TRICKLE, {b"TimeoutError"}, id="trickle"),
        pytest.param(Mode.RESET, {b"ConnectionResetError", b"RemoteDisconnected"}, id="reset"),
        pytest.param(
            Mode.HALF_CLOSED,
            # Python's own reader takes an answer that ends among its headers for an empty one.
            {b"TimeoutError", b"RemoteDisconnected", b"IncompleteRead", b""},
            id="half-closed",
        ),
    ],
)
def test_an_exchange_fails_as_it_is_told(
    proxy: FaultProxy, point: Point, mode: Mode, expected: set[bytes]
) -> None:
    """Each way to fail is seen by who asks as what it is."""
    proxy.cut(Cut(point, mode, request=1))
    assert asked(connected(proxy)) in expected


def test_garbage_is_not_what_was_sent(proxy: FaultProxy) -> None:
    """It has the right length where it takes the place of an answer."""
    proxy.cut(Cut(Point.RECEIVING, Mode.GARBAGE, request=1))
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=0.5) as raw:
        raw.sendall(f"POST {PATH} HTTP/1.1\r\nContent-Length: 4\r\n\r\nping".encode())
        head = raw.recv(1 << 16)
    assert head.startswith(b"HTTP/1.")
    assert b"ping" not in head
