"""What must be so after a run, whatever happened to it."""

from collections import Counter
from pathlib import Path

import psutil
from course import Course
from live_federation import MARK, LiveFederation
from safetensors.torch import load_file
from scenario import ROUNDS, SITES
from site_process import wait_until

from core.auditchain import EMPTY, follow
from core.enums import ExperimentStatus
from core.parameters import digest
from datasite.training.loop import NAME as TRAINER

_GOES_BY_ITSELF_S = 20.0


def require_proven(course: Course, expected: str) -> None:
    """Do nothing when the run is as if nothing had happened to it.

    Args:
        course: Of the run.
        expected: The digest of the undisturbed run's final parameters.
    """
    federation, run_id = course.federation, course.scenario.name
    row = federation.store.find(run_id)
    assert (row.status, row.rounds_done) == (ExperimentStatus.COMPLETED.name, ROUNDS), course
    records = federation.store.rounds(run_id)
    assert [record["round_num"] for record in records] == list(range(ROUNDS)), course
    assert all(set(record["aggregation"]["sites"]) == set(SITES) for record in records), course
    assert final_parameters(federation, run_id) == expected, course
    for site_id in SITES:
        assert trained(course, site_id) == dict.fromkeys(range(ROUNDS), 1), course
    require_tidy(federation)


def final_parameters(federation: LiveFederation, run_id: str) -> str:
    """Give the digest of a run's final parameters."""
    return digest(load_file(federation.store.folder(run_id) / "model.safetensors"))


def trained(course: Course, site_id: str) -> dict[int, int]:
    """Give how often a site trained each round of the run, by its audit log."""
    rows = course.federation.sites[site_id].audit(course.before[site_id])
    (plan_id,) = {row["plan_id"] for row in rows if row["action"] == "plan proposed"}
    return Counter(
        row["detail"]["round_num"]
        for row in rows
        if (row["plan_id"], row["action"], row["outcome"]) == (plan_id, "train", "ok")
    )


def require_tidy(federation: LiveFederation) -> None:
    """Do nothing when no process, no file and no row is left that should not be there."""
    wait_until(
        lambda: not orphans(federation),
        limit_s=_GOES_BY_ITSELF_S,
        what=f"every process belongs to a site: {orphans(federation)}",
    )
    assert unfinished(federation.folder) == []
    for site in federation.sites.values():
        follow(site.audit(), EMPTY)


def orphans(federation: LiveFederation) -> list[str]:
    """Give the trainers that no site has, and those that a site has beyond one."""
    sites = {site.running().pid for site in federation.sites.values()}
    owners = Counter(process.ppid() for process in _trainers(federation.folder))
    beyond = [pid for pid in sites if owners[pid] > 1]
    return [str(pid) for pid in [*beyond, *(owners.keys() - sites)]]


def _trainers(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["name"]):
        try:
            if process.info["name"] == TRAINER and process.environ().get(MARK) == str(folder):
                found.append(process)
        except psutil.Error:
            continue
    return found


def unfinished(folder: Path) -> list[str]:
    """Give the files that somebody was about to finish."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.name.startswith(".") or path.suffix in {".part", ".tmp", ".new"}
    )
