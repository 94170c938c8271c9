"""The `orchestrator` command, as a shell sees it: output and exit codes."""

import hashlib
import json
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml
from federations import Federation
from loguru import logger

from core import CommunicationError, ExperimentStatus
from orchestrator.circuit import Circuits
from orchestrator.cli.app import app, main
from orchestrator.configuration import ExperimentConfig
from orchestrator.runs import RunStore
from orchestrator.testbed.presets import AI4I_SCHEMA

ROOT = Path(__file__).resolve().parents[2]

Command = Callable[..., int]


@pytest.fixture
def orchestrator(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Command]:
    """Give the command, run in this process and in an empty folder; it gives its exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ORCHESTRATOR_RUNS", raising=False)

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["orchestrator", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    yield run
    logger.remove()  # it writes to a stream that ends with the test


def in_a_process(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own: for what imports PySyft."""
    return subprocess.run(
        [sys.executable, "-m", "orchestrator", *map(str, arguments)],
        cwd=cwd,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(cwd)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def verbs() -> list[list[str]]:
    """Give every verb of the command, those of its groups too."""

    def below(command: click.Command, path: list[str]) -> Iterator[list[str]]:
        if isinstance(command, click.Group):
            for name, member in command.commands.items():
                yield from below(member, [*path, name])
        else:
            yield path

    return list(below(typer.main.get_command(app), []))


def settings(**changes: Any) -> dict[str, Any]:
    """Give the least that an experiment must say."""
    return {"name": "test", "rounds": 2, "dataset": "ai4i", "sites": "sites.yaml", **changes}


@pytest.fixture
def runs(tmp_path: Path) -> RunStore:
    """Two runs in the folder that the command looks in by default."""
    store = RunStore(tmp_path / "runs")
    config = ExperimentConfig.model_validate(settings())
    store.create("first", config)
    store.create("second", config)
    store.move("first", ExperimentStatus.FAILED, message="factory-1: down\nmore", rounds_done=1)
    return store


def closed_port() -> int:
    """Give a port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def write_sites(folder: Path) -> Path:
    """Write a sites file with one site that nobody runs."""
    site = {
        "site_id": "factory-1",
        "url": f"http://127.0.0.1:{closed_port()}",
        "email": "researcher@lab.example.com",
        "password": "hunter2-hunter2",
    }
    path = folder / "sites.yaml"
    path.write_text(yaml.safe_dump({"sites": [site]}))
    return path


def test_the_verbs_are_found() -> None:
    """The test below is about all of them."""
    assert ["run"] in verbs()
    assert ["testbed", "status"] in verbs()


@pytest.mark.parametrize("verb", verbs(), ids=" ".join)
def test_the_help_of_every_verb_has_an_example(
    orchestrator: Command, capsys: pytest.CaptureFixture[str], verb: list[str]
) -> None:
    """A line to copy, of this very verb."""
    assert orchestrator(*verb, "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"Example: orchestrator {' '.join(verb)}" in text


@pytest.mark.parametrize(
    "arguments",
    [
        ["fly"],
        ["show"],
        ["show", "a", "b"],
        ["list", "--jsn"],
        ["run"],
        ["testbed", "up", "--sites", "0"],
        ["testbed", "up", "--sites", "many"],
        ["testbed", "data", "--distribution", "even"],
    ],
    ids=" ".join,
)
def test_wrong_arguments_end_with_4(
    orchestrator: Command, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    """On standard error, with how to ask for help."""
    assert orchestrator(*arguments) == 4
    out, err = capsys.readouterr()
    assert out == ""
    assert "Error:" in err
    assert "--help" in err


@pytest.mark.parametrize("verb", ["show", "resume"])
def test_an_unknown_run_ends_with_1(
    orchestrator: Command, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    """And says how to find the known ones; no traceback."""
    assert orchestrator(verb, "nowhere") == 1
    err = capsys.readouterr().err
    assert re.fullmatch(r"error: there is no run 'nowhere' in runs; see 'orchestrator list'\n", err)


def test_without_runs_the_list_says_how_to_start_one(
    orchestrator: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    """An empty list is no error."""
    assert orchestrator("list") == 0
    assert "no runs in runs; start one with 'orchestrator run" in capsys.readouterr().out
    assert orchestrator("list", "--json") == 0
    assert json.loads(capsys.readouterr().out) == []


def test_the_list_has_a_line_for_each_run(
    orchestrator: Command, runs: RunStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """With where it stands, and the first line of why."""
    assert orchestrator("list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    (failed,) = [line for line in lines if line.startswith("first")]
    assert "FAILED" in failed
    assert "1/2" in failed
    assert failed.endswith("factory-1: down")


def test_the_list_is_json_for_programs(
    orchestrator: Command, runs: RunStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same, with nothing cut."""
    assert orchestrator("list", "--json") == 0
    rows = {row["run"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows.keys() == {"first", "second"}
    assert rows["first"]["message"] == "factory-1: down\nmore"
    assert (rows["second"]["status"], rows["second"]["rounds_done"]) == ("PENDING", 0)


def test_the_folder_of_the_runs_can_be_chosen(
    orchestrator: Command,
    runs: RunStore,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By an option, or once for all by the environment."""
    monkeypatch.chdir("/")
    assert orchestrator("list", "--json", "--runs", str(runs.root)) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2
    monkeypatch.setenv("ORCHESTRATOR_RUNS", str(runs.root))
    assert orchestrator("list", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)) == 2


def test_a_run_is_shown_and_exported(
    orchestrator: Command,
    federation: Federation,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A table for people, JSON for programs, and a file of the rounds."""
    federation.run("one", rounds=2)
    folder = ("--runs", str(federation.store.root))
    assert orchestrator("show", "one", *folder, "--export", "rounds.csv") == 0
    out = capsys.readouterr().out
    assert "run one: COMPLETED, 2 of 2 rounds" in out
    assert "privacy level: none: updates leave the sites as they are\n" in out
    assert [line.split("  ")[0] for line in out.splitlines()[4:]] == [
        "all sites",
        "factory-1",
        "factory-2",
        "factory-3",
        'always "no failure"',
    ]
    assert len((tmp_path / "rounds.csv").read_text().splitlines()) == 3
    assert orchestrator("show", "one", *folder, "--json") == 0
    assert json.loads(capsys.readouterr().out) == federation.store.results("one")


def test_a_run_is_shown_with_what_it_started_from(
    orchestrator: Command,
    federation: Federation,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The file and its SHA-256, as `sha256sum` gives it; without a file there is no such line."""
    federation.run("first", rounds=1)
    start = federation.store.folder("first") / "model.safetensors"
    federation.run("second", rounds=1, model={"start": str(start)})
    folder = ("--runs", str(federation.store.root))
    assert orchestrator("show", "second", *folder) == 0
    sha256 = hashlib.sha256(start.read_bytes()).hexdigest()
    assert f"started from {start} (SHA-256 {sha256})\n" in capsys.readouterr().out
    assert orchestrator("show", "first", *folder) == 0
    assert "started from" not in capsys.readouterr().out


def test_a_run_is_shown_with_what_has_drifted(
    orchestrator: Command, federation: Federation, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once, by site and sensor, however many rounds told of it."""
    federation.heat("factory-2", 6.0)
    federation.run("one", rounds=2)
    assert orchestrator("show", "one", "--runs", str(federation.store.root)) == 0
    (warning,) = [line for line in capsys.readouterr().out.splitlines() if "drifted" in line]
    said = r"  factory-2: its data have drifted .*: Air temperature \[K\] \(PSI \d\.\d\d, large\)"
    assert re.fullmatch(said, warning)


def test_an_export_to_another_format_ends_with_4(
    orchestrator: Command, runs: RunStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The option is wrong, and nothing is written."""
    assert orchestrator("show", "first", "--export", "rounds.xlsx") == 4
    assert ".json, .csv or .parquet" in capsys.readouterr().err
    assert not (tmp_path / "rounds.xlsx").exists()


def test_a_bad_experiment_ends_with_4_and_every_mistake(
    orchestrator: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And no run is recorded."""
    bad = settings(rounds=0, seeds=1, training={"optimizer": "newton"})
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(bad))
    assert orchestrator("run", "bad.yaml") == 4
    err = capsys.readouterr().err
    assert "bad.yaml: 3 mistake(s)" in err
    assert "rounds: Input should be greater than or equal to 1 (found 0)" in err
    assert "seeds: unknown key; did you mean 'seed'?" in err
    assert "training.optimizer: Input should be 'sgd' or 'adam' (found 'newton')" in err
    assert not (tmp_path / "runs").exists()


def test_an_experiment_that_is_not_there_ends_with_4(
    orchestrator: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file is named."""
    assert orchestrator("run", "nowhere.yaml") == 4
    assert capsys.readouterr().err == "error: nowhere.yaml: no such file\n"


def test_a_run_id_that_is_no_name_ends_with_4(
    orchestrator: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is written outside the folder of the runs."""
    (tmp_path / "good.yaml").write_text(yaml.safe_dump(settings()))
    assert orchestrator("run", "good.yaml", "--run-id", "../elsewhere") == 4
    assert "'../elsewhere' is no id for a run" in capsys.readouterr().err
    assert not (tmp_path / "elsewhere").exists()


def test_a_run_without_its_sites_file_ends_with_4(
    orchestrator: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run is recorded as failed, with the reason."""
    (tmp_path / "good.yaml").write_text(yaml.safe_dump(settings()))
    assert orchestrator("run", "good.yaml", "--run-id", "one") == 4
    assert f"error: {tmp_path / 'sites.yaml'}: no such file" in capsys.readouterr().err
    assert RunStore(tmp_path / "runs").find("one").status == "FAILED"


def test_a_run_with_an_unreachable_site_ends_with_2(tmp_path: Path) -> None:
    """In bounded time, naming the site; the password is nowhere."""
    sites = write_sites(tmp_path)
    experiment = tmp_path / "experiment.yaml"
    experiment.write_text(
        yaml.safe_dump(
            settings(sites=str(sites), limits={"attempts": 1, "connect_s": 5, "sites_s": 0})
        )
    )
    done = in_a_process("run", experiment, "--run-id", "one", "--json", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "log-in: 0 of at least 1 sites answered" in done.stderr
    assert "factory-1: http://127.0.0.1" in done.stderr
    assert "Traceback" not in done.stderr
    assert "hunter2" not in done.stdout + done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events] == ["connected", "finished"]
    assert RunStore(tmp_path / "runs").find("one").status == "FAILED"


def test_sites_that_are_not_there_end_with_2(tmp_path: Path) -> None:
    """Each has its line, with the reason."""
    done = in_a_process("sites", write_sites(tmp_path), "--json", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    (site,) = json.loads(done.stdout)
    assert (site["site_id"], site["status"]) == ("factory-1", "OFFLINE")
    assert "not reached" in site["message"]
    assert "hunter2" not in done.stdout + done.stderr


def test_a_sites_file_with_mistakes_ends_with_4(
    orchestrator: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before any site is asked."""
    (tmp_path / "sites.yaml").write_text("sites: [{site_id: a}]\n")
    assert orchestrator("sites", "sites.yaml") == 4
    assert "sites[0].url: missing" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["status", "down"])
def test_a_testbed_that_is_not_there_ends_with_4(
    orchestrator: Command, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    """And says how to start one."""
    assert orchestrator("testbed", verb) == 4
    err = capsys.readouterr().err
    assert "there is no testbed in" in err
    assert "start one with 'orchestrator testbed up'" in err


def test_an_auditor_is_told_which_sites_there_are(
    orchestrator: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A site that the file does not name is a mistake in what was typed."""
    assert orchestrator("audit", str(write_sites(tmp_path)), "--site", "factory-9") == 4
    assert "names no site 'factory-9'; it has: factory-1" in capsys.readouterr().err


def test_an_orphaned_run_is_said_and_can_be_cancelled(
    orchestrator: Command, capsys: pytest.CaptureFixture[str], runs: RunStore
) -> None:
    """RUNNING, and nobody runs it: `list` and `show` say what to do about it."""
    runs.move("second", ExperimentStatus.RUNNING)
    assert orchestrator("list") == 0
    assert capsys.readouterr().out.count("orphaned: its process is gone; to go on") == 1
    assert orchestrator("list", "--json") == 0
    rows = {row["run"]: row for row in json.loads(capsys.readouterr().out)}
    assert (rows["second"]["orphaned"], rows["first"]["orphaned"]) == (True, False)
    assert orchestrator("show", "second") == 0
    assert "orchestrator resume second" in capsys.readouterr().out
    assert orchestrator("cancel", "second") == 0
    assert capsys.readouterr().out == (
        "run second: CANCELLED stopped; to go on: orchestrator resume second\n"
    )
    assert runs.find("second").status == "CANCELLED"


def test_a_run_that_is_over_cannot_be_cancelled(
    orchestrator: Command, capsys: pytest.CaptureFixture[str], runs: RunStore
) -> None:
    """It says how it ended."""
    assert orchestrator("cancel", "first") == 1
    assert "run 'first' is FAILED and not under way" in capsys.readouterr().err
    assert runs.find("first").message == "factory-1: down\nmore"


def test_a_run_is_shown_with_where_its_sites_stand(
    orchestrator: Command, capsys: pytest.CaptureFixture[str], runs: RunStore
) -> None:
    """Since when, and why; one that is complete, when not all of them are well."""
    circuits = Circuits(["factory-1", "factory-2"])
    circuits.failed("factory-1", CommunicationError("factory-1: connection refused"))
    with circuits.request("factory-2"):
        pass
    runs.save_sites("first", circuits.standings)
    assert orchestrator("show", "first") == 0
    shown = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"factory-1  OFFLINE  \S{19}  factory-1: connection refused", shown[-2])
    assert re.fullmatch(r"factory-2  ONLINE   \S{19}", shown[-1])
    runs.move("first", ExperimentStatus.COMPLETED)
    assert orchestrator("show", "first") == 0
    assert "connection refused" in capsys.readouterr().out
    with circuits.request("factory-1"):
        pass
    runs.save_sites("first", circuits.standings)
    assert orchestrator("show", "first") == 0
    assert "ONLINE" not in capsys.readouterr().out


@pytest.fixture
def simulated(tmp_path: Path, samples: list[Path]) -> Path:
    """An experiment of two rounds over simulated sites."""
    path = tmp_path / "simulated.yaml"
    simulation = {"data": str(samples[0].parent), "schema": str(AI4I_SCHEMA)}
    content = settings(transport="memory", simulation=simulation)
    del content["sites"]
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_run_is_begun_once_and_then_gone_on_with(
    orchestrator: Command, capsys: pytest.CaptureFixture[str], simulated: Path, tmp_path: Path
) -> None:
    """The same line for a schedule, whether there is a run already or not."""
    line = ("run", str(simulated), "--run-id", "nightly", "--resume-if-exists")
    assert orchestrator(*line) == 0
    store = RunStore(tmp_path / "runs")
    first = store.results("nightly")
    assert orchestrator(*line) == 0
    assert store.results("nightly") == first
    assert orchestrator("run", str(simulated), "--run-id", "nightly") == 1
    assert "'nightly' exists already" in capsys.readouterr().err


def test_a_run_is_not_gone_on_with_under_other_settings(
    orchestrator: Command, capsys: pytest.CaptureFixture[str], simulated: Path
) -> None:
    """What it was begun with is what it is."""
    line = ("run", str(simulated), "--run-id", "nightly", "--resume-if-exists")
    assert orchestrator(*line) == 0
    changed = yaml.safe_load(simulated.read_text()) | {"seed": 9}
    simulated.write_text(yaml.safe_dump(changed))
    assert orchestrator(*line) == 4
    assert "'nightly' was begun with other settings" in capsys.readouterr().err
    assert orchestrator("run", str(simulated), "--resume-if-exists") == 4
    assert "needs the --run-id" in capsys.readouterr().err
