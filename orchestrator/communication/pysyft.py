"""The orchestrator's PySyft edge: carry bytes to a site as signed PySyft calls, with deadlines.

PySyft's own client fetches some 670 signatures at log-in (seconds), opens a connection for each
call, and waits for ever. This one asks who the site is, logs in for the account's signing key, and
posts signed calls over the kept connections of `orchestrator.communication.channel`. Nothing of
PySyft leaves this module.
"""

import contextlib
import json
from pathlib import Path
from typing import Final, Self

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from syft import serialize
from syft.client.api import SyftAPICall
from syft.server.credentials import SyftSigningKey
from syft.service.response import SyftError, SyftSuccess
from syft.types.uid import UID

from core.exceptions import (
    AuthenticationError,
    DataSiteError,
    FederatedLearningError,
    ProtocolError,
    SecurityError,
)
from core.pysyft_patches import REFUSED, deserialize_only
from core.sessions import Parties, derive_keys, new_half
from core.wire import Parcel
from orchestrator.communication.channel import Channel, SiteIdentity
from orchestrator.communication.connections import Deadline
from orchestrator.communication.session import Session
from orchestrator.communication.traffic import Traffic

_HANDLE_PATH: Final = "federation.handle"
_SESSION_PATH: Final = "federation.open_session"


class PySyftCarrier:
    """A logged-in connection to one site; any number of threads may use it at once.

    Requests may be sent twice: when a kept connection turns out to have ended before anything of
    the answer arrived (the site was restarted), the request is repeated once on a new one.

    Attributes:
        url: The address it was opened with.
        site_id: The name the site gives itself.
    """

    def __init__(self, channel: Channel, site: SiteIdentity, signing_key: SyftSigningKey) -> None:
        self.url = channel.url
        self.site_id = site.name
        self.channel = channel
        self._uid = UID.from_string(site.uid)
        self._verify_key = site.verify_key
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
        traffic: Traffic | None = None,
    ) -> Self:
        """Log in to the site at `url`.

        Args:
            url: `http(s)://host:port`; a path in front of PySyft's own is kept.
            email: The account.
            password: Its password.
            timeout_s: How long all of it may take.
            ca_file: The certificate authority that vouches for the site, a PEM file. Without one
                the environment's REQUESTS_CA_BUNDLE or SSL_CERT_FILE, and else the usual ones.
            traffic: Counts what passes.

        Raises:
            ConfigurationError: `url` is no http(s) address, or the authority cannot be read.
            CommunicationError: The site was not reached.
            CertificateError: Its certificate is not to be trusted.
            DeadlineError: It did not answer in time.
            AuthenticationError: It did not log the account in.
            ProtocolError: What answers there is not a PySyft site.
        """
        deadline = Deadline(timeout_s)
        channel = Channel(url, ca_file, traffic)
        with contextlib.ExitStack() as undo:
            undo.callback(channel.close)
            site = channel.identify(deadline)
            credentials = json.dumps({"email": email, "password": password}).encode()
            reply = channel.send("POST", "login", deadline, content=credentials)
            carrier = cls(channel, site, _signing_key(reply, url, email))
            undo.pop_all()
        return carrier

    def exchange(self, request: Parcel, *, deadline_s: float) -> Parcel:
        """Give the site's answer to `request`.

        Raises:
            DeadlineError: No answer within `deadline_s`; the site may still be at work on it.
            CommunicationError: The site was not reached, or the connection broke.
            ProtocolError: The answer cannot be read, or another key than the site's signed it.
            SecurityError: The site refuses this account.
            DataSiteError: The site failed while it answered.
        """
        return Parcel.of(self._call(_HANDLE_PATH, request.joined(), Deadline(deadline_s)))

    def look(self, *, deadline_s: float) -> None:
        """See `Carrier.look`; nobody need be logged in for it."""
        self.channel.send("GET", "", Deadline(deadline_s))

    def open_session(self, deadline: Deadline) -> Session:
        """Open a session of this account with the site; each has a key of its own.

        Raises:
            FederatedLearningError: As `exchange`.
        """
        half = new_half()
        public = half.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        offer = self._call(_SESSION_PATH, public, deadline)
        try:
            told = json.loads(offer)
            site_public = bytes.fromhex(told["public"])
            parties = Parties(
                session_id=str(told["session"]),
                caller_key=str(self._signing_key.verify_key),
                site_key=self._verify_key,
                caller_public=public,
                site_public=site_public,
            )
            keys = derive_keys(half, site_public, parties)
        except (ValueError, KeyError, TypeError) as exc:
            raise self._problem(ProtocolError, "its offer of a session cannot be read") from exc
        return Session(parties.session_id, keys)

    def _call(self, path: str, request: bytes, deadline: Deadline) -> bytes:
        call = SyftAPICall(
            server_uid=self._uid,
            path=path,
            args=[],
            kwargs={"request": {"x": request}},
            blocking=True,
        ).sign(credentials=self._signing_key)
        content = serialize(call, to_bytes=True)
        reply = self.channel.send("POST", "api_call", deadline, content=content)
        return self._answer_in(reply)

    def close(self) -> None:
        """Close the connections; closing again does nothing."""
        self.channel.close()

    def _answer_in(self, reply: bytes) -> bytes:
        try:
            signed = deserialize_only(reply, "SignedSyftAPICall")
            own = str(signed.credentials) == self._verify_key and signed.is_valid
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
