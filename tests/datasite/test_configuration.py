"""`site.yaml`: mistakes are found all at once, paths start at the file, the state is private."""

import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from sites import inline

from core.exceptions import ConfigurationError, DataSiteError
from datasite.configuration import (
    SiteConfig,
    load_site_config,
    open_state,
    password_of,
)
from datasite.ledger import Ledger
from datasite.serve import serve
from datasite.site import FactoryDataSite

OPERATOR = {"email": "op@factory.example.com", "password": "correct horse battery"}


def write(folder: Path, **changes: object) -> Path:
    """Write a `site.yaml` that holds; `changes` replace or add keys."""
    path = folder / "site.yaml"
    settings = {"site_id": "factory-1", "state": "state", "operator": OPERATOR, **changes}
    path.write_text(yaml.safe_dump(settings))
    return path


def load(folder: Path, **changes: object) -> SiteConfig:
    """Write and read it."""
    return load_site_config(write(folder, **changes))


def refused(folder: Path, **changes: object) -> str:
    """Give the message that refuses it."""
    with pytest.raises(ConfigurationError) as caught:
        load(folder, **changes)
    return str(caught.value)


def test_three_keys_are_enough(tmp_path: Path) -> None:
    """The rest has defaults that are safe: this machine only, and the operator decides."""
    config = load(tmp_path)
    assert (config.listen.host, config.listen.port) == ("127.0.0.1", 8080)
    assert config.policy == ()
    assert (config.plan_days, config.training.threads) == (30, 1)


def test_every_mistake_is_reported_with_its_path(tmp_path: Path) -> None:
    """Seven mistakes in one message, each where it stands in the file."""
    message = refused(
        tmp_path,
        site_id="Factory One",
        operator={"email": "nobody"},
        listen={"port": 70000, "hots": "::1"},
        policy=[{"name": "lab", "decision": "aprove"}],
        training={"deadline_s": 0, "threads": 0},
    )
    assert "site.yaml: 7 mistake(s):" in message
    lines = message.splitlines()[1:]
    for path in (
        "site_id",
        "operator.email",
        "listen.port",
        "policy[0].decision",
        "training.deadline_s",
        "training.threads",
    ):
        assert any(line.startswith(f"  {path}: ") for line in lines), path
    assert "  listen.hots: unknown key; did you mean 'host'?" in lines


@pytest.mark.parametrize(
    "site_id",
    ["", "Factory-1", "-factory", "factory 1", "../factory", "f" * 64],
    ids=["empty", "capital", "dash first", "space", "path", "64 characters"],
)
def test_a_site_id_is_lower_case_letters_digits_and_dashes(tmp_path: Path, site_id: str) -> None:
    """It becomes part of paths, logs and commands."""
    assert "  site_id: " in refused(tmp_path, site_id=site_id)


def test_relative_paths_start_at_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever directory the command is given in."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    folder = tmp_path / "site"
    folder.mkdir()
    operator = {"email": OPERATOR["email"], "password_file": "secrets/password"}
    tls = {"certificate": "tls/site.crt", "key": "/srv/site.key"}
    write(folder, operator=operator, listen={"port": 8443, "tls": tls})
    monkeypatch.chdir(elsewhere)
    config = load_site_config(Path("../site/site.yaml"))
    assert config.state == folder / "state"
    assert config.operator.password_file == folder / "secrets" / "password"
    assert config.listen.port == 8443
    assert config.listen.tls is not None
    assert config.listen.tls.certificate == folder / "tls" / "site.crt"
    assert config.listen.tls.key == Path("/srv/site.key")


def test_tls_takes_both_files(tmp_path: Path) -> None:
    """One without the other would be a site that says http where https was meant."""
    message = refused(tmp_path, listen={"tls": {"certificate": "site.crt"}})
    assert "  listen.tls.key: missing" in message


def test_absolute_paths_stay(tmp_path: Path) -> None:
    """A volume of its own is where it is."""
    assert load(tmp_path, state="/srv/site").state == Path("/srv/site")


@pytest.mark.parametrize(
    "operator",
    [
        {"email": OPERATOR["email"]},
        {**OPERATOR, "password_file": "password"},
    ],
    ids=["neither", "both"],
)
def test_a_password_is_given_in_one_way(tmp_path: Path, operator: dict[str, str]) -> None:
    """Neither and both are mistakes, and the message shows no password."""
    message = refused(tmp_path, operator=operator)
    assert "operator: give either `password` (as ${VARIABLE}) or `password_file`" in message
    assert OPERATOR["password"] not in message


def test_a_password_comes_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable that is not set is named; one that is set is the password, digits or not."""
    operator = {"email": OPERATOR["email"], "password": "${SITE_PASSWORD}"}
    monkeypatch.delenv("SITE_PASSWORD", raising=False)
    assert "operator.password: the environment variable SITE_PASSWORD" in refused(
        tmp_path, operator=operator
    )
    monkeypatch.setenv("SITE_PASSWORD", "123456789012")
    assert (
        password_of(load(tmp_path, operator=operator).operator, entry="operator") == "123456789012"
    )


def test_a_password_is_not_shown(tmp_path: Path) -> None:
    """A configuration that finds its way into a log keeps it to itself."""
    assert OPERATOR["password"] not in repr(load(tmp_path))


def test_a_password_file_is_read_without_its_line_end(tmp_path: Path) -> None:
    """`echo` writes one; it is no part of the password."""
    (tmp_path / "password").write_text("correct horse battery\n")
    operator = {"email": OPERATOR["email"], "password_file": "password"}
    assert (
        password_of(load(tmp_path, operator=operator).operator, entry="operator")
        == "correct horse battery"
    )


@pytest.mark.parametrize("kind", ["missing", "folder", "bytes"])
def test_a_password_file_that_cannot_be_read_is_named(tmp_path: Path, kind: str) -> None:
    """A configuration error that names the file and shows nothing of it."""
    file = tmp_path / "password"
    if kind == "folder":
        file.mkdir()
    elif kind == "bytes":
        file.write_bytes(b"\xff\xfe secret")
    operator = {"email": OPERATOR["email"], "password_file": "password"}
    config = load(tmp_path, operator=operator)
    with pytest.raises(ConfigurationError, match=r"operator\.password_file: .*password") as caught:
        password_of(config.operator, entry="operator")
    assert "secret" not in str(caught.value)


LAB = {"email": "r@lab.example.com", "password": "staple battery horse"}


@pytest.mark.parametrize("section", ["researchers", "auditors"])
def test_accounts_have_passwords_of_their_own(tmp_path: Path, section: str) -> None:
    """Given as the operator's is; a relative file starts at site.yaml."""
    (tmp_path / "lab").write_text("from the file\n")
    filed = {"email": "s@lab.example.com", "password_file": "lab"}
    config = load(tmp_path, **{section: [LAB, filed]})
    accounts = getattr(config, section)
    assert [(each.email, password_of(each, entry=section)) for each in accounts] == [
        (LAB["email"], LAB["password"]),
        (filed["email"], "from the file"),
    ]
    assert LAB["password"] not in repr(config)


@pytest.mark.parametrize(
    "emails",
    [
        ["r@lab.example.com", "s@lab.example.com", "R@Lab.example.com"],
        ["r@lab.example.com", OPERATOR["email"]],
    ],
    ids=["twice", "the operator's"],
)
def test_an_account_is_named_once(tmp_path: Path, emails: list[str]) -> None:
    """Two passwords for one e-mail, or a second role for the operator's, are a mistake."""
    message = refused(tmp_path, researchers=[{**LAB, "email": email} for email in emails])
    assert f"name more than once: {emails[-1].lower()}" in message


def test_an_account_is_a_researchers_or_an_auditors(tmp_path: Path) -> None:
    """One e-mail has one role."""
    message = refused(tmp_path, researchers=[LAB], auditors=[LAB])
    assert f"name more than once: {LAB['email']}" in message


def test_a_researchers_mistakes_are_told_with_their_place(tmp_path: Path) -> None:
    """No e-mail address, two passwords, a key that is none; and no password is shown."""
    message = refused(
        tmp_path,
        researchers=[
            {**LAB, "email": "lab"},
            {**LAB, "password_file": "lab"},
            {**LAB, "role": "operator"},
        ],
    )
    for place in ("[0].email: ", "[1]: give either", "[2].role: unknown key"):
        assert f"  researchers{place}" in message
    assert LAB["password"] not in message


@pytest.mark.parametrize(
    ("researcher", "reason"),
    [
        ({"password": "short"}, "the password of r@lab.example.com has 5 characters"),
        ({"password_file": "missing"}, "missing cannot be read: No such file"),
    ],
    ids=["weak", "unreadable"],
)
@pytest.mark.parametrize("section", ["researchers", "auditors"])
def test_a_site_does_not_start_with_an_accounts_password_that_will_not_do(
    tmp_path: Path, section: str, researcher: dict[str, str], reason: str
) -> None:
    """The entry is named, before PySyft is started and before a state is made, which fails here."""
    (tmp_path / "in the way").touch()
    good = {**LAB, "email": "s@lab.example.com"}
    accounts = [good, {"email": LAB["email"], **researcher}]
    config = load(tmp_path, state="in the way/state", **{section: accounts})
    with pytest.raises(ConfigurationError, match=rf"^{section}\[1\]") as caught:
        serve(config)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "condition",
    [{}, {"dataset": "press"}, {"max_rounds": 3}, {"dataset": "press", "max_rounds": 3}],
    ids=["none", "dataset", "rounds", "both"],
)
def test_a_rule_does_not_approve_anybody(tmp_path: Path, condition: dict[str, Any]) -> None:
    """A rule that approves names the researcher."""
    rule = {"name": "open house", "decision": "approve", **condition}
    message = refused(tmp_path, policy=[rule])
    assert "policy[0]: rule 'open house' would approve anybody's plans" in message


def test_a_rule_may_deny_everybody(tmp_path: Path) -> None:
    """To refuse is safe without a condition."""
    (rule,) = load(tmp_path, policy=[{"name": "closed", "decision": "deny"}]).policy
    assert rule.researcher is None


def test_a_plan_cannot_live_for_longer_than_time_can_be_counted(tmp_path: Path) -> None:
    """A number of days that no calendar holds is a mistake in the file and not in each proposal."""
    assert "  plan_days: " in refused(tmp_path, plan_days=10**9)


def test_the_state_folder_is_private(tmp_path: Path) -> None:
    """Made 0700, and files in it for this account alone."""
    state = open_state(load(tmp_path, state="deep/state"))
    (state / "file").touch()
    assert [stat.S_IMODE(each.stat().st_mode) for each in (state, state / "file")] == [0o700, 0o600]


def test_a_state_that_is_a_file_is_a_configuration_error(tmp_path: Path) -> None:
    """The file is left as it is."""
    (tmp_path / "state").write_text("in the way")
    with pytest.raises(ConfigurationError, match=r"state: .*state: no private .*\(File exists\)"):
        open_state(load(tmp_path))
    assert (tmp_path / "state").read_text() == "in the way"


def test_a_ledger_that_cannot_be_made_is_a_datasite_error(tmp_path: Path) -> None:
    """Its folder is missing: the error is the site's, and names the path."""
    with pytest.raises(DataSiteError, match=r"factory-1: the ledger .* cannot be made"):
        Ledger(tmp_path / "missing" / "ledger.db", site_id="factory-1")


def approver(name: str, digit: str = "a") -> dict[str, str]:
    """Give the entry of an approver, with some hash."""
    return {"name": name, "password_hash": f"scrypt:{digit * 32}:{'0' * 64}"}


ANNA, BERT = approver("anna", "a"), approver("bert", "b")
BY_RULE = {"name": "lab", "decision": "approve", "researcher": LAB["email"]}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"approvals": 2}, "`approvals: 2` needs at least 2 `approvers`; 'datasite plans approver"),
        ({"approvals": 2, "approvers": [ANNA]}, "`approvals: 2` needs at least 2 `approvers`"),
        ({"approvals": 0}, "approvals: "),
        ({"approvers": [ANNA, approver("anna", "c")]}, "`approvers` names a person twice"),
        ({"approvers": [ANNA, approver("bert", "a")]}, "two with one password hash"),
        ({"approvers": [approver("operator")]}, "stands for somebody else in the audit log"),
        ({"approvers": [approver("policy")]}, "stands for somebody else in the audit log"),
        ({"approvers": [approver("Anna B")]}, "approvers[0].name: "),
        ({"approvers": [{"name": "anna", "password_hash": "secret"}]}, "password_hash: "),
        ({"approvers": [{"name": "anna", "password": "secret"}]}, "password: unknown key"),
    ],
    ids=[
        "nobody",
        "one",
        "none needed",
        "twice",
        "one hash",
        "operator",
        "policy",
        "name",
        "no hash",
        "password",
    ],
)
def test_two_approvals_need_two_persons(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    """Each with a name of their own and a hash of their own password."""
    refusal = refused(tmp_path, **settings)
    assert message in refusal
    assert "secret" not in refusal


def test_a_rule_does_not_approve_alone_where_two_persons_must(tmp_path: Path) -> None:
    """Unless it says so: nobody can overlook that then."""
    two = {"approvals": 2, "approvers": [ANNA, BERT]}
    message = refused(tmp_path, **two, policy=[BY_RULE])
    assert "policy[0]: rule 'lab' would approve without the 2 persons" in message
    assert "say `bypasses_approvals: true` in it" in message
    said = BY_RULE | {"bypasses_approvals": True}
    assert load(tmp_path, **two, policy=[said]).approvals == 2
    other = [{"name": "look", "decision": "ask"}, {"name": "closed", "decision": "deny"}]
    assert len(load(tmp_path, **two, policy=other).policy) == 2


def test_a_hash_is_not_shown(tmp_path: Path) -> None:
    """It can be tried against, so it stays out of logs."""
    assert "scrypt" not in repr(load(tmp_path, approvers=[ANNA]))


def test_two_rules_of_one_name_are_a_mistake(tmp_path: Path) -> None:
    """The log names the rule that decided."""
    message = refused(tmp_path, policy=[BY_RULE, BY_RULE | {"decision": "deny"}])
    assert "policy[1]: another rule is named 'lab' already" in message


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({"min_privacy_level": "differential"}, "policy[0].min_privacy_level: "),
        ({"min_rows": 0}, "policy[0].min_rows: "),
        ({"max_round": 3}, "policy[0].max_round: unknown key; did you mean 'max_rounds'?"),
    ],
    ids=["level", "rows", "key"],
)
def test_a_condition_that_means_nothing_is_a_mistake(
    tmp_path: Path, condition: dict[str, Any], message: str
) -> None:
    """It would never hold, and another rule would decide."""
    assert message in refused(tmp_path, policy=[BY_RULE | condition])


def test_a_site_does_not_open_with_a_rule_about_what_there_is_not(tmp_path: Path) -> None:
    """Every such name, its place, and what there is; nothing is made on the disk."""
    policy = [
        BY_RULE | {"model": "cnnn", "algorithm": "fedavg"},
        {"name": "closed", "decision": "deny", "algorithm": "fedmagic"},
    ]
    config = load(tmp_path, policy=policy)
    with pytest.raises(ConfigurationError) as caught:
        FactoryDataSite(inline).open(config)
    first, second = str(caught.value).splitlines()
    assert first.startswith("policy[0].model: 'cnnn' is not offered here; offered: cnn, ")
    assert second.startswith("policy[1].algorithm: 'fedmagic' is not offered here; offered: fed")
    assert not config.state.exists()
