"""A small certificate authority: it vouches for the sites of one federation, and for nobody else.

    FOLDER/ca.crt    what researchers trust, as `ca_file` of the sites file
    FOLDER/ca.key    what it signs with; whoever has it can pass for any site

A site's certificate is issued here with its key, or signed on a request whose key never left the
factory. Renewing keeps the key: then there is one file to replace, in one step, and no moment at
which a site that starts finds a key and a certificate that do not belong together.
"""

import datetime as dt
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self, TypeAlias, TypedDict, cast

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import (
    CertificateIssuerPublicKeyTypes,
    CertificatePublicKeyTypes,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from core.certificates import (
    LONGEST_COMMON_NAME,
    hosts_in,
    is_there,
    names_of_hosts,
    new_key,
    read_certificates,
    read_key,
    read_pem,
    require_key_of,
    require_new,
    subject,
    write_key,
    write_new,
)
from core.exceptions import ConfigurationError
from orchestrator.federation import SITE_ID
from orchestrator.files import write_whole

_CLOCKS_DIFFER: Final = dt.timedelta(minutes=5)
_SMALLEST_RSA_BITS: Final = 2048

_SigningKey: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


class CertificateFacts(TypedDict):
    """What a certificate says.

    Attributes:
        subject: Whom it is for, as people read it.
        hosts: The names and IP addresses that it vouches for.
        issuer: Who vouches.
        is_authority: Whether others may be signed with it.
        valid_from: In UTC, ISO 8601.
        valid_until: Likewise.
        days_left: Whole days until then; negative once it has expired.
    """

    subject: str
    hosts: list[str]
    issuer: str
    is_authority: bool
    valid_from: str
    valid_until: str
    days_left: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Authority:
    key: _SigningKey
    certificate: x509.Certificate

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read the authority in `folder`.

        Raises:
            ConfigurationError: There is none, or it cannot sign.
        """
        certificate_file, key_file = folder / "ca.crt", folder / "ca.key"
        if not is_there(certificate_file):
            raise ConfigurationError(
                f"there is no authority in {folder}; make one with "
                "'orchestrator certificates ca --out FOLDER'"
            )
        certificate, key = read_certificates(certificate_file)[0], read_key(key_file)
        require_key_of(certificate, key, files=f"{key_file} and {certificate_file}")
        if not _is_authority(certificate) or not isinstance(key, _SigningKey):
            raise ConfigurationError(
                f"{certificate_file} is no authority that can sign here; it must be a CA with an "
                "EC or RSA key"
            )
        return cls(key=key, certificate=certificate)

    def certify(
        self,
        key: CertificatePublicKeyTypes,
        *,
        whose: x509.Name,
        names: x509.SubjectAlternativeName,
        days: int,
    ) -> x509.Certificate:
        """Sign that `key` is that of the server at `names`.

        Raises:
            ConfigurationError: The authority itself is not valid for so long.
        """
        now = dt.datetime.now(tz=dt.UTC)
        end = now + dt.timedelta(days=days)
        last = self.certificate.not_valid_after_utc
        if end > last:
            raise ConfigurationError(
                f"the authority is valid until {last:%Y-%m-%d} only, asked for is "
                f"{end:%Y-%m-%d}; give fewer --days, or make a new authority"
            )
        return (
            x509.CertificateBuilder()
            .subject_name(whose)
            .issuer_name(self.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _CLOCKS_DIFFER)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(names, critical=not list(whose))  # RFC 5280, 4.2.1.6
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(_key_identifier(self.certificate), critical=False)
            .sign(self.key, hashes.SHA256())
        )


def make_authority(folder: Path, *, name: str, days: int) -> Path:
    """Make `ca.key` and `ca.crt` in `folder`; the path of the certificate.

    It can sign certificates of sites, and none of further authorities (a path length of 0).

    Args:
        folder: Made when it is not there.
        name: The authority's name for people.
        days: How long it is valid.

    Raises:
        ConfigurationError: There is one already, or it cannot be written.
    """
    key_file, certificate_file = folder / "ca.key", folder / "ca.crt"
    if not 1 <= len(name) <= LONGEST_COMMON_NAME:
        raise ConfigurationError(
            f"an authority's name has 1 to {LONGEST_COMMON_NAME} characters, not {len(name)}"
        )
    whose = subject(name)
    require_new(key_file, certificate_file)
    key = new_key()
    now = dt.datetime.now(tz=dt.UTC)
    own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(whose)
        .issuer_name(whose)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS_DIFFER)
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(own, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    write_key(key_file, key)
    write_new(certificate_file, _pem(certificate))
    return certificate_file


def issue_certificate(
    site_id: str, *, authority: Path, out: Path, hosts: Sequence[str] = (), days: int
) -> Path:
    """Make a site's key and certificate, `SITE.key` and `SITE.crt`; the certificate's path.

    Args:
        site_id: The site.
        authority: The authority's folder.
        out: Made when it is not there.
        hosts: Names and IP addresses in the site's URL; without any, its id.
        days: How long the certificate is valid.

    Raises:
        ConfigurationError: There is a key or a certificate already, or a name will not do.
    """
    key_file, certificate_file = _files(site_id, out)
    require_new(key_file, certificate_file)
    key = new_key()
    certificate = _Authority.open(authority).certify(
        key.public_key(),
        whose=subject(site_id),
        names=names_of_hosts(hosts or [site_id]),
        days=days,
    )
    write_key(key_file, key)
    write_new(certificate_file, _pem(certificate))
    return certificate_file


def renew_certificate(
    site_id: str, *, authority: Path, out: Path, hosts: Sequence[str] = (), days: int
) -> Path:
    """Replace a site's certificate by one for the same key; the certificate's path.

    Args:
        site_id: As when it was issued.
        authority: Likewise.
        out: Likewise.
        hosts: Without any, those that the present certificate names.
        days: As when it was issued.

    Raises:
        ConfigurationError: There is no key of the site's in `out`.
        ExperimentError: The certificate cannot be written; the one before is still there.
    """
    key_file, certificate_file = _files(site_id, out)
    if not is_there(key_file):
        raise ConfigurationError(
            f"{key_file}: no such file, so there is nothing to renew; a site that keeps its key "
            "sends its request: 'orchestrator certificates sign REQUEST.csr'"
        )
    key = read_key(key_file)
    if not hosts and is_there(certificate_file):
        hosts = hosts_in(read_certificates(certificate_file)[0].extensions)
    certificate = _Authority.open(authority).certify(
        cast("CertificatePublicKeyTypes", key.public_key()),
        whose=subject(site_id),
        names=names_of_hosts(hosts or [site_id]),
        days=days,
    )
    write_whole(certificate_file, _pem(certificate))
    return certificate_file


def sign_request(request_file: Path, *, authority: Path, certificate_file: Path, days: int) -> Path:
    """Issue a certificate for a key that never left its factory; the certificate's path.

    Of what the request asks for, hosts are granted and nothing else.

    Raises:
        ConfigurationError: It is no request, its signature is not by the key in it, it asks to be
            an authority, or for names that are no hosts, or with a weak key; or there is a file at
            `certificate_file`.
    """
    require_new(certificate_file)
    request = _read_request(request_file)
    try:
        names = _requested_names(request)
    except ConfigurationError as exc:
        raise ConfigurationError(f"{request_file} is not signed: {exc}") from exc
    certificate = _Authority.open(authority).certify(
        request.public_key(),
        whose=subject(hosts_in(request.extensions)[0]),
        names=names,
        days=days,
    )
    write_new(certificate_file, _pem(certificate))
    return certificate_file


def describe_certificates(path: Path) -> list[CertificateFacts]:
    """Say what the certificates of a PEM file say, in its order.

    Raises:
        ConfigurationError: The file cannot be read as certificates.
    """
    now = dt.datetime.now(tz=dt.UTC)
    return [
        CertificateFacts(
            subject=each.subject.rfc4514_string(),
            hosts=hosts_in(each.extensions),
            issuer=each.issuer.rfc4514_string(),
            is_authority=_is_authority(each),
            valid_from=each.not_valid_before_utc.isoformat(),
            valid_until=each.not_valid_after_utc.isoformat(),
            days_left=(each.not_valid_after_utc - now).days,
        )
        for each in read_certificates(path)
    ]


def _files(site_id: str, out: Path) -> tuple[Path, Path]:
    if not re.fullmatch(SITE_ID, site_id):
        raise ConfigurationError(
            f"{site_id!r} is no site's id; it has lower-case letters, digits and dashes"
        )
    return out / f"{site_id}.key", out / f"{site_id}.crt"


def _read_request(path: Path) -> x509.CertificateSigningRequest:
    try:
        request = x509.load_pem_x509_csr(read_pem(path))
        own = request.is_signature_valid
        request.extensions  # noqa: B018  read here, where a malformed one is told
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension) as exc:
        raise ConfigurationError(
            f"{path} holds no certificate request that can be read ({exc}); give a PEM file"
        ) from exc
    if not own:
        raise ConfigurationError(
            f"{path} is not signed by the key in it: it was changed on its way, or its sender has "
            "not that key; have it sent again"
        )
    return request


def _requested_names(request: x509.CertificateSigningRequest) -> x509.SubjectAlternativeName:
    """Give the hosts of a request that may be granted as it is."""
    if not _is_strong(request.public_key()):
        raise ConfigurationError(
            "its key is weak or of a kind that is not known here; have one made on the curve P-256"
        )
    for extension in request.extensions:
        wish = extension.value
        if (isinstance(wish, x509.BasicConstraints) and wish.ca) or (
            isinstance(wish, x509.KeyUsage) and wish.key_cert_sign
        ):
            raise ConfigurationError("it asks to be an authority; a site needs no such certificate")
        if isinstance(wish, x509.SubjectAlternativeName) and len(list(wish)) != len(
            hosts_in(request.extensions)
        ):
            raise ConfigurationError("it names more than hosts; ask for DNS names and IP addresses")
    return names_of_hosts(hosts_in(request.extensions))


def _is_strong(key: object) -> bool:
    if isinstance(key, rsa.RSAPublicKey):
        return key.key_size >= _SMALLEST_RSA_BITS
    if isinstance(key, ec.EllipticCurvePublicKey):
        return isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1 | ec.SECP521R1)
    return isinstance(key, ed25519.Ed25519PublicKey)


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _key_identifier(authority: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    try:
        own = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:  # an authority that was made elsewhere may have none
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(
            cast("CertificateIssuerPublicKeyTypes", authority.public_key())
        )
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
