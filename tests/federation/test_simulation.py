"""Simulated sites: what they share with real ones bit for bit, and what they refuse."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import yaml
from federations import Federation
from simulations import Simulation, names

from core.configuration import parse
from core.exceptions import ConfigurationError, DataError, ExperimentError, PlanError
from core.messages import EvaluateRequest, EvaluationReport
from orchestrator.communication.simulated import over_memory
from orchestrator.configuration import ExperimentConfig
from orchestrator.fleet import Fleet
from orchestrator.observer import Observer
from orchestrator.testbed.ai4i import LABEL, generate_ai4i
from orchestrator.testbed.presets import AI4I_SCHEMA

ALGORITHMS = ["fedavg", "feddyn", "scaffold"]


class StopAfter(Observer):
    """Interrupts the run after a round, as Ctrl-C does."""

    def __init__(self, round_num: int) -> None:
        self.round_num = round_num

    def round_done(self, run_id: str, record: Mapping[str, Any]) -> None:
        """Interrupt after the chosen round."""
        if record["round_num"] == self.round_num:
            raise KeyboardInterrupt


@pytest.fixture
def data(tmp_path: Path, samples: list[Path]) -> Path:
    """Give a folder with the three tables of the other federations, to change at will."""
    folder = tmp_path / "data"
    folder.mkdir()
    for path in samples:
        shutil.copy(path, folder)
    return folder


@pytest.fixture
def simulation(tmp_path: Path, data: Path) -> Simulation:
    """Give three simulated sites with the data of the other federations."""
    return Simulation(tmp_path / "simulation", data)


def write_small_sites(folder: Path, count: int) -> None:
    """Write `count` tables of 60 rows, 10 of them failures."""
    table = generate_ai4i(rows=20_000, seed=3)
    healthy, failed = table[table[LABEL] == 0], table[table[LABEL] == 1]
    folder.mkdir()
    for number in range(1, count + 1):
        parts = [healthy.sample(50, random_state=number), failed.sample(10, random_state=number)]
        pd.concat(parts).to_csv(folder / f"site-{number}.csv", index=False)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_simulated_sites_give_the_bits_of_real_ones(
    federation: Federation, simulation: Simulation, name: str
) -> None:
    """Same data, same seed, same names: in one process and in two, what sites with ledgers give."""
    real = federation.run("real", algorithm={"name": name})
    for workers in (1, 2):
        played = simulation.run(f"in-{workers}", algorithm={"name": name}, workers=workers)
        assert played["parameters_sha256"] == real["parameters_sha256"]
        for ours, theirs in zip(played["rounds"], real["rounds"], strict=True):
            assert (ours["global"], ours["per_site"]) == (theirs["global"], theirs["per_site"])
            assert ours["training"]["loss"] == theirs["training"]["loss"]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_stopped_simulation_resumes_to_the_same_parameters(
    simulation: Simulation, name: str
) -> None:
    """What sites keep is on disk; an older checkpoint finds the states of its time."""
    undisturbed = simulation.run("undisturbed", algorithm={"name": name}, rounds=4)
    with pytest.raises(KeyboardInterrupt):
        simulation.run("stopped", StopAfter(2), algorithm={"name": name}, rounds=4)
    checkpoints = simulation.store.folder("stopped") / "checkpoints"
    (checkpoints / "round_000003.safetensors").unlink()
    resumed = simulation.resume("stopped")
    assert resumed["parameters_sha256"] == undisturbed["parameters_sha256"]


def test_states_do_not_grow_with_the_rounds(simulation: Simulation) -> None:
    """FedDyn's duals of the last four rounds are there for each site, and no older ones."""
    simulation.run("one", algorithm={"name": "feddyn"}, rounds=7)
    kept = (simulation.store.folder("one") / "simulation").rglob("*.state")
    rounds = sorted((path.parent.name, int(path.stem.partition("_")[0])) for path in kept)
    assert rounds == [(f"factory-{s}", r) for s in (1, 2, 3) for r in (3, 4, 5, 6)]


def test_parquet_is_as_good_as_csv(simulation: Simulation) -> None:
    """The suffix says what a file is; the numbers in it decide."""
    before = simulation.run("csv")
    path = simulation.data / "factory-2.csv"
    pd.read_csv(path).to_parquet(path.with_suffix(".parquet"))
    path.unlink()
    assert simulation.run("parquet")["parameters_sha256"] == before["parameters_sha256"]


def test_what_lies_beside_the_tables_is_no_site(simulation: Simulation) -> None:
    """`orchestrator testbed data` draws a picture into the folder."""
    (simulation.data / "split.png").write_bytes(b"")
    (simulation.data / "more").mkdir()
    assert names(simulation.run("one", rounds=1)) == ["factory-1", "factory-2", "factory-3"]


def test_the_sites_file_of_a_live_federation_chooses_the_sites(
    simulation: Simulation, tmp_path: Path
) -> None:
    """Names and tags count; URLs, and passwords that are set nowhere, do not."""
    sites = [
        {
            "site_id": f"factory-{number}",
            "url": f"https://factory-{number}.example.com",
            "email": "researcher@lab.example.com",
            "password": "${NOT_SET_ANYWHERE}",
            "tags": [tag],
        }
        for number, tag in ((1, "presses"), (3, "pumps"))
    ]
    simulation.sites = tmp_path / "sites.yaml"
    simulation.sites.write_text(yaml.safe_dump({"sites": sites}))
    assert names(simulation.run("named", rounds=1)) == ["factory-1", "factory-3"]
    tagged = simulation.run("tagged", rounds=1, participation={"tags": ["pumps"]})
    assert names(tagged) == ["factory-3"]
    assert sorted(tagged["rounds"][0]["per_site"]) == ["factory-1", "factory-3"]


@pytest.mark.parametrize("workers", [1, 2])
def test_two_hundred_sites_run(tmp_path: Path, workers: int) -> None:
    """More than one would start as processes, some drawn for a round, all evaluated."""
    write_small_sites(tmp_path / "data", 200)
    simulation = Simulation(tmp_path / "simulation", tmp_path / "data")
    share = {"fraction": 0.5}
    results = simulation.run("many", rounds=2, participation=share, workers=workers)
    assert [len(record["sites"]) for record in results["rounds"]] == [100, 100]
    assert len(results["metrics"]["final"]["per_site"]) == 200


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        pytest.param(
            {"transport": "memory"}, "simulation: missing; transport: memory needs", id="no-data"
        ),
        pytest.param({}, "sites: missing; name the sites file, or simulate", id="neither"),
        pytest.param(
            {"sites": "sites.yaml", "simulation": {"data": "d", "schema": "s"}},
            "simulation: is for transport: memory, and transport is live",
            id="live",
        ),
        pytest.param(
            {"transport": "memory", "simulation": {"data": "d"}},
            "simulation.schema: missing",
            id="no-schema",
        ),
        pytest.param(
            {"transport": "memory", "simulation": {"data": "d", "schema": "s", "workers": 0}},
            "simulation.workers: Input should be greater than or equal to 1",
            id="no-workers",
        ),
        pytest.param({"transport": "radio"}, "transport: Input should be 'live' or", id="radio"),
    ],
)
def test_settings_that_mean_nothing_together_are_refused(
    changes: dict[str, Any], said: str
) -> None:
    """Before anything is read or started, with what to do."""
    with pytest.raises(ConfigurationError) as refused:
        parse({"name": "x", "rounds": 1, "dataset": "ai4i", **changes}, ExperimentConfig, source="")
    assert said in str(refused.value)


def test_paths_are_kept_in_full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A run can be resumed from another folder."""
    monkeypatch.chdir(tmp_path)
    raw = {
        "name": "x",
        "rounds": 1,
        "dataset": "ai4i",
        "transport": "memory",
        "simulation": {"data": "d", "schema": "s.yaml"},
    }
    config = parse(raw, ExperimentConfig, source="")
    kept = ExperimentConfig.model_validate_json(config.model_dump_json()).simulation
    assert kept is not None
    assert (kept.data, kept.schema_file) == (tmp_path / "d", tmp_path / "s.yaml")


def test_a_folder_that_is_no_federation_is_refused(simulation: Simulation, tmp_path: Path) -> None:
    """Missing, empty, with a file of no site's name, or with two of one site."""
    table = simulation.data / "factory-1.csv"
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        simulation.run("missing", simulation={"data": str(tmp_path / "no"), "schema": "s"})
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match="has no CSV or Parquet files"):
        simulation.run(
            "empty", simulation={"data": str(tmp_path / "empty"), "schema": str(AI4I_SCHEMA)}
        )
    shutil.copy(table, simulation.data / "Factory 4.csv")
    with pytest.raises(ConfigurationError, match=r"Factory 4\.csv is named like no site"):
        simulation.run("named")
    (simulation.data / "Factory 4.csv").unlink()
    shutil.copy(table, table.with_suffix(".parquet"))
    with pytest.raises(ConfigurationError, match="are both of the site factory-1"):
        simulation.run("twice")


def test_a_site_without_data_is_refused(simulation: Simulation, tmp_path: Path) -> None:
    """The sites file names one more than there are files; the run says which, and fails."""
    simulation.sites = tmp_path / "sites.yaml"
    named = [{"site_id": f"factory-{number}"} for number in (1, 9)]
    simulation.sites.write_text(yaml.safe_dump({"sites": named}))
    with pytest.raises(ConfigurationError, match=r"has no file for factory-9; .*factory-9\.csv"):
        simulation.run("one")
    assert simulation.store.find("one").status == "FAILED"


def test_data_that_break_the_schema_are_told_as_at_a_registration(simulation: Simulation) -> None:
    """The line, the column and the rule; a run that needs fewer sites goes on without."""
    path = simulation.data / "factory-2.csv"
    table = pd.read_csv(path)
    table.loc[4, "Torque [Nm]"] = -1.0
    table.to_csv(path, index=False)
    with pytest.raises(ExperimentError, match=r"line 6.*-1 is outside"):
        simulation.run("all")
    results = simulation.run("most", rounds=1, min_sites=2)
    assert names(results) == ["factory-1", "factory-3"]
    assert "factory-2" in results["rounds"][0]["missing"]


def test_a_run_does_not_go_on_with_other_data(simulation: Simulation) -> None:
    """Data, schema and sites are those that it began with, or it stops and says what changed."""
    with pytest.raises(KeyboardInterrupt):
        simulation.run("one", StopAfter(0))
    path = simulation.data / "factory-3.csv"
    before = path.read_bytes()
    path.write_bytes(before + before.splitlines(keepends=True)[-1])
    with pytest.raises(DataError, match="changed since the run began: factory-3;"):
        simulation.resume("one")
    path.write_bytes(before)
    shutil.copy(path, simulation.data / "factory-4.csv")
    with pytest.raises(DataError, match="changed since the run began: factory-4;"):
        simulation.resume("one")
    (simulation.data / "factory-4.csv").unlink()
    assert simulation.resume("one")["status"] == "COMPLETED"


def test_a_request_outside_its_plan_is_refused(simulation: Simulation) -> None:
    """Plans are approved at once and still bind: another model, and a plan of nobody."""
    config = parse(simulation.settings(), ExperimentConfig, source="")
    simulation.run("one", rounds=1)
    with over_memory(simulation.store.folder("one")) as communicate:
        communication = communicate(config)
        Fleet(communication, config.addresses(), attempts=1).connect()
        request = EvaluateRequest(
            kind="evaluate",
            plan_id="0" * 64,
            round_num=0,
            model={"type": "cnn", "options": {}},
            preprocessing={"mean": [0.0], "scale": [1.0], "positive_weight": 1.0},
            deadline_s=1.0,
            parameters={},
        )
        with pytest.raises(PlanError, match="has proposed no plan '000000000000' here"):
            communication.request(request, EvaluationReport, "factory-1")


def write_experiment(folder: Path, simulation: Simulation, **changes: Any) -> Path:
    """Write the experiment for the command."""
    path = folder / "experiment.yaml"
    settings = {**simulation.settings(**changes), "runs": str(folder / "runs")}
    path.write_text(yaml.safe_dump(settings))
    return path


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    """Start `orchestrator` as the leader of a group, as a shell does."""
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def read_until(run: subprocess.Popen[str], round_num: int) -> None:
    """Read JSON lines until a round is done."""
    assert run.stdout is not None
    for line in run.stdout:
        if json.loads(line).get("round_num") == round_num:
            return
    raise AssertionError(run.communicate()[1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "killed"])
def test_no_process_outlives_its_run(
    simulation: Simulation, tmp_path: Path, number: signal.Signals
) -> None:
    """However the command ends, its workers do; Ctrl-C goes to them too, and they say nothing."""
    experiment = write_experiment(tmp_path, simulation, workers=2, rounds=1000)
    run = start("run", experiment, "--run-id", "one", "--json")
    read_until(run, 0)
    family = psutil.Process(run.pid).children(recursive=True)
    assert len(family) >= 2
    if number is signal.SIGINT:
        os.killpg(run.pid, number)
    else:
        run.send_signal(number)
    _, errors = run.communicate(timeout=20)
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []
    assert "Traceback" not in errors
    assert run.returncode == (130 if number is signal.SIGINT else -signal.SIGKILL)


def test_a_worker_that_dies_costs_one_answer_and_is_replaced(
    simulation: Simulation, tmp_path: Path
) -> None:
    """As with a trainer: the site it worked for is missing in that round, and back in the next."""
    changes: dict[str, Any] = {"rounds": 400, "min_sites": 1, "evaluation": {"every": 400}}
    experiment = write_experiment(tmp_path, simulation, workers=2, **changes)
    run = start("run", experiment, "--run-id", "one", "--json")
    read_until(run, 0)  # from here on it trains: no evaluation is there to be hurt
    victim = next(
        child
        for child in psutil.Process(run.pid).children()
        if "spawn_main" in " ".join(child.cmdline())
    )
    victim.kill()
    assert run.stdout is not None
    records = (json.loads(line) for line in run.stdout)
    rounds = (record for record in records if record["event"] == "round")
    hurt = next(record for record in rounds if record["missing"])
    assert len(hurt["missing"]) == 1
    assert "ended in the middle of the work" in next(iter(hurt["missing"].values()))
    assert next(rounds)["missing"] == {}
    os.killpg(run.pid, signal.SIGINT)
    run.communicate(timeout=20)


def test_the_command_says_little_of_many_sites(tmp_path: Path) -> None:
    """A round is a line, and the results a dozen."""
    write_small_sites(tmp_path / "data", 30)
    simulation = Simulation(tmp_path / "simulation", tmp_path / "data")
    run = start("run", write_experiment(tmp_path, simulation), "--run-id", "one")
    shown, errors = run.communicate(timeout=60)
    assert run.returncode == 0, errors
    assert "connected to site-1, site-10, " in shown
    assert "and 22 more" in shown
    assert "median of 30 sites" in shown
    assert len(shown.splitlines()) < 20
    again = start("resume", "one", "--runs", tmp_path / "runs")
    assert "COMPLETED, 3 of 3 rounds" in again.communicate(timeout=60)[0]


def test_a_command_for_live_sites_says_that_there_are_none(
    simulation: Simulation, tmp_path: Path
) -> None:
    """`orchestrator sites` on an experiment whose sites are simulated."""
    run = start("sites", write_experiment(tmp_path, simulation))
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 4
    assert "is an experiment and no sites file; its sites are simulated" in errors
