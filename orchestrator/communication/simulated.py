"""Simulated sites as a transport: the one module of the orchestrator that knows `datasite`.

A real federation never loads it. What it builds answers as sites do, over the memory transport.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from loguru import logger

from core.configuration import load_yaml
from core.exceptions import ConfigurationError, DataError
from core.schema import DataSchema
from datasite.simulation import Setup, SimulatedFederation
from orchestrator.communication.memory import MemoryCommunication
from orchestrator.federation import load_members
from orchestrator.files import write_whole
from orchestrator.naming import listed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from core.wire import Parcel
    from orchestrator.communication.memory import Handler
    from orchestrator.configuration import ExperimentConfig
    from orchestrator.experiment import CommunicationFactory
    from orchestrator.simulation import Simulation


class SimulatedCommunication(MemoryCommunication):
    """Reaches simulated sites, only a few at once: the others would wait for a core all the same.

    Args:
        sites: The sites.
    """

    def __init__(self, sites: SimulatedFederation) -> None:
        super().__init__(
            {site_id: partial(self._ask, site_id, ask) for site_id, ask in sites.handlers().items()}
        )
        # While one is at work in each lane's process, the next is made ready. A lane in this
        # process leaves no core for that: to take turns would only cost.
        self.most_at_once = 1 if sites.lanes == 1 else 2 * sites.lanes

    def _ask(self, site_id: str, ask: Handler, request: Parcel, email: str) -> Parcel:
        """Give the site's answer when there is room for it, as one that comes over a network."""
        reply = ask(request, email)
        self.admit(site_id, len(reply))
        return reply


@contextmanager
def over_memory(folder: Path) -> Iterator[CommunicationFactory]:
    """Give the transport of one run, whose sites end with this context.

        with over_memory(store.folder(run_id)) as communicate:
            ExperimentOrchestrator(communicate, store).run_experiment(run_id)

    Args:
        folder: The run's. Below it the sites keep what they carry from round to round, and which
            data the run began with.
    """
    with ExitStack() as opened:

        def communicate(config: ExperimentConfig) -> SimulatedCommunication:
            setup = _setup(config, folder / "simulation")
            logger.info("simulating {} sites; their data are read and checked", len(setup.files))
            sites = SimulatedFederation(setup, lanes=_simulation(config).workers)
            return SimulatedCommunication(opened.enter_context(closing(sites)))

        yield communicate


def _simulation(config: ExperimentConfig) -> Simulation:
    if config.simulation is None:
        raise ConfigurationError(
            "transport: live; its sites are real and not to be simulated: run it by `over_pysyft`, "
            "or set transport: memory"
        )
    return config.simulation


def _setup(config: ExperimentConfig, folder: Path) -> Setup:
    simulation = _simulation(config)
    members = load_members(config.sites) if config.sites is not None else None
    setup = Setup.of(
        dataset=config.dataset,
        schema=load_yaml(simulation.schema_file, DataSchema),
        files=simulation.files(members),
        states=folder / "states",
    )
    _require_same_data(folder / "data.json", setup)
    return setup


def _require_same_data(record: Path, setup: Setup) -> None:
    """Write down which data a run begins with or, when it goes on, compare them with that.

    Raises:
        DataError: They are others.
        ExperimentError: The record cannot be written.
    """
    now = {site_id: file.sha256 for site_id, file in setup.files.items()}
    now["the schema"] = hashlib.sha256(setup.schema.model_dump_json().encode()).hexdigest()
    try:
        begun: dict[str, str] = json.loads(record.read_text(encoding="utf-8"))
    except FileNotFoundError:
        write_whole(record, json.dumps(now, indent=1).encode())
        return
    except (OSError, ValueError) as exc:
        raise DataError(f"{record} cannot be read ({exc}); start a new run instead") from exc
    changed = sorted(name for name in begun.keys() | now.keys() if begun.get(name) != now.get(name))
    if changed:
        raise DataError(
            f"simulation: changed since the run began: {listed(changed)}; put back what was there, "
            "or start a new run"
        )
