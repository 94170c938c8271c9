"""The `datasite` command, as an operator types it; no site runs."""

import json
import re
import shlex
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from loguru import logger
from sites import (
    RESEARCHER,
    SCHEMA,
    ask,
    evaluate_request,
    inline,
    parameters,
    proposal,
    site_settings,
    write_table,
)

from core.codehash import installed_code_hash
from datasite.cli import main
from datasite.configuration import load_site_config
from datasite.site import FactoryDataSite

VERBS = [
    "serve",
    "status",
    "identity",
    "data check",
    "data register",
    "data list",
    "data remove",
    "plans list",
    "plans show",
    "plans approve",
    "plans deny",
    "plans revoke",
    "plans approver",
    "budget set",
    "budget show",
    "users add",
    "users list",
    "users disable",
    "users enable",
    "users password",
    "audit show",
    "audit export",
    "audit verify",
    "audit head",
    "certificate request",
    "backup",
    "restore",
    "doctor",
]

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


Command = Callable[..., Ended]


@pytest.fixture
def datasite(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Command]:
    """Give the command as a function of its arguments, in this process."""
    monkeypatch.delenv("DATASITE_CONFIG", raising=False)

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["datasite", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return Ended(code=int(ended.value.code or 0), out=printed.out, err=printed.err)

    yield run
    logger.remove()  # the command's log goes to a standard error that is no more
    logger.add(sys.__stderr__ or sys.stderr)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A `site.yaml` whose plans wait for the operator."""
    path = tmp_path / "site.yaml"
    path.write_text(yaml.safe_dump(site_settings(tmp_path, policy=[])))
    return path


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    """The schema of `press`, as a file."""
    path = tmp_path / "press.yaml"
    path.write_text(yaml.safe_dump(SCHEMA))
    return path


@pytest.fixture
def registered(datasite: Command, config: Path, schema: Path, tmp_path: Path) -> Path:
    """The configuration of a site with `press` registered."""
    file = write_table(tmp_path / "press.csv")
    ended = datasite("data", "register", file, "-s", schema, "-n", "press", "-c", config)
    assert ended.code == 0, ended.err
    return config


def asked(config: Path, message: dict[str, Any]) -> dict[str, Any]:
    """Ask the site as the researcher, beside the operator's commands."""
    site = FactoryDataSite(inline)
    site.open(load_site_config(config))
    try:
        return ask(site, message, RESEARCHER)
    finally:
        site.close()


def proposed(config: Path, **changes: object) -> str:
    """Propose a plan as the researcher; its id."""
    return str(asked(config, proposal(**changes))["plan_id"])


def in_a_shell(command: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash, where `datasite` is the command."""
    line = f'datasite() {{ {shlex.quote(sys.executable)} -m datasite "$@"; }}; {command}'
    return subprocess.run(
        ["/bin/bash", "-c", line],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_shows_an_example_of_itself(datasite: Command, verb: str) -> None:
    """What is asked for most is how it is typed."""
    ended = datasite(*verb.split(), "--help")
    assert ended.code == 0
    assert f"Example: datasite {verb}" in " ".join(ended.out.split())


def test_the_list_of_verbs_is_complete(datasite: Command) -> None:
    """A new command without an example would not be noticed otherwise."""

    def commands(*group: str) -> list[str]:
        _, listing = datasite(*group, "--help").out.split("Commands:\n")
        return re.findall(r"^  ([a-z]+)  ", listing, flags=re.MULTILINE)

    found = []
    for name in commands():
        is_group = "COMMAND" in datasite(name, "--help").out
        found += [f"{name} {verb}" for verb in commands(name)] if is_group else [name]
    assert sorted(found) == sorted(VERBS)


@pytest.mark.parametrize(
    "arguments",
    [
        ["list"],
        ["data", "lost"],
        ["data", "list", "--jsno"],
        ["plans", "show", "-c", "site.yaml"],
        ["plans", "deny", "3f2a", "-c", "site.yaml"],
        ["audit", "show", "--last", "0", "-c", "site.yaml"],
        ["users", "add", "--email", "a@b.example.com", "--role", "king", "-c", "site.yaml"],
        ["certificate", "request", "--out", "tls"],
        ["certificate", "request", "--host", "factory-1"],
    ],
    ids=[
        "verb",
        "sub-verb",
        "option",
        "no id",
        "no reason",
        "out of range",
        "role",
        "no host",
        "no folder",
    ],
)
def test_wrong_arguments_end_with_exit_code_4(datasite: Command, arguments: list[str]) -> None:
    """They are said on standard error, with how to get help or what was expected."""
    ended = datasite(*arguments)
    assert ended.code == 4
    assert ended.out == ""
    assert "Error: " in ended.err


def test_a_certificate_is_asked_for_without_a_configuration(
    datasite: Command, tmp_path: Path
) -> None:
    """What is printed says which file to keep, which to send, and what the authority does."""
    arguments = ["certificate", "request", "--out", tmp_path / "tls", "--host", "factory-1"]
    ended = datasite(*arguments, "--host", "10.0.0.7")
    assert (ended.code, ended.err) == (0, "")
    assert f"{tmp_path / 'tls' / 'site.key'} is the site's key; keep it here" in ended.out
    assert "asks for a certificate for factory-1, 10.0.0.7" in ended.out
    assert "orchestrator certificates sign site.csr" in ended.out
    again = datasite(*arguments)
    assert again.code == 4
    assert again.err.startswith("error: ")
    assert "site.key is there already" in again.err


@pytest.mark.parametrize("verb", ["serve", "status", "data list", "plans list", "audit verify"])
def test_a_command_without_its_configuration_says_so(datasite: Command, verb: str) -> None:
    """The option is named; the exit code is that of wrong arguments."""
    ended = datasite(*verb.split())
    assert ended.code == 4
    assert "Missing option '--config'" in ended.err


def test_the_configuration_may_stand_in_the_environment(
    datasite: Command, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container, where it is always the same."""
    monkeypatch.setenv("DATASITE_CONFIG", str(config))
    assert datasite("data", "list").code == 0


def test_a_configuration_that_is_not_there_is_named(datasite: Command, tmp_path: Path) -> None:
    """One line, no traceback."""
    ended = datasite("plans", "list", "-c", tmp_path / "site.yml")
    assert (ended.code, ended.out) == (4, "")
    assert ended.err == f"error: {tmp_path / 'site.yml'}: no such file\n"


def test_a_state_that_cannot_be_opened_is_a_configuration_error(
    datasite: Command, config: Path, tmp_path: Path
) -> None:
    """A file stands where the state should be."""
    (tmp_path / "state").write_text("in the way")
    ended = datasite("data", "list", "-c", config)
    assert ended.code == 4
    assert "no private directory can be kept here (File exists)" in ended.err


def test_a_good_file_is_reported_and_nothing_changes(
    datasite: Command, schema: Path, tmp_path: Path
) -> None:
    """Exit code 0, rows and label rate; no configuration is needed and nothing is made."""
    file = write_table(tmp_path / "press.csv")
    before = sorted(tmp_path.iterdir())
    ended = datasite("data", "check", file, "--schema", schema)
    assert ended.code == 0
    assert "100" in ended.out
    assert "25" in ended.out
    assert sorted(tmp_path.iterdir()) == before


def test_a_bad_file_is_reported_with_its_lines(
    datasite: Command, schema: Path, tmp_path: Path
) -> None:
    """Exit code 1; the operator is told the line, the column and the value."""
    file = write_table(tmp_path / "press.csv", load=[99.5] + [1.0] * 99)
    ended = datasite("data", "check", file, "--schema", schema)
    assert ended.code == 1
    assert "line 2" in ended.out
    assert "99.5" in ended.out


def test_a_dataset_is_registered_listed_and_removed(
    datasite: Command, config: Path, schema: Path, tmp_path: Path
) -> None:
    """Each step in words, and the list as JSON for machines."""
    file = write_table(tmp_path / "press.csv")
    words = ["data", "register", file, "--schema", schema, "--name", "press", "--config", config]
    assert datasite(*words).out == (
        "registered 'press', version 1: 100 rows, 2 features; researchers see it once the site runs"
        "\n"
    )
    header, row = datasite("data", "list", "-c", config).out.splitlines()
    assert header.split() == ["name", "version", "rows", "schema", "registered"]
    assert row.split()[:4] == ["press", "1", "100", "press"]
    (found,) = json.loads(datasite("data", "list", "--json", "-c", config).out)
    assert (found["name"], found["version"], found["rows"]) == ("press", 1, 100)
    assert datasite("data", "remove", "press", "-c", config).out == "removed 'press', version 1\n"
    assert json.loads(datasite("data", "list", "--json", "-c", config).out) == []
    assert "no dataset is registered" in datasite("data", "list", "-c", config).out


def test_bad_data_are_not_registered(
    datasite: Command, config: Path, schema: Path, tmp_path: Path
) -> None:
    """Exit code 1, the first violations, and an empty list."""
    file = write_table(tmp_path / "press.csv", load=99.5)
    ended = datasite("data", "register", file, "-s", schema, "-n", "press", "-c", config)
    assert ended.code == 1
    assert "breaks schema 'press' in 100 place(s)" in ended.err
    assert json.loads(datasite("data", "list", "--json", "-c", config).out) == []


def test_registering_again_is_a_version_when_the_data_are_others(
    datasite: Command, registered: Path, schema: Path, tmp_path: Path
) -> None:
    """The same data are registered already; others are version 2, and either can be removed."""
    file = tmp_path / "press.csv"
    again = datasite("data", "register", file, "-s", schema, "-n", "press", "-c", registered)
    assert (again.code, again.out.partition(":")[0]) == (0, "already registered 'press', version 1")
    write_table(file, load=1.0)
    ended = datasite("data", "register", file, "-s", schema, "-n", "press", "-c", registered)
    assert (ended.code, ended.out.partition(":")[0]) == (0, "registered 'press', version 2")
    assert "plans that name version 1 keep it" in ended.out
    listed = json.loads(datasite("data", "list", "--json", "-c", registered).out)
    assert [(row["name"], row["version"]) for row in listed] == [("press", 1), ("press", 2)]
    removed = datasite("data", "remove", "press", "--version", "1", "-c", registered)
    assert removed.out == "removed 'press', version 1\n"
    listed = json.loads(datasite("data", "list", "--json", "-c", registered).out)
    assert [row["version"] for row in listed] == [2]


def test_a_drift_is_told_at_registration(
    datasite: Command, config: Path, schema: Path, tmp_path: Path
) -> None:
    """Half the range away is far; what stayed is not mentioned."""
    file = tmp_path / "press.csv"
    for shift in (0.0, 5.0):
        write_table(file, rows=500, load=[i % 40 / 10 + shift for i in range(500)])
        ended = datasite("data", "register", file, "-s", schema, "-n", "press", "-c", config)
    assert "'load' has drifted far from the first version (PSI " in ended.out
    assert "'heat'" not in ended.out


def test_a_plan_is_listed_and_shown_in_words(datasite: Command, registered: Path) -> None:
    """Who asks for what, what leaves the site, what that protects, and what is new in it."""
    plan_id = proposed(registered)
    header, row = datasite("plans", "list", "-c", registered).out.splitlines()
    assert header.split()[:3] == ["plan", "status", "researcher"]
    assert row.split()[:6] == [plan_id[:12], "WAITING", RESEARCHER.email, "press", "fedavg", "3"]
    shown = datasite("plans", "show", plan_id[:6], "-c", registered).out
    for words in (
        f"Plan      {plan_id}",
        "Status    WAITING: waits for the operator",
        f"Asked by  {RESEARCHER.email}",
        "Decided   by nobody yet",
        "press, version 1, 100 rows: trains on 60% of them",
        "Model     cnn (blocks 1, channels 2)",
        "fedavg, 3 rounds of 1 epoch(s), batches of 16",
        "sgd: learning rate at most 0.1, momentum 0",
        "gradients clipped at no norm",
        "at most 12 trainings in all",
        f"{installed_code_hash()[:16]}, which is installed",
        f"{sum(t.numel() for t in parameters().values())} numbers, about 616 bytes",  # 154 x 4
        "not compressed",
        "Privacy level: none. Nothing is hidden",
        "Nothing was approved before for this person and dataset",
    ):
        assert words in shown
    assert all(len(line) <= 100 for line in shown.splitlines())
    as_json = json.loads(datasite("plans", "show", plan_id, "--json", "-c", registered).out)
    assert as_json["proposal"] == proposal()
    assert (as_json["dataset_rows"], as_json["code_is_installed"]) == (100, True)
    assert (as_json["parameters"], as_json["most_trainings"]) == (154, 12)
    assert (as_json["compared_with"], as_json["changes"]) == (None, [])
    (listed,) = json.loads(datasite("plans", "list", "--json", "-c", registered).out)
    assert listed.items() <= as_json.items()


def test_the_roster_of_a_plan_is_compared_with_what_sites_print(
    datasite: Command, registered: Path
) -> None:
    """The line that `identity` prints stands in the plan; a name cannot pass for another line."""
    line = datasite("identity", "-c", registered).out.strip()
    name, key = line.split(": ")
    assert datasite("identity", "-c", registered).out.strip() == line
    other = "1" * 64
    privacy = {
        "level": "secure_aggregation",
        "roster": {name: key, "factory-2": other, f"x\n  - factory-3: {other}": other},
        "sites_per_round": 3,
        "threshold": 3,
        "max_change": 16.0,
        "max_samples": 1000,
        "weighting": "samples",
    }
    plan_id = proposed(registered, privacy_level="secure_aggregation", privacy=privacy)
    shown = datasite("plans", "show", plan_id, "-c", registered).out
    assert f"  - {line}\n  - factory-2: {other}\n" in shown
    assert f"\n  - factory-3: {other}" not in shown
    assert "the sum of the updates of 3 to 3 sites of a round" in shown
    assert "under masks that only cancel in the sum" in shown
    assert "154 numbers" not in shown


def test_a_plan_is_shown_with_what_changed_since_the_last(
    datasite: Command, registered: Path
) -> None:
    """Field by field; or that nothing did but the run."""
    first = proposed(registered)
    datasite("plans", "approve", first, "-c", registered)
    same = proposed(registered, run_id="run-2")
    shown = datasite("plans", "show", same, "-c", registered).out
    assert f"Changed since plan {first[:12]}, approved 20" in shown
    assert "for run run-1:\n  nothing but the run's id\n" in shown
    scaffold = {"name": "scaffold", "hyperparameters": {}}
    other = proposed(registered, run_id="run-3", rounds=9, algorithm=scaffold, compression="int8")
    shown = datasite("plans", "show", other, "-c", registered).out
    _, changes = shown.split("for run run-1:\n")
    assert [line.split(maxsplit=1) for line in changes.splitlines()] == [
        ["algorithm.name", "fedavg -> scaffold"],
        ["rounds", "3 -> 9"],
        ["compression", "not given -> int8"],
    ]
    assert "154 numbers, about 154 bytes;\n    the change of each in 1 byte (int8)" in shown
    assert "the change of SCAFFOLD's control variate, as many numbers again" in shown
    as_json = json.loads(datasite("plans", "show", other, "--json", "-c", registered).out)
    assert as_json["compared_with"] == first
    assert as_json["changes"][1] == {"field": "rounds", "before": 3, "after": 9}


def test_a_plan_that_cannot_run_is_shown_as_such(datasite: Command, registered: Path) -> None:
    """Data that are gone, a model that cannot be built, other code than is installed."""
    wrong = proposed(registered, model={"type": "cnn", "options": {"channels": 4096}})
    shown = datasite("plans", "show", wrong, "-c", registered).out
    assert "none: it cannot be built (model 'cnn': option 'channels' is 4096" in shown
    datasite("data", "remove", "press", "-c", registered)
    with sqlite3.connect(registered.parent / "state" / "ledger.db") as connection:
        text = json.dumps(proposal(code_hash="f" * 64))
        connection.execute("UPDATE plans SET proposal = ?", (text,))
    connection.close()
    shown = datasite("plans", "show", wrong, "-c", registered).out
    assert "press, version 1, not registered any more" in shown
    assert "ffffffffffffffff, which is NOT installed: nothing runs" in shown


def test_the_deciding_rule_is_shown(datasite: Command, registered: Path, tmp_path: Path) -> None:
    """By its name in site.yaml, and on the log."""
    registered.write_text(yaml.safe_dump(site_settings(tmp_path)))
    plan_id = proposed(registered)
    shown = datasite("plans", "show", plan_id, "-c", registered).out
    assert "Status    APPROVED: by the site's rule 'lab'" in shown
    assert "Decided   by rule 'lab' at 20" in shown
    assert "rule=lab" in datasite("audit", "show", "--last", "1", "-c", registered).out


@pytest.fixture
def by_two(
    datasite: Command, registered: Path, tmp_path: Path
) -> Callable[[str], tuple[str, str, str, Path]]:
    """Let two of three persons have to approve; how each says who they are."""
    entries = []
    for name in ("anna", "bert", "carl"):
        (tmp_path / name).write_text(f"the password of {name}\n")
        printed = datasite("plans", "approver", name, "--password-file", tmp_path / name)
        assert printed.code == 0, printed.err
        entries += yaml.safe_load(printed.out)
    settings = site_settings(tmp_path, policy=[], approvals=2, approvers=entries)
    registered.write_text(yaml.safe_dump(settings))
    return lambda name: ("--as", name, "--password-file", tmp_path / name)


def test_two_persons_approve_each_with_a_password(
    datasite: Command, registered: Path, by_two: Callable[[str], tuple[str, ...]]
) -> None:
    """The first is counted, the second decides; the log has both."""
    plan_id = proposed(registered)
    counted = datasite("plans", "approve", plan_id, *by_two("anna"), "-c", registered)
    assert counted.out == (
        f"plan {plan_id[:12]} is WAITING: approved by anna; waits for 1 more to approve\n"
    )
    again = datasite("plans", "approve", plan_id, *by_two("anna"), "-c", registered)
    assert (again.code, "anna approved plan" in again.err) == (1, True)
    done = datasite("plans", "approve", plan_id, *by_two("bert"), "-c", registered)
    assert done.out == f"plan {plan_id[:12]} is APPROVED: approved\n"
    shown = datasite("plans", "show", plan_id, "-c", registered).out
    assert "Decided   by anna, bert at 20" in shown
    revoked = datasite("plans", "revoke", plan_id, "--reason", "no", "-c", registered)
    assert revoked.out == f"plan {plan_id[:12]} is REVOKED: no\n"


def test_another_name_is_not_another_person(
    datasite: Command,
    registered: Path,
    by_two: Callable[[str], tuple[str, ...]],
    tmp_path: Path,
) -> None:
    """Anna, who knows no password but her own, approves once; her tries are on the log."""
    plan_id = proposed(registered)
    datasite("plans", "approve", plan_id, *by_two("anna"), "-c", registered)
    own = ("--password-file", tmp_path / "anna")
    for name, message in (
        ("bert", "this is not the password of bert; nothing was approved"),
        ("dora", "'dora' is no approver; site.yaml names anna, bert, carl"),
    ):
        refused = datasite("plans", "approve", plan_id, "--as", name, *own, "-c", registered)
        assert (refused.code, refused.out) == (1, "")
        assert message in refused.err
        (row,) = json.loads(
            datasite("audit", "show", "--last", "1", "--json", "-c", registered).out
        )
        assert (row["action"], row["outcome"]) == ("plan approval refused", "SecurityError")
        assert message in row["detail"]["message"]
    nobody = datasite("plans", "approve", plan_id, "-c", registered)
    assert nobody.code == 4
    assert "say who approves with --as; one of anna, bert, carl" in nobody.err
    told = asked(registered, {"kind": "plan_status", "plan_id": plan_id})
    assert told["status"] == "WAITING"


def test_an_approver_where_there_are_none_is_a_mistake(datasite: Command, registered: Path) -> None:
    """Whoever types a name expects it to be checked."""
    ended = datasite("plans", "approve", "3f2a", "--as", "anna", "-c", registered)
    assert ended.code == 4
    assert "--as: factory-1 has no `approvers` in its site.yaml" in ended.err


@pytest.mark.parametrize(
    ("name", "password", "message"),
    [
        ("anna", "short", "the password of anna has 5 characters"),
        ("operator", "correct horse battery", "stands for somebody else in the audit log"),
        ("Anna B", "correct horse battery", "name: "),
    ],
    ids=["password", "taken", "name"],
)
def test_an_approver_that_will_not_do_is_refused(
    datasite: Command, tmp_path: Path, name: str, password: str, message: str
) -> None:
    """Before it stands in a file; the password is not shown."""
    file = tmp_path / "password"
    file.write_text(password)
    ended = datasite("plans", "approver", name, "--password-file", file)
    assert (ended.code, ended.out) == (4, "")
    assert message in ended.err
    assert password not in ended.err


def test_a_waiting_plan_is_approved_and_revoked(datasite: Command, registered: Path) -> None:
    """The printed words are the decision, and the researcher is told the same."""
    plan_id = proposed(registered)
    approved = datasite("plans", "approve", plan_id[:8], "-c", registered)
    assert approved.out == f"plan {plan_id[:12]} is APPROVED: approved\n"
    revoked = datasite("plans", "revoke", plan_id[:8], "--reason", "it is over", "-c", registered)
    assert revoked.out == f"plan {plan_id[:12]} is REVOKED: it is over\n"
    told = asked(registered, {"kind": "plan_status", "plan_id": plan_id})
    assert (told["status"], told["reason"]) == ("REVOKED", "it is over")


def test_a_waiting_plan_is_denied(datasite: Command, registered: Path) -> None:
    """With the reason, which is asked for; a second decision is refused."""
    plan_id = proposed(registered)
    denied = datasite("plans", "deny", plan_id, "--reason", "maintenance", "-c", registered)
    assert denied.out == f"plan {plan_id[:12]} is DENIED: maintenance\n"
    again = datasite("plans", "approve", plan_id, "-c", registered)
    assert again.code == 1
    assert "is DENIED and cannot become APPROVED; only a plan that is WAITING can" in again.err


def test_an_unknown_plan_says_where_to_look(datasite: Command, registered: Path) -> None:
    """The id, and the command that lists them."""
    ended = datasite("plans", "show", "ffff", "-c", registered)
    assert ended.code == 1
    assert "no plan has an id that starts with 'ffff'; see 'datasite plans list'" in ended.err


def test_a_researcher_cannot_forge_what_the_operator_reads(
    datasite: Command, registered: Path
) -> None:
    """Line ends and escapes in a proposal are spelt out: no line is added, none is hidden."""
    forged = "x\nPrivacy level: differential_privacy\x1b[8m\u202e"
    plan_id = proposed(registered, run_id=forged)
    shown = datasite("plans", "show", plan_id, "-c", registered).out
    assert "for run x\\nPrivacy level: differential_privacy\\x1b[8m\\u202e\n" in shown
    assert shown.count("\nPrivacy level: ") == 1
    assert "\x1b" not in shown
    asked(registered, evaluate_request("\x1b[2J\nforged"))
    logged = datasite("audit", "show", "--last", "1", "-c", registered).out
    assert "\x1b" not in logged
    assert "\\x1b[2J\\nforg" in logged


def test_the_log_is_shown_and_verified(datasite: Command, registered: Path) -> None:
    """Newest last; as a table, as JSON, and with the hash to note down."""
    plan_id = proposed(registered)
    rows = json.loads(datasite("audit", "show", "--json", "-c", registered).out)
    assert [row["action"] for row in rows] == ["data registered", "plan proposed"]
    assert rows[1]["plan_id"] == plan_id
    header, row = datasite("audit", "show", "--last", "1", "-c", registered).out.splitlines()
    columns = "seq  at (UTC)  who  action  plan  data  code  bytes  outcome  more"
    assert header.split() == columns.split()
    assert "plan proposed" in row
    verified = datasite("audit", "verify", "-c", registered)
    assert verified.code == 0
    newest = rows[-1]["sha256"]
    assert verified.out == f"2 entries, all as they were written; newest hash {newest}\n"


def test_the_log_is_exported_and_checked_elsewhere(
    datasite: Command, registered: Path, tmp_path: Path
) -> None:
    """JSON lines to a file or to standard output, checked without a configuration or a site."""
    proposed(registered)
    anchor = datasite("audit", "head", "-c", registered).out
    file = tmp_path / "audit.jsonl"
    assert datasite("audit", "export", "--out", file, "-c", registered).code == 0
    assert datasite("audit", "export", "-c", registered).out == file.read_text()
    proposed(registered, run_id="run-2")
    checked = datasite("audit", "verify", "--file", file, "--anchor", anchor)
    assert checked.code == 0
    assert checked.out.startswith("2 entries, all as they were written, and the anchor is among")
    later = datasite("audit", "verify", "--anchor", anchor, "-c", registered)
    assert later.out.startswith("3 entries, all as they were written, and the anchor is among")
    file.write_text(file.read_text().splitlines()[0] + "\n")
    cut = datasite("audit", "verify", "--file", file, "--anchor", anchor)
    assert (cut.code, cut.out) == (1, "")
    assert "row 2 and those after it were cut off" in cut.err


@pytest.mark.parametrize(
    ("since", "rows"),
    [
        ("1h", 2),
        ("1w", 2),
        ("9" * 12 + "w", 2),
        ("0s", 0),
        ("2020-01-01", 2),
        ("2199-01-01T08:00", 0),
    ],
)
def test_the_log_is_shown_since_a_time(
    datasite: Command, registered: Path, since: str, rows: int
) -> None:
    """A time in UTC, or how long ago."""
    proposed(registered)
    shown = datasite("audit", "show", "--since", since, "--json", "-c", registered)
    assert len(json.loads(shown.out)) == rows


@pytest.mark.parametrize("since", ["yesterday", "5", "h", "²h", "2026-13-01"])
def test_a_time_that_is_none_is_said(datasite: Command, registered: Path, since: str) -> None:
    """With what would be one."""
    ended = datasite("audit", "show", "--since", since, "-c", registered)
    assert ended.code == 4
    assert "is no time; expected one as 2026-11-24T08:00, or 30m, 2h, 7d" in " ".join(
        ended.err.split()
    )


def test_a_log_that_was_tampered_with_ends_with_exit_code_1(
    datasite: Command, registered: Path, tmp_path: Path
) -> None:
    """The entry is named."""
    with sqlite3.connect(tmp_path / "state" / "ledger.db") as connection:
        connection.execute("DROP TRIGGER audit_no_update")
        connection.execute("UPDATE audit SET who = 'nobody' WHERE seq = 1")
    connection.close()
    ended = datasite("audit", "verify", "-c", registered)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == "error: audit row 1 was changed after it was written\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"],
        ["users", "list"],
        ["users", "add", "--email", "a@b.example.com"],
        ["users", "disable", "a@b.example.com"],
        ["users", "enable", "a@b.example.com"],
        ["users", "password", "a@b.example.com"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_a_site_that_does_not_run_is_said_with_how_to_start_it(
    datasite: Command, config: Path, arguments: list[str]
) -> None:
    """At once, before a password is asked for."""
    ended = datasite(*arguments, "-c", config)
    assert (ended.code, ended.out) == (1, "")
    assert "factory-1 is not running" in ended.err
    assert "start it with 'datasite serve --config ...'" in ended.err


def test_a_password_is_never_an_argument(datasite: Command, config: Path) -> None:
    """Arguments can be seen by every user of the machine: there is no such option."""
    words = ["users", "add", "--email", "a@b.example.com", "-c", config]
    ended = datasite(*words, "--password", "correct horse battery")
    assert ended.code == 4
    assert "No such option: --password" in ended.err
    assert ended.err.count("correct horse battery") == 0
    assert "correct horse battery" not in datasite(*words, "correct horse battery").out


@pytest.mark.parametrize(
    "password",
    ["changethis", "tiny-secret", "op@factory.example.com"],
    ids=["default", "short", "the e-mail"],
)
def test_a_weak_password_keeps_the_site_from_starting(
    datasite: Command, config: Path, tmp_path: Path, password: str
) -> None:
    """Exit code 4 before PySyft is imported and before anything is written; it is not shown."""
    operator = {"email": "op@factory.example.com", "password": password}
    config.write_text(yaml.safe_dump(site_settings(tmp_path, operator=operator)))
    was_loaded = "syft" in sys.modules  # by another test in this process
    ended = datasite("serve", "-c", config)
    assert (ended.code, ended.out) == (4, "")
    assert "choose 12 to 72 characters" in ended.err
    assert password == operator["email"] or password not in ended.err
    assert ("syft" in sys.modules) == was_loaded
    assert not (tmp_path / "state").exists()


def test_serving_over_a_state_that_is_a_file_is_a_configuration_error(
    datasite: Command, config: Path, tmp_path: Path
) -> None:
    """What went wrong is told, and not what failed while cleaning up after it."""
    (tmp_path / "state").write_text("in the way")
    ended = datasite("serve", "-c", config)
    assert ended.code == 4
    assert "no private directory can be kept here (File exists)" in ended.err


def test_a_reader_that_has_seen_enough_is_no_error(registered: Path) -> None:
    """`| head -1` gets its line; nothing is complained of."""
    for number in range(3):
        proposed(registered, run_id=f"run-{number}")
    ended = in_a_shell(f"datasite plans list --json -c {shlex.quote(str(registered))} | head -1")
    assert ended.stdout == "[\n"
    assert ended.stderr == ""


def test_a_reader_that_is_gone_is_no_error(registered: Path) -> None:
    """Even when nobody reads a single byte, standard error stays empty."""
    quoted = shlex.quote(str(registered))
    ended = in_a_shell(f"datasite audit show --json -c {quoted} | true")
    assert ended.stderr == ""
