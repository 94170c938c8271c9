"""Whole simulated federations, as `orchestrator run` makes them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.communication.simulated import over_memory
from orchestrator.experiment import ExperimentOrchestrator
from orchestrator.observer import Observer
from orchestrator.runs import RunStore
from orchestrator.testbed.presets import AI4I_SCHEMA


class Simulation:
    """Sites on a folder of files, and one folder of runs.

    Args:
        folder: Of the runs.
        data: Of the sites' files.
        sites: A sites file, where one is named.
        schema: Of the data.
    """

    def __init__(
        self, folder: Path, data: Path, *, sites: Path | None = None, schema: Path = AI4I_SCHEMA
    ) -> None:
        self.store = RunStore(folder / "runs")
        self.data = data
        self.sites = sites
        self.schema = schema

    def settings(self, *, workers: int = 1, **changes: Any) -> dict[str, Any]:
        """Give an experiment's settings: those of `federations.Federation`, simulated."""
        return {
            "name": "test",
            "rounds": 3,
            "dataset": "ai4i",
            "transport": "memory",
            "simulation": {
                "data": str(self.data),
                "schema": str(self.schema),
                "workers": workers,
            },
            "training": {"local_epochs": 1, "batch_size": 64, "learning_rate": 0.05},
            "limits": {"attempts": 1, "sites_s": 0},
            **({} if self.sites is None else {"sites": str(self.sites)}),
            **changes,
        }

    def run(self, run_id: str, observer: Observer | None = None, **changes: Any) -> dict[str, Any]:
        """Set an experiment up, run it, and give its results."""
        with over_memory(self.store.folder(run_id)) as communicate:
            orchestrator = ExperimentOrchestrator(communicate, self.store, observer)
            orchestrator.setup_experiment({**self.settings(**changes), "experiment_id": run_id})
            return orchestrator.run_experiment(run_id)

    def resume(self, run_id: str) -> dict[str, Any]:
        """Go on with a run that stopped, and give its results."""
        with over_memory(self.store.folder(run_id)) as communicate:
            return ExperimentOrchestrator(communicate, self.store).run_experiment(run_id)


def names(results: dict[str, Any], round_num: int = 0) -> Sequence[str]:
    """Give the sites that trained in a round."""
    return sorted(results["rounds"][round_num]["sites"])
