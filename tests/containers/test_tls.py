"""The testbed over TLS: the overlay of deploy/tls, with certificates made by its own command."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from compose_project import FACTORIES, Compose, open_testbed

SITES = "/etc/orchestrator/sites.yaml"


@pytest.fixture(scope="module")
def over_tls(images: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    """Give a testbed each site of which ends TLS itself, on port 8443."""
    with open_testbed(tmp_path_factory.mktemp("tls"), "tls", overlay="tls") as made:
        yield made


def sites(testbed: Compose, *mounts: str) -> list[dict[str, str]]:
    """Give what `orchestrator sites` says of each site, with files of ours in place of others."""
    volumes = [part for mount in mounts for part in ("--volume", f"{mount}:ro")]
    done = testbed.run(
        "run", "--rm", "--no-TTY", *volumes, "orchestrator", "sites", SITES, "--json", check=False
    )
    found: list[dict[str, str]] = json.loads(done.out)
    assert done.code == (2 if any(site["message"] for site in found) else 0)
    return found


def test_the_demonstration_runs_over_tls(over_tls: Compose) -> None:
    """Healthy, logged in to and trained at, on a port that is not 443."""
    told = over_tls.run("--profile", "demo", "run", "--rm", "--no-TTY", "demo").out
    assert "COMPLETED, 5 of 5 rounds" in told
    status = json.loads(over_tls.datasite("factory-1", "status", "--json").out)
    assert status["url"].startswith("https://")
    assert all(site["message"] == "" for site in sites(over_tls))


def test_another_authority_is_refused(over_tls: Compose, tmp_path: Path) -> None:
    """Nobody is logged in when the sites' authority is not the one given."""
    subprocess.run(
        ["docker", "run", "--rm", "--user", "0", "--volume", f"{tmp_path}:/tls",
         "federated-maintenance-orchestrator:0.1.0", "certificates", "ca", "--out", "/tls"],
        check=True,
    )  # fmt: skip
    found = sites(over_tls, f"{tmp_path}/ca.crt:/run/secrets/ca.crt")
    assert len(found) == len(FACTORIES)
    assert all("authority" in site["message"] for site in found)


def test_a_name_that_is_not_in_the_certificate_is_refused(over_tls: Compose) -> None:
    """Reached by its address, a site is who it is, and its certificate does not say so."""
    container = over_tls.container("factory-2")
    networks = container.attrs["NetworkSettings"]["Networks"]
    address = networks[f"{over_tls.project}_factory-2"]["IPAddress"]
    text = (over_tls.folder / "deploy" / "tls" / "sites.yaml").read_text()
    other = over_tls.folder / "deploy" / "experiments" / "sites.yaml"
    other.write_text(text.replace("https://factory-2:", f"https://{address}:"))
    found = {s["site_id"]: s["message"] for s in sites(over_tls, f"{other}:{SITES}")}
    assert (found["factory-1"], found["factory-3"]) == ("", "")
    assert address in found["factory-2"]
    assert "factory-2" in found["factory-2"].split(address, 1)[1]
