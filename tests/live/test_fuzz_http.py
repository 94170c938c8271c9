"""Hostile requests to every route that a live site serves: no HTTP 500, no traceback, no harm done.

They go over plain sockets, so that a request may be what no client would send. They are the same
each time.
"""

import http.client
import json
import socket
import time
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import quote

import pytest
import syft as sy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from live_site import OPERATOR, RESEARCHER, SITE, LiveSite, password_of
from syft.client.api import SyftAPICall
from syft.server.credentials import SyftSigningKey
from syft.types.uid import UID

from core.messages import DescribeRequest, SiteDescription
from core.pysyft_patches import deserialize_only
from datasite.doors import CALLS
from orchestrator.communication.live import PySyftCommunication

pytestmark = pytest.mark.live

ROUTES: Final = ["", "metadata", "api", "login", "api_call", "session"]
_WHOLE_S: Final = 30.0
_PART_S: Final = 0.1
"""How long an answer is waited for, to a whole request and to one that does not end."""


def examples(count: int) -> settings:
    """Give the settings of a test of so many examples."""
    return settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


class Target:
    """A live site, and one who may use it."""

    def __init__(self, site: LiveSite) -> None:
        self.site = site
        self.notebook = site.notebook(RESEARCHER)
        self.statuses: dict[int | None, int] = {}

    def send(self, request: bytes, *, is_whole: bool = True) -> int | None:
        """Send bytes; the status of the answer, or None when the site closes without one."""
        status = self._status_of(request, _WHOLE_S if is_whole else _PART_S)
        self.statuses[status] = self.statuses.get(status, 0) + 1
        assert status is None or status < 500, (status, request[:500])
        return status

    def _status_of(self, request: bytes, patience_s: float) -> int | None:
        with socket.create_connection(("127.0.0.1", self.site.port)) as connection:
            connection.settimeout(patience_s)
            try:
                connection.sendall(request)
                answer = http.client.HTTPResponse(connection)
                answer.begin()
            except (TimeoutError, ConnectionError, http.client.BadStatusLine):
                assert patience_s == _PART_S or not request or b"\r\n\r\n" in request
                return None
            answer.close()
            return answer.status

    def call(self, path: object, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Send a call that the researcher has signed; what was answered, which is signed."""
        call = SyftAPICall(server_uid=self.notebook.id, path=path, args=args, kwargs=kwargs)
        blob = sy.serialize(call.sign(credentials=self.notebook.credentials), to_bytes=True)
        connection = http.client.HTTPConnection("127.0.0.1", self.site.port, timeout=_WHOLE_S)
        try:
            connection.request("POST", "/api/v2/api_call", blob)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        assert answer.status == 200, (answer.status, content[:200])
        return deserialize_only(content, "SignedSyftAPICall")

    def require_healthy(self) -> None:
        """Fail when the site does not answer its researcher and its operator, or has crashed."""
        ours = PySyftCommunication(connect_s=20, call_s=20)
        account = {"email": RESEARCHER, "password": password_of(RESEARCHER)}
        ours.connect_to_datasite(self.site.url, account)
        began = time.monotonic()
        described = ours.request(DescribeRequest(kind="describe"), SiteDescription, SITE)
        assert time.monotonic() - began < 5
        assert [dataset["name"] for dataset in described["datasets"]] == ["press"]
        with self.site.door() as door:
            assert {account.email for account in door.users()} >= {OPERATOR, RESEARCHER}
        log = self.site.state / "private.log"
        assert "Traceback" not in log.read_text(encoding="utf-8")
        assert len(self.site.audit()) < 500


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """Give one live site for all of them."""
    site = LiveSite(tmp_path_factory.mktemp("fuzzed"))
    site.register()
    site.start()
    try:
        yield Target(site)
    finally:
        site.end()


octets = st.binary(max_size=60)
words = st.text(st.characters(codec="utf-8"), max_size=30)
methods = st.sampled_from(
    ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "get", "X" * 40]
)
paths = st.one_of(
    st.sampled_from(ROUTES).map(lambda route: f"/api/v2/{route}"),
    st.sampled_from(ROUTES).map(lambda route: f"/api/v2/{route}/"),
    st.sampled_from(ROUTES).map(lambda route: f"//api/v2/../v2/{route}?{'x' * 3000}"),
    words.map(lambda word: f"/api/v2/{quote(word)}"),
    words.map(lambda word: f"/api/v2/api?verify_key={quote(word)}&communication_protocol=4"),
    words.map(
        lambda word: f"/api/v2/api?verify_key={'ab' * 32}&communication_protocol={quote(word)}"
    ),
    st.sampled_from(
        [
            "*",
            "/",
            "/api/v2/api?verify_key=" + "0" * 64 + "&communication_protocol=" + "9" * 5000,
            "/api/v2/api?verify_key=%00&communication_protocol=%C2%B2",
            "/api/v2/api?verify_key=" + "f" * 64 + "&communication_protocol=dev",
            "/api/v2/%2e%2e/%2e%2e/etc/passwd",
            "http://elsewhere.example.com/api/v2/metadata",
        ]
    ),
)
header_names = st.sampled_from(
    [
        "X-Session",
        "X-Counter",
        "X-Head",
        "X-Body-Hash",
        "X-Tag",
        "Content-Type",
        "Cookie",
        "Authorization",
        "Range",
        "Expect",
        "Upgrade",
        "X-Forwarded-For",
        "Accept-Encoding",
    ]
)
header_values = st.one_of(
    st.integers(-1, 2**70).map(str),
    st.sampled_from(
        [
            "",
            "0" * 64,
            "²",
            "-0",
            "1e9",
            "websocket",
            "100-continue",
            "x" * 8000,
            "application/json",
        ]
    ),
    octets.map(lambda value: value.translate(None, b"\r\n\0").decode("latin-1")),
)
headers = st.dictionaries(header_names, header_values, max_size=6)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
bodies = st.one_of(
    st.just(b""),
    st.binary(max_size=300),
    json_values.map(lambda value: json.dumps(value).encode()),
    json_values.map(lambda value: json.dumps({"email": 1, "password": value}).encode()),
    st.sampled_from([b"[" * 9000, b'{"email": "\\ud800", "password": "x"}', b"x" * 200_000]),
)


def request(method: str, path: str, fields: dict[str, str], body: bytes) -> bytes:
    """Give a request as it goes over the wire."""
    lines = [f"{method} {path} HTTP/1.1", "Host: site", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in fields.items()]
    return "\r\n".join(lines).encode("latin-1", errors="replace") + b"\r\n\r\n" + body


def chunked(body: bytes, size: int) -> bytes:
    """Give a body in chunks, with its end."""
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in [*parts, b""])


def test_any_request_to_any_route(target: Target) -> None:
    """Whole requests: any method, path, headers and body."""

    @examples(1200)
    @given(method=methods, path=paths, fields=headers, body=bodies)
    def send(method: str, path: str, fields: dict[str, str], body: bytes) -> None:
        fields = {**fields, "Content-Length": str(len(body))}
        target.send(request(method, path, fields, body))

    send()
    target.require_healthy()
    assert {200, 400, 404} <= target.statuses.keys()


def test_bodies_in_chunks(target: Target) -> None:
    """Of any size, each with its end."""

    @examples(300)
    @given(route=st.sampled_from(ROUTES), fields=headers, body=bodies, size=st.integers(1, 200))
    def send(route: str, fields: dict[str, str], body: bytes, size: int) -> None:
        fields = {**fields, "Transfer-Encoding": "chunked"}
        target.send(request("POST", f"/api/v2/{route}", fields, chunked(body, size)))

    send()
    target.require_healthy()


def test_lengths_that_are_not_so(target: Target) -> None:
    """Absurd, several, negative, contradicted by chunks, or with an end that never comes."""
    lengths = st.sampled_from(["-1", "0", "1", "99999", str(2**31), str(2**64), "9" * 400, "x", ""])

    @examples(200)
    @given(
        route=st.sampled_from(ROUTES),
        fields=headers,
        length=lengths,
        more=st.sampled_from([b"", b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n"]),
        body=octets,
    )
    def send(route: str, fields: dict[str, str], length: str, more: bytes, body: bytes) -> None:
        fields = {**fields, "Content-Length": length}
        head, rest = request("POST", f"/api/v2/{route}", fields, body).split(b"\r\n\r\n", 1)
        target.send(head + b"\r\n" + more + b"\r\n" + rest, is_whole=False)

    send()
    target.require_healthy()


def test_bytes_that_are_no_http(target: Target) -> None:
    """Noise, and requests with noise in them."""

    @examples(200)
    @given(noise=st.binary(max_size=200), path=paths, place=st.floats(0, 1, exclude_max=True))
    def send(noise: bytes, path: str, place: float) -> None:
        whole = request("POST", path, {"Content-Length": "0"}, b"")
        where = int(place * len(whole))
        target.send(whole[:where] + noise + whole[where:], is_whole=False)

    send()
    target.require_healthy()


def test_log_ins_of_any_text(target: Target) -> None:
    """What an e-mail and a password may be in JSON; each takes its second."""

    @examples(15)
    @given(
        email=words | st.sampled_from(["\0", "' OR 1=1 --", "a@b.example.com\0", '{"$gt": ""}']),
        password=words | st.sampled_from(["\0", "x" * 73, "x" * 5000]),
    )
    def send(email: str, password: str) -> None:
        body = json.dumps({"email": email, "password": password}).encode()
        fields = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        target.send(request("POST", "/api/v2/login", fields, body))

    send()
    target.require_healthy()


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8"), max_size=20)
    | st.binary(max_size=40)
    | st.builds(UID),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
NAMES: Final = [
    "request",
    "uid",
    "name",
    "email",
    "password",
    "role",
    "context",
    "self",
    "page_size",
]
every_call: Final = sorted(set().union(*CALLS.values()))


def test_signed_calls_with_any_arguments(target: Target) -> None:
    """By one who may call, to what is served and to what is not: an answer each time."""

    @examples(400)
    @given(
        path=st.sampled_from(every_call) | st.text(st.characters(codec="utf-8"), max_size=20),
        args=st.lists(values, max_size=2),
        kwargs=st.dictionaries(st.sampled_from(NAMES), values, max_size=3),
    )
    def send(path: str, args: list[Any], kwargs: dict[str, Any]) -> None:
        target.call(path, args, kwargs)

    send()
    target.require_healthy()


def test_signed_calls_that_were_damaged(target: Target) -> None:
    """A bit, a piece, or the end: none is answered as if it were whole."""
    call = SyftAPICall(server_uid=target.notebook.id, path="dataset.get_all", args=[], kwargs={})
    strange = call.sign(credentials=SyftSigningKey.generate())
    blobs = [
        sy.serialize(signed, to_bytes=True)
        for signed in (call.sign(credentials=target.notebook.credentials), strange)
    ]

    @examples(600)
    @given(
        blob=st.sampled_from(blobs),
        place=st.floats(0, 1, exclude_max=True),
        change=st.integers(0, 7) | st.binary(max_size=8),
        taken=st.integers(0, 400),
    )
    def send(blob: bytes, place: float, change: int | bytes, taken: int) -> None:
        where = int(place * len(blob))
        if isinstance(change, int):
            damaged = blob[:where] + bytes([blob[where] ^ 1 << change]) + blob[where + 1 :]
        else:
            damaged = blob[:where] + change + blob[where + taken :]
        fields = {"Content-Length": str(len(damaged))}
        assert target.send(request("POST", "/api/v2/api_call", fields, damaged)) in {200, 400}

    send()
    target.require_healthy()
