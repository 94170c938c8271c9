"""The small authority, by the command that a researcher types, and as OpenSSL sees its work."""

import datetime as dt
import json
import ssl
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from authorities import authority, issue, presented, redate, serving, trusting
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from loguru import logger

from core.certificates import read_certificates, read_key, write_key
from datasite.certificates import request_certificate
from orchestrator.cli.app import main

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def certificates(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Command]:
    """Give `orchestrator certificates`, run in an empty folder: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["orchestrator", "certificates", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    yield run
    logger.remove()  # it writes to a stream that ends with the test


@pytest.fixture
def ca(certificates: Command, tmp_path: Path) -> Path:
    """An authority, made by the command in the folder `ca`."""
    code, _, said = certificates("ca", "--out", "ca", "--name", "Lab")
    assert code == 0, said
    return tmp_path / "ca"


def trusted(ca: Path, certificate: Path, key: Path, *, host: str) -> x509.Certificate:
    """Have a server present the certificate to a client that trusts the authority alone."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    return presented(context, trusting(ca / "ca.crt"), host=host)


def extension(certificate: x509.Certificate, kind: type[Any]) -> x509.Extension[Any]:
    """Give one extension of a certificate."""
    return certificate.extensions.get_extension_for_class(kind)


def test_an_authority_signs_sites_and_no_further_authorities(ca: Path) -> None:
    """Its key is its owner's alone; it is a CA of path length 0 that signs certificates."""
    assert stat.S_IMODE((ca / "ca.key").stat().st_mode) == 0o600
    certificate = read_certificates(ca / "ca.crt")[0]
    assert read_key(ca / "ca.key").public_key() == certificate.public_key()
    constraints = extension(certificate, x509.BasicConstraints)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)
    assert extension(certificate, x509.KeyUsage).value.key_cert_sign
    assert certificate.subject.rfc4514_string() == "CN=Lab"
    lasts = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert (lasts.days, lasts.seconds) == (3650, 300)


def test_an_issued_certificate_is_trusted_at_its_hosts(
    certificates: Command, ca: Path, tmp_path: Path
) -> None:
    """By OpenSSL, strictly, at each name and address that was given, and at no other."""
    hosts = ["--host", "factory-1.example.com", "--host", "127.0.0.1", "--host", "::1"]
    code, out, _ = certificates("issue", "factory-1", "--ca", ca, "--out", "tls", *hosts)
    assert code == 0
    assert "factory-1.crt is for factory-1.example.com, 127.0.0.1, ::1, valid until" in out
    files = tmp_path / "tls" / "factory-1.crt", tmp_path / "tls" / "factory-1.key"
    assert stat.S_IMODE(files[1].stat().st_mode) == 0o600
    for host in ("factory-1.example.com", "127.0.0.1", "::1"):
        trusted(ca, *files, host=host)
    for host in ("factory-1", "localhost", "127.0.0.2"):
        with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
            trusted(ca, *files, host=host)


def test_a_certificate_is_good_for_a_server_and_nothing_else(
    certificates: Command, ca: Path, tmp_path: Path
) -> None:
    """It signs no others and opens no door as a client; by default it names the site's id."""
    certificates("issue", "factory-1", "--ca", ca, "--out", "tls")
    certificate = trusted(
        ca,
        tmp_path / "tls" / "factory-1.crt",
        tmp_path / "tls" / "factory-1.key",
        host="factory-1",
    )
    assert not extension(certificate, x509.BasicConstraints).value.ca
    assert not extension(certificate, x509.KeyUsage).value.key_cert_sign
    uses = list(extension(certificate, x509.ExtendedKeyUsage).value)
    assert uses == [ExtendedKeyUsageOID.SERVER_AUTH]
    own = extension(read_certificates(ca / "ca.crt")[0], x509.SubjectKeyIdentifier).value
    told = extension(certificate, x509.AuthorityKeyIdentifier).value
    assert told.key_identifier == own.digest
    assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
    assert isinstance(certificate.signature_hash_algorithm, hashes.SHA256)
    lasts = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert (lasts.days, lasts.seconds) == (365, 300)


@pytest.mark.parametrize(
    ("arguments", "there"),
    [
        (["ca", "--out", "."], "ca.key"),
        (["ca", "--out", "."], "ca.crt"),
        (["issue", "factory-1", "--ca", "ca", "--out", "."], "factory-1.key"),
        (["issue", "factory-1", "--ca", "ca", "--out", "."], "factory-1.crt"),
        (["sign", "site.csr", "--ca", "ca", "--out", "site.crt"], "site.crt"),
    ],
    ids=["ca.key", "ca.crt", "site's key", "site's certificate", "signed certificate"],
)
def test_nothing_is_overwritten(
    certificates: Command, ca: Path, tmp_path: Path, arguments: list[str], there: str
) -> None:
    """Not even half of a pair: exit code 4, and the file is named and stays."""
    request_certificate(tmp_path / "request", ["factory-1"])[1].rename(tmp_path / "site.csr")
    (tmp_path / there).write_text("precious")
    before = sorted(tmp_path.iterdir())
    code, _, said = certificates(*arguments)
    assert code == 4
    assert f"{there} is there already" in said
    assert (tmp_path / there).read_text() == "precious"
    assert sorted(tmp_path.iterdir()) == before


def test_renewing_keeps_the_key_and_the_hosts(
    certificates: Command, ca: Path, tmp_path: Path
) -> None:
    """One file is replaced, so no site can start with halves that do not belong together."""
    issue = ["issue", "factory-1", "--ca", ca, "--out", "tls"]
    certificates(*issue, "--host", "10.0.0.7", "--host", "factory-1.example.com")
    certificate, key = tmp_path / "tls" / "factory-1.crt", tmp_path / "tls" / "factory-1.key"
    before, secret = read_certificates(certificate)[0], key.read_bytes()
    code, out, _ = certificates(*issue, "--renew", "--days", 9)
    assert code == 0
    assert "SIGHUP" in out
    assert key.read_bytes() == secret
    shown = trusted(ca, certificate, key, host="10.0.0.7")
    assert shown.serial_number != before.serial_number
    assert extension(shown, x509.SubjectAlternativeName).value == (
        extension(before, x509.SubjectAlternativeName).value
    )
    certificates(*issue, "--renew", "--host", "127.0.0.1")
    trusted(ca, certificate, key, host="127.0.0.1")
    assert sorted(path.name for path in certificate.parent.iterdir()) == [
        "factory-1.crt",
        "factory-1.key",
    ]


def test_there_is_nothing_to_renew_without_a_key(certificates: Command, ca: Path) -> None:
    """A site that keeps its key to itself is told of the other way."""
    code, _, said = certificates("issue", "factory-1", "--ca", ca, "--out", "tls", "--renew")
    assert code == 4
    assert "nothing to renew" in said
    assert "orchestrator certificates sign" in said


def test_a_request_is_signed_for_its_hosts(certificates: Command, ca: Path, tmp_path: Path) -> None:
    """The key stays where it was made; the command prints the hosts that it vouches for."""
    key, request = request_certificate(tmp_path / "factory", ["factory-1.example.com", "10.0.0.7"])
    code, out, _ = certificates("sign", request, "--ca", ca, "--out", "site.crt", "--days", 90)
    assert code == 0
    assert "site.crt is for factory-1.example.com, 10.0.0.7, valid until" in out
    for host in ("factory-1.example.com", "10.0.0.7"):
        shown = trusted(ca, tmp_path / "site.crt", key, host=host)
    assert (shown.not_valid_after_utc - shown.not_valid_before_utc).days == 90


def test_a_host_longer_than_a_common_name_may_be_is_signed_for(
    certificates: Command, ca: Path, tmp_path: Path
) -> None:
    """A common name has 64 characters at most; a host has more, and is what counts."""
    host = f"{'a' * 50}.{'b' * 50}.example.com"
    key, request = request_certificate(tmp_path / "factory", [host])
    assert certificates("sign", request, "--ca", ca, "--out", "site.crt")[0] == 0
    shown = trusted(ca, tmp_path / "site.crt", key, host=host)
    assert list(shown.subject) == []


DAY = dt.timedelta(days=1)
HOSTS = x509.SubjectAlternativeName([x509.DNSName("factory-1")])


def write_request(
    path: Path, *wishes: x509.ExtensionType, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
) -> None:
    """Write a request with these extensions."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "factory-1")])
    )
    for wish in wishes:
        builder = builder.add_extension(wish, critical=False)
    request = builder.sign(key, hashes.SHA256())
    path.write_bytes(request.public_bytes(serialization.Encoding.PEM))


def signs_certificates() -> x509.KeyUsage:
    """Give the wish to sign certificates."""
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def dns(name: str) -> x509.SubjectAlternativeName:
    """Give the wish to be vouched for at `name`."""
    return x509.SubjectAlternativeName([x509.DNSName(name)])


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        ([HOSTS, x509.BasicConstraints(ca=True, path_length=None)], "asks to be an authority"),
        ([HOSTS, signs_certificates()], "asks to be an authority"),
        ([], "a certificate needs a host"),
        ([dns("*.example.com")], "'*.example.com' is no host"),
        (
            [x509.SubjectAlternativeName([*HOSTS, x509.RFC822Name("ceo@example.com")])],
            "it names more than hosts",
        ),
    ],
    ids=["CA", "signs certificates", "no hosts", "wildcard", "e-mail"],
)
def test_a_request_that_asks_for_too_much_is_refused(
    certificates: Command, ca: Path, tmp_path: Path, wishes: list[x509.ExtensionType], said: str
) -> None:
    """With the wish that cannot be granted, and no certificate."""
    write_request(tmp_path / "site.csr", *wishes, key=ec.generate_private_key(ec.SECP256R1()))
    code, _, error = certificates("sign", "site.csr", "--ca", ca, "--out", "site.crt")
    assert code == 4
    assert "site.csr is not signed: " in error
    assert said in error
    assert not (tmp_path / "site.crt").exists()


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(65537, 1024),  # noqa: S505  that is the point
        ec.generate_private_key(ec.SECP192R1()),
    ],
    ids=["RSA 1024", "P-192"],
)
def test_a_weak_key_is_not_vouched_for(
    certificates: Command,
    ca: Path,
    tmp_path: Path,
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey,
) -> None:
    """Who breaks it would pass for the site."""
    write_request(tmp_path / "site.csr", HOSTS, key=key)
    code, _, error = certificates("sign", "site.csr", "--ca", ca, "--out", "site.crt")
    assert code == 4
    assert "its key is weak" in error


def test_a_factory_may_bring_an_rsa_key(certificates: Command, ca: Path, tmp_path: Path) -> None:
    """Not every factory's machine makes keys on curves; what else it asks for is not granted."""
    key = rsa.generate_private_key(65537, 2048)
    client = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
    write_request(tmp_path / "site.csr", HOSTS, client, key=key)
    assert certificates("sign", "site.csr", "--ca", ca, "--out", "site.crt")[0] == 0
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (tmp_path / "site.key").write_bytes(pem)
    shown = trusted(ca, tmp_path / "site.crt", tmp_path / "site.key", host="factory-1")
    uses = list(extension(shown, x509.ExtendedKeyUsage).value)
    assert uses == [ExtendedKeyUsageOID.SERVER_AUTH]


def test_a_request_that_was_changed_on_its_way_is_refused(
    certificates: Command, ca: Path, tmp_path: Path
) -> None:
    """Its signature shows that its sender has the key; here another host was written into it."""
    write_request(tmp_path / "site.csr", HOSTS, key=ec.generate_private_key(ec.SECP256R1()))
    der = x509.load_pem_x509_csr((tmp_path / "site.csr").read_bytes()).public_bytes(
        serialization.Encoding.DER
    )
    forged = x509.load_der_x509_csr(der.replace(b"factory-1", b"factory-2"))
    (tmp_path / "site.csr").write_bytes(forged.public_bytes(serialization.Encoding.PEM))
    code, _, error = certificates("sign", "site.csr", "--ca", ca, "--out", "site.crt")
    assert code == 4
    assert "is not signed by the key in it" in error
    assert not (tmp_path / "site.crt").exists()


def test_an_authority_vouches_no_longer_than_it_lasts(
    certificates: Command, tmp_path: Path
) -> None:
    """A site's certificate would be refused from the authority's last day on."""
    certificates("ca", "--out", "ca", "--days", 30)
    arguments = ["issue", "factory-1", "--ca", "ca", "--out", "tls"]
    code, _, said = certificates(*arguments)
    assert code == 4
    assert "the authority is valid until" in said
    assert not (tmp_path / "tls").exists()
    assert certificates(*arguments, "--days", 29)[0] == 0


def break_authority(folder: Path, how: str) -> None:
    """Make an authority one that cannot sign."""
    match how:
        case "none":
            (folder / "ca.crt").unlink()
        case "no key":
            (folder / "ca.key").unlink()
        case "another's key":
            (folder / "ca.key").unlink()
            write_key(folder / "ca.key", ec.generate_private_key(ec.SECP256R1()))
        case "a site":
            issued = issue(folder, folder / "tls")
            issued.certificate.replace(folder / "ca.crt")
            issued.key.replace(folder / "ca.key")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("none", "there is no authority in ca; make one with 'orchestrator certificates ca"),
        ("no key", "ca.key cannot be read: No such file"),
        ("another's key", "the key is not that of the certificate"),
        ("a site", "is no authority that can sign here"),
    ],
)
def test_what_is_no_authority_signs_nothing(
    certificates: Command, ca: Path, tmp_path: Path, how: str, said: str
) -> None:
    """No key is made for a certificate that there will not be."""
    break_authority(ca, how)
    code, _, error = certificates("issue", "factory-1", "--ca", "ca", "--out", "new")
    assert code == 4
    assert said in error
    assert not (tmp_path / "new").exists()


def test_show_says_whom_a_certificate_is_for(
    certificates: Command, ca: Path, tmp_path: Path
) -> None:
    """Subject, names, issuer, dates and days left; the same as JSON."""
    issued = issue(ca, tmp_path / "tls", "factory-1", "10.0.0.7", days=30)
    code, out, _ = certificates("show", issued.certificate)
    assert code == 0
    for line in (
        "Subject      CN=factory-1\n",
        "Names        factory-1, 10.0.0.7\n",
        "Issuer       CN=Lab\n",
    ):
        assert line in out
    assert out.endswith(": 29 days left\n")
    _, out, _ = certificates("show", issued.certificate, "--json")
    (facts,) = json.loads(out)
    assert (facts["hosts"], facts["days_left"]) == (["factory-1", "10.0.0.7"], 29)
    _, out, _ = certificates("show", ca / "ca.crt")
    assert "Subject      CN=Lab (an authority)\n" in out


def test_show_says_that_a_certificate_has_expired(
    certificates: Command, ca: Path, tmp_path: Path
) -> None:
    """In capitals, for it is what one looks for."""
    issued = issue(ca, tmp_path / "tls")
    redate(issued, begin=-9 * DAY, end=-2 * DAY)
    _, out, _ = certificates("show", issued.certificate)
    assert "EXPIRED 3 days ago" in out  # two whole days and the moment since


@pytest.mark.parametrize(
    "arguments",
    [
        ["sign"],
        ["ca"],
        ["ca", "--out", "ca", "--days", "0"],
        ["ca", "--out", "ca", "--name", ""],
        ["ca", "--out", "ca", "--name", "n" * 65],
        ["issue", "factory-1", "--out", "tls"],
        ["issue", "factory-1", "--ca", "missing", "--out", "tls"],
        ["issue", "../factory-1", "--ca", "missing", "--out", "tls"],
        ["issue", "factory-1", "--ca", "missing", "--out", "tls", "--days", "36501"],
        ["sign", "missing.csr", "--ca", "missing", "--out", "site.crt"],
        ["sign", __file__, "--ca", "missing", "--out", "site.crt"],
        ["show", "missing.crt"],
        ["show", __file__],
        ["revoke", "factory-1"],
    ],
    ids=lambda arguments: " ".join(arguments)[:40],
)
def test_wrong_arguments_end_with_code_4(
    certificates: Command, tmp_path: Path, arguments: list[str]
) -> None:
    """They are told on standard error, without a traceback, and nothing is made."""
    code, out, said = certificates(*arguments)
    assert (code, out) == (4, "")
    assert "rror: " in said
    assert "unexpected" not in said
    assert list(tmp_path.iterdir()) == []


def test_what_two_authorities_sign_is_not_mixed_up(tmp_path: Path) -> None:
    """Authorities of one name are told apart by their keys."""
    issued = issue(authority(tmp_path / "one"), tmp_path / "tls")
    other = authority(tmp_path / "two")
    with pytest.raises(ssl.SSLCertVerificationError):
        presented(serving(issued), trusting(other / "ca.crt"), host="127.0.0.1")
