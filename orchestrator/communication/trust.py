"""Whom a connection trusts, and what is said when it does not."""

import os
import socket
import ssl
from pathlib import Path
from typing import Final

import certifi

from core.exceptions import ConfigurationError

# The numbers of OpenSSL's x509_vfy.h, where each is an X509_V_ERR_...
_UNKNOWN_AUTHORITY: Final = frozenset({2, 18, 19, 20, 21})
_NOT_YET_VALID: Final = 9
_EXPIRED: Final = 10
_WRONG_NAME: Final = frozenset({62, 64})

_NO_TLS: Final = frozenset({"WRONG_VERSION_NUMBER", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST"})
"""What OpenSSL calls an answer that is no TLS at all."""


class Trust:
    """The authorities that may vouch for one address; certificates are always verified.

    Args:
        host: Of the address.
        port: Likewise.
        ca_file: The authority's certificate, a PEM file. Without one the environment's
            REQUESTS_CA_BUNDLE or SSL_CERT_FILE, and else the usual ones.
    """

    def __init__(self, host: str, port: int, ca_file: Path | None) -> None:
        self._host = host
        self._port = port
        named = ca_file or os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE")
        self._authorities = Path(named) if named else None

    def context(self) -> ssl.SSLContext:
        """Give the TLS settings.

        Raises:
            ConfigurationError: The authority's certificates cannot be read.
        """
        authorities = self._authorities
        try:
            if authorities is None:
                return ssl.create_default_context(cafile=certifi.where())
            if authorities.is_dir():
                return ssl.create_default_context(capath=authorities)
            return ssl.create_default_context(cafile=authorities)
        except OSError as exc:
            message = (
                f"{authorities}: no certificate authority can be read from it ({exc}); give a PEM "
                "file"
            )
            raise ConfigurationError(message) from exc

    def why_not(self, problem: ssl.SSLCertVerificationError, *, timeout_s: float) -> str:
        """Say what is wrong with the site's certificate, and whom to ask."""
        code = problem.verify_code
        if code in _WRONG_NAME:
            named = ", ".join(self._names_there(timeout_s)) or "other hosts"
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

    def speaks_tls(self, *, timeout_s: float) -> bool:
        """Tell whether what answers there speaks TLS, whoever vouches for it."""
        try:
            self._shake_hands(timeout_s)
        except ssl.SSLCertVerificationError:
            return True
        except OSError:
            return False
        return True

    def _names_there(self, timeout_s: float) -> list[str]:
        """Give the hosts that the trusted certificate there names; none if it is not shown again.

        A handshake that fails because of them does not tell them.
        """
        try:
            names = self._shake_hands(timeout_s).get("subjectAltName", ())
        except OSError:
            return []
        return [str(name) for _kind, name in names]

    def _shake_hands(self, timeout_s: float) -> dict[str, tuple[tuple[str, str], ...]]:
        """Give what the certificate there says, whomever it names; nothing is sent.

        Raises:
            OSError: No TLS is spoken, or no trusted authority vouches.
        """
        context = self.context()
        context.check_hostname = False
        with (
            socket.create_connection((self._host, self._port), timeout=timeout_s) as plain,
            context.wrap_socket(plain) as secured,
        ):
            told: dict[str, tuple[tuple[str, str], ...]] = secured.getpeercert()  # type: ignore[assignment]  # typeshed: any value of any key
            return told


def why_no_tls(problem: ssl.SSLError) -> str:
    """Say why no TLS connection came about, for another reason than trust."""
    if problem.reason in _NO_TLS:
        return "what answers there speaks no TLS; if it is the site, write http:// into the URL"
    return (
        f"no TLS connection could be agreed on ({problem.reason}); does what answers there speak "
        "TLS 1.2 or later, and to anybody?"
    )
