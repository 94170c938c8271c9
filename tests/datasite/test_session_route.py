"""The route of sessions, served over HTTP on 127.0.0.1: what is answered, refused and noted.

The test is the other side: it derives its own keys, seals its requests and checks each reply's tag.
"""

import queue
import socket
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Final, NamedTuple, cast

import httpx
import pytest
import torch
import uvicorn
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send

from core import wire
from core.exceptions import DataSiteError
from core.messages import Failure
from core.packing import content_hash
from core.sessions import Parties, SessionKeys, derive_keys, is_tag, new_half, tag
from core.wire import Parcel
from datasite import exchange
from datasite.caller import Caller, Role
from datasite.exchange import Answer, Exchange
from datasite.protocol import SiteProtocol
from datasite.session_route import PATH, SessionRoute
from datasite.sessions import Sessions

SITE: Final = "factory-1"
SITE_KEY: Final = "517e"
CALLER_KEY: Final = "ca11e4"
EMAIL: Final = "researcher@lab.example.com"
RESEARCHER: Final = Caller(email=EMAIL, role=Role.RESEARCHER)
_LONG_S: Final = 20.0
"""By when an answer is there; no test waits for it to pass."""


def message(*values: float) -> bytes:
    """Give a message whose body is these numbers."""
    return wire.encode(
        {
            "kind": "update",
            "datasite_id": SITE,
            "round_num": 0,
            "num_samples": 1,
            "num_steps": 1,
            "metrics": {},
            "parameters": {"w": torch.tensor(values)},
        }
    ).joined()


MODEL: Final = message(1.0, 2.0)
OTHER_MODEL: Final = message(3.0, 4.0)
NO_BODY: Final = wire.encode({"kind": "describe"}).joined()


class Site:
    """A site that echoes, behind the route, with what it was asked and what it refused.

    Attributes:
        caller: Whom the account's key belongs to; None when it is disabled.
        reply: What is answered; None for what was asked.
        handled: What came through, and from whom.
        refused: What was noted: e-mail, and what was refused.
        gone: Set when a connection to it was lost.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.caller: Caller | None = RESEARCHER
        self.reply: bytes | None = None
        self.handled: list[tuple[bytes, Caller]] = []
        self.refused: list[tuple[str, str]] = []
        self.gone = threading.Event()
        self.meeting: threading.Barrier | None = None
        self.sessions = Sessions(SITE_KEY, lifetime_s=60, clock=lambda: self.now)
        self.route = SessionRoute(
            site_id=SITE,
            sessions=self.sessions,
            caller_of=lambda key: self.caller if key == CALLER_KEY else None,
            handle=self.handle,
            on_refused=lambda email, what: self.refused.append((email, what)),
        )

    def handle(self, request: Parcel, caller: Caller) -> Parcel:
        """Echo."""
        if self.meeting is not None:
            self.meeting.wait(_LONG_S)
        self.handled.append((request.joined(), caller))
        return request if self.reply is None else Parcel.of(self.reply)


class Protocol(SiteProtocol):
    """The site's protocol, which tells when a connection is lost."""

    site: Site

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        super().connection_lost(exc)
        self.site.gone.set()


class Listener:
    """Listens on 127.0.0.1, for one site after the other.

    Attributes:
        protocol: That of the site which answers.
        url: Where.
        client: A client with kept connections to it.
    """

    def __init__(self, url: str, client: httpx.Client) -> None:
        self.protocol: type[Protocol] = Protocol
        self.url = url
        self.client = client

    def __call__(self, **settings: Any) -> Protocol:
        """Speak over one connection, as uvicorn wants it."""
        return self.protocol(**settings)


@pytest.fixture(scope="module")
def listener() -> Iterator[Listener]:
    """Listen on a free port, by uvicorn as sites do."""
    with socket.socket() as taken, httpx.Client(trust_env=False, timeout=_LONG_S) as client:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listening = Listener(f"http://127.0.0.1:{taken.getsockname()[1]}", client)
        config = uvicorn.Config(no_application, lifespan="off", log_config=None)
        config.load()
        config.http_protocol_class = cast("Any", listening)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]})
        thread.start()
        yield listening
        server.should_exit = True
        thread.join(_LONG_S)
        assert not thread.is_alive()


async def no_application(_scope: Scope, _receive: Receive, _send: Send) -> None:
    """Be asked for what is no request in a session."""
    raise AssertionError


@pytest.fixture
def site(listener: Listener) -> Site:
    """Give a new site that is served, over connections of its own."""
    site = Site()
    listener.client.close()
    listener.client = httpx.Client(trust_env=False, timeout=_LONG_S)
    listener.protocol = Protocol.with_sessions(site.route)
    listener.protocol.site = site
    return site


class Sealed(NamedTuple):
    """A request as it travels."""

    headers: dict[str, str]
    content: bytes

    def but(self, **headers: str | None) -> "Sealed":
        """Give the same with other headers, or without those that are None; `_` is a dash."""
        changed = self.headers | {
            name.replace("_", "-"): value for name, value in headers.items() if value is not None
        }
        gone = {name.replace("_", "-") for name, value in headers.items() if value is None}
        return Sealed({n: v for n, v in changed.items() if n not in gone}, self.content)

    def raw(self, **headers: str | None) -> bytes:
        """Give the bytes of the request's headers; its length is said to be the content's."""
        said = {"Host": "site", "Content-Length": str(len(self.content)), **self.headers}
        lines = [
            f"{name}: {value}" for name, value in Sealed(said, b"").but(**headers).headers.items()
        ]
        return "\r\n".join([f"POST {PATH} HTTP/1.1", *lines, "", ""]).encode()


class Session:
    """A session as its caller holds it."""

    def __init__(
        self,
        site: Site,
        listener: Listener | None = None,
        *,
        key: str = CALLER_KEY,
        email: str = EMAIL,
    ) -> None:
        self._listener = listener
        half = new_half()
        public = half.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        told = site.sessions.open(public, caller_key=key, email=email)
        self.session_id = str(told["session"])
        site_public = bytes.fromhex(str(told["public"]))
        parties = Parties(
            session_id=self.session_id,
            caller_key=key,
            site_key=SITE_KEY,
            caller_public=public,
            site_public=site_public,
        )
        self.keys: SessionKeys = derive_keys(half, site_public, parties)

    def sealed(self, blob: bytes, counter: int, *, leaves_out_body: bool = False) -> Sealed:
        """Seal a message."""
        parcel = Parcel.of(blob)
        said = {"head": parcel.head, "body_hash": parcel.body_hash}
        headers = {
            "X-Session": self.session_id,
            "X-Counter": str(counter),
            "X-Head": str(len(parcel.head)),
            "X-Body-Hash": parcel.body_hash.hex(),
            "X-Tag": tag(self.keys.request, counter=counter, **said),
        }
        return Sealed(headers, parcel.head if leaves_out_body else blob)

    def post(self, sealed: Sealed) -> httpx.Response:
        """Send it as it is."""
        assert self._listener is not None
        url = f"{self._listener.url}{PATH}"
        return self._listener.client.post(url, headers=sealed.headers, content=sealed.content)

    def ask(self, blob: bytes, counter: int) -> bytes:
        """Send a message and give the reply, whose tag is right."""
        return self.opened(self.post(self.sealed(blob, counter)), counter)

    def opened(self, response: httpx.Response, counter: int) -> bytes:
        """Give the reply in a response, whose tag is right."""
        assert response.status_code == 200
        assert self.is_own(response.headers, response.content, counter)
        return response.content

    def is_own(self, headers: Mapping[str, str], content: bytes, counter: int) -> bool:
        """Tell whether this is the site's reply to the request with this counter."""
        found = {name.lower(): value for name, value in headers.items()}
        head_bytes = int(found["x-head"])
        return is_tag(
            found["x-tag"],
            self.keys.reply,
            counter=counter,
            head=content[:head_bytes],
            body_hash=content_hash(content[head_bytes:]),
        )

    @contextmanager
    def connected(self) -> Iterator[socket.socket]:
        """Give a connection to the site."""
        assert self._listener is not None
        url = httpx.URL(self._listener.url)
        with socket.create_connection((url.host, url.port), timeout=_LONG_S) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield connection


@pytest.fixture
def session(site: Site, listener: Listener) -> Session:
    """Give a session of the researcher's."""
    return Session(site, listener)


def status(connection: socket.socket) -> int:
    """Give the status of the answer that comes in over a connection."""
    with connection.makefile("rb") as stream:
        return int(stream.readline().split()[1])


def is_refused(reply: bytes, *, says: str) -> bool:
    """Tell whether a reply is the site's SecurityError with these words."""
    failure = wire.decode(Parcel.of(reply))
    assert wire.is_kind(failure, Failure)
    return (failure["error"], failure["datasite_id"]) == (
        "SecurityError",
        SITE,
    ) and says in failure["message"]


@pytest.mark.parametrize("blob", [MODEL, NO_BODY], ids=["with a body", "without"])
def test_a_request_is_answered_under_the_sites_tag(
    site: Site, session: Session, blob: bytes
) -> None:
    """It arrives as it was sent, from the account whose session it is; nothing is noted."""
    assert session.ask(blob, 1) == blob
    assert site.handled == [(blob, RESEARCHER)]
    assert site.refused == []


def test_a_reply_belongs_to_its_request(site: Site, session: Session) -> None:
    """The same reply to another request has another tag, so an old one cannot stand in for it."""
    first, second = (session.post(session.sealed(MODEL, counter)) for counter in (1, 2))
    assert first.content == second.content
    assert session.is_own(first.headers, first.content, 1)
    assert not session.is_own(first.headers, first.content, 2)


def test_a_reply_that_is_no_message_is_sealed_whole(site: Site, session: Session) -> None:
    """All of it is head."""
    site.reply = b"not a message"
    response = session.post(session.sealed(MODEL, 1))
    assert session.opened(response, 1) == b"not a message"
    assert int(response.headers["x-head"]) == len(b"not a message")


def test_requests_of_one_session_are_answered_at_once(site: Site, session: Session) -> None:
    """Each of two is at the site before either is answered, and each has its own reply."""
    site.meeting = threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        replies = list(pool.map(session.ask, (MODEL, OTHER_MODEL), (1, 2)))
    assert replies == [MODEL, OTHER_MODEL]


def test_counters_may_come_in_any_order(site: Site, session: Session) -> None:
    """Two connections overtake each other."""
    assert [session.ask(MODEL, counter) for counter in (3, 1, 2)] == [MODEL] * 3
    assert site.refused == []


def test_the_account_is_looked_up_for_each_request(site: Site, session: Session) -> None:
    """A role that changed after the session was opened is the new one at the site."""
    session.ask(MODEL, 1)
    site.caller = Caller(email=EMAIL, role=Role.OPERATOR)
    session.ask(MODEL, 2)
    assert [caller.role for _, caller in site.handled] == [Role.RESEARCHER, Role.OPERATOR]


def test_an_unknown_session_is_sent_to_open_one(site: Site, session: Session) -> None:
    """401; nobody is noted, because nobody knows who it was."""
    sealed = session.sealed(MODEL, 1)
    assert session.post(sealed.but(X_Session="0" * 32)).status_code == 401
    assert session.post(sealed.but(X_Session=None)).status_code == 401
    assert (site.handled, site.refused) == ([], [])


def test_a_session_whose_time_is_over_is_unknown(site: Site, session: Session) -> None:
    """From then on, whatever was said in it before; that it was tried is written down, once."""
    session.ask(MODEL, 1)
    site.now += 60
    for counter in (2, 3):
        assert session.post(session.sealed(MODEL, counter)).status_code == 401
    assert len(site.handled) == 1
    assert site.refused == [(EMAIL, "session: its time is over")]


def forged(session: Session, how: str) -> Sealed:
    """Give a request that is not as it was sealed, in one respect."""
    right = session.sealed(MODEL, 1)
    head_bytes = int(right.headers["X-Head"])
    other_head = bytes([*MODEL[: head_bytes - 1], ord("\n"), *MODEL[head_bytes:]])
    said = {"counter": 1, "head": MODEL[:head_bytes]}
    body_hash = bytes.fromhex(right.headers["X-Body-Hash"])
    return {
        "no tag": right.but(X_Tag=""),
        "guessed": right.but(X_Tag="0" * 64),
        "cut short": right.but(X_Tag=right.headers["X-Tag"][:-1]),
        "key of replies": right.but(X_Tag=tag(session.keys.reply, **said, body_hash=body_hash)),
        "counter": right.but(X_Counter="2"),
        "head": Sealed(right.headers, other_head),
        "body and hash": Sealed(
            {
                **right.headers,
                "X-Body-Hash": Parcel.of(OTHER_MODEL).body_hash.hex(),
            },
            OTHER_MODEL,
        ),
        "boundary": right.but(X_Head=str(head_bytes - 1)),
    }[how]


@pytest.mark.parametrize(
    "how",
    [
        *("no tag", "guessed", "cut short", "key of replies"),
        *("counter", "head", "body and hash", "boundary"),
    ],
)
def test_a_wrong_tag_is_refused_and_noted(site: Site, session: Session, how: str) -> None:
    """401, as for no session at all; the counter is still the account's own to use."""
    assert session.post(forged(session, how)).status_code == 401
    assert site.handled == []
    assert site.refused == [(EMAIL, "session: wrong tag")]
    assert [session.ask(MODEL, counter) for counter in (1, 2)] == [MODEL] * 2


def test_another_accounts_keys_are_of_no_use(
    site: Site, session: Session, listener: Listener
) -> None:
    """Who has a session cannot speak in another's; it is noted at whose it was tried."""
    other = Session(site, listener, key="07e4", email="other@lab.example.com")
    sealed = other.sealed(MODEL, 1).but(X_Session=session.session_id)
    assert session.post(sealed).status_code == 401
    assert site.handled == []
    assert site.refused == [(EMAIL, "session: wrong tag")]


def test_sixteen_refusals_end_the_session(site: Site, session: Session) -> None:
    """No more than that is written down of one."""
    for _ in range(20):
        assert session.post(forged(session, "guessed")).status_code == 401
    assert site.refused == [(EMAIL, "session: wrong tag")] * 16
    assert session.post(session.sealed(MODEL, 1)).status_code == 401
    assert site.handled == []


@pytest.mark.parametrize("counter", [2000, 976], ids=["the same", "too far behind"])
def test_a_request_is_handled_once(site: Site, session: Session, counter: int) -> None:
    """Sent again as it was, or so late that it may have been, it is refused under the tag."""
    session.ask(MODEL, 2000)
    assert is_refused(session.ask(MODEL, counter), says=f"{counter} was used before")
    assert len(site.handled) == 1
    assert site.refused == [(EMAIL, "session: replayed counter")]


def test_copies_sent_at_once_are_handled_once(site: Site, session: Session) -> None:
    """Eight at the same time; seven are refused, and no one of them crowds the others out."""
    sealed = session.sealed(MODEL, 1)
    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(lambda _: session.post(sealed), range(8)))
    replies = [session.opened(response, 1) for response in responses]
    assert replies.count(MODEL) == 1
    assert len(site.handled) == 1
    assert site.refused == [(EMAIL, "session: replayed counter")] * 7


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(MODEL[:-1] + b"\xff", id="a byte changed"),
        pytest.param(MODEL[:-1], id="cut short"),
        pytest.param(MODEL + b"\0", id="longer"),
    ],
)
def test_a_body_must_be_the_one_that_was_sealed(
    site: Site, session: Session, content: bytes
) -> None:
    """Another is refused under the tag, noted, never handled, and not kept for later."""
    response = session.post(Sealed(session.sealed(MODEL, 1).headers, content))
    assert is_refused(session.opened(response, 1), says="not the one that its hash names")
    assert site.handled == []
    assert site.refused == [(EMAIL, "session: wrong hash")]
    assert session.post(session.sealed(MODEL, 2, leaves_out_body=True)).status_code == 409


def test_a_disabled_account_is_out_at_once(site: Site, session: Session) -> None:
    """It is told so under the tag; its session is gone, and stays so when it is enabled again."""
    session.ask(MODEL, 1)
    site.caller = None
    assert is_refused(session.ask(MODEL, 2), says=f"account {EMAIL} is unknown or disabled")
    assert site.refused == [(EMAIL, "session: disabled account")]
    site.caller = RESEARCHER
    assert session.post(session.sealed(MODEL, 3)).status_code == 401
    assert len(site.handled) == 1


def test_a_body_left_out_is_the_one_before(site: Site, session: Session) -> None:
    """Unknown, it is asked for; once it was sent, the message arrives whole without it."""
    left_out = [session.sealed(MODEL, counter, leaves_out_body=True) for counter in (1, 3)]
    assert session.post(left_out[0]).status_code == 409
    assert site.handled == []
    assert session.ask(MODEL, 2) == MODEL
    assert session.opened(session.post(left_out[1]), 3) == MODEL
    assert [request for request, _ in site.handled] == [MODEL, MODEL]
    assert site.refused == []


def test_only_the_last_body_is_known(site: Site, session: Session) -> None:
    """Of two models the first is asked for again; a message without a body changes nothing."""
    session.ask(MODEL, 1)
    session.ask(OTHER_MODEL, 2)
    session.ask(NO_BODY, 3)
    assert session.post(session.sealed(MODEL, 4, leaves_out_body=True)).status_code == 409
    known = session.post(session.sealed(OTHER_MODEL, 5, leaves_out_body=True))
    assert session.opened(known, 5) == OTHER_MODEL


def test_what_one_session_sent_no_other_has(
    site: Site, session: Session, listener: Listener
) -> None:
    """Nobody gets at a body by knowing its hash."""
    session.ask(MODEL, 1)
    other = Session(site, listener)
    assert other.post(other.sealed(MODEL, 1, leaves_out_body=True)).status_code == 409


def test_a_body_that_the_site_let_go_of_is_asked_for_again(
    site: Site, session: Session, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is room for one: after another session's request the first one's is sent anew."""
    monkeypatch.setattr("datasite.sessions._MOST_BODIES_BYTES", 8)
    other = Session(site, listener)
    session.ask(MODEL, 1)
    other.ask(OTHER_MODEL, 1)
    assert session.post(session.sealed(MODEL, 2, leaves_out_body=True)).status_code == 409
    known = other.sealed(OTHER_MODEL, 2, leaves_out_body=True)
    assert other.opened(other.post(known), 2) == OTHER_MODEL
    assert session.ask(MODEL, 3) == MODEL
    again = session.sealed(MODEL, 4, leaves_out_body=True)
    assert session.opened(session.post(again), 4) == MODEL
    assert other.post(other.sealed(OTHER_MODEL, 3, leaves_out_body=True)).status_code == 409
    assert site.refused == []


def test_a_body_left_out_is_counted_like_any_other(site: Site, session: Session) -> None:
    """It cannot be repeated either."""
    session.ask(MODEL, 1)
    sealed = session.sealed(MODEL, 2, leaves_out_body=True)
    assert session.opened(session.post(sealed), 2) == MODEL
    assert is_refused(session.opened(session.post(sealed), 2), says="used before")
    assert len(site.handled) == 2


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"Content_Length": str(wire.MAX_MESSAGE_BYTES + 1)}, id="message"),
        pytest.param(
            {"Content_Length": "100000000", "X_Head": str(wire.MAX_HEADER_BYTES + 1)}, id="head"
        ),
        pytest.param({"X_Head": "100000"}, id="head beyond the message"),
        pytest.param({"X_Head": "-1"}, id="negative head"),
        pytest.param({"X_Counter": str(2**63)}, id="counter"),
        pytest.param({"X_Counter": "-1"}, id="negative counter"),
    ],
)
def test_what_is_too_large_is_not_read(
    site: Site, session: Session, headers: dict[str, str]
) -> None:
    """By the headers alone: 413, noted, and the site neither asks for the content nor goes on."""
    sealed = session.sealed(MODEL, 1)
    with session.connected() as connection:
        # The site answers "100 Continue" as soon as it wants any of the content.
        connection.sendall(sealed.raw(Expect="100-continue", **headers))
        with connection.makefile("rb") as stream:
            answer = stream.read()  # to the end: the site closes the connection
    assert answer.split()[1] == b"413"
    assert b"connection: close" in answer
    assert (site.handled, site.refused) == ([], [(EMAIL, "session: too large")])


@pytest.mark.parametrize(
    "headers",
    [
        *(
            pytest.param({name: None}, id=f"no {name}")
            for name in ("X_Counter", "X_Head", "X_Body_Hash", "X_Tag")
        ),
        pytest.param({"Content_Length": None, "Transfer_Encoding": "chunked"}, id="no length"),
        pytest.param({"X_Counter": "one"}, id="counter in words"),
        pytest.param({"X_Counter": "1.0"}, id="half a counter"),
        pytest.param({"X_Head": ""}, id="empty head"),
        pytest.param({"X_Body_Hash": "xyz"}, id="hash not hexadecimal"),
        pytest.param({"X_Counter": "9" * 5000}, id="more digits than Python reads"),
    ],
)
def test_headers_that_cannot_be_read_are_refused(
    site: Site, session: Session, headers: dict[str, str | None]
) -> None:
    """400, noted, and nothing of the content is asked for."""
    with session.connected() as connection:
        connection.sendall(session.sealed(MODEL, 1).raw(Expect="100-continue", **headers))
        assert status(connection) == 400
    assert (site.handled, site.refused) == ([], [(EMAIL, "session: unreadable headers")])


@pytest.mark.parametrize("what", ["wrong tag", "replayed counter"])
def test_a_refusal_does_not_wait_for_the_body(site: Site, session: Session, what: str) -> None:
    """The head decides; of a body of two gigabytes not one byte need come."""
    session.ask(MODEL, 1)
    sealed = session.sealed(MODEL, 1, leaves_out_body=True)
    changes = {"X_Tag": "0" * 64} if what == "wrong tag" else {}
    with session.connected() as connection:
        connection.sendall(sealed.raw(Content_Length=str(2**31), **changes) + sealed.content)
        assert status(connection) == (401 if changes else 200)
    assert len(site.handled) == 1
    assert site.refused == [(EMAIL, f"session: {what}")]


@pytest.mark.parametrize(
    "comes", [0, 10, -1], ids=["nothing", "part of the head", "all but a byte"]
)
def test_what_trickles_in_is_given_up(
    site: Site, session: Session, monkeypatch: pytest.MonkeyPatch, comes: int
) -> None:
    """408 when the time is over that its length allows; noted, and the connection is closed."""
    monkeypatch.setattr(exchange, "_GRACE_S", 0.2)
    monkeypatch.setattr(exchange, "_SLOWEST_BYTES_S", 1 << 30)
    sealed = session.sealed(MODEL, 1)
    with session.connected() as connection:
        connection.sendall(sealed.raw() + sealed.content[:comes])
        with connection.makefile("rb") as stream:
            answer = stream.read()
    assert answer.split()[1] == b"408"
    assert b"connection: close" in answer
    assert (site.handled, site.refused) == ([], [(EMAIL, "session: too slow")])


def test_a_longer_message_may_take_longer(
    site: Site, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would be too slow for a few bytes is not for many: the size that is announced counts."""
    monkeypatch.setattr(exchange, "_GRACE_S", 0.0)
    monkeypatch.setattr(exchange, "_SLOWEST_BYTES_S", len(MODEL) / _LONG_S)
    sealed = session.sealed(MODEL, 1)
    with session.connected() as connection:
        connection.sendall(sealed.raw(Expect="100-continue"))
        assert connection.recv(100).startswith(b"HTTP/1.1 100")  # the time is running
        connection.sendall(sealed.content)
        assert status(connection) == 200
    assert site.refused == []


def test_a_refused_request_is_not_listened_to_for_ever(
    site: Site, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was answered; the rest of what it announced has the time that it would have had."""
    monkeypatch.setattr(exchange, "_GRACE_S", 0.2)
    monkeypatch.setattr(exchange, "_SLOWEST_BYTES_S", 1 << 40)
    sealed = forged(session, "guessed")
    with session.connected() as connection:
        connection.sendall(sealed.raw(Content_Length=str(2**31)) + sealed.content)
        with connection.makefile("rb") as stream:
            assert stream.read().split()[1] == b"401"  # and then the connection is closed
    assert site.handled == []


def test_a_request_does_not_come_before_the_answer_to_the_one_before(
    site: Site, session: Session
) -> None:
    """Nobody here sends two at once over one connection: it is closed, and neither is answered."""
    site.meeting = threading.Barrier(2)
    first, second = session.sealed(MODEL, 1), session.sealed(MODEL, 2)
    with session.connected() as connection:
        connection.sendall(first.raw() + first.content + second.raw())
        with connection.makefile("rb") as stream:
            assert stream.read() == b""
    site.meeting.wait(_LONG_S)  # the first was being worked on, and nobody waits for it any more
    site.meeting = None
    assert session.ask(OTHER_MODEL, 3) == OTHER_MODEL


@pytest.mark.parametrize("how", ["Connection: close", "HTTP/1.0"])
def test_a_caller_that_wants_one_answer_gets_one(site: Site, session: Session, how: str) -> None:
    """The connection is closed after it."""
    sealed = session.sealed(MODEL, 1)
    raw = sealed.raw(Connection="close") if "close" in how else sealed.raw()
    raw = raw.replace(b"HTTP/1.1", b"HTTP/1.0") if how == "HTTP/1.0" else raw
    with session.connected() as connection:
        connection.sendall(raw + sealed.content)
        with connection.makefile("rb") as stream:
            answer = stream.read()
    assert b"connection: close" in answer
    assert answer.endswith(MODEL)
    assert site.refused == []


def test_a_large_message_goes_both_ways(site: Site, session: Session) -> None:
    """Two megabytes, which no buffer takes at once."""
    large = message(*range(500_000))
    assert session.ask(large, 1) == large
    assert [len(request) for request, _ in site.handled] == [len(large)]


def test_a_site_that_fails_says_so(site: Site, session: Session) -> None:
    """500, without what went wrong; the next request is answered."""
    site.reply = cast("bytes", "a text is no reply")
    response = session.post(session.sealed(MODEL, 1))
    assert (response.status_code, response.text) == (500, "the site failed; its log says why")
    site.reply = None
    assert session.ask(MODEL, 2) == MODEL


@pytest.mark.parametrize("comes", [10, -1], ids=["in the head", "in the body"])
def test_a_caller_that_goes_away_is_forgotten(site: Site, session: Session, comes: int) -> None:
    """Half a message is never handled, and the site answers the next."""
    sealed = session.sealed(MODEL, 1)
    with session.connected() as connection:
        connection.sendall(sealed.raw() + sealed.content[:comes])
    assert site.gone.wait(_LONG_S)
    assert site.handled == []
    assert session.ask(OTHER_MODEL, 2) == OTHER_MODEL
    assert [request for request, _ in site.handled] == [OTHER_MODEL]


@given(st.lists(st.integers(0, len(MODEL)), max_size=5))
def test_however_a_message_is_cut_it_arrives_whole(cuts: list[int]) -> None:
    """A network may deliver head and body in any pieces, empty ones too."""
    site = Site()
    session = Session(site)
    sealed = session.sealed(MODEL, 1)
    bounds = [0, *sorted(cuts), len(MODEL)]
    pieces = [MODEL[start:end] for start, end in pairwise(bounds)]
    sent = answer_to(site.route, sealed, pieces)
    content = b"".join(sent.parts)
    assert sent.status == 200
    assert session.is_own(sent.headers, content, 1)
    assert content == MODEL
    assert site.handled == [(MODEL, RESEARCHER)]


def answer_to(route: SessionRoute, sealed: Sealed, pieces: list[bytes]) -> Answer:
    """Have a request answered whose content comes in pieces."""
    said = {"content-length": str(len(sealed.content)), **sealed.headers}
    headers = {name.lower().encode(): value.encode() for name, value in said.items()}
    answers: queue.Queue[Answer] = queue.Queue()
    with ThreadPoolExecutor(1) as work:
        exchange = Exchange(route, headers, answer=answers.put, work=work)
        for piece in pieces:
            exchange.receive(piece)
        exchange.end()
        return answers.get(timeout=_LONG_S)


def test_content_that_ends_within_its_head_is_refused() -> None:
    """400, not an error of the server's."""
    site = Site()
    sealed = Session(site).sealed(MODEL, 1)
    assert answer_to(site.route, sealed, [b"abc"]).status == 400


def test_a_refusal_is_answered_though_it_cannot_be_noted() -> None:
    """A full disk: 401 all the same."""
    site = Site()
    session = Session(site)

    def full(_email: str, _what: str) -> None:
        raise DataSiteError("disk full")

    site.route._on_refused = full
    assert answer_to(site.route, forged(session, "guessed"), [MODEL]).status == 401
