"""How long a site listens to one who does not say what it wants, served by uvicorn on 127.0.0.1."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from datasite.protocol import SiteProtocol

_LONG_S: Final = 20.0
"""By when something has happened; no test waits for it to pass."""

REQUEST: Final = b"GET / HTTP/1.1\r\nHost: site\r\n\r\n"


class Impatient(SiteProtocol):
    """Waits for little more than half a second."""

    headers_s = 0.6


class Patient(SiteProtocol):
    """Waits for longer than a test lasts."""

    headers_s = 600.0


class Application:
    """Answers each request with its number; one for /slow when it is let.

    Attributes:
        asked: A request for /slow is there.
        go_on: It may be answered.
    """

    def __init__(self) -> None:
        self.count = 0
        self.asked = threading.Event()
        self.go_on = threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, as ASGI has it."""
        self.count += 1
        number = str(self.count).encode()
        headers = [(b"content-length", str(len(number) + 1).encode())]
        if scope["path"] == "/slow":
            self.asked.set()
            await asyncio.to_thread(self.go_on.wait, _LONG_S)
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"#" + number})


class Server:
    """A server on a free port."""

    def __init__(self, address: tuple[str, int], application: Application) -> None:
        self.application = application
        self._address = address

    @contextmanager
    def connected(self) -> Iterator[socket.socket]:
        """Give a connection to it."""
        with socket.create_connection(self._address, timeout=_LONG_S) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield connection


@contextmanager
def serving(protocol: type[SiteProtocol]) -> Iterator[Server]:
    """Serve by uvicorn, as sites do."""
    application = Application()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(
            application,
            http=protocol,
            lifespan="off",
            log_config=None,
            timeout_keep_alive=600,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield Server(listener.getsockname(), application)
        finally:
            application.go_on.set()
            server.should_exit = True
            thread.join(_LONG_S)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def impatient() -> Iterator[Server]:
    """Give a server that waits for a fraction of a second."""
    with serving(Impatient) as server:
        yield server


def answer(connection: socket.socket) -> bytes:
    """Give the content of the next answer."""
    received = b""
    while b"#" not in received:
        part = connection.recv(1024)
        assert part, received
        received += part
    assert received.startswith(b"HTTP/1.1 200 OK\r\n")
    return received.partition(b"#")[2]


def everything(connection: socket.socket) -> bytes:
    """Read until the server closes the connection."""
    received = b""
    try:
        while part := connection.recv(1024):
            received += part
    except ConnectionResetError:  # it had not read what was sent meanwhile
        pass
    return received


@pytest.mark.parametrize(
    "said",
    [b"", b"G", b"GET / HTTP/1.1\r\n", REQUEST[:-2]],
    ids=["nothing", "a byte", "a line", "all but the end"],
)
def test_headers_that_do_not_come_are_not_waited_for(impatient: Server, said: bytes) -> None:
    """The connection is closed without a word, and the application is not asked."""
    before = impatient.application.count
    with impatient.connected() as connection:
        connection.sendall(said)
        assert everything(connection) == b""
    assert impatient.application.count == before


def test_headers_that_trickle_are_not_waited_for(impatient: Server) -> None:
    """However regularly another byte comes: the time is for all of them."""
    pause = threading.Event()
    sent = 0
    with impatient.connected() as connection:
        connection.settimeout(0.0)
        for sent in range(1_000_000):
            try:
                connection.send(b"GET / HTTP/1.1\r\nX: "[sent : sent + 1] or b"y")
                if connection.recv(1) == b"":
                    break
            except BlockingIOError:
                pass
            except (ConnectionResetError, BrokenPipeError):
                break
            pause.wait(0.01)
    assert 0 < sent < 10_000


def test_a_request_in_time_is_answered(impatient: Server) -> None:
    """In one piece or in several; and the next one over the same connection."""
    with impatient.connected() as connection:
        connection.sendall(REQUEST[:10])
        connection.sendall(REQUEST[10:])
        first = int(answer(connection))
        connection.sendall(REQUEST)
        assert int(answer(connection)) == first + 1


def test_a_connection_at_rest_is_not_closed(impatient: Server) -> None:
    """Between two requests there is nothing to wait for: the server's own rule counts then."""
    with impatient.connected() as kept:
        kept.sendall(REQUEST)
        first = int(answer(kept))
        with impatient.connected() as silent:
            assert everything(silent) == b""  # as long as that one was waited for, `kept` rested
        kept.sendall(REQUEST)
        assert int(answer(kept)) == first + 1


@pytest.mark.parametrize("said", [b"G", REQUEST[:-2]], ids=["a byte", "all but the end"])
def test_a_further_request_is_watched_as_the_first(impatient: Server, said: bytes) -> None:
    """From its first byte on; what was answered before is not touched."""
    with impatient.connected() as connection:
        connection.sendall(REQUEST)
        assert answer(connection)
        before = impatient.application.count
        connection.sendall(said)
        assert everything(connection) == b""
    assert impatient.application.count == before


def test_a_long_answer_is_not_cut(impatient: Server) -> None:
    """The headers were there in time; what the site takes for its work is its own matter."""
    application = impatient.application
    application.asked.clear()
    application.go_on.clear()
    with impatient.connected() as connection:
        connection.sendall(REQUEST.replace(b"/ ", b"/slow ", 1))
        assert application.asked.wait(_LONG_S)
        with impatient.connected() as silent:
            assert everything(silent) == b""  # longer than headers are waited for
        application.go_on.set()
        assert int(answer(connection)) == application.count


def test_content_may_come_later_than_headers(impatient: Server) -> None:
    """A request whose content is slow is not this clock's to end."""
    with impatient.connected() as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: site\r\nContent-Length: 2\r\n\r\na")
        with impatient.connected() as silent:
            assert everything(silent) == b""
        connection.sendall(b"b")
        assert answer(connection)


def test_one_who_says_nothing_keeps_nobody_else_waiting() -> None:
    """Twenty silent connections, which are waited for; a request over another is answered."""
    with serving(Patient) as server, ExitStack() as silent:
        for _ in range(20):
            silent.enter_context(server.connected()).sendall(b"GET")
        with server.connected() as connection:
            connection.sendall(REQUEST)
            assert answer(connection) == b"1"


def test_a_connection_that_was_ended_leaves_nothing_behind() -> None:
    """A stranger who goes by itself is forgotten: the server stops, and waits for nothing."""
    with serving(Patient) as server:
        with server.connected() as connection:
            connection.sendall(b"GET")
        with server.connected() as connection:
            connection.sendall(REQUEST)
            assert answer(connection) == b"1"
