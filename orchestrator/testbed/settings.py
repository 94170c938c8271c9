"""What every testbed is set up with, whether its sites are processes or containers.

The sites belong to nobody but their testbed: their policy approves the plans of its own researcher.
Passwords are made here, differ from site to site, and lie in files.
"""

import os
import secrets
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import yaml

from orchestrator.files import write_whole

RESEARCHER: Final = "researcher@testbed.example.com"
OPERATOR: Final = "operator@testbed.example.com"


def site_names(count: int) -> list[str]:
    """Give the names of `count` sites: factory-1 and so on."""
    return [f"factory-{number}" for number in range(1, count + 1)]


def write_site_settings(
    path: Path,
    *,
    site_id: str,
    state: str,
    host: str,
    port: int,
    operator_password: str,
    researcher_password: str,
) -> None:
    """Write a `site.yaml`; state and passwords are paths, as the site sees them."""
    settings: dict[str, Any] = {
        "site_id": site_id,
        "state": state,
        "listen": {"host": host, "port": port},
        "operator": {"email": OPERATOR, "password_file": operator_password},
        "researchers": [{"email": RESEARCHER, "password_file": researcher_password}],
        "policy": [
            {
                "name": "the testbed's own researcher",
                "decision": "approve",
                "researcher": RESEARCHER,
            }
        ],
        "release": {"minimum_count": 1},  # samples are nobody's secret, and small
        "budget": {"epsilon": 100.0, "delta": 1e-5},  # likewise
    }
    write_whole(path, yaml.safe_dump(settings, sort_keys=False).encode())


def write_sites_file(path: Path, sites: Iterable[tuple[str, str, str]]) -> None:
    """Write the sites file, from each site's name, URL and password file beside `path`."""
    listed = [
        {"site_id": site_id, "url": url, "email": RESEARCHER, "password_file": password}
        for site_id, url, password in sites
    ]
    write_whole(path, yaml.safe_dump({"sites": listed}, sort_keys=False).encode())


def write_password(path: Path, *, mode: int = 0o600) -> None:
    """Write a new password to `path`, which must not be there yet."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(secrets.token_urlsafe(24) + "\n")
        os.fchmod(descriptor, mode)


def free_ports(count: int) -> list[int]:
    """Give ports of 127.0.0.1 that are free now, all different."""
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()
