"""Fixtures of the tests that hurt live federations."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# The modules beside this file are imported by name; pytest's importlib mode adds no folder.
sys.path.insert(0, str(Path(__file__).parent))

from live_federation import LiveFederation


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFederation]:
    """Give three live sites with data, which every scenario finds as the one before left them."""
    federation = LiveFederation(tmp_path_factory.mktemp("chaos"))
    federation.start()
    yield federation
    federation.stop()
