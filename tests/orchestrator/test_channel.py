"""The way to a site, against small real servers: whom it trusts, and what it says when not."""

import datetime as dt
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from authorities import Issued, authority, issue, redate, serving

from core.exceptions import (
    CertificateError,
    CommunicationError,
    ConfigurationError,
    DeadlineError,
    ProtocolError,
)
from orchestrator.communication.channel import SiteIdentity, site_at

TOLD = {"name": "factory-1", "id": "b9a1d6c4e2f34f0c8a5d7e6f10293847", "verify_key": "ab" * 32}
DAY = dt.timedelta(days=1)


class _Server(ThreadingHTTPServer):
    """Answers who the site is, and remembers what was asked."""

    def __init__(self, told: object) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.told = told
        self.asked: list[str] = []


class _Answer(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        """Answer."""
        self.server.asked.append(self.path)
        body = json.dumps(self.server.told).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        """Log nothing."""


@contextmanager
def site(issued: Issued | None = None, told: object = TOLD) -> Iterator[_Server]:
    """Serve from a thread, with TLS where there is a certificate."""
    server = _Server(told)
    if issued is not None:
        server.socket = serving(issued).wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def _no_authority_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def issued(tmp_path: Path) -> Issued:
    """A certificate for 127.0.0.1."""
    return issue(authority(tmp_path / "ca"), tmp_path / "tls")


def refusal(url: str, ca_file: Path | None = None, *, timeout_s: float = 5) -> CommunicationError:
    """Give the error with which a site is not talked to; it names the URL."""
    with pytest.raises(CommunicationError) as caught:
        site_at(url, timeout_s=timeout_s, ca_file=ca_file)
    assert str(caught.value).startswith(f"{url}: ")
    return caught.value


@pytest.mark.parametrize("secured", [False, True], ids=["http", "https"])
def test_a_site_says_who_it_is_without_a_log_in(issued: Issued, *, secured: bool) -> None:
    """Name, uid and key, as text."""
    with site(issued if secured else None) as server:
        url = f"{'https' if secured else 'http'}://127.0.0.1:{server.server_port}"
        found = site_at(url, timeout_s=5, ca_file=issued.ca_file if secured else None)
    assert found == SiteIdentity(name=TOLD["name"], uid=TOLD["id"], verify_key=TOLD["verify_key"])
    assert server.asked == ["/api/v2/metadata"]


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"])
def test_the_environment_names_an_authority(
    issued: Issued, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """Where the call names none; one that it names counts."""
    monkeypatch.setenv(variable, str(issued.ca_file))
    other = authority(tmp_path / "other") / "ca.crt"
    with site(issued) as server:
        url = f"https://127.0.0.1:{server.server_port}"
        assert site_at(url, timeout_s=5).name == "factory-1"
        assert "not trusted here" in str(refusal(url, other))


def expire(issued: Issued) -> None:
    """Let it be valid until a minute ago."""
    redate(issued, begin=-9 * DAY, end=dt.timedelta(minutes=-1))


def postdate(issued: Issued) -> None:
    """Let it be valid from tomorrow."""
    redate(issued, begin=DAY, end=9 * DAY)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (expire, "or that of its authority, has expired; ask the site's operator"),
        (postdate, "is not valid yet; is the clock of this machine right"),
    ],
)
def test_a_certificate_that_is_not_valid_today_is_told(
    issued: Issued, change: Callable[[Issued], None], said: str
) -> None:
    """What is wrong, and whose turn it is; another try would not help, and nothing was sent."""
    change(issued)
    with site(issued) as server:
        error = refusal(f"https://127.0.0.1:{server.server_port}", issued.ca_file)
    assert said in str(error)
    assert isinstance(error, CertificateError)
    assert (error.retryable, error.exit_code, server.asked) == (False, 2, [])


@pytest.mark.parametrize("name", ["Federation", "Other", None], ids=["namesake", "other", "web"])
def test_an_unknown_authority_is_told(issued: Issued, tmp_path: Path, name: str | None) -> None:
    """With what is trusted instead: another authority, one of the same name, or the web's."""
    ca_file = authority(tmp_path / "other", name=name) / "ca.crt" if name else None
    with site(issued) as server:
        error = refusal(f"https://127.0.0.1:{server.server_port}", ca_file)
    assert "an authority that is not trusted here" in str(error)
    assert f"trusted: {ca_file or 'the usual ones of the web'}" in str(error)
    assert "give it as ca_file" in str(error)
    assert isinstance(error, CertificateError)
    assert (error.retryable, server.asked) == (False, [])


def test_an_expired_authority_vouches_for_nobody(issued: Issued) -> None:
    """The site's own certificate is good; the sentence covers both."""
    redate(
        Issued(issued.ca_file, issued.ca_file.with_suffix(".key"), issued.ca_file),
        begin=-9 * DAY,
        end=dt.timedelta(minutes=-1),
    )
    with site(issued) as server:
        error = refusal(f"https://127.0.0.1:{server.server_port}", issued.ca_file)
    assert "or that of its authority, has expired" in str(error)


@pytest.mark.parametrize(
    ("hosts", "asked"),
    [(["factory-1", "10.0.0.7"], "127.0.0.1"), (["127.0.0.1", "factory-1"], "localhost")],
    ids=["address", "name"],
)
def test_a_certificate_for_other_hosts_is_told_with_them(
    tmp_path: Path, hosts: list[str], asked: str
) -> None:
    """So that the right one can be written into the sites file, or asked for."""
    issued = issue(authority(tmp_path / "ca"), tmp_path / "tls", *hosts)
    with site(issued) as server:
        error = refusal(f"https://{asked}:{server.server_port}", issued.ca_file)
    assert f"its certificate is for {', '.join(hosts)}, not for {asked}; " in str(error)
    assert isinstance(error, CertificateError)
    assert (error.retryable, server.asked) == (False, [])


def test_plain_http_at_a_port_of_tls_is_told(issued: Issued) -> None:
    """Whoever vouches for the site; the correction is one letter."""
    with site(issued) as server:
        error = refusal(f"http://127.0.0.1:{server.server_port}")
    assert "what answers there speaks https; write https:// into the URL" in str(error)
    assert isinstance(error, ProtocolError)
    assert not error.retryable


def test_https_at_a_plain_port_is_told(issued: Issued) -> None:
    """Not as a matter of certificates."""
    with site() as server:
        error = refusal(f"https://127.0.0.1:{server.server_port}", issued.ca_file)
    assert "speaks no TLS; if it is the site, write http:// into the URL" in str(error)
    assert isinstance(error, ProtocolError)
    assert not error.retryable


@contextmanager
def raw(reply: bytes) -> Iterator[str]:
    """Answer whatever comes with these bytes, and hang up; host and port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:  # shut down
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(reply)

        thread = threading.Thread(target=answer)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


HANDSHAKE_FAILURE = b"\x15\x03\x03\x00\x02\x02\x28"


@pytest.mark.parametrize(
    ("scheme", "reply", "kind", "said"),
    [
        ("https", HANDSHAKE_FAILURE, ProtocolError, "no TLS connection could be agreed on"),
        ("https", b"SSH-2.0-OpenSSH\r\n", ProtocolError, "speaks no TLS"),
        ("https", b"", CommunicationError, "not reached"),
        ("http", b"220 mail\r\n\r\n", ProtocolError, "does not speak HTTP"),
        ("http", b"", CommunicationError, "the connection broke"),
    ],
    ids=["TLS refused", "SSH for TLS", "hung up on TLS", "mail for HTTP", "hung up on HTTP"],
)
def test_what_is_no_site_is_told_for_what_it_is(
    issued: Issued, scheme: str, reply: bytes, kind: type[CommunicationError], said: str
) -> None:
    """One that hangs up may be on its way up or down, so another try may help there only."""
    with raw(reply) as address:
        error = refusal(f"{scheme}://{address}", issued.ca_file)
    assert said in str(error)
    assert type(error) is kind
    assert error.retryable == (kind is CommunicationError)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_silent_server_is_given_up_in_time(issued: Issued, scheme: str) -> None:
    """Whether it is silent in the handshake or after it; a try later may help."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}"
        error = refusal(url, issued.ca_file, timeout_s=0.3)
    assert error.retryable
    assert isinstance(error, DeadlineError) == (scheme == "http")


@pytest.mark.parametrize(
    "told",
    [
        [],
        "factory-1",
        {},
        {**TOLD, "id": "factory-1"},
        {**TOLD, "id": 7},
        {key: value for key, value in TOLD.items() if key != "verify_key"},
    ],
    ids=["list", "text", "empty", "no uid", "number", "no key"],
)
def test_a_server_that_does_not_say_who_it_is_is_no_site(told: object) -> None:
    """Something else that speaks HTTP and JSON is not mistaken for one."""
    with site(told=told) as server:
        error = refusal(f"http://127.0.0.1:{server.server_port}")
    assert "is not a PySyft site" in str(error)
    assert isinstance(error, ProtocolError)


@pytest.mark.parametrize("content", [None, b"no certificate"], ids=["missing", "no PEM"])
def test_an_authority_that_cannot_be_read_is_a_mistake_in_the_configuration(
    tmp_path: Path, content: bytes | None
) -> None:
    """Told before anybody is called, with the file."""
    if content is not None:
        (tmp_path / "ca.crt").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"ca\.crt: no certificate authority can be read"):
        site_at("https://127.0.0.1:1", timeout_s=5, ca_file=tmp_path / "ca.crt")


def test_another_scheme_is_no_address_of_a_site() -> None:
    """As in the sites file."""
    with pytest.raises(ConfigurationError, match="is no address of a site"):
        site_at("memory://factory-1", timeout_s=5)
