"""A site behind TLS on a port of its own: whom the orchestrator and PySyft's client trust."""

import asyncio
import datetime as dt
import ipaddress
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest
import syft as sy
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from site_process import RESEARCHER, SiteProcess

from core.exceptions import CommunicationError, ConfigurationError
from orchestrator.communication.pysyft import PySyftCarrier

pytestmark = pytest.mark.live


class TlsSite(NamedTuple):
    """Where a site is reached through TLS, and the authority that vouches for it."""

    url: str
    ca_file: Path


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """Write a self-signed certificate for 127.0.0.1 and its key, valid for an hour."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "factory-1")])
    now = dt.datetime.now(tz=dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = folder / "site.crt", folder / "site.key"
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return certificate_file, key_file


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy what arrives until it ends."""
    with suppress(ConnectionError):
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()
    writer.close()


@pytest.fixture(scope="module")
def tls_site(site: SiteProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsSite]:
    """Give the site through a proxy that ends TLS, in a thread."""
    certificate_file, key_file = write_certificate(tmp_path_factory.mktemp("tls"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate_file, key_file)
    loop = asyncio.new_event_loop()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection("127.0.0.1", site.port)
        await asyncio.gather(copy(reader, forth), copy(back, writer))

    server = loop.run_until_complete(asyncio.start_server(forward, "127.0.0.1", 0, ssl=context))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    port = server.sockets[0].getsockname()[1]
    yield TlsSite(f"https://127.0.0.1:{port}", certificate_file)
    loop.call_soon_threadsafe(server.close)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


def test_an_unknown_authority_is_not_trusted(tls_site: TlsSite) -> None:
    """Nothing is sent to a site that nobody vouches for; the error asks the right question."""
    with pytest.raises(CommunicationError, match="authority"):
        PySyftCarrier.open(tls_site.url, email=RESEARCHER[0], password=RESEARCHER[1])


def test_a_given_authority_is_trusted(tls_site: TlsSite) -> None:
    """With the authority's file the same site is reached, on its own port."""
    carrier = PySyftCarrier.open(
        tls_site.url, email=RESEARCHER[0], password=RESEARCHER[1], ca_file=tls_site.ca_file
    )
    assert carrier.exchange(b"sealed", deadline_s=20) == b"sealed"
    carrier.close()


def test_the_environment_names_an_authority(
    tls_site: TlsSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """REQUESTS_CA_BUNDLE holds for the carrier and for PySyft's own client, on any port."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tls_site.ca_file))
    carrier = PySyftCarrier.open(tls_site.url, email=RESEARCHER[0], password=RESEARCHER[1])
    assert carrier.exchange(b"sealed", deadline_s=20) == b"sealed"
    carrier.close()
    notebook = sy.login(url=tls_site.url, email=RESEARCHER[0], password=RESEARCHER[1])
    assert {dataset.name for dataset in notebook.datasets} == {"many-pumps", "pumps"}


def test_an_authority_that_cannot_be_read_is_a_mistake_in_the_configuration(
    tls_site: TlsSite, tmp_path: Path
) -> None:
    """A wrong path is told before anybody is called."""
    with pytest.raises(ConfigurationError, match=r"missing\.crt"):
        PySyftCarrier.open(
            tls_site.url, email="a@b.example.com", password="x", ca_file=tmp_path / "missing.crt"
        )
