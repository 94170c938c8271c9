"""Kept connections against small servers of bare sockets, which say what no proper one would."""

import http.client
import socket
import struct
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import pytest

from core.limits import MAX_MESSAGE_BYTES
from orchestrator.communication.connections import (
    Answer,
    Ask,
    Connections,
    Deadline,
    NotReachedError,
    Receiver,
)
from orchestrator.communication.traffic import Bytes, Traffic

_LONG_S: Final = 20.0
"""By when an answer is there; no test waits for it to pass."""

OK: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine"


class Connected:
    """A connection that came in, at the server's side."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._stream = connection.makefile("rb")

    def heard(self) -> tuple[str, dict[str, str], bytes]:
        """Read one request; its first line, its headers by small letters, its content."""
        line = self._stream.readline().decode().strip()
        headers: dict[str, str] = {}
        while pair := self._stream.readline().decode().strip():
            name, _, value = pair.partition(": ")
            headers[name.lower()] = value
        return line, headers, self._stream.read(int(headers.get("content-length", "0")))

    def say(self, answer: bytes) -> None:
        """Send bytes as they are."""
        self.socket.sendall(answer)

    def end(self) -> None:
        """Close the stream, without which the connection stays open."""
        self._stream.close()

    def hang_up(self) -> None:
        """End the connection as a server does that goes away."""
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """End it as a machine does on which the server has died."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._stream.close()
        self.socket.close()

    def is_left(self) -> bool:
        """Wait until the other side has ended it, whatever it says before."""
        try:
            while self._stream.read1():
                pass
        except ConnectionResetError:
            pass
        return True


class Server:
    """Serves the connections that come in, one after the other, each as its turn says.

    Attributes:
        connections: To it.
        heard: The requests' first lines and contents, in order.
        accepted: How many connections came in.
    """

    def __init__(
        self, listener: socket.socket, turns: list[Callable[["Server", Connected], None]]
    ) -> None:
        self.traffic = Traffic()
        host, port = listener.getsockname()
        self.connections = Connections(host, port, None, self.traffic)
        self.port = port
        self.heard: list[tuple[str, bytes]] = []
        self.headers: list[dict[str, str]] = []
        self.accepted = 0
        self.ended = threading.Event()
        self._listener = listener
        self._turns = turns

    def answer(self, connection: Connected, answer: bytes = OK) -> None:
        """Hear one request, and answer it."""
        line, headers, content = connection.heard()
        self.heard.append((line, content))
        self.headers.append(headers)
        connection.say(answer)

    def ask(
        self,
        *parts: bytes,
        path: str = "/x",
        limit_s: float = _LONG_S,
        receiver: Receiver | None = None,
    ) -> Answer:
        """Ask it."""
        ask = Ask(method="POST", path=path, parts=parts)
        return self.connections.ask(lambda: ask, Deadline(limit_s), receiver)

    def run(self) -> None:
        """Serve."""
        for turn in self._turns:
            connection, _ = self._listener.accept()
            self.accepted += 1
            with connection:
                connection.settimeout(_LONG_S)
                theirs = Connected(connection)
                turn(self, theirs)
                theirs.end()


@contextmanager
def serving(*turns: Callable[[Server, Connected], None]) -> Iterator[Server]:
    """Serve as many connections as there are turns; every one of them must come."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(_LONG_S)
        server = Server(listener, list(turns))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.connections.close()
        thread.join(_LONG_S)
        assert not thread.is_alive()
        assert server.accepted == len(turns)


def answers(*said: bytes) -> Callable[[Server, Connected], None]:
    """Give a turn with these answers to as many requests."""

    def turn(server: Server, connection: Connected) -> None:
        for answer in said:
            server.answer(connection, answer)
        assert connection.is_left()

    return turn


def ends_after(*said: bytes) -> Callable[[Server, Connected], None]:
    """Give a turn that ends its connection after these answers."""

    def turn(server: Server, connection: Connected) -> None:
        for answer in said:
            server.answer(connection, answer)
        connection.hang_up()
        server.ended.set()
        assert connection.is_left()

    return turn


def test_a_connection_is_kept_for_the_next_request() -> None:
    """Three requests come over one, each with its own content and length."""
    with serving(answers(OK, OK, OK)) as server:
        found = [server.ask(b"one"), server.ask(b"tw", b"o"), server.ask()]
    assert [(answer.status, bytes(answer.content)) for answer in found] == [(200, b"fine")] * 3
    assert server.heard == [("POST /x HTTP/1.1", text) for text in (b"one", b"two", b"")]
    assert [headers["host"] for headers in server.headers] == [f"127.0.0.1:{server.port}"] * 3


def test_parts_of_any_size_arrive_as_one_content() -> None:
    """Joined where they are small, and one after the other where they are large; never copied."""
    large = bytes(range(256)) * 4096
    with serving(answers(OK, OK)) as server:
        server.ask(b"head", large, b"end")
        server.ask(b"head", b"", b"end")
    assert [content for _, content in server.heard] == [b"head" + large + b"end", b"headend"]


def test_a_server_that_ends_connections_is_asked_over_a_new_one() -> None:
    """It says so in its answer; nothing is lost, and nothing is sent twice."""
    closing = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nfine"
    with serving(answers(closing), answers(OK)) as server:
        assert [server.ask(b"one").status, server.ask(b"two").status] == [200, 200]
    assert [content for _, content in server.heard] == [b"one", b"two"]


def test_a_closed_way_may_be_used_again() -> None:
    """Closing ends what is kept; the next request opens another."""
    with serving(answers(OK), answers(OK)) as server:
        server.ask()
        server.connections.close()
        server.connections.close()
        assert server.ask().status == 200


def test_several_threads_have_a_connection_each() -> None:
    """Two ask at once: neither is heard over the other's."""
    meeting = threading.Barrier(2)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            theirs = Connected(connection)
            _, _, content = theirs.heard()
            meeting.wait(_LONG_S)
            theirs.say(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n" + content)

    threads = [threading.Thread(target=serve, daemon=True) for _ in range(2)]
    with listener:
        host, port = listener.getsockname()
        ways = Connections(host, port, None, Traffic())
        found: dict[bytes, bytes] = {}

        def ask(content: bytes) -> None:
            wanted = Ask(method="POST", path="/", parts=(content,))
            found[content] = bytes(ways.ask(lambda: wanted, Deadline(_LONG_S)).content)

        threads += [
            threading.Thread(target=ask, args=(text,), daemon=True) for text in (b"1", b"2")
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(_LONG_S)
        ways.close()
    assert found == {b"1": b"1", b"2": b"2"}


def refuses_at_once(server: Server, connection: Connected) -> None:
    """Answer when the headers are there, and end without reading the content."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.socket.recv(1024)
    connection.say(b"HTTP/1.1 413 Too large\r\nContent-Length: 3\r\n\r\nno!")
    connection.hang_up()
    server.ended.set()


@pytest.mark.parametrize("kept", [False, True], ids=["a new connection", "a kept one"])
def test_an_answer_that_comes_before_the_request_was_heard_is_read(*, kept: bool) -> None:
    """Sending breaks off, and what was answered before that is the answer; the way is not kept."""

    def second(server: Server, connection: Connected) -> None:
        server.answer(connection)
        refuses_at_once(server, connection)

    turns = [second] if kept else [refuses_at_once]
    with serving(*turns, answers(OK)) as server:
        if kept:
            assert server.ask(b"small").status == 200
        answer = server.ask(bytes(64 << 20))
        assert (answer.status, bytes(answer.content)) == (413, b"no!")
        assert server.ask(b"after").status == 200
    assert server.heard[-1] == ("POST /x HTTP/1.1", b"after")


@pytest.mark.parametrize("how", ["ended", "reset"])
def test_a_kept_connection_that_had_ended_is_tried_again_with_a_new_request(how: str) -> None:
    """Once, over a new connection, and with what `make` gives then: a counter is not used twice."""
    made: list[Ask] = []

    def make() -> Ask:
        made.append(Ask(method="POST", path=f"/{len(made)}", parts=(b"x",)))
        return made[-1]

    def first(server: Server, connection: Connected) -> None:
        server.answer(connection)
        if how == "reset":
            connection.reset()
        else:
            connection.hang_up()
        server.ended.set()
        assert how == "reset" or connection.is_left()

    with serving(first, answers(OK)) as server:
        server.connections.ask(make, Deadline(_LONG_S))
        assert server.ended.wait(_LONG_S)
        assert server.connections.ask(make, Deadline(_LONG_S)).status == 200
    assert [ask.path for ask in made] == ["/0", "/1", "/2"]
    assert [line for line, _ in server.heard] == ["POST /0 HTTP/1.1", "POST /2 HTTP/1.1"]


def test_a_second_connection_that_ends_is_not_tried_again() -> None:
    """A kept one and a new one: two tries are all."""
    with serving(ends_after(OK), ends_after()) as server:
        server.ask()
        assert server.ended.wait(_LONG_S)
        with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
            server.ask()


@pytest.mark.parametrize("how", ["ended", "reset"])
def test_a_new_connection_that_ends_is_not_tried_again(how: str) -> None:
    """The server may have done what was asked before it went: it is asked once."""

    def hears(server: Server, connection: Connected) -> None:
        server.heard.append(connection.heard()[::2])
        if how == "reset":
            connection.reset()

    lost = pytest.raises((http.client.RemoteDisconnected, ConnectionResetError))
    with serving(hears) as server, lost:
        server.ask(b"once")
    assert server.heard == [("POST /x HTTP/1.1", b"once")]


@pytest.mark.parametrize("kept", [False, True], ids=["a new connection", "a kept one"])
def test_an_answer_shorter_than_it_says_is_an_error(*, kept: bool) -> None:
    """It is not taken for the whole, not asked for again, and its connection is not used again."""
    short = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort"
    with serving(ends_after(*[OK] * kept, short), answers(OK)) as server:
        if kept:
            server.ask(b"before")
        with pytest.raises(http.client.IncompleteRead) as caught:
            server.ask(b"asked")
        assert caught.value.expected == 5
        assert server.ask(b"after").status == 200
    assert [content for _, content in server.heard][-2:] == [b"asked", b"after"]


@pytest.mark.parametrize("said", [OK[:20], OK[:33], OK[:-6]], ids=["name", "value", "last line"])
def test_an_answer_that_ends_among_its_headers_is_an_error(said: bytes) -> None:
    """Python's own reader would take the headers that came for all, and the content for empty."""
    with serving(ends_after(OK, said)) as server:
        server.ask()
        with pytest.raises(http.client.IncompleteRead):
            server.ask(b"once")
    assert [content for _, content in server.heard] == [b"", b"once"]


def trickling(begin: bytes) -> Callable[[Server, Connected], None]:
    """Give a turn whose answer begins so, and goes on without an end, bit by bit."""

    def turn(server: Server, connection: Connected) -> None:
        connection.heard()
        pause = threading.Event()
        try:
            connection.say(begin)
            while True:
                connection.say(b"1\r\nx\r\n")
                pause.wait(0.01)
        except OSError:
            server.ended.set()  # nobody listens any more

    return turn


def test_a_chunked_answer_that_trickles_is_given_up_at_its_deadline() -> None:
    """However regularly a little more of it comes; the connection is ended."""
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    with serving(trickling(chunked)) as server:
        with pytest.raises(TimeoutError):
            server.ask(limit_s=0.3)
        assert server.ended.wait(_LONG_S)


def test_a_server_that_says_nothing_is_given_up_at_the_deadline() -> None:
    """It heard the request, and that is all."""

    def hears(_server: Server, connection: Connected) -> None:
        connection.heard()
        assert connection.is_left()

    with serving(hears) as server, pytest.raises(TimeoutError):
        server.ask(limit_s=0.2)


def test_a_server_that_hears_nothing_is_given_up_at_the_deadline() -> None:
    """A request larger than what the network takes of it by itself."""
    given_up = threading.Event()

    def deaf(_server: Server, _connection: Connected) -> None:
        assert given_up.wait(_LONG_S)

    with serving(deaf) as server:
        with pytest.raises(TimeoutError):
            server.ask(bytes(64 << 20), limit_s=0.2)
        given_up.set()


@pytest.mark.parametrize("sizes", [[4], [1, 300_000, 2], []], ids=["one", "several", "none"])
def test_a_chunked_answer_is_read_to_its_end(sizes: list[int]) -> None:
    """Its size is not said before; the connection is kept."""
    chunks = [bytes([65 + number]) * size for number, size in enumerate(sizes)]
    said = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + said + b"0\r\n\r\n"
    with serving(answers(chunked, OK)) as server:
        assert bytes(server.ask().content) == b"".join(chunks)
        assert bytes(server.ask().content) == b"fine"


def test_an_answer_without_a_size_lasts_until_the_connection_ends() -> None:
    """As of old; another connection is opened afterwards."""
    with serving(ends_after(b"HTTP/1.0 200 OK\r\n\r\nall of it"), answers(OK)) as server:
        assert bytes(server.ask().content) == b"all of it"
        assert bytes(server.ask().content) == b"fine"


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Length: 5\r\nX-Word: two words",
        b"CONTENT-LENGTH:5\r\nx-word:\t two words ",
        b"X-Word: two\r\n words\r\nContent-Length: 5",
        b"X-Other: 1\r\nX-Word: two words\r\nX-Other: 2\r\nContent-Length: 5",
        b"X-Long: " + b"x" * 20_000 + b"\r\nX-Word: two words\r\nContent-Length: 5",
    ],
    ids=["as sites write", "other letters", "folded", "twice", "long"],
)
def test_headers_of_every_form_are_read(headers: bytes) -> None:
    """In the form that sites write, and in those that only Python's own reader knows."""

    def turn(server: Server, connection: Connected) -> None:
        for _ in range(2):  # and the connection stays
            server.answer(connection, b"HTTP/1.1 201 Made\r\n" + headers + b"\r\n\r\nhello")

    with serving(turn) as server:
        for _ in range(2):
            answer = server.ask(b"?")
            assert (answer.status, bytes(answer.content)) == (201, b"hello")
            assert " ".join(answer.headers["x-word"].split()) == "two words"


def test_what_nobody_asked_for_ends_the_connection() -> None:
    """More than an answer says it has would be taken for the beginning of the next."""

    def first(server: Server, connection: Connected) -> None:
        server.answer(connection, OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlies")
        assert connection.is_left()

    with serving(first, Server.answer) as server:
        assert bytes(server.ask(b"?").content) == bytes(server.ask(b"?").content) != b"lies"


@pytest.mark.parametrize("size_bytes", [MAX_MESSAGE_BYTES + 1, 10**15])
def test_an_answer_beyond_the_limit_is_refused_by_what_it_says(size_bytes: int) -> None:
    """Nothing is set aside for it, no receiver is asked for room, and nothing of it is read."""

    class NoRoom(Receiver):
        """Is never asked."""

        def begin(self, headers: Mapping[str, str], size_bytes: int) -> memoryview:
            raise AssertionError

    large = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size_bytes
    with serving(answers(large)) as server:
        tracemalloc.start()
        try:
            with pytest.raises(http.client.HTTPException, match=f"an answer of {size_bytes} bytes"):
                server.ask(receiver=NoRoom())
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 1 << 20


def test_a_receiver_is_given_all_parts_in_order() -> None:
    """Into memory of its own, as soon as they are there; headers come before, in small letters."""

    class Keeps(Receiver):
        """Remembers what it was told."""

        def __init__(self) -> None:
            self.begun: list[tuple[str, int]] = []
            self.memory = bytearray()
            self.came_so_far = b""

        def begin(self, headers: Mapping[str, str], size_bytes: int) -> memoryview:
            self.begun.append((headers["x-note"], size_bytes))
            self.memory = bytearray(size_bytes)
            return memoryview(self.memory)

        def came(self, part: memoryview) -> None:
            self.came_so_far += bytes(part)
            assert self.memory.startswith(self.came_so_far)

    content = bytes(range(256)) * 5000
    said = b"HTTP/1.1 200 OK\r\nX-Note: Hear\r\nContent-Length: %d\r\n\r\n" % len(content)
    keeps = Keeps()
    with serving(answers(said + content)) as server:
        answer = server.ask(receiver=keeps)
    assert keeps.begun == [("Hear", len(content))]
    assert keeps.came_so_far == bytes(answer.content) == content


def test_what_passes_is_counted_by_its_contents() -> None:
    """Of requests and answers, whatever the status; headers are not counted."""
    missing = b"HTTP/1.1 404 Not found\r\nContent-Length: 2\r\n\r\nno"
    with serving(answers(OK, missing, OK)) as server:
        server.ask(b"123", b"45")
        first = server.traffic.so_far()
        assert server.ask(b"6789").status == 404
        server.ask()
        assert first == Bytes(sent=5, received=4)
        assert server.traffic.so_far() == Bytes(sent=9, received=10)
        assert server.traffic.so_far() - first == Bytes(sent=4, received=6)


def test_all_threads_count() -> None:
    """Two add a thousand times each, and nothing is lost."""
    traffic = Traffic()

    def count() -> None:
        for _ in range(1000):
            traffic.add(sent=1, received=2)

    threads = [threading.Thread(target=count) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert traffic.so_far() == Bytes(sent=2000, received=4000)


@pytest.mark.parametrize("said", [b"220 mail\r\n\r\n", b"\x00" * 100, b"HTTP/1.1 abc\r\n\r\n"])
def test_what_is_no_http_is_an_error(said: bytes) -> None:
    """And not asked again, over a kept connection either."""
    with serving(ends_after(OK, said)) as server:
        server.ask()
        with pytest.raises(http.client.BadStatusLine):
            server.ask(b"once")
    assert [content for _, content in server.heard] == [b"", b"once"]


def test_where_nobody_listens_is_not_reached() -> None:
    """The error is of its own kind, since nothing was sent: trying again does no harm."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        host, port = gone.getsockname()
    ways = Connections(host, port, None, Traffic())
    with pytest.raises(NotReachedError, match="refused"):
        ways.ask(lambda: Ask(method="GET", path="/"), Deadline(_LONG_S))


def test_waiting_for_room_does_not_count_as_the_sites_delay() -> None:
    """An answer that was there in time is read, however long it had to wait for its turn."""
    deadline = Deadline(0.3)

    class Waits(Receiver):
        def begin(self, headers: Mapping[str, str], size_bytes: int) -> memoryview:
            while deadline.left_s() > 0.001:
                threading.Event().wait(0.01)
            return super().begin(headers, size_bytes)

    ask = Ask(method="POST", path="/x", parts=(b"x",))
    with serving(answers(OK)) as server:
        answer = server.connections.ask(lambda: ask, deadline, Waits())
        assert bytes(answer.content) == b"fine"


def test_headers_that_trickle_are_given_up_at_the_deadline() -> None:
    """However regularly a little more of them comes; the connection is ended."""

    def turn(server: Server, connection: Connected) -> None:
        connection.heard()
        pause = threading.Event()
        try:
            connection.say(b"HTTP/1.1 200 OK\r\n")
            for number in range(50):
                for letter in f"X-{number}: y\r\n".encode():
                    connection.say(bytes([letter]))
                    pause.wait(0.01)
            connection.say(b"Content-Length: 4\r\n\r\nfine")
        except OSError:
            server.ended.set()  # nobody listens any more

    with serving(turn) as server:
        with pytest.raises(TimeoutError):
            server.ask(limit_s=0.3)
        assert server.ended.wait(_LONG_S)


def test_an_answer_that_breaks_off_over_a_kept_connection_is_not_asked_for_again() -> None:
    """It had begun, so the request was heard: the error is the caller's to judge."""

    def turn(server: Server, connection: Connected) -> None:
        server.answer(connection)
        server.answer(connection, b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nbegun")
        assert server.ended.wait(_LONG_S)
        connection.reset()

    class Hears(Receiver):
        """Says when the answer has begun."""

        def begin(self, headers: Mapping[str, str], size_bytes: int) -> memoryview:
            server.ended.set()
            return super().begin(headers, size_bytes)

    with serving(turn) as server:
        server.ask(b"before")
        with pytest.raises(ConnectionResetError):
            server.ask(b"once", receiver=Hears())
    assert [content for _, content in server.heard] == [b"before", b"once"]


def test_an_answer_that_trickles_is_given_up_at_its_deadline() -> None:
    """One whose size was said: however regularly a little more of it comes."""
    declared = b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n"
    with serving(trickling(declared)) as server:
        with pytest.raises(TimeoutError):
            server.ask(limit_s=0.3)
        assert server.ended.wait(_LONG_S)
