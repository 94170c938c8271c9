"""Three live sites with data, and the runs over them."""

import os
from pathlib import Path
from typing import Any, Final

import yaml
from forked import Command, new_fuse
from live_sites import LiveSite
from scenario import ORCHESTRATOR, ROUNDS, SETTINGS, SITES, Scenario
from site_process import wait_until

from core.enums import DataDistribution
from orchestrator.runs import RunStore
from orchestrator.testbed.ai4i import generate_ai4i
from orchestrator.testbed.samples import write_samples
from orchestrator.testbed.settings import free_ports

MARK: Final = "CHAOS_FOLDER"
"""Set for every process of a federation, so that none is overlooked."""

_BOOT_S: Final = 90.0


class LiveFederation:
    """Three sites as processes.

    Args:
        folder: Everything lies there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fuse = new_fuse(folder / "last-moment")
        self.store = RunStore(folder / "runs")
        os.environ[MARK] = str(folder)
        ports = free_ports(len(SITES))
        self.sites = {
            site_id: LiveSite(folder / site_id, site_id, port)
            for site_id, port in zip(SITES, ports, strict=True)
        }

    def start(self) -> None:
        """Register data at the sites, and start them."""
        table, how = generate_ai4i(rows=1800, seed=7), DataDistribution.IID
        place = self.folder / "samples"
        tables = write_samples(table, place, sites=len(SITES), distribution=how, seed=7)
        for command in [self.sites[path.stem].register(path) for path in tables]:
            command.wait(_BOOT_S)
            assert command.exit_code == 0, command.said
        addresses = [site.address for site in self.sites.values()]
        self._sites_file.write_text(yaml.safe_dump({"sites": addresses}), encoding="utf-8")
        self.wait_until_well()

    def stop(self) -> None:
        """End the sites."""
        for site in self.sites.values():
            site.end()

    def wait_until_well(self) -> None:
        """Return when every site answers; one that has ended is started again."""
        for site in self.sites.values():
            site.running()
        for site in self.sites.values():
            what = f"{site.site_id} answers; see {site.folder}"
            wait_until(site.answers, limit_s=_BOOT_S, what=what)

    def fuse_of(self, whom: str) -> Any:
        """Give the fuse of the orchestrator or of a site."""
        return self.fuse if whom == ORCHESTRATOR else self.sites[whom].fuse

    def output_of(self, run_id: str) -> Path:
        """Give the file of what the orchestrators of a run have said."""
        return self.folder / f"{run_id}.log"

    def orchestrate(self, scenario: Scenario) -> Command:
        """Start the orchestrator of a run, or have another one go on with it."""
        run_id = scenario.name
        if any(row.run_id == run_id for row in self.store.all()):
            arguments = ["resume", run_id, "--runs", self.store.root]
        else:
            arguments = ["run", self._experiment(scenario), "--run-id", run_id]
        output = self.output_of(run_id)
        return Command("orchestrator", [*arguments, "--json"], output=output, fuse=self.fuse)

    @property
    def _sites_file(self) -> Path:
        return self.folder / "sites.yaml"

    def _experiment(self, scenario: Scenario) -> Path:
        settings = {
            "name": "chaos",
            "rounds": ROUNDS,
            "dataset": "ai4i",
            "sites": str(self._sites_file),
            "runs": str(self.store.root),
            "model": {"type": "cnn", "options": {"channels": 4, "blocks": 1}},
            "training": {"local_epochs": 1, "batch_size": 64, "learning_rate": 0.05},
            "limits": {"attempts": 12, "connect_s": 10, "call_s": scenario.call_s},
            **SETTINGS[scenario.setting],
        }
        path = self.folder / f"{scenario.name}.yaml"
        path.write_text(yaml.safe_dump(settings), encoding="utf-8")
        return path
