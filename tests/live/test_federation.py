"""Whole experiments over live PySyft sites, by the commands that people use."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from commands import (
    orchestrator,
    results,
    signal_after,
    start_orchestrator,
    write_experiment,
)
from federations import Federation

from orchestrator.testbed.presets import AI4I_SCHEMA
from orchestrator.testbed.processes import SiteProcess, Testbed, run_datasite
from orchestrator.testbed.settings import OPERATOR, RESEARCHER

pytestmark = pytest.mark.live


def round_line(number: int) -> Callable[[str], bool]:
    """Recognise the JSON line of a finished round."""

    def seen(line: str) -> bool:
        event = json.loads(line)
        return event["event"] == "round" and event["round_num"] == number

    return seen


def audit_rows(testbed: Testbed, site_id: str) -> list[dict[str, Any]]:
    """Give a site's audit log, by the operator's command."""
    config = str(testbed.config_file(site_id))
    rows: list[dict[str, Any]] = json.loads(
        run_datasite("audit", "show", "--last", "1000", "--json", "--config", config)
    )
    return rows


def plan_of(testbed: Testbed, site_id: str, run_id: str) -> str:
    """Give the id of the plan that a run had at a site."""
    config = str(testbed.config_file(site_id))
    plans = json.loads(run_datasite("plans", "list", "--json", "--config", config))
    return str(next(p["plan_id"] for p in plans if p["proposal"]["run_id"] == run_id))


@pytest.fixture(params=["session", "signed"])
def channel(request: pytest.FixtureRequest) -> str:
    """Give one way to carry requests after the other."""
    return str(request.param)


@pytest.fixture(scope="module")
def undisturbed(testbed: Testbed, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run the experiment once, with nothing in its way, and give its results."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = orchestrator("run", write_experiment(folder, testbed), "--run-id", "undisturbed")
    assert done.returncode == 0, done.stderr
    assert "COMPLETED" in done.stdout
    return results(folder, "undisturbed")


def test_a_run_over_live_sites_completes(undisturbed: dict[str, Any]) -> None:
    """All rounds are there, each with all sites, pooled and per-site metrics."""
    assert undisturbed["status"] == "COMPLETED"
    assert [len(record["sites"]) for record in undisturbed["rounds"]] == [3, 3, 3]
    final = undisturbed["metrics"]["final"]
    assert set(final["per_site"]) == {"factory-1", "factory-2", "factory-3"}


def test_memory_and_both_channels_give_bit_equal_parameters(
    undisturbed: dict[str, Any], testbed: Testbed, federation: Federation, tmp_path: Path
) -> None:
    """What carries the bytes changes nothing: same data, same seed, same bits."""
    in_memory = federation.run("one")
    assert in_memory["parameters_sha256"] == undisturbed["parameters_sha256"]
    signed = write_experiment(tmp_path, testbed, channel="signed")
    assert orchestrator("run", signed, "--run-id", "signed").returncode == 0
    ended = results(tmp_path, "signed")
    assert ended["parameters_sha256"] == undisturbed["parameters_sha256"]


@pytest.mark.parametrize("workers", [1, 2])
def test_two_keys_turn_a_live_experiment_into_a_simulation(
    undisturbed: dict[str, Any], testbed: Testbed, samples: list[Path], tmp_path: Path, workers: int
) -> None:
    """`transport` and `simulation`, and the same bits; names come from the live sites file."""
    simulation = {"data": str(samples[0].parent), "schema": str(AI4I_SCHEMA), "workers": workers}
    experiment = write_experiment(tmp_path, testbed, transport="memory", simulation=simulation)
    done = orchestrator("run", experiment, "--run-id", "simulated")
    assert done.returncode == 0, done.stderr
    played = results(tmp_path, "simulated")
    assert played["parameters_sha256"] == undisturbed["parameters_sha256"]


@pytest.mark.parametrize("name", ["feddyn", "scaffold"])
def test_what_sites_keep_and_send_is_the_same_over_pysyft(
    testbed: Testbed, federation: Federation, tmp_path: Path, name: str, channel: str
) -> None:
    """FedDyn's duals and SCAFFOLD's control variates go through trainer, ledger and wire."""
    experiment = write_experiment(tmp_path, testbed, algorithm={"name": name}, channel=channel)
    done = orchestrator("run", experiment, "--run-id", name)
    assert done.returncode == 0, done.stderr
    in_memory = federation.run(name, algorithm={"name": name})
    assert in_memory["parameters_sha256"] == results(tmp_path, name)["parameters_sha256"]


@pytest.mark.parametrize("form", ["zstd", "int8"])
def test_what_travels_compressed_is_the_same_over_pysyft(
    undisturbed: dict[str, Any],
    testbed: Testbed,
    federation: Federation,
    tmp_path: Path,
    *,
    form: str,
    channel: str,
) -> None:
    """Without loss the bits are those of no compression; what is rounded off stays at the site."""
    experiment = write_experiment(tmp_path, testbed, compression=form, channel=channel)
    done = orchestrator("run", experiment, "--run-id", f"{form}-{channel}")
    assert done.returncode == 0, done.stderr
    ended = results(tmp_path, f"{form}-{channel}")["parameters_sha256"]
    if form == "zstd":
        assert ended == undisturbed["parameters_sha256"]
    else:
        in_memory = federation.run(f"{form}-{channel}", compression=form)
        assert ended == in_memory["parameters_sha256"] != undisturbed["parameters_sha256"]


def test_a_run_killed_between_rounds_resumes_to_the_same_parameters(
    testbed: Testbed, undisturbed: dict[str, Any], tmp_path: Path, channel: str
) -> None:
    """SIGKILL after round 0, `orchestrator resume`, and the end is the undisturbed one."""
    experiment = write_experiment(tmp_path, testbed, channel=channel)
    run_id = f"killed-{channel}"
    run = start_orchestrator("run", experiment, "--run-id", run_id, "--json")
    code, _ = signal_after(run, signal.SIGKILL, round_line(0))
    assert code == -signal.SIGKILL
    listed = orchestrator("list", "--runs", tmp_path / "runs")
    assert "orphaned: its process is gone" in listed.stdout
    resumed = orchestrator("resume", run_id, "--runs", tmp_path / "runs")
    assert resumed.returncode == 0, resumed.stderr
    ended = results(tmp_path, run_id)
    assert ended["parameters_sha256"] == undisturbed["parameters_sha256"]
    assert [record["round_num"] for record in ended["rounds"]] == [0, 1, 2]
    plan_id = plan_of(testbed, "factory-1", run_id)
    trained = [
        row["detail"]["round_num"]
        for row in audit_rows(testbed, "factory-1")
        if row["action"] == "train" and row["plan_id"] == plan_id
    ]
    assert trained == [0, 1, 2]


def test_ctrl_c_stops_a_run_after_its_round_and_it_can_be_resumed(
    testbed: Testbed, federation: Federation, tmp_path: Path
) -> None:
    """SIGINT ends the command with 130, the run is CANCELLED with whole rounds, and can go on."""
    experiment = write_experiment(tmp_path, testbed, rounds=20)
    run = start_orchestrator("run", experiment, "--run-id", "stopped", "--json")
    code, errors = signal_after(run, signal.SIGINT, round_line(1))
    assert (code, "Traceback" in errors) == (130, False)
    assert "stopping after this round" in errors
    (listed,) = json.loads(orchestrator("list", "--runs", tmp_path / "runs", "--json").stdout)
    assert (listed["status"], listed["orphaned"]) == ("CANCELLED", False)
    assert 2 <= listed["rounds_done"] < 20
    assert len(results(tmp_path, "stopped")["rounds"]) == listed["rounds_done"]
    assert orchestrator("resume", "stopped", "--runs", tmp_path / "runs").returncode == 0
    ended = results(tmp_path, "stopped")
    in_memory = federation.run("stopped", rounds=20)
    assert ended["parameters_sha256"] == in_memory["parameters_sha256"]


def sites_with(testbed: Testbed, folder: Path, **changes: str) -> Path:
    """Write a sites file in which factory-2 is described otherwise."""
    federation = yaml.safe_load(testbed.sites_file.read_text(encoding="utf-8"))
    for site in federation["sites"]:
        site["password_file"] = str(testbed.folder / site["password_file"])
    federation["sites"][1].update(changes)
    path = folder / "sites.yaml"
    path.write_text(yaml.safe_dump(federation), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({"url": "http://127.0.0.1:1"}, "factory-2", id="unreachable"),
        pytest.param({"email": "nobody@lab.example.com"}, "was refused", id="wrong-account"),
        pytest.param({"site_id": "factory-9"}, "expected 'factory-9'", id="another-site"),
    ],
)
def test_a_site_that_cannot_be_reached_or_logged_in_to_ends_with_code_2(
    testbed: Testbed, tmp_path: Path, changes: dict[str, str], expected: str
) -> None:
    """The command names the site and what to do, and exits with 2."""
    sites = sites_with(testbed, tmp_path, **changes)
    experiment = write_experiment(tmp_path, testbed, sites=str(sites))
    run = orchestrator("run", experiment)
    assert run.returncode == 2, run.stderr
    assert expected in run.stderr
    assert "Traceback" not in run.stderr


def test_a_wrong_password_ends_with_code_2(testbed: Testbed, tmp_path: Path) -> None:
    """The refusal does not say whether the account exists."""
    (tmp_path / "wrong").write_text("not the password\n", encoding="utf-8")
    sites = sites_with(testbed, tmp_path, password_file="wrong")
    run = orchestrator("run", write_experiment(tmp_path, testbed, sites=str(sites)))
    assert run.returncode == 2
    assert "wrong password, no such account" in run.stderr


def test_sites_says_what_each_site_offers(testbed: Testbed) -> None:
    """`orchestrator sites` logs in everywhere and lists the datasets."""
    shown = orchestrator("sites", testbed.sites_file)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("ai4i (600 rows)") == 3


def test_the_operator_sees_the_site_its_accounts_and_its_log(
    testbed: Testbed, undisturbed: dict[str, Any]
) -> None:
    """Status, accounts, plans in plain words, a log that verifies: beside the running site."""
    config = ("--config", str(testbed.config_file("factory-1")))
    assert json.loads(run_datasite("status", "--json", *config))["status"] == "ONLINE"
    accounts = {a["email"] for a in json.loads(run_datasite("users", "list", "--json", *config))}
    assert accounts == {OPERATOR, RESEARCHER}
    plan_id = plan_of(testbed, "factory-1", "undisturbed")
    words = run_datasite("plans", "show", plan_id[:12], *config)
    assert "APPROVED: by the site's rule \"the testbed's own researcher\"" in words
    assert "all as they were written" in run_datasite("audit", "verify", *config)


def shown(testbed: Testbed, site: SiteProcess, account: str, email: str) -> Any:
    """Give the dataset that a plain PySyft client sees at a site, with nothing of ours."""
    import syft  # noqa: PLC0415 - takes seconds

    password_file = testbed.folder / site.site_id / f"{account}.password"
    password = password_file.read_text(encoding="utf-8").strip()
    client = syft.login(url=site.url, email=email, password=password)
    return client.datasets.get_all()[0]


def test_a_plain_pysyft_client_sees_the_mock_and_not_the_rows(testbed: Testbed) -> None:
    """`sy.login` shows the dataset, its schema and its mock, and no row."""
    dataset = shown(testbed, testbed.sites()[0], "researcher", RESEARCHER)
    assert dataset.name == "ai4i"
    assert "Air temperature [K]" in dataset.description.text
    mock = dataset.assets[0].mock
    assert list(mock.columns)[-1] == "Machine failure"
    assert len(mock) == 100
    assert not hasattr(dataset.assets[0].data, "columns")


def test_factories_with_different_rows_show_the_same_mock(testbed: Testbed) -> None:
    """It is drawn from the schema alone, which the three have in common."""
    first, *others = (
        shown(testbed, site, "researcher", RESEARCHER).assets[0].mock for site in testbed.sites()
    )
    assert len(others) == 2
    assert all(mock.equals(first) for mock in others)


def test_pysyft_has_a_manifest_of_the_rows_and_not_one_of_them(testbed: Testbed) -> None:
    """Even its operator finds there where they lie, and what they hash to."""
    site = testbed.sites()[0]
    kept = shown(testbed, site, "operator", OPERATOR).assets[0].data
    config = str(testbed.config_file(site.site_id))
    (listed,) = json.loads(run_datasite("data", "list", "--json", "--config", config))
    assert list(kept.columns) == ["file", "rows", "columns", "sha256"]
    assert kept["rows"].tolist() == [listed["rows"]]
    assert kept["sha256"].tolist() == [listed["sha256"]]


def test_a_killed_site_comes_back_with_its_data_and_accounts(
    testbed: Testbed, tmp_path: Path
) -> None:
    """SIGKILL on a site, `testbed up`, and an experiment runs over all three again."""
    victim = testbed.sites()[1].process()
    assert victim is not None
    victim.kill()
    victim.wait(timeout=10)
    testbed.up(3)
    run = orchestrator("run", write_experiment(tmp_path, testbed, rounds=1))
    assert run.returncode == 0, run.stderr


def processes_of(folder: Path) -> list[int]:
    """Give every process whose command names `folder`."""
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if any(str(folder) in argument for argument in process.info["cmdline"] or [])
    ]


@pytest.mark.parametrize(
    "moment",
    [pytest.param("starting", id="while-starting"), pytest.param("round", id="while-training")],
)
def test_an_interrupted_demo_leaves_no_process(tmp_path: Path, moment: str) -> None:
    """Ctrl-C, whenever it comes, takes every site down with it."""
    place = tmp_path / "demo"
    demo = start_orchestrator(
        *("testbed", "demo", "--sites", "1", "--rounds", "200"),
        *("--folder", place, "--runs", tmp_path / "runs"),
    )
    code, errors = signal_after(demo, signal.SIGINT, lambda line: line.startswith(moment))
    assert (code, "Traceback" in errors) == (130, False), errors
    assert processes_of(place) == []
