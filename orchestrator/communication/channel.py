"""The way to a site over HTTP: who it is, deadlines, TLS that is always verified, clear errors.

It knows nothing of PySyft but where a site says who it is, which needs no log-in: `site_at`.
"""

import contextlib
import http.client
import json
import ssl
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Final, Self
from urllib.parse import quote, urlsplit

from core.arena import Buffer
from core.exceptions import (
    AuthenticationError,
    CertificateError,
    CommunicationError,
    ConfigurationError,
    DeadlineError,
    ProtocolError,
)
from orchestrator.communication.connections import (
    Answer,
    Ask,
    Connections,
    Deadline,
    NotReachedError,
    Receiver,
)
from orchestrator.communication.traffic import Traffic
from orchestrator.communication.trust import Trust, why_no_tls

_DIAGNOSIS_S: Final = 5.0
_BINARY: Final = "application/octet-stream"


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


class Channel:
    """Kept HTTP connections to one address; every failure is one of our errors.

    Args:
        url: `http(s)://host:port`; a path in front of PySyft's own is kept.
        ca_file: The certificate authority that vouches for the site, a PEM file. Without one
            the environment's REQUESTS_CA_BUNDLE or SSL_CERT_FILE, and else the usual ones.
        traffic: Counts what passes.

    Raises:
        ConfigurationError: `url` is no http(s) address, or the authority cannot be read.
    """

    def __init__(
        self, url: str, ca_file: Path | None = None, traffic: Traffic | None = None
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            message = f"{url!r} is no address of a site; write http://host:port or https://..."
            raise ConfigurationError(message)
        self.url = url
        self._is_plain = parts.scheme == "http"
        self._base = f"{quote(parts.path.rstrip('/'), safe='/%')}/api/v2/"
        port = parts.port or (80 if self._is_plain else 443)
        self._trust = Trust(parts.hostname, port, ca_file)
        self._connections = Connections(
            parts.hostname,
            port,
            None if self._is_plain else self._trust.context(),
            traffic or Traffic(),
        )

    def close(self) -> None:
        """Close the connections; closing again does nothing."""
        self._connections.close()

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
            AuthenticationError: HTTP 429: too many log-ins failed; the message says when to try.
            ProtocolError: No HTTP, http where https is spoken or the reverse, or HTTP 4xx.
        """
        kind = "application/json" if path == "login" else _BINARY
        ask = Ask(
            method=method,
            path=self._base + path,
            headers={"Content-Type": kind},
            parts=() if content is None else (content,),
        )
        answer = self._asked(lambda: ask, deadline)
        self._require_ok(answer, path)
        return bytes(answer.content)

    def post(
        self,
        path: str,
        make: Callable[[], tuple[Mapping[str, str], tuple[Buffer, ...]]],
        deadline: Deadline,
        *,
        receiver: Receiver | None = None,
    ) -> Answer:
        """Send a request that may be sent only once, and give the answer whatever its status.

        Args:
            path: One of the site's routes.
            make: Gives headers and content, in parts; called again when a kept connection had
                ended.
            deadline: By when the answer must be there.
            receiver: Takes the content in, where it is not only to be kept.

        Raises:
            CommunicationError: As `send`.
        """

        def ask() -> Ask:
            headers, parts = make()
            headers = {"Content-Type": _BINARY, **headers}
            return Ask(method="POST", path=self._base + path, headers=headers, parts=parts)

        answer = self._asked(ask, deadline, receiver)
        if answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            self._require_ok(answer, path)
        return answer

    def _asked(
        self, make: Callable[[], Ask], deadline: Deadline, receiver: Receiver | None = None
    ) -> Answer:
        with self._translated(deadline):
            return self._connections.ask(make, deadline, receiver)

    def _require_ok(self, answer: Answer, path: str) -> None:
        if HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES:
            return
        if answer.status == HTTPStatus.TOO_MANY_REQUESTS:
            raise AuthenticationError(
                f"{self.url}: too many log-ins failed, of this account or from this machine; the "
                f"site takes the next in {answer.headers.get('retry-after', 'some')} s: correct "
                "the password before you try again"
            )
        status = f"{self.url}: HTTP {answer.status} from {self._base}{path}"
        if answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise CommunicationError(f"{status}; see the log of the site, or of its proxy")
        raise ProtocolError(f"{status}; is this a PySyft site, and does its proxy let calls by?")

    @contextlib.contextmanager
    def _translated(self, deadline: Deadline) -> Iterator[None]:
        try:
            yield
        except NotReachedError as exc:
            raise self._unreached(exc, deadline) from exc
        except TimeoutError as exc:
            raise DeadlineError(
                f"{self.url}: no answer within {deadline.limit_s:g} s; the site may be busy or "
                "frozen: look there, or allow more time"
            ) from exc
        except (OSError, http.client.HTTPException) as exc:
            raise self._broken(exc, deadline) from exc

    def _unreached(self, exc: NotReachedError, deadline: Deadline) -> CommunicationError:
        cause = exc.__cause__
        if isinstance(cause, ssl.SSLCertVerificationError):
            why = self._trust.why_not(cause, timeout_s=_for_a_look(deadline))
            return CertificateError(f"{self.url}: {why}")
        hung_up = isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError)  # by Python's version
        if isinstance(cause, ssl.SSLError) and not hung_up:
            return ProtocolError(f"{self.url}: {why_no_tls(cause)}")
        return CommunicationError(
            f"{self.url}: not reached ({exc}); is the site running, and are host and port right?"
        )

    def _broken(self, exc: Exception, deadline: Deadline) -> CommunicationError:
        if self._is_plain and self._trust.speaks_tls(timeout_s=_for_a_look(deadline)):
            return ProtocolError(
                f"{self.url}: what answers there speaks https; write https:// into the URL"
            )
        ended = isinstance(exc, http.client.RemoteDisconnected | http.client.IncompleteRead)
        if isinstance(exc, http.client.HTTPException) and not ended:
            return ProtocolError(
                f"{self.url}: what answers there does not speak HTTP ({_named(exc)}); check "
                "address and port"
            )
        return CommunicationError(
            f"{self.url}: the connection broke ({_named(exc)}); is the site still running?"
        )


def _for_a_look(deadline: Deadline) -> float:
    return min(_DIAGNOSIS_S, deadline.left_s())


def _named(exc: Exception) -> str:
    return str(exc) or type(exc).__name__
