"""Keys and certificates as both sides handle them: made by one rule, read with clear errors.

X.509 version 3 (RFC 5280) with keys on the curve P-256, as PEM files. What names a server is the
extension "subject alternative name"; a certificate's common name is for people.
"""

import ipaddress
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import NameOID

from core.exceptions import ConfigurationError

_LABEL: Final = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST: Final = re.compile(rf"(?!(?:.*\.)?[0-9]+$){_LABEL}(?:\.{_LABEL})*", re.IGNORECASE)
_LONGEST_HOST: Final = 253
LONGEST_COMMON_NAME: Final = 64


def new_key() -> ec.EllipticCurvePrivateKey:
    """Make a private key."""
    return ec.generate_private_key(ec.SECP256R1())


def names_of_hosts(hosts: Iterable[str]) -> x509.SubjectAlternativeName:
    """Give the extension that names `hosts`: IP addresses as such, all else as DNS names.

    Raises:
        ConfigurationError: One is neither, a name with a wildcard or in a URL for one.
    """
    names = [_name(host) for host in dict.fromkeys(hosts)]
    if not names:
        raise ConfigurationError("a certificate needs a host: the name or IP address in its URL")
    return x509.SubjectAlternativeName(names)


def subject(name: str) -> x509.Name:
    """Give the common name for people; none where `name` is longer than one may be."""
    fits = len(name) <= LONGEST_COMMON_NAME
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if fits else [])


def hosts_in(extensions: x509.Extensions) -> list[str]:
    """Give the hosts that a certificate or a request names; names of other kinds are left out."""
    try:
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [str(name.value) for name in names if isinstance(name, x509.DNSName | x509.IPAddress)]


def read_pem(path: Path) -> bytes:
    """Read a file, whatever is in it.

    Raises:
        ConfigurationError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as exc:
        raise ConfigurationError(f"{path} cannot be read: {exc.strerror}") from exc


def read_certificates(path: Path) -> list[x509.Certificate]:
    """Read the certificates of a PEM file, in its order; at least one.

    Raises:
        ConfigurationError: It cannot be read, or there is none in it.
    """
    try:
        return x509.load_pem_x509_certificates(read_pem(path))
    except ValueError as exc:
        raise ConfigurationError(f"{path} holds no certificate; give a PEM file") from exc


def read_key(path: Path) -> PrivateKeyTypes:
    """Read a private key.

    Raises:
        ConfigurationError: It cannot be read, is no key, or is locked with a passphrase.
    """
    try:
        return serialization.load_pem_private_key(read_pem(path), password=None)
    except TypeError as exc:
        raise ConfigurationError(
            f"{path} is locked with a passphrase, which nobody types in when a site starts; "
            "give it without, readable to its owner alone"
        ) from exc
    except ValueError as exc:
        raise ConfigurationError(f"{path} holds no private key; give a PEM file") from exc


def require_key_of(certificate: x509.Certificate, key: PrivateKeyTypes, *, files: str) -> None:
    """Do nothing when `key` is the private key of `certificate`.

    Raises:
        ConfigurationError: It is not; `files` says of which pair.
    """
    if key.public_key() != certificate.public_key():
        raise ConfigurationError(
            f"{files}: the key is not that of the certificate; find the two that belong together, "
            "or have a certificate issued for this key"
        )


def write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    """Write a private key that only its owner may read, whole or not at all.

    Raises:
        ConfigurationError: There is a file already, or none can be written.
    """
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    write_new(path, pem, mode=0o600)


def write_new(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Write a file that is not there yet, whole or not at all.

    Raises:
        ConfigurationError: There is a file already, or none can be written.
    """
    require_new(path)
    draft = path.with_name(f".{path.name}.draft")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.unlink(missing_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        draft.rename(path)
    except OSError as exc:
        with suppress(OSError):
            draft.unlink()
        raise ConfigurationError(f"{path} cannot be written: {exc.strerror}") from exc


def require_new(*paths: Path) -> None:
    """Do nothing when there is no file at any of `paths`.

    Raises:
        ConfigurationError: There is one, which is left as it is.
    """
    for path in paths:
        if is_there(path):
            raise ConfigurationError(
                f"{path} is there already and is not overwritten; give another place, or move it "
                "away first"
            )


def is_there(path: Path) -> bool:
    """Tell whether there is something at `path`.

    Raises:
        ConfigurationError: This account may not look.
    """
    try:
        return path.exists()
    except OSError as exc:
        raise ConfigurationError(f"{path} cannot be looked for: {exc.strerror}") from exc


def _name(host: str) -> x509.GeneralName:
    with suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(host))
    if len(host) > _LONGEST_HOST or not _HOST.fullmatch(host):
        raise ConfigurationError(
            f"{host!r} is no host; give the name or the IP address in the site's URL, without "
            "http, port or wildcard"
        )
    return x509.DNSName(host.lower())
