"""One testbed of docker-compose.yml for all tests: its images, its secrets, its three factories."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from compose_project import ROOT, Compose, open_testbed


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all but the swarm's as what they are; a fault test may take minutes."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and not item.get_closest_marker("swarm"):
            item.add_marker(pytest.mark.containers)
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def engine() -> Iterator[docker.DockerClient]:
    """Give the Docker engine; without one these tests fail, and `make test` leaves them out."""
    client = docker.from_env()
    client.ping()
    yield client
    client.close()


@pytest.fixture(scope="session")
def images() -> None:
    """Build both images from this checkout."""
    subprocess.run(["docker", "compose", "build", "--quiet"], cwd=ROOT, check=True)


@pytest.fixture(scope="session")
def compose(images: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    """Give the testbed, up and healthy, of a project of its own and with secrets of its own."""
    with open_testbed(tmp_path_factory.mktemp("testbed"), "testbed") as made:
        yield made
