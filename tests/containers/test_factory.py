"""A factory on its own: what deploy/README.md tells its operator, done."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from compose_project import ROOT, Compose

from orchestrator.testbed.ai4i import generate_ai4i
from orchestrator.testbed.settings import free_ports

DATASITE = "federated-maintenance-datasite:0.1.0"
ORCHESTRATOR = "federated-maintenance-orchestrator:0.1.0"
RESEARCHER = "researcher@lab.example.com"
PASSWORD = "a-password-of-the-lab"  # an account that lives for one test


def run_once(image: str, *command: str, folder: Path) -> None:
    """Run a command of an image on a folder of this machine, as this machine's account."""
    account = f"{os.getuid()}:{os.getgid()}"
    subprocess.run(
        ["docker", "run", "--rm", "--network", "none", "--user", account,
         "--volume", f"{folder}:/here", "--workdir", "/here", image, *command],
        check=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def factory(images: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    """Give a factory whose certificate was asked for by it and signed by the centre."""
    folder = tmp_path_factory.mktemp("factory")
    for name in ("compose.yaml", "site.yaml"):
        shutil.copy(ROOT / "deploy" / "factory" / name, folder)
    secrets = folder / "secrets"
    secrets.mkdir(mode=0o700)
    (folder / "data").mkdir()
    (secrets / "operator").write_text("the-operators-own-password\n")
    generate_ai4i(rows=600, seed=3).to_csv(folder / "data" / "press.csv", index=False)
    run_once(
        DATASITE, "certificate", "request", "--host", "localhost", "--out", ".", folder=secrets
    )
    run_once(ORCHESTRATOR, "certificates", "ca", "--out", "authority", folder=folder)
    run_once(
        ORCHESTRATOR, "certificates", "sign", "secrets/site.csr", "--ca", "authority",
        "--out", "secrets/site.crt", folder=folder,
    )  # fmt: skip
    for path in secrets.iterdir():
        path.chmod(0o444)
    port = free_ports(1)[0]
    (folder / ".env").write_text(f"SITE_ADDRESS=127.0.0.1\nSITE_PORT={port}\n")
    (folder / "lab.password").write_text(f"{PASSWORD}\n")
    site = {
        "site_id": "factory-north",
        "url": f"https://localhost:{port}",
        "ca_file": "authority/ca.crt",
        "email": RESEARCHER,
        "password_file": "lab.password",
    }
    (folder / "sites.yaml").write_text(yaml.safe_dump({"sites": [site]}))
    made = Compose(folder, f"factory-{os.getpid()}", ("compose.yaml",))
    try:
        made.run("up", "--detach", "--wait")
        yield made
    finally:
        made.run("down", "--volumes", check=False)


def seen_from_here(factory: Compose) -> list[dict[str, str]]:
    """Give what the researcher's command on this machine says of the sites."""
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", "sites", factory.folder / "sites.yaml", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    found: list[dict[str, str]] = json.loads(done.stdout)
    return found


def test_a_factory_is_set_up_backed_up_and_restored(factory: Compose) -> None:
    """Account, data and identity are there again after volume and containers were removed."""
    factory.run(
        "exec", "--no-TTY", "--env", f"DATASITE_USER_PASSWORD={PASSWORD}", "datasite",
        "datasite", "users", "add", "--email", RESEARCHER,
    )  # fmt: skip
    factory.datasite(
        "datasite", "data", "register", "/data/press.csv",
        "--schema", "schemas/ai4i.yaml", "--name", "press",
    )  # fmt: skip
    before = seen_from_here(factory)
    assert [(s["status"], s["datasets"]) for s in before] == [("ONLINE", "press (600 rows)")]

    backup = factory.folder / "backup.tar.gz"
    compose = ["docker", "compose", "--project-name", factory.project]
    with backup.open("wb") as stream:
        subprocess.run(
            [*compose, "exec", "-T", "datasite", "datasite", "backup", "--out", "-"],
            cwd=factory.folder,
            stdout=stream,
            check=True,
        )
    factory.run("down", "--volumes")
    with backup.open("rb") as stream:
        subprocess.run(
            [*compose, "run", "--rm", "--no-deps", "-T", "datasite", "restore", "-"],
            cwd=factory.folder,
            stdin=stream,
            check=True,
        )
    factory.run("up", "--detach", "--wait")
    assert seen_from_here(factory) == before
    factory.datasite("datasite", "audit", "verify")


def test_a_renewed_certificate_is_taken_up_while_the_site_runs(factory: Compose) -> None:
    """The same request, signed again, is put in place and presented after SIGHUP."""
    run_once(
        ORCHESTRATOR, "certificates", "sign", "secrets/site.csr", "--ca", "authority",
        "--out", "renewed.crt", "--days", "700", folder=factory.folder,
    )  # fmt: skip
    certificate = factory.folder / "secrets" / "site.crt"
    before = status(factory)["certificate_valid_until"]
    certificate.chmod(0o644)
    certificate.write_bytes((factory.folder / "renewed.crt").read_bytes())
    site = factory.container("datasite")
    lines = site.logs(stream=True, follow=True, tail=0)
    factory.run("kill", "--signal", "HUP", "datasite")
    next(line for line in lines if b"certificate is valid until" in line)
    assert status(factory)["certificate_valid_until"] > before
    assert seen_from_here(factory)[0]["status"] == "ONLINE"
    assert site.attrs["State"]["Pid"] == factory.container("datasite").attrs["State"]["Pid"]


def status(factory: Compose) -> dict[str, str]:
    """Give what `datasite status` says."""
    found: dict[str, str] = json.loads(factory.datasite("datasite", "status", "--json").out)
    return found


def test_the_site_finds_no_way_out(factory: Compose) -> None:
    """Its port lets in; a connection that it opens to the outside is never answered."""
    script = (
        "import socket\n"
        "try: socket.create_connection(('1.1.1.1', 53), timeout=3); print('reached')\n"
        "except OSError: print('not reached')"
    )
    assert factory.python("datasite", script) == "not reached"
