"""A live site that ends TLS itself: whom it lets in, whom it is trusted by, how it is renewed.

Its researcher's account is opened by its site.yaml.
"""

import datetime as dt
import json
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import syft as sy
import yaml
from authorities import authority, issue, redate
from commands import Ended, orchestrator
from cryptography import x509
from site_process import OPERATOR, RESEARCHER, free_port, wait_until
from syft.service.user.user_roles import ServiceRole

from core import wire
from core.certificates import read_certificates
from core.exceptions import AuthenticationError
from core.messages import Failure
from core.wire import Parcel
from datasite.caller import Role
from datasite.health import status_of
from datasite.operator_door import OperatorDoor
from orchestrator.communication.pysyft import PySyftCarrier
from orchestrator.testbed.processes import run_datasite

pytestmark = pytest.mark.live

_BOOT_S = 90


class TlsSite:
    """`datasite serve` with a certificate, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.issued = issue(authority(folder / "ca"), folder / "tls")
        self.port = free_port()
        self.url = f"https://127.0.0.1:{self.port}"
        self.config = folder / "site.yaml"
        self.process: subprocess.Popen[bytes] | None = None
        (folder / "researcher.password").write_text(f"{RESEARCHER[1]}\n", encoding="utf-8")
        self.configure()

    def configure(self, **changes: object) -> None:
        """Write the site's configuration."""
        settings: dict[str, Any] = {
            "site_id": "factory-1",
            "state": "state",
            "listen": {
                "port": self.port,
                "tls": {"certificate": "tls/factory-1.crt", "key": "tls/factory-1.key"},
            },
            "operator": {"email": OPERATOR[0], "password": OPERATOR[1]},
            "researchers": [{"email": RESEARCHER[0], "password_file": "researcher.password"}],
        }
        self.config.write_text(yaml.safe_dump(settings | changes), encoding="utf-8")

    def start(self) -> None:
        """Start it, and return when it answers."""
        with (self.folder / "site.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "datasite", "serve", "--config", str(self.config)],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        wait_until(self.answers, limit_s=_BOOT_S, what=f"the site answers:\n{self.log()}")

    def answers(self) -> bool:
        """Say whether it answers, as its health check asks; fail when it has ended."""
        if self.process is None or self.process.poll() is not None:
            pytest.fail(f"the site ended:\n{self.log()}")
        try:
            return status_of(f"{self.url}/api/v2/") == 200
        except OSError:
            return False

    def end(self) -> int:
        """Stop it; its exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(timeout=20)

    def hang_up(self, *, said: str) -> None:
        """Send it SIGHUP, and return when it has `said` so in its log."""
        assert self.process is not None
        before = self.log().count(said)
        self.process.send_signal(signal.SIGHUP)
        wait_until(lambda: self.log().count(said) > before, limit_s=10, what=said)

    def log(self) -> str:
        """Give what it has logged."""
        return (self.folder / "site.log").read_text(encoding="utf-8")

    def carrier(self, account: tuple[str, str] = RESEARCHER) -> PySyftCarrier:
        """Log in."""
        return PySyftCarrier.open(
            self.url, email=account[0], password=account[1], ca_file=self.issued.ca_file
        )


@pytest.fixture(scope="module")
def tls_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsSite]:
    """Give the running site."""
    site = TlsSite(tmp_path_factory.mktemp("tls-site"))
    site.start()
    yield site
    site.end()


@pytest.fixture(autouse=True)
def _no_authority_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)


def sites(site: TlsSite, folder: Path, **changes: object) -> Ended:
    """Run `orchestrator sites` on a sites file with the site, `changes` made to its entry."""
    entry = {
        "site_id": "factory-1",
        "url": site.url,
        "email": RESEARCHER[0],
        "password_file": str(site.folder / "researcher.password"),
        "ca_file": str(site.issued.ca_file),
        **changes,
    }
    kept = {key: value for key, value in entry.items() if value is not None}
    (folder / "sites.yaml").write_text(yaml.safe_dump({"sites": [kept]}), encoding="utf-8")
    return orchestrator("sites", folder / "sites.yaml", "--json")


def test_a_researcher_of_the_configuration_logs_in_over_tls(
    tls_site: TlsSite, tmp_path: Path
) -> None:
    """The account was there before the first request; the authority is named in the sites file."""
    ended = sites(tls_site, tmp_path)
    assert ended.returncode == 0, ended.stdout
    (seen,) = json.loads(ended.stdout)
    assert (seen["site_id"], seen["status"], seen["message"]) == ("factory-1", "ONLINE", "")


def test_a_large_request_passes(tls_site: TlsSite) -> None:
    """No proxy stands in the way of a model's size; what is no message is answered as such."""
    carrier = tls_site.carrier()
    answer = wire.decode(carrier.exchange(Parcel.of(os.urandom(20_000_000)), deadline_s=60))
    carrier.close()
    assert wire.is_kind(answer, Failure)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ca_file": None}, "not trusted here"),
        ({"ca_file": "other/ca.crt"}, "not trusted here"),
        ({"url": "https://localhost:{port}"}, "certificate is for 127.0.0.1, not for localhost"),
        ({"url": "http://127.0.0.1:{port}", "ca_file": None}, "write https:// into the URL"),
    ],
    ids=["no authority", "another authority", "another name", "plain http"],
)
def test_a_site_that_is_not_trusted_is_refused_clearly(
    tls_site: TlsSite, tmp_path: Path, changes: dict[str, str | None], said: str
) -> None:
    """With exit code 2 and what to correct; nobody logs in."""
    authority(tmp_path / "other")
    ended = sites(
        tls_site,
        tmp_path,
        **{key: value and value.format(port=tls_site.port) for key, value in changes.items()},
    )
    (seen,) = json.loads(ended.stdout)
    assert (ended.returncode, seen["status"]) == (2, "OFFLINE")
    assert said in seen["message"]


def test_an_authority_that_cannot_be_read_is_a_mistake_in_the_sites_file(
    tls_site: TlsSite, tmp_path: Path
) -> None:
    """The file is named."""
    ended = sites(tls_site, tmp_path, ca_file="missing.crt")
    (seen,) = json.loads(ended.stdout)
    assert ended.returncode == 2
    assert f"{tmp_path / 'missing.crt'}: no certificate authority" in seen["message"]


def test_pysyfts_own_client_logs_in_over_tls(
    tls_site: TlsSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """REQUESTS_CA_BUNDLE names the authority for it, and for the carrier, on any port."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tls_site.issued.ca_file))
    notebook = sy.login(url=tls_site.url, email=RESEARCHER[0], password=RESEARCHER[1])
    assert notebook.account.email == RESEARCHER[0]
    PySyftCarrier.open(tls_site.url, email=RESEARCHER[0], password=RESEARCHER[1]).close()


def test_the_operator_sees_url_and_expiry(tls_site: TlsSite) -> None:
    """In the log at the start, and whenever asked for the status."""
    end = read_certificates(tls_site.issued.certificate)[0].not_valid_after_utc
    assert f"the certificate is valid until {end:%Y-%m-%d}" in tls_site.log()
    assert f"factory-1 is ready on {tls_site.url}" in tls_site.log()
    told = json.loads(run_datasite("status", "--json", "--config", str(tls_site.config)))
    assert (told["url"], told["certificate_valid_until"]) == (tls_site.url, end.isoformat())
    shown = run_datasite("status", "--config", str(tls_site.config))
    assert f"certificate valid until {end.isoformat()}" in shown


def serial_at(site: TlsSite) -> int:
    """Give the serial number of the certificate that a new connection is shown."""
    address = ("127.0.0.1", site.port)
    pem = ssl.get_server_certificate(address, ca_certs=str(site.issued.ca_file), timeout=5)
    return x509.load_pem_x509_certificate(pem.encode()).serial_number


def test_a_renewed_certificate_is_taken_up_without_a_restart(tls_site: TlsSite) -> None:
    """By SIGHUP, for new connections; the open ones go on."""
    carrier = tls_site.carrier()
    before = serial_at(tls_site)
    assert before == tls_site.issued.serial
    tls = tls_site.folder / "tls"
    renewed = orchestrator(
        *("certificates", "issue", "factory-1", "--ca", tls_site.folder / "ca", "--out", tls),
        *("--renew", "--days", 20),
    )
    assert renewed.returncode == 0, renewed.stderr
    assert serial_at(tls_site) == before
    tls_site.hang_up(said="the certificate expires in 19 days")
    assert serial_at(tls_site) == tls_site.issued.serial != before
    carrier.exchange(Parcel.of(b"still here"), deadline_s=20)
    carrier.close()


def test_a_bad_renewal_is_logged_and_costs_nothing(tls_site: TlsSite, tmp_path: Path) -> None:
    """Half a copy is such: the certificate before it is shown on."""
    before, whole = serial_at(tls_site), tls_site.issued.certificate.read_bytes()
    tls_site.issued.certificate.write_bytes(whole[:-100])
    tls_site.hang_up(said="the renewed certificate is not used")
    assert serial_at(tls_site) == before
    assert sites(tls_site, tmp_path).returncode == 0
    tls_site.issued.certificate.write_bytes(whole)


def test_an_account_that_is_there_stays_as_it_is(
    tls_site: TlsSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disabled one stays disabled, another keeps its password; only a new one is opened."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tls_site.issued.ca_file))
    second = ("second@lab.example.com", "Second-of-the-lab-1")
    third = ("third@lab.example.com", "Third-of-the-lab-1")
    with OperatorDoor(site_id="factory-1", state=tls_site.folder / "state") as door:
        door.create_user(email=second[0], name="Second", password=second[1], role=Role.RESEARCHER)
    operator = sy.login(url=tls_site.url, email=OPERATOR[0], password=OPERATOR[1])
    found = operator.api.services.user.search(email=RESEARCHER[0])[0]
    operator.api.services.user.update(uid=found.id, role=ServiceRole.GUEST)
    with pytest.raises(AuthenticationError):
        tls_site.carrier()
    assert tls_site.end() == 0
    tls_site.configure(
        researchers=[
            {"email": RESEARCHER[0], "password": RESEARCHER[1]},
            {"email": second[0], "password": "Another-for-the-second"},
            {"email": third[0], "password": third[1]},
        ]
    )

    tls_site.start()

    with pytest.raises(AuthenticationError):
        tls_site.carrier()
    tls_site.carrier(second).close()
    tls_site.carrier(third).close()


def test_a_site_does_not_start_with_an_expired_certificate(tls_site: TlsSite) -> None:
    """Exit code 4 within a second or two; what the running site shows is another matter."""
    redate(tls_site.issued, begin=dt.timedelta(days=-9), end=dt.timedelta(days=-1))
    started = subprocess.run(
        [sys.executable, "-m", "datasite", "serve", "--config", str(tls_site.config)],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert started.returncode == 4
    assert "factory-1.crt expired on " in started.stderr
    assert "have a new one issued for the same key" in started.stderr
