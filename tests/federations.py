"""Whole federations in memory: real sites, real codec, real runs; no network and no PySyft."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from datasite.caller import Caller, Role
from datasite.site import FactoryDataSite
from datasite.trainer import InlineTrainer
from orchestrator.communication.memory import Handler, MemoryCommunication
from orchestrator.experiment import ExperimentOrchestrator
from orchestrator.observer import Observer
from orchestrator.runs import RunStore
from orchestrator.testbed.presets import AI4I_SCHEMA

RESEARCHER = "researcher@lab.example.com"


class Federation:
    """Three factories in memory and one folder of runs."""

    def __init__(self, folder: Path, *, policy: list[dict[str, Any]]) -> None:
        self.folder = folder
        self.policy = policy
        self.sites: dict[str, FactoryDataSite] = {}
        self.store = RunStore(folder / "runs")

    def open_site(self, site_id: str, *, minimum_count: int = 1) -> FactoryDataSite:
        """Open a site, or open it again after `close`; it tells of so few rows, and no fewer."""
        site = FactoryDataSite(lambda _config: InlineTrainer())
        site.initialize_datasite(
            {
                "site_id": site_id,
                "state": str(self.folder / site_id),
                "operator": {"email": "op@factory.example.com", "password": "not used in memory"},
                "policy": self.policy,
                "release": {"minimum_count": minimum_count},
            }
        )
        self.sites[site_id] = site
        return site

    def open_samples(self, files: Sequence[Path]) -> None:
        """Open a site for each file of AI4I-like data, named after it, with the data registered."""
        for file in files:
            self.open_site(file.stem).register_data(
                {"name": "ai4i", "file": file, "schema": AI4I_SCHEMA}
            )

    def close(self) -> None:
        """Close every site."""
        for site in self.sites.values():
            site.close()

    def heat(self, site_id: str, kelvin: float) -> None:
        """Register a second version of a site's data, in which the air is hotter."""
        registry = self.sites[site_id].registry
        first = registry.find("ai4i")
        table = pd.read_parquet(first.file)
        table["Air temperature [K]"] += kelvin
        table.to_parquet(self.folder / "hotter.parquet")
        registry.register(self.folder / "hotter.parquet", first.schema, name="ai4i", who="operator")

    def handlers(self) -> dict[str, Handler]:
        """Give each site's door, as the transport calls it."""
        return {
            site_id: lambda request, email, site=site: site.handle(
                request, Caller(email=email, role=Role.RESEARCHER)
            )
            for site_id, site in self.sites.items()
        }

    def settings(self, **changes: object) -> dict[str, Any]:
        """Give an experiment's settings: small, quick, FedAvg with the CNN."""
        return {
            "name": "test",
            "rounds": 3,
            "dataset": "ai4i",
            "sites": str(self.sites_file()),
            "training": {"local_epochs": 1, "batch_size": 64, "learning_rate": 0.05},
            "limits": {"attempts": 1, "sites_s": 0},
            **changes,
        }

    def sites_file(self) -> Path:
        """Write the sites file and give its path."""
        sites = [
            {
                "site_id": site_id,
                "url": f"memory://{site_id}",
                "email": RESEARCHER,
                "password": "in memory",
            }
            for site_id in self.sites
        ]
        path = self.folder / "sites.yaml"
        path.write_text(yaml.safe_dump({"sites": sites}))
        return path

    def orchestrator(
        self, observer: Observer | None = None, handlers: dict[str, Handler] | None = None
    ) -> ExperimentOrchestrator:
        """Give an orchestrator over these sites."""
        doors = handlers or self.handlers()
        return ExperimentOrchestrator(lambda _c: MemoryCommunication(doors), self.store, observer)

    def run(
        self, run_id: str, observer: Observer | None = None, **changes: object
    ) -> dict[str, Any]:
        """Set an experiment up, run it, and give its results."""
        orchestrator = self.orchestrator(observer)
        orchestrator.setup_experiment({**self.settings(**changes), "experiment_id": run_id})
        return orchestrator.run_experiment(run_id)


APPROVE_ALL = [{"name": "lab", "decision": "approve", "researcher": RESEARCHER}]
