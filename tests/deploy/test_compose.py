"""docker-compose.yml, its overlay and the image: what can be held without a Docker engine."""

import json
import re
import subprocess
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.codehash import installed_code_hash
from core.version import VERSION

ROOT = Path(__file__).resolve().parents[2]
FACTORIES = ["factory-1", "factory-2", "factory-3"]
COMPOSE = str(files("compose") / "docker-compose")
FILES = {
    "testbed": ("docker-compose.yml",),
    "over-tls": ("docker-compose.yml", "deploy/tls/compose.yaml"),
}


@pytest.fixture(scope="module", params=FILES)
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Give what compose itself makes of the files, with the demonstration in it."""
    chosen = [part for file in FILES[request.param] for part in ("--file", file)]
    done = subprocess.run(
        [COMPOSE, *chosen, "--profile", "demo", "config", "--format", "json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_every_service_is_hardened(config: dict[str, Any]) -> None:
    """Whatever runs is nobody, can write nowhere but to its volume and /tmp, and gains nothing."""
    assert {*FACTORIES, "orchestrator", "demo", "demo-samples"} < set(config["services"])
    for name, service in config["services"].items():
        assert service["user"] == "10001:10001", name
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["init"] is True, name
        assert service["tmpfs"] == ["/tmp:size=256m,mode=1777,noexec,nosuid,nodev"], name  # noqa: S108
        assert not {"privileged", "cap_add", "ports", "pid", "ipc", "devices"} & set(service), name
        assert not any("docker.sock" in volume["source"] for volume in service.get("volumes", []))


def test_what_stays_up_is_limited_and_comes_back(config: dict[str, Any]) -> None:
    """One site cannot take the machine's memory or its processes from the others."""
    for name in (*FACTORIES, "orchestrator"):
        service = config["services"][name]
        limits = service["deploy"]["resources"]["limits"]
        assert int(limits["memory"]) <= 2 * 1024**3
        assert limits["pids"] == 256
        assert service["restart"] == "unless-stopped"


def test_a_factory_is_on_its_own_network_with_the_orchestrator(config: dict[str, Any]) -> None:
    """Each network is internal, and nobody but the two is on it."""
    for factory in FACTORIES:
        assert config["networks"][factory]["internal"] is True
        members = {n for n, s in config["services"].items() if factory in s.get("networks", {})}
        assert members == {factory, "orchestrator", "demo"}
        assert list(config["services"][factory]["networks"]) == [factory]


def test_a_factory_has_its_own_volume_and_its_own_secrets(config: dict[str, Any]) -> None:
    """What is one factory's is mounted into no other service but its own one-shot commands."""
    for factory in FACTORIES:
        holders = {
            name
            for name, service in config["services"].items()
            if any(volume["source"] == factory for volume in service.get("volumes", []))
        }
        assert holders == {factory, factory.replace("factory", "demo-data")}
        given = [s["source"] for s in config["services"][factory]["secrets"]]
        assert all(source.startswith(f"{factory}.") for source in given)
    told = config["services"]["orchestrator"]["secrets"]
    assert not [s["source"] for s in told if s["source"].endswith((".operator", ".key"))]


def test_no_password_is_in_the_environment(config: dict[str, Any]) -> None:
    """`docker inspect` shows the environment; secrets are files."""
    for service in config["services"].values():
        variables = set(service.get("environment", {}))
        assert variables <= {"SITE_ID", "DATASITE_HEALTH_URL"}
        assert set(service["build"].get("args", {})) == {"TORCH_INDEX_URL"}


def test_images_carry_the_version_and_the_hash_of_the_code() -> None:
    """The labels are this version's and this code's; `make format` renews the hash."""
    text = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    stamped = dict(re.findall(r"^ARG (VERSION|CODE_HASH)=(.*)$", text, re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert stamped["VERSION"] == project["version"] == VERSION
    assert stamped["CODE_HASH"] == installed_code_hash(), "run `make format`"
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    tags = {service["image"].partition(":")[2] for service in services.values()}
    assert tags == {VERSION}


def test_secrets_are_made_once(tmp_path: Path) -> None:
    """Six passwords in a folder that others cannot enter; a second call changes nothing."""
    script = tmp_path / "deploy" / "make-secrets.sh"
    script.parent.mkdir()
    script.write_bytes((ROOT / "deploy" / "make-secrets.sh").read_bytes())
    script.chmod(0o755)
    subprocess.run([script], check=True, capture_output=True)
    folder = tmp_path / "secrets"
    made = {path.name: path.read_text(encoding="utf-8").strip() for path in folder.iterdir()}
    assert set(made) == {
        f"{f}.{account}" for f in FACTORIES for account in ("operator", "researcher")
    }
    assert len(set(made.values())) == 6
    assert all(len(password) >= 32 for password in made.values())
    assert folder.stat().st_mode & 0o777 == 0o700
    again = subprocess.run([script], check=False, capture_output=True, text=True)
    assert again.returncode == 4
    assert "docker compose down -v" in again.stderr
    assert {p.name: p.read_text(encoding="utf-8").strip() for p in folder.iterdir()} == made
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deploy", "secrets"]


@pytest.mark.parametrize("name", ["site", "sites"])
def test_the_overlay_changes_nothing_but_how_sites_are_reached(name: str) -> None:
    """Accounts, policies and sites are the same with TLS and without."""
    plain, over_tls = (
        yaml.safe_load((ROOT / "deploy" / folder / f"{name}.yaml").read_text(encoding="utf-8"))
        for folder in ("compose", "tls")
    )
    for settings in (plain, over_tls):
        settings.pop("listen", None)
        for site in settings.get("sites", []):
            assert site.pop("url").split("://")[1].startswith(f"{site['site_id']}:")
            site.pop("ca_file", None)
    assert plain == over_tls
