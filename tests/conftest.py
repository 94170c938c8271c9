"""Fixtures that several folders of tests share."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from federations import APPROVE_ALL, Federation

from core.enums import DataDistribution
from orchestrator.testbed.ai4i import generate_ai4i
from orchestrator.testbed.presets import AI4I_SCHEMA
from orchestrator.testbed.samples import write_samples

# Workers of pytest-xdist share the cores, and so do the processes that tests start: threads that
# wait for one another across them take three times the time.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the tests over live sites: they take longest, and others can run beside them."""
    items.sort(key=lambda item: item.path.parent.name not in {"chaos", "live"})


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three small tables of AI4I-like data."""
    table = generate_ai4i(rows=1800, seed=7)
    folder = tmp_path_factory.mktemp("samples")
    return write_samples(table, folder, sites=3, distribution=DataDistribution.IID, seed=7)


@pytest.fixture
def build_federation(tmp_path: Path, samples: list[Path]) -> Iterator[Callable[..., Federation]]:
    """Give a function that makes a federation of three sites with registered data."""
    made: list[Federation] = []

    def build(policy: list[dict[str, Any]] = APPROVE_ALL) -> Federation:
        federation = Federation(tmp_path / f"federation-{len(made)}", policy=policy)
        made.append(federation)
        for path in samples:
            site = federation.open_site(path.stem)
            site.register_data({"name": "ai4i", "file": path, "schema": AI4I_SCHEMA})
        return federation

    yield build
    for federation in made:
        for site in federation.sites.values():
            site.close()


@pytest.fixture
def federation(build_federation: Callable[..., Federation]) -> Federation:
    """Three sites that approve the researcher's plans by rule."""
    return build_federation()
