"""Authorities of the project's own making, certificates with wrong dates, and a TLS handshake."""

import datetime as dt
import ssl
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from core.certificates import read_certificates, read_key
from orchestrator.certificates import issue_certificate, make_authority


class Issued(NamedTuple):
    """A site's certificate and key, and the authority's certificate."""

    certificate: Path
    key: Path
    ca_file: Path

    @property
    def serial(self) -> int:
        """What tells this certificate from others."""
        return read_certificates(self.certificate)[0].serial_number


def authority(folder: Path, *, name: str = "Federation") -> Path:
    """Make an authority in `folder`; the folder."""
    make_authority(folder, name=name, days=3650)
    return folder


def issue(authority: Path, out: Path, *hosts: str, days: int = 365) -> Issued:
    """Have a certificate issued for `factory-1`, by default at 127.0.0.1."""
    certificate = issue_certificate(
        "factory-1", authority=authority, out=out, hosts=hosts or ["127.0.0.1"], days=days
    )
    return Issued(certificate, certificate.with_suffix(".key"), authority / "ca.crt")


def redate(issued: Issued, *, begin: dt.timedelta, end: dt.timedelta) -> None:
    """Have the authority sign the same certificate for another time, counted from now."""
    old = read_certificates(issued.certificate)[0]
    now = dt.datetime.now(tz=dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(old.subject)
        .issuer_name(old.issuer)
        .public_key(old.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begin)
        .not_valid_after(now + end)
    )
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, critical=extension.critical)
    key = read_key(issued.ca_file.with_suffix(".key"))
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    signed = builder.sign(key, hashes.SHA256())
    issued.certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))


def serving(issued: Issued) -> ssl.SSLContext:
    """Give the TLS of a server that presents the certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(issued.certificate, issued.key)
    return context


def trusting(ca_file: Path) -> ssl.SSLContext:
    """Give the TLS of a client that takes RFC 5280 at its word, as newer Pythons do by default."""
    context = ssl.create_default_context(cafile=ca_file)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


def presented(server: ssl.SSLContext, client: ssl.SSLContext, *, host: str) -> x509.Certificate:
    """Shake hands in memory; what the server presented, as far as the client trusted it.

    Raises:
        ssl.SSLError: The two did not come together.
    """
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=host),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    waiting = list(ends)
    while waiting:
        end = waiting.pop(0)
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            waiting.append(end)
    der = ends[0].getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der)
