"""The site's certificate: how it is asked for, checked at the start, and presented to callers."""

import datetime as dt
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from loguru import logger

from core.certificates import (
    names_of_hosts,
    new_key,
    read_certificates,
    read_key,
    require_key_of,
    require_new,
    subject,
    write_key,
    write_new,
)
from core.exceptions import ConfigurationError

_WARNING_DAYS: Final = 30


class SiteTls:
    """The TLS of a site: what it presents to each new connection.

    Args:
        certificate: A PEM file: the site's certificate, then those between it and the authority.
        key: Its private key, a PEM file without a passphrase.

    Attributes:
        context: For the server; TLS 1.2 and later.
        valid_until: When the first certificate of the chain expires.

    Raises:
        ConfigurationError: A file cannot be read, the two do not belong together, or a certificate
            of the chain is not valid today.
    """

    def __init__(self, *, certificate: Path, key: Path) -> None:
        self._certificate = certificate
        self._key = key
        self.context, self.valid_until = self._read()
        self._presented = self.context
        # Called for each handshake. A new pair put into the context itself would, if it failed half
        # way, have destroyed the old one.
        self.context.sni_callback = self._present

    def read_again(self) -> None:
        """Present what the files hold now to those who connect from now on.

        Raises:
            ConfigurationError: As at the start; what was presented before still is.
        """
        self._presented, self.valid_until = self._read()

    def _present(self, connection: ssl.SSLObject, _host: str | None, _: ssl.SSLContext) -> None:
        connection.context = self._presented

    def _read(self) -> tuple[ssl.SSLContext, dt.datetime]:
        try:
            chain = read_certificates(self._certificate)
        except ConfigurationError as exc:
            raise ConfigurationError(f"listen.tls.certificate: {exc}") from exc
        try:
            key = read_key(self._key)
        except ConfigurationError as exc:
            raise ConfigurationError(f"listen.tls.key: {exc}") from exc
        require_key_of(chain[0], key, files=f"listen.tls: {self._key} and {self._certificate}")
        valid_until = self._require_valid(chain)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(self._certificate, self._key)
        except (OSError, ssl.SSLError) as exc:
            raise ConfigurationError(
                f"listen.tls: {self._certificate} and {self._key} cannot be used: {exc}"
            ) from exc
        return context, valid_until

    def _require_valid(self, chain: Sequence[x509.Certificate]) -> dt.datetime:
        now = dt.datetime.now(tz=dt.UTC)
        begin = max(each.not_valid_before_utc for each in chain)
        end = min(each.not_valid_after_utc for each in chain)
        if end < now:
            raise ConfigurationError(
                f"listen.tls.certificate: {self._certificate} expired on {end:%Y-%m-%d}; have a "
                "new one issued for the same key and put it in its place"
            )
        if begin > now:
            raise ConfigurationError(
                f"listen.tls.certificate: {self._certificate} is not valid before "
                f"{begin:%Y-%m-%d %H:%M} UTC, and here it is {now:%Y-%m-%d %H:%M}; is the clock "
                "right?"
            )
        left = end - now
        logger.info("the certificate is valid until {:%Y-%m-%d}", end)
        if left.days < _WARNING_DAYS:
            logger.warning(
                "the certificate expires in {} days; have a new one issued for the same key, put "
                "it in its place, and send this process SIGHUP",
                left.days,
            )
        return end


def request_certificate(folder: Path, hosts: Sequence[str]) -> tuple[Path, Path]:
    """Make a key, and the request with which an authority issues a certificate for `hosts`.

    The key never leaves the factory; the request holds its public half and is no secret. The same
    request can be signed again when the certificate expires.

    Args:
        folder: Where `site.key` and `site.csr` are written.
        hosts: Names and IP addresses in the URLs by which researchers reach the site.

    Returns:
        The paths of the key and the request.

    Raises:
        ConfigurationError: One of `hosts` is none, or there is a key or a request already.
    """
    key_file, request_file = folder / "site.key", folder / "site.csr"
    names = names_of_hosts(hosts)
    require_new(key_file, request_file)
    key = new_key()
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject(hosts[0]))
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    write_key(key_file, key)
    write_new(request_file, request.public_bytes(serialization.Encoding.PEM))
    return key_file, request_file
