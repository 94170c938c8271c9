"""Fixtures of the tests that run PySyft sites as processes."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from datasite.caller import Role
from orchestrator.testbed.presets import AI4I_SCHEMA
from orchestrator.testbed.processes import Testbed, run_datasite

# The modules beside this file are imported by name; pytest's importlib mode adds no folder.
sys.path.insert(0, str(Path(__file__).parent))

from site_process import RESEARCHER, SiteProcess


@pytest.fixture(scope="session")
def fresh_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SiteProcess]:
    """Give a site in its first boot, with no account but the operator's."""
    folder = tmp_path_factory.mktemp("factory-1")
    site = SiteProcess(folder / "state", folder / "site.log")
    site.start()
    yield site
    site.end()


@pytest.fixture(scope="session")
def site(fresh_site: SiteProcess) -> SiteProcess:
    """Give the same site with a researcher and two datasets, still in its first boot."""
    with fresh_site.door() as door:
        door.create_user(
            email=RESEARCHER[0], name="Researcher", password=RESEARCHER[1], role=Role.RESEARCHER
        )
        door.publish()
    return fresh_site


@pytest.fixture(scope="session")
def testbed(tmp_path_factory: pytest.TempPathFactory, samples: list[Path]) -> Iterator[Testbed]:
    """Give three live sites with data registered by the operator's command."""
    testbed = Testbed(tmp_path_factory.mktemp("live") / "testbed")
    testbed.up(3)
    try:
        for file in samples:
            config = ("--config", str(testbed.config_file(file.stem)))
            contract = ("--schema", str(AI4I_SCHEMA), "--name", "ai4i")
            run_datasite("data", "register", str(file), *contract, *config)
        yield testbed
    finally:
        testbed.down()
