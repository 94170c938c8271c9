"""Secure aggregation over live PySyft sites, one of which is killed in the middle of a step.

Four sites, so by default three must last: each kill is survived, and in the result is whoever's
masked update had come.
"""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from federations import APPROVE_ALL, Federation

from core import wire
from core.configuration import load_yaml
from core.enums import DataDistribution
from core.exceptions import CommunicationError
from core.messages import Message, Parameters, Request
from core.parameters import largest_difference
from core.schema import DataSchema
from core.wire import Parcel
from datasite.configuration import load_site_config
from datasite.records import Records
from orchestrator.communication.live import PySyftCommunication
from orchestrator.communication.memory import Handler
from orchestrator.configuration import ExperimentConfig
from orchestrator.experiment import ExperimentOrchestrator
from orchestrator.runs import RunStore
from orchestrator.testbed.ai4i import generate_ai4i
from orchestrator.testbed.presets import AI4I_SCHEMA
from orchestrator.testbed.processes import Testbed
from orchestrator.testbed.samples import write_samples

pytestmark = pytest.mark.live

T = TypeVar("T")

VICTIM = "factory-2"
ROUNDING = 1e-6
"""Of float32; the bound of the fixed point is far below."""


class Killing(PySyftCommunication):
    """A transport that has a site killed with a request of one kind in its hands.

    The site is stopped, so that what is sent to it lies there unread, and killed once another site
    has answered the same.
    """

    def __init__(self, testbed: Testbed, step: str) -> None:
        super().__init__(connect_s=30.0)
        self._testbed = testbed
        self._step = step
        self._answered = threading.Event()

    def request(self, message: Request, reply: type[T], datasite_id: str) -> T:
        """See `SiteCommunication.request`."""
        if message["kind"] != self._step:
            return super().request(message, reply, datasite_id)
        if datasite_id != VICTIM:
            answer = super().request(message, reply, datasite_id)
            self._answered.set()
            return answer
        (pid,) = (site.pid for site in self._testbed.sites() if site.site_id == VICTIM)
        os.kill(pid, signal.SIGSTOP)
        killer = threading.Thread(target=self._kill, args=(pid,))
        killer.start()
        try:
            return super().request(message, reply, datasite_id)
        finally:
            killer.join()

    def _kill(self, pid: int) -> None:
        self._answered.wait(timeout=60)
        os.kill(pid, signal.SIGKILL)


class Plant:
    """Four live sites, and the same four in memory."""

    def __init__(self, testbed: Testbed, federation: Federation, folder: Path) -> None:
        self.testbed = testbed
        self.federation = federation
        self.store = RunStore(folder / "live")

    def run(self, run_id: str, step: str = "", **changes: Any) -> Parameters:
        """Run one round over the live sites, with a kill at a step; the model."""

        def communicate(_config: ExperimentConfig) -> PySyftCommunication:
            return Killing(self.testbed, step)

        orchestrator = ExperimentOrchestrator(communicate, self.store)
        settings = {**self.settings(**changes), "sites": str(self.testbed.sites_file)}
        orchestrator.setup_experiment({**settings, "experiment_id": run_id})
        orchestrator.run_experiment(run_id)
        found = self.store.load_checkpoint(run_id)
        assert found is not None
        return found.parameters

    def plain(self, run_id: str, *lost: str) -> Parameters:
        """Run the same in memory, and not under masks, without some sites; the model."""

        def door(name: str, handler: Handler) -> Handler:
            def ask(request: Parcel, email: str) -> Parcel:
                message: Message = wire.peek(request)
                if name in lost and message["kind"] == "train":
                    raise CommunicationError(f"{name}: gone", site_id=name)
                return handler(request, email)

            return ask

        doors = {name: door(name, handler) for name, handler in self.federation.handlers().items()}
        orchestrator = self.federation.orchestrator(handlers=doors)
        orchestrator.setup_experiment({**self.settings(), "experiment_id": run_id})
        orchestrator.run_experiment(run_id)
        found = self.federation.store.load_checkpoint(run_id)
        assert found is not None
        return found.parameters

    def settings(self, **changes: Any) -> dict[str, Any]:
        """Give one round's settings."""
        return self.federation.settings(**{"rounds": 1, "min_sites": 3, **changes})


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    """Start four sites with registered data."""
    folder = tmp_path_factory.mktemp("secure")
    table = generate_ai4i(rows=1600, seed=7)
    files = write_samples(
        table, folder / "samples", sites=4, distribution=DataDistribution.NON_IID_QUANTITY, seed=7
    )
    federation = Federation(folder / "memory", policy=APPROVE_ALL)
    testbed = Testbed(folder / "testbed")
    testbed.up(4)
    try:
        for path in files:
            site = federation.open_site(path.stem)
            site.register_data({"name": "ai4i", "file": path, "schema": AI4I_SCHEMA})
            records = Records.open(load_site_config(testbed.config_file(path.stem)))
            schema = load_yaml(AI4I_SCHEMA, DataSchema)
            records.registry.register(path, schema, name="ai4i", who="operator")
            records.ledger.close()
        yield Plant(testbed, federation, folder)
    finally:
        testbed.down()
        for site in federation.sites.values():
            site.close()


SECURE = {"privacy": {"level": "secure_aggregation"}}


def test_a_live_sum_is_that_of_the_plain_updates(plant: Plant) -> None:
    """All four sites, weighted by samples; and no site's numbers stand in the record."""
    found = plant.run("undisturbed", **SECURE)
    assert largest_difference(found, plant.plain("all")) < ROUNDING
    (record,) = plant.store.rounds("undisturbed")
    assert [set(each) for each in record["sites"].values()] == [{"fit_s"}] * 4
    assert record["missing"] == {}


@pytest.mark.parametrize("step", ["secure_keys", "secure_shares", "secure_mask", "secure_unmask"])
def test_a_site_killed_in_the_middle_of_a_step_is_done_without(plant: Plant, step: str) -> None:
    """Before its masked update has come, it is in no sum; after, it is in the sum all the same."""
    plant.testbed.up(4)
    found = plant.run(step, step, limits={"attempts": 1}, **SECURE)
    (record,) = plant.store.rounds(step)
    lost = [] if step == "secure_unmask" else [VICTIM]
    assert sorted(record["missing"]) == lost
    assert sorted(record["sites"]) == sorted(plant.federation.sites.keys() - set(lost))
    assert largest_difference(found, plant.plain(step, *lost)) < ROUNDING
    assert [site.site_id for site in plant.testbed.sites() if not site.process()] == [VICTIM]
