"""The orchestrator's PySyft edge: carry bytes to a site as signed PySyft calls, with deadlines.

PySyft's own client fetches some 670 signatures at log-in (seconds), opens a connection for each
call, and waits for ever. This one asks who the site is, logs in for the account's signing key, and
posts signed calls over kept connections. Nothing of PySyft leaves this module.
"""

import contextlib
import json
import os
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlsplit

import httpx
from syft import serialize
from syft.client.api import SyftAPICall
from syft.server.credentials import SyftSigningKey
from syft.service.response import SyftError, SyftSuccess
from syft.types.uid import UID

from core.exceptions import (
    AuthenticationError,
    CommunicationError,
    ConfigurationError,
    DataSiteError,
    DeadlineError,
    FederatedLearningError,
    ProtocolError,
    SecurityError,
)
from core.pysyft_patches import REFUSED, deserialize_only

_HANDLE_PATH: Final = "federation.handle"
_CONNECT_S: Final = 5.0
_KEPT_CONNECTIONS: Final = 16
_BINARY: Final = "application/octet-stream"
_LOST: Final = (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)
"""How httpx names a connection that ended before an answer began."""


class PySyftCarrier:
    """A logged-in connection to one site; any number of threads may use it at once.

    Requests may be sent twice: when a kept connection turns out to have ended before anything of
    the answer arrived (the site was restarted), the request is repeated once on a new one.

    Attributes:
        url: The address it was opened with.
        site_id: The name the site gives itself.
    """

    def __init__(self, channel: "_Channel", site: "_Site", signing_key: SyftSigningKey) -> None:
        self.url = channel.url
        self.site_id = site.name
        self._channel = channel
        self._site = site
        self._signing_key = signing_key

    @classmethod
    def open(
        cls,
        url: str,
        *,
        email: str,
        password: str,
        timeout_s: float = 10,
        ca_file: Path | None = None,
    ) -> Self:
        """Log in to the site at `url`.

        Args:
            url: `http(s)://host:port`; a path in front of PySyft's own is kept.
            email: The account.
            password: Its password.
            timeout_s: How long all of it may take.
            ca_file: The certificate authority that vouches for the site, a PEM file. Without one
                the environment's REQUESTS_CA_BUNDLE or SSL_CERT_FILE, and else the usual ones.

        Raises:
            ConfigurationError: `url` is no http(s) address, or the authority cannot be read.
            CommunicationError: The site was not reached, or its certificate is not trusted.
            DeadlineError: It did not answer in time.
            AuthenticationError: It did not log the account in.
            ProtocolError: What answers there is not a PySyft site.
        """
        deadline = _Deadline(timeout_s)
        channel = _Channel(url, ca_file)
        with contextlib.ExitStack() as undo:
            undo.callback(channel.close)
            site = _Site.read(channel.send("GET", "metadata", deadline), url)
            credentials = json.dumps({"email": email, "password": password}).encode()
            reply = channel.send("POST", "login", deadline, content=credentials)
            carrier = cls(channel, site, _signing_key(reply, url, email))
            undo.pop_all()
        return carrier

    def exchange(self, request: bytes, *, deadline_s: float) -> bytes:
        """Give the site's answer to `request`.

        Raises:
            DeadlineError: No answer within `deadline_s`; the site may still be at work on it.
            CommunicationError: The site was not reached, or the connection broke.
            ProtocolError: The answer cannot be read, or another key than the site's signed it.
            SecurityError: The site refuses this account.
            DataSiteError: The site failed while it answered.
        """
        deadline = _Deadline(deadline_s)
        call = SyftAPICall(
            server_uid=self._site.uid,
            path=_HANDLE_PATH,
            args=[],
            kwargs={"request": {"x": request}},
            blocking=True,
        ).sign(credentials=self._signing_key)
        content = serialize(call, to_bytes=True)
        reply = self._channel.send("POST", "api_call", deadline, content=content)
        return self._answer_in(reply)

    def close(self) -> None:
        """Close the connections; closing again does nothing."""
        self._channel.close()

    def _answer_in(self, reply: bytes) -> bytes:
        try:
            signed = deserialize_only(reply, "SignedSyftAPICall")
            own = str(signed.credentials) == self._site.verify_key and signed.is_valid
            result = deserialize_only(signed.serialized_message, "SyftAPIData").data
        except ValueError as exc:
            raise self._problem(ProtocolError, "the answer cannot be read") from exc
        if not own:
            raise self._problem(
                ProtocolError,
                "the answer is not signed with the site's key; if the site was set up anew, "
                "connect again, and else find out who answers in its place",
            )
        if isinstance(result, SyftError):
            refused = result.message.startswith(REFUSED)
            kind = SecurityError if refused else DataSiteError
            raise self._problem(kind, result.message or "it failed; see the site's log")
        value = result.value if isinstance(result, SyftSuccess) else None
        if not isinstance(value, dict) or not isinstance(value.get("x"), bytes):
            raise self._problem(ProtocolError, "the answer holds no bytes")
        answer: bytes = value["x"]
        return answer

    def _problem(self, kind: type[FederatedLearningError], message: str) -> FederatedLearningError:
        return kind(f"{self.site_id} ({self.url}): {message}", site_id=self.site_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Site:
    """What a site says of itself before anybody logs in; `uid` is PySyft's `UID`."""

    name: str
    uid: Any
    verify_key: str

    @classmethod
    def read(cls, metadata: bytes, url: str) -> Self:
        try:
            told = json.loads(metadata)
            return cls(
                name=str(told["name"]),
                uid=UID.from_string(told["id"]),
                verify_key=str(told["verify_key"]),
            )
        except (ValueError, KeyError, TypeError) as exc:
            message = f"{url}: what answers there is not a PySyft site; check address and port"
            raise ProtocolError(message) from exc


class _Deadline:
    """A moment by which something must have happened."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._end = time.monotonic() + limit_s

    def left_s(self) -> float:
        """Give the seconds left; never quite 0, which httpx would read as no limit at all."""
        return max(self._end - time.monotonic(), 0.001)

    def has_passed(self) -> bool:
        return time.monotonic() >= self._end


class _Channel:
    """Kept HTTP connections to one address; every failure is one of our errors.

    Each step of a request (connecting, every write and every read) has at most the time that was
    left when the request was sent, so an answer that trickles in may take up to twice its limit.
    """

    def __init__(self, url: str, ca_file: Path | None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            message = f"{url!r} is no address of a site; write http://host:port or https://..."
            raise ConfigurationError(message)
        self.url = url
        self._client = httpx.Client(
            base_url=f"{url.rstrip('/')}/api/v2/",
            verify=_trusted(ca_file),
            trust_env=False,
            limits=httpx.Limits(max_keepalive_connections=_KEPT_CONNECTIONS),
        )

    def close(self) -> None:
        self._client.close()

    def send(
        self, method: str, path: str, deadline: _Deadline, *, content: bytes | None = None
    ) -> bytes:
        with self._translated(deadline):
            try:
                response = self._ask(method, path, deadline, content)
            except _LOST:
                response = self._ask(method, path, deadline, content)
            with contextlib.closing(response):
                self._require_ok(response)
                return b"".join(self._chunks(response, deadline))

    def _ask(
        self, method: str, path: str, deadline: _Deadline, content: bytes | None
    ) -> httpx.Response:
        left_s = deadline.left_s()
        request = self._client.build_request(
            method,
            path,
            content=content,
            headers={"Content-Type": "application/json" if path == "login" else _BINARY},
            timeout=httpx.Timeout(left_s, connect=min(_CONNECT_S, left_s)),
        )
        return self._client.send(request, stream=True)

    def _chunks(self, response: httpx.Response, deadline: _Deadline) -> Iterator[bytes]:
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

    def _late(self, deadline: _Deadline) -> DeadlineError:
        return DeadlineError(
            f"{self.url}: no answer within {deadline.limit_s:g} s; the site may be busy or frozen: "
            "look there, or allow more time"
        )

    @contextlib.contextmanager
    def _translated(self, deadline: _Deadline) -> Iterator[None]:
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as exc:
            raise self._unreached(exc) from exc
        except httpx.TimeoutException as exc:
            raise self._late(deadline) from exc
        except httpx.RemoteProtocolError as exc:
            lost = "closed" in str(exc) or "disconnected" in str(exc)
            raise self._lost(exc) if lost else self._no_http(exc) from exc
        except httpx.TransportError as exc:
            raise self._lost(exc) from exc
        except httpx.DecodingError as exc:
            raise self._no_http(exc) from exc

    def _unreached(self, exc: httpx.TransportError) -> CommunicationError:
        if any(isinstance(cause, ssl.SSLError) for cause in _causes(exc)):
            return CommunicationError(
                f"{self.url}: no trusted TLS connection ({exc}); is the certificate for this host, "
                "and is its authority the one given (ca_file, or REQUESTS_CA_BUNDLE)?"
            )
        return CommunicationError(
            f"{self.url}: not reached ({str(exc) or 'no connection in time'}); is the site "
            "running, and are host and port right?"
        )

    def _lost(self, exc: Exception) -> CommunicationError:
        return CommunicationError(
            f"{self.url}: the connection broke ({exc}); is the site still running?"
        )

    def _no_http(self, exc: Exception) -> ProtocolError:
        return ProtocolError(
            f"{self.url}: what answers there does not speak HTTP ({exc}); check address and port"
        )


def _signing_key(reply: bytes, url: str, email: str) -> SyftSigningKey:
    try:
        account = deserialize_only(reply, "UserPrivateKey", "SyftError")
    except ValueError as exc:
        message = f"{url}: the answer to the log-in cannot be read; is this a PySyft 0.9.5 site?"
        raise ProtocolError(message) from exc
    if isinstance(account, SyftError):
        message = (
            f"{url}: the log-in of {email} was refused: wrong password, no such account, or a "
            "disabled one; check both, or ask the site's operator"
        )
        raise AuthenticationError(message)
    return account.signing_key


def _trusted(ca_file: Path | None) -> ssl.SSLContext:
    """Give the TLS settings; certificates are always verified.

    Raises:
        ConfigurationError: The authority's certificates cannot be read.
    """
    named = ca_file or os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE")
    if not named:
        return httpx.create_ssl_context(trust_env=False)
    path = Path(named)
    try:
        if path.is_dir():
            return ssl.create_default_context(capath=path)
        return ssl.create_default_context(cafile=path)
    except OSError as exc:
        message = f"{path}: no certificate authority can be read from it ({exc}); give a PEM file"
        raise ConfigurationError(message) from exc


def _causes(exc: BaseException | None) -> Iterator[BaseException]:
    while exc is not None:
        yield exc
        exc = exc.__cause__ or exc.__context__
