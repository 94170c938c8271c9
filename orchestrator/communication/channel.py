"""Kept HTTP connections to a site, with deadlines, TLS that is always verified, and clear errors.

It knows nothing of PySyft but where a site says who it is, which needs no log-in: `site_at`.
"""

import contextlib
import json
import os
import socket
import ssl
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple, Self
from urllib.parse import urlsplit

import httpx

from core.exceptions import (
    CertificateError,
    CommunicationError,
    ConfigurationError,
    DeadlineError,
    ProtocolError,
)

_CONNECT_S: Final = 5.0
_KEPT_CONNECTIONS: Final = 16
_BINARY: Final = "application/octet-stream"
_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})
_LOST: Final = (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)
"""How httpx names a connection that ended before an answer began."""

# The numbers of OpenSSL's x509_vfy.h, where each is an X509_V_ERR_...
_UNKNOWN_AUTHORITY: Final = frozenset({2, 18, 19, 20, 21})
_NOT_YET_VALID: Final = 9
_EXPIRED: Final = 10
_WRONG_NAME: Final = frozenset({62, 64})

_NO_TLS: Final = frozenset({"WRONG_VERSION_NUMBER", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST"})
"""What OpenSSL calls an answer that is no TLS at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteIdentity:
    """Who a site says it is, to anybody and before a log-in.

    Attributes:
        name: The site's id.
        uid: By which PySyft addresses it: 32 hexadecimal digits.
        verify_key: Checks its signatures: 64 hexadecimal digits.
    """

    name: str
    uid: str
    verify_key: str

    @classmethod
    def read(cls, metadata: bytes, *, url: str) -> Self:
        """Read what `url` answered when it was asked for PySyft's metadata.

        Raises:
            ProtocolError: It is no metadata of PySyft's.
        """
        try:
            told = json.loads(metadata)
            return cls(
                name=str(told["name"]),
                uid=uuid.UUID(told["id"]).hex,
                verify_key=str(told["verify_key"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            message = f"{url}: what answers there is not a PySyft site; check address and port"
            raise ProtocolError(message) from exc


def site_at(url: str, *, timeout_s: float, ca_file: Path | None = None) -> SiteIdentity:
    """Ask which site is at `url`, without an account.

    Raises:
        ConfigurationError: `url` is no http(s) address, or the authority cannot be read.
        CommunicationError: Nobody was reached; `CertificateError` when not to be trusted,
            `DeadlineError` when there was no answer in time, `ProtocolError` when it is no site.
    """
    with contextlib.closing(Channel(url, ca_file)) as channel:
        return channel.identify(Deadline(timeout_s))


class Deadline:
    """A moment by which something must have happened."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._end = time.monotonic() + limit_s

    def left_s(self) -> float:
        """Give the seconds left; never quite 0, which httpx would read as no limit at all."""
        return max(self._end - time.monotonic(), 0.001)

    def has_passed(self) -> bool:
        """Tell whether it is too late."""
        return time.monotonic() >= self._end


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: Mapping[str, str]
    content: bytes


class Channel:
    """Kept HTTP connections to one address; every failure is one of our errors.

    Each step of a request (connecting, every write and every read) has at most the time that was
    left when the request was sent, so an answer that trickles in may take up to twice its limit.

    Args:
        url: `http(s)://host:port`; a path in front of PySyft's own is kept.
        ca_file: The certificate authority that vouches for the site, a PEM file. Without one
            the environment's REQUESTS_CA_BUNDLE or SSL_CERT_FILE, and else the usual ones.

    Raises:
        ConfigurationError: `url` is no http(s) address, or the authority cannot be read.
    """

    def __init__(self, url: str, ca_file: Path | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            message = f"{url!r} is no address of a site; write http://host:port or https://..."
            raise ConfigurationError(message)
        self.url = url
        self._scheme = parts.scheme
        self._host = parts.hostname
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._authorities = _authorities(ca_file)
        self._client = httpx.Client(
            base_url=f"{url.rstrip('/')}/api/v2/",
            verify=_trusting(self._authorities),
            trust_env=False,
            limits=httpx.Limits(max_keepalive_connections=_KEPT_CONNECTIONS),
        )

    def close(self) -> None:
        """Close the connections; closing again does nothing."""
        self._client.close()

    def identify(self, deadline: Deadline) -> SiteIdentity:
        """Ask who the site is.

        Raises:
            ProtocolError: It is no PySyft site.
            CommunicationError: As `send`.
        """
        return SiteIdentity.read(self.send("GET", "metadata", deadline), url=self.url)

    def send(
        self, method: str, path: str, deadline: Deadline, *, content: bytes | None = None
    ) -> bytes:
        """Send a request to one of PySyft's routes, and give what came back.

        A request whose kept connection had ended is sent once more, on a new one.

        Raises:
            CommunicationError: The site was not reached, the connection broke, or HTTP 5xx.
            CertificateError: The site's certificate is not to be trusted; nothing was sent.
            DeadlineError: No answer in time.
            ProtocolError: No HTTP, http where https is spoken or the reverse, or HTTP 4xx.
        """
        with self._translated(deadline):
            try:
                response = self._ask(method, path, deadline, content)
            except _LOST:
                response = self._ask(method, path, deadline, content)
            with contextlib.closing(response):
                self._require_ok(response)
                return b"".join(self._chunks(response, deadline))

    def post(
        self, path: str, make: Callable[[], tuple[Mapping[str, str], bytes]], deadline: Deadline
    ) -> Answer:
        """Send a request that may be sent only once, and give the answer whatever its status.

        Args:
            path: One of the site's routes.
            make: Gives headers and content; called again when a kept connection had ended.
            deadline: By when the answer must be there.

        Raises:
            CommunicationError: As `send`.
        """
        with self._translated(deadline):
            try:
                response = self._ask_made(path, make, deadline)
            except _LOST:
                response = self._ask_made(path, make, deadline)
            with contextlib.closing(response):
                if response.is_server_error:
                    self._require_ok(response)
                content = b"".join(self._chunks(response, deadline))
                return Answer(response.status_code, response.headers, content)

    def _ask_made(
        self, path: str, make: Callable[[], tuple[Mapping[str, str], bytes]], deadline: Deadline
    ) -> httpx.Response:
        headers, content = make()
        return self._ask("POST", path, deadline, content, headers)

    def _ask(
        self,
        method: str,
        path: str,
        deadline: Deadline,
        content: bytes | None,
        headers: Mapping[str, str] = _NO_HEADERS,
    ) -> httpx.Response:
        left_s = deadline.left_s()
        kind = "application/json" if path == "login" else _BINARY
        request = self._client.build_request(
            method,
            path,
            content=content,
            headers={"Content-Type": kind, **headers},
            timeout=httpx.Timeout(left_s, connect=min(_CONNECT_S, left_s)),
        )
        return self._client.send(request, stream=True)

    def _chunks(self, response: httpx.Response, deadline: Deadline) -> Iterator[bytes]:
        for chunk in response.iter_bytes():
            yield chunk
            if deadline.has_passed():
                raise self._late(deadline)

    def _require_ok(self, response: httpx.Response) -> None:
        if response.is_success:
            return
        status = f"{self.url}: HTTP {response.status_code} from {response.url.path}"
        if response.is_server_error:
            raise CommunicationError(f"{status}; see the log of the site, or of its proxy")
        raise ProtocolError(f"{status}; is this a PySyft site, and does its proxy let calls by?")

    @contextlib.contextmanager
    def _translated(self, deadline: Deadline) -> Iterator[None]:
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as exc:
            raise self._unreached(exc, deadline) from exc
        except httpx.TimeoutException as exc:
            raise self._late(deadline) from exc
        except (httpx.TransportError, httpx.DecodingError) as exc:
            raise self._broken(exc, deadline) from exc

    def _late(self, deadline: Deadline) -> DeadlineError:
        return DeadlineError(
            f"{self.url}: no answer within {deadline.limit_s:g} s; the site may be busy or frozen: "
            "look there, or allow more time"
        )

    def _unreached(self, exc: httpx.TransportError, deadline: Deadline) -> CommunicationError:
        for cause in _causes(exc):
            if isinstance(cause, ssl.SSLCertVerificationError):
                return CertificateError(f"{self.url}: {self._distrust(cause, deadline)}")
            if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError):
                return ProtocolError(f"{self.url}: {_no_tls(cause)}")
        return CommunicationError(
            f"{self.url}: not reached ({str(exc) or 'no connection in time'}); is the site "
            "running, and are host and port right?"
        )

    def _distrust(self, problem: ssl.SSLCertVerificationError, deadline: Deadline) -> str:
        """Say what is wrong with the site's certificate, and whom to ask."""
        code = problem.verify_code
        if code in _WRONG_NAME:
            named = ", ".join(self._names_there(deadline)) or "other hosts"
            return (
                f"its certificate is for {named}, not for {self._host}; write a host that it names "
                "into the URL, or ask the site's operator for a certificate that names this one"
            )
        if code == _EXPIRED:
            return (
                "its certificate, or that of its authority, has expired; ask the site's operator "
                "to renew it"
            )
        if code == _NOT_YET_VALID:
            return (
                "its certificate, or that of its authority, is not valid yet; is the clock of this "
                "machine right, and that of the machine that issued it?"
            )
        if code in _UNKNOWN_AUTHORITY:
            trusted = self._authorities or "the usual ones of the web"
            return (
                f"its certificate is from an authority that is not trusted here "
                f"({problem.verify_message}; trusted: {trusted}); ask the site's operator for the "
                "authority's certificate, and give it as ca_file in the sites file or as "
                "REQUESTS_CA_BUNDLE"
            )
        return (
            f"its certificate is not accepted ({problem.verify_message}); have the site's "
            "operator look at it: orchestrator certificates show FILE.crt"
        )

    def _broken(self, exc: httpx.RequestError, deadline: Deadline) -> CommunicationError:
        if self._scheme == "http" and self._speaks_tls(deadline):
            return ProtocolError(
                f"{self.url}: what answers there speaks https; write https:// into the URL"
            )
        ended = "closed" in str(exc) or "disconnected" in str(exc)
        garbled = isinstance(exc, httpx.RemoteProtocolError) and not ended
        if garbled or isinstance(exc, httpx.DecodingError):
            return ProtocolError(
                f"{self.url}: what answers there does not speak HTTP ({exc}); check address and "
                "port"
            )
        return CommunicationError(
            f"{self.url}: the connection broke ({exc}); is the site still running?"
        )

    def _speaks_tls(self, deadline: Deadline) -> bool:
        try:
            self._shake_hands(deadline)
        except ssl.SSLCertVerificationError:
            return True
        except OSError:
            return False
        return True

    def _names_there(self, deadline: Deadline) -> list[str]:
        """Give the hosts that the trusted certificate there names; none if it is not shown again.

        A handshake that fails because of them does not tell them.
        """
        try:
            names = self._shake_hands(deadline).get("subjectAltName", ())
        except OSError:
            return []
        return [str(name) for _kind, name in names]

    def _shake_hands(self, deadline: Deadline) -> dict[str, tuple[tuple[str, str], ...]]:
        """Give what the certificate there says, whomever it names; nothing is sent.

        Raises:
            OSError: No TLS is spoken, or no trusted authority vouches.
        """
        context = _trusting(self._authorities)
        context.check_hostname = False
        timeout_s = min(_CONNECT_S, deadline.left_s())
        with (
            socket.create_connection((self._host, self._port), timeout=timeout_s) as plain,
            context.wrap_socket(plain) as secured,
        ):
            told: dict[str, tuple[tuple[str, str], ...]] = secured.getpeercert()  # type: ignore[assignment]  # typeshed: any value of any key
            return told


def _no_tls(problem: ssl.SSLError) -> str:
    if problem.reason in _NO_TLS:
        return "what answers there speaks no TLS; if it is the site, write http:// into the URL"
    return (
        f"no TLS connection could be agreed on ({problem.reason}); does what answers there speak "
        "TLS 1.2 or later, and to anybody?"
    )


def _authorities(ca_file: Path | None) -> Path | None:
    """Give where the trusted authorities lie; None for those that everybody trusts."""
    named = ca_file or os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE")
    return Path(named) if named else None


def _trusting(authorities: Path | None) -> ssl.SSLContext:
    """Give the TLS settings; certificates are always verified.

    Raises:
        ConfigurationError: The authority's certificates cannot be read.
    """
    if authorities is None:
        return httpx.create_ssl_context(trust_env=False)
    try:
        if authorities.is_dir():
            return ssl.create_default_context(capath=authorities)
        return ssl.create_default_context(cafile=authorities)
    except OSError as exc:
        message = (
            f"{authorities}: no certificate authority can be read from it ({exc}); give a PEM file"
        )
        raise ConfigurationError(message) from exc


def _causes(exc: BaseException | None) -> Iterator[BaseException]:
    while exc is not None:
        yield exc
        exc = exc.__cause__ or exc.__context__
