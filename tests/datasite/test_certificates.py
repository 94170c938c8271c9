"""The site's certificate: asked for without giving the key away, checked before it is served."""

import datetime as dt
import ssl
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from authorities import Issued, authority, issue, presented, redate, trusting
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from loguru import logger

from core.certificates import hosts_in, read_key
from core.exceptions import ConfigurationError
from datasite.certificates import SiteTls, request_certificate
from datasite.configuration import SiteConfig
from datasite.serve import serve
from orchestrator.certificates import renew_certificate


@pytest.fixture
def issued(tmp_path: Path) -> Issued:
    """A certificate for 127.0.0.1, its key, and its authority."""
    return issue(authority(tmp_path / "ca"), tmp_path / "tls")


@pytest.fixture
def config(issued: Issued, tmp_path: Path) -> SiteConfig:
    """A site that presents it, and that could not make its state: no test here starts one."""
    (tmp_path / "in the way").touch()
    return SiteConfig.model_validate(
        {
            "site_id": "factory-1",
            "state": tmp_path / "in the way" / "state",
            "operator": {"email": "op@factory.example.com", "password": "correct horse battery"},
            "listen": {"tls": {"certificate": issued.certificate, "key": issued.key}},
        }
    )


def open_tls(issued: Issued) -> SiteTls:
    """Check and open it, as the site does at its start."""
    return SiteTls(certificate=issued.certificate, key=issued.key)


@pytest.fixture
def log() -> Iterator[list[str]]:
    """What is logged from here on."""
    lines: list[str] = []
    sink = logger.add(lambda line: lines.append(str(line)), format="{level} {message}")
    yield lines
    logger.remove(sink)


def test_callers_are_shown_the_certificate(issued: Issued) -> None:
    """Those who trust its authority come in, by TLS 1.2 and 1.3, and by no older version."""
    tls = open_tls(issued)
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        client = trusting(issued.ca_file)
        client.maximum_version = version
        shown = presented(tls.context, client, host="127.0.0.1")
        assert shown.serial_number == issued.serial
    assert tls.context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert tls.valid_until == shown.not_valid_after_utc


@pytest.mark.parametrize(
    ("days", "warned"), [(31, False), (29, True)], ids=["a month", "less than a month"]
)
def test_the_log_says_until_when_it_is_valid(
    issued: Issued, log: list[str], *, days: int, warned: bool
) -> None:
    """With a warning in the last 30 days, which says what to do."""
    redate(issued, begin=dt.timedelta(days=-1), end=dt.timedelta(days=days))
    end = open_tls(issued).valid_until
    assert f"INFO the certificate is valid until {end:%Y-%m-%d}\n" in log
    assert any(line.startswith("WARNING the certificate expires in 28 days") for line in log) == (
        warned
    )


def break_pair(issued: Issued, how: str) -> None:
    """Bring about what a site must not start with."""
    match how:
        case "expired":
            redate(issued, begin=dt.timedelta(days=-9), end=dt.timedelta(minutes=-1))
        case "not yet valid":
            redate(issued, begin=dt.timedelta(days=1), end=dt.timedelta(days=9))
        case "intermediate expired":
            leaf = issued.certificate.read_bytes()
            redate(issued, begin=dt.timedelta(days=-9), end=dt.timedelta(minutes=-1))
            issued.certificate.write_bytes(leaf + issued.certificate.read_bytes())
        case "another's key":
            other = issue(issued.ca_file.parent, issued.key.parent / "other")
            issued.key.write_bytes(other.key.read_bytes())
        case "no certificate":
            issued.certificate.unlink()
        case "no key":
            issued.key.unlink()
        case "key for certificate":
            issued.certificate.write_bytes(issued.key.read_bytes())
        case "certificate for key":
            issued.key.write_bytes(issued.certificate.read_bytes())
        case "passphrase":
            locked = read_key(issued.key).private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(b"secret"),
            )
            issued.key.write_bytes(locked)


BROKEN = {
    "expired": r"listen\.tls\.certificate: .*factory-1\.crt expired on .*have a new one issued",
    "not yet valid": r"listen\.tls\.certificate: .* is not valid before .*clock",
    "intermediate expired": r"listen\.tls\.certificate: .*factory-1\.crt expired on ",
    "another's key": r"listen\.tls: .*the key is not that of the certificate",
    "no certificate": r"listen\.tls\.certificate: .*factory-1\.crt cannot be read: No such file",
    "no key": r"listen\.tls\.key: .*factory-1\.key cannot be read: No such file",
    "key for certificate": r"listen\.tls\.certificate: .* holds no certificate",
    "certificate for key": r"listen\.tls\.key: .* holds no private key",
    "passphrase": r"listen\.tls\.key: .* is locked with a passphrase",
}


@pytest.mark.parametrize(("how", "said"), BROKEN.items(), ids=BROKEN)
def test_a_site_does_not_start_with_a_certificate_that_will_not_do(
    config: SiteConfig, issued: Issued, how: str, said: str
) -> None:
    """The setting and the file are named, before anything else is looked at."""
    break_pair(issued, how)
    with pytest.raises(ConfigurationError, match=said) as caught:
        serve(config)
    assert "PRIVATE KEY" not in str(caught.value)


def test_a_renewed_certificate_is_shown_to_those_who_connect_from_then_on(issued: Issued) -> None:
    """The server's context stays the one that it was given; the key too."""
    tls, before = open_tls(issued), issued.serial
    renew_certificate("factory-1", authority=issued.ca_file.parent, out=issued.key.parent, days=9)
    client = trusting(issued.ca_file)
    assert presented(tls.context, client, host="127.0.0.1").serial_number == before
    tls.read_again()
    shown = presented(tls.context, client, host="127.0.0.1")
    assert shown.serial_number == issued.serial != before
    assert tls.valid_until == shown.not_valid_after_utc


@pytest.mark.parametrize("how", BROKEN)
def test_a_bad_renewal_leaves_the_certificate_before_it(issued: Issued, how: str) -> None:
    """What cannot be started with cannot be taken up either, and costs nobody a connection."""
    tls, before = open_tls(issued), issued.serial
    until = tls.valid_until
    break_pair(issued, how)
    with pytest.raises(ConfigurationError, match=BROKEN[how]):
        tls.read_again()
    shown = presented(tls.context, trusting(issued.ca_file), host="127.0.0.1")
    assert (shown.serial_number, tls.valid_until) == (before, until)


def test_a_request_names_the_hosts_and_keeps_the_key(tmp_path: Path) -> None:
    """The key is a file of its owner alone, on P-256; the request is signed with it."""
    key_file, request_file = request_certificate(
        tmp_path / "tls", ["Factory-1.example.com", "10.0.0.7", "::1", "10.0.0.7"]
    )
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    key = read_key(key_file)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert isinstance(key.curve, ec.SECP256R1)
    text = request_file.read_bytes()
    assert b"PRIVATE" not in text
    request = x509.load_pem_x509_csr(text)
    assert request.is_signature_valid
    assert request.public_key() == key.public_key()
    assert hosts_in(request.extensions) == ["factory-1.example.com", "10.0.0.7", "::1"]


@pytest.mark.parametrize("there", ["site.key", "site.csr"])
def test_a_request_overwrites_nothing(tmp_path: Path, there: str) -> None:
    """A key that is lost makes its certificate worthless."""
    (tmp_path / there).write_text("precious")
    with pytest.raises(ConfigurationError, match=rf"{there} is there already"):
        request_certificate(tmp_path, ["factory-1"])
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(there, "precious")]


@pytest.mark.parametrize(
    "host",
    [
        "",
        "https://factory-1",
        "factory-1:8443",
        "*.example.com",
        "[::1]",
        "10.0.0.256",
        "factory 1",
        "-factory",
        "fabrik-münchen.example.com",
        "factory-1.",
        "a" * 64,
        "a." * 127 + "aa",
    ],
)
def test_what_is_no_host_is_not_asked_for(tmp_path: Path, host: str) -> None:
    """A name that no URL can have would be found out by the first who connects."""
    with pytest.raises(ConfigurationError, match="is no host; give the name or the IP address"):
        request_certificate(tmp_path, ["factory-1", host])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_told(tmp_path: Path) -> None:
    """As a mistake in the command's option; the file stays."""
    (tmp_path / "tls").write_text("in the way")
    with pytest.raises(ConfigurationError, match=r"site\.key cannot be written"):
        request_certificate(tmp_path / "tls", ["factory-1"])
    assert (tmp_path / "tls").read_text() == "in the way"
