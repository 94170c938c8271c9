"""What the deployment's files are compared with."""

from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def compose() -> dict[str, Any]:
    """Give docker-compose.yml without the demonstration: its services, and what they refer to."""
    parsed: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    parsed["services"] = {
        name: service for name, service in parsed["services"].items() if "profiles" not in service
    }
    return parsed
