"""Accounts of a live site: shut out, let in again, given other passwords; and who guesses them."""

import json
import re
import time
from collections.abc import Iterator
from math import inf
from pathlib import Path
from typing import Any, Final, cast

import httpx
import pytest
import syft as sy
import yaml
from commands import orchestrator
from live_site import AUDITOR, OPERATOR, RESEARCHER, RIVAL, SITE, LiveSite, password_of, signed_call
from sites import proposal
from syft.service.response import SyftError

from core.exceptions import (
    AuthenticationError,
    ConfigurationError,
    DataSiteError,
    SecurityError,
)
from core.messages import (
    DescribeRequest,
    PlanDecision,
    PlanProposal,
    PlanQuery,
    SiteDescription,
)
from core.plans import PlanStatus
from datasite.caller import Role
from datasite.log_in_route import REFUSED_AFTER_S
from datasite.log_ins import FREE_TRIES
from orchestrator.communication.live import PySyftCommunication
from orchestrator.configuration import ChannelKind
from orchestrator.testbed.processes import run_datasite

pytestmark = pytest.mark.live

DESCRIBE: Final = DescribeRequest(kind="describe")
LOG_IN: Final = "/api/v2/login"
WRONG: Final = "Not-the-password-1"
_MANY: Final = 2 * FREE_TRIES
_OTHER_ADDRESS: Final = "127.0.0.2"
"""All of 127.0.0.0/8 is this machine."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveSite]:
    """Give a live site."""
    made = LiveSite(tmp_path_factory.mktemp("accounts"))
    made.register()
    made.start()
    yield made
    made.end()


def open_account(site: LiveSite, name: str) -> str:
    """Open a researcher's account; its e-mail."""
    email = f"{name}@lab.example.com"
    with site.door() as door:
        password = password_of(email)
        door.create_user(email=email, name=name, password=password, role=Role.RESEARCHER)
    return email


def log_in(
    site: LiveSite,
    email: str,
    password: str = "",
    channel: ChannelKind = ChannelKind.SESSION,
) -> PySyftCommunication:
    """Log in with our client."""
    made = PySyftCommunication(channel=channel, connect_s=20, call_s=20)
    password = password or password_of(email)
    made.connect_to_datasite(site.url, {"email": email, "password": password})
    return made


class Begun:
    """What an account has begun with each client: a notebook, signed calls, and a session."""

    def __init__(self, site: LiveSite, email: str) -> None:
        self._notebook = site.notebook(email)
        self._ours = [log_in(site, email, channel=channel) for channel in ChannelKind]
        self.require_in()

    def require_in(self) -> None:
        """Fail when any of them is refused."""
        assert not isinstance(self._asked(), SyftError)
        for ours in self._ours:
            assert ours.request(DESCRIBE, SiteDescription, SITE)["datasite_id"] == SITE

    def require_out(self) -> None:
        """Fail when any of them is not refused."""
        answer = self._asked()
        assert isinstance(answer, SyftError)
        assert "unknown or disabled" in answer.message
        for ours in self._ours:
            with pytest.raises(SecurityError, match="unknown or disabled"):
                ours.request(DESCRIBE, SiteDescription, SITE)

    def _asked(self) -> Any:
        return signed_call(self._notebook, "user.get_current_user")


def outcomes(site: LiveSite, action: str) -> list[tuple[str, dict[str, Any]]]:
    """Give who did this, and of what, as the audit log has it."""
    return [(row["who"], row["detail"]) for row in site.audit() if row["action"] == action]


def test_who_opened_an_account_is_on_the_log(site: LiveSite) -> None:
    """Those of site.yaml with their roles, and then the operator's."""
    email = open_account(site, "newcomer")
    opened = [(who, *detail.values()) for who, detail in outcomes(site, "account opened")]
    assert opened[:3] == [
        ("site.yaml", RESEARCHER, "researcher"),
        ("site.yaml", RIVAL, "researcher"),
        ("site.yaml", AUDITOR, "auditor"),
    ]
    assert opened[-1] == ("operator", email, "researcher")


def test_a_disabled_account_is_out_at_once_everywhere(site: LiveSite) -> None:
    """Its next call is refused, whichever way it comes; another account is not disturbed."""
    email = open_account(site, "leaver")
    begun, other = Begun(site, email), Begun(site, RESEARCHER)
    with site.door() as door:
        assert door.disable_user(email).role is None
    begun.require_out()
    other.require_in()
    with pytest.raises(AuthenticationError):
        log_in(site, email)
    assert outcomes(site, "account disabled")[-1] == (
        "operator",
        {"account": email, "role": None},
    )
    assert site.refusals_of(email) >= 3


def test_an_account_that_is_enabled_goes_on(site: LiveSite) -> None:
    """With its password and its key; disabling twice is disabling once."""
    email = open_account(site, "returner")
    begun = Begun(site, email)
    with site.door() as door:
        door.disable_user(email)
        door.disable_user(email)
        with pytest.raises(DataSiteError, match="is not disabled: it is researcher"):
            door.enable_user(RESEARCHER, role=Role.AUDITOR)
        door.enable_user(email, role=Role.RESEARCHER)
    begun.require_in()
    Begun(site, email).require_in()


def test_another_password_ends_what_the_old_one_began(site: LiveSite) -> None:
    """A log-in gives a key away, so the key changes; plans are the e-mail's, and stay."""
    email = open_account(site, "rotated")
    begun = Begun(site, email)
    proposed = cast("PlanProposal", proposal())
    plan = log_in(site, email).request(proposed, PlanDecision, SITE)
    with site.door() as door:
        door.set_password(email, "Another-password-1")
    begun.require_out()
    with pytest.raises(AuthenticationError):
        log_in(site, email)
    again = log_in(site, email, "Another-password-1")
    query = PlanQuery(kind="plan_status", plan_id=plan["plan_id"])
    assert again.request(query, PlanDecision, SITE)["status"] == PlanStatus.WAITING.name
    assert outcomes(site, "password changed")[-1][1]["account"] == email


@pytest.mark.parametrize(
    ("email", "error", "said"),
    [
        (OPERATOR, ConfigurationError, "is the operator that site.yaml names"),
        ("nobody@lab.example.com", DataSiteError, "see 'datasite users list'"),
    ],
    ids=["the operator", "nobody"],
)
def test_some_accounts_cannot_be_changed_at_the_door(
    site: LiveSite, email: str, error: type[Exception], said: str
) -> None:
    """The operator's is site.yaml's; of others there is none."""
    with site.door() as door:
        with pytest.raises(error, match=said):
            door.disable_user(email)
        with pytest.raises(error, match=said):
            door.set_password(email, "Another-password-1")


def test_a_weak_password_is_not_taken(site: LiveSite) -> None:
    """And the old one holds."""
    with site.door() as door, pytest.raises(ConfigurationError, match="12 to 72 characters"):
        door.set_password(RESEARCHER, "short")
    log_in(site, RESEARCHER)


def test_the_operators_commands_do_all_of_it(site: LiveSite, tmp_path: Path) -> None:
    """Each says what it did, and `list` shows who is out."""
    email, config = "by-hand@lab.example.com", ("-c", str(site.config))
    file = tmp_path / "password"
    file.write_text("By-hand-of-the-lab-1\n", encoding="utf-8")
    given = ("--password-file", str(file), *config)
    assert "has an account now: auditor" in run_datasite(
        "users", "add", "--email", email, "--role", "auditor", *given
    )
    assert "is disabled" in run_datasite("users", "disable", email, *config)
    listed = run_datasite("users", "list", *config)
    assert [line.split()[1] for line in listed.splitlines() if email in line] == ["disabled"]
    assert "let in again: researcher" in run_datasite(
        "users", "enable", email, "--role", "researcher", *config
    )
    file.write_text("By-hand-of-the-lab-2\n", encoding="utf-8")
    assert "another password now" in run_datasite("users", "password", email, *given)
    log_in(site, email, "By-hand-of-the-lab-2").request(DESCRIBE, SiteDescription, SITE)
    in_json = json.loads(run_datasite("users", "list", "--json", *config))
    assert {"email": email, "name": email, "role": "researcher"} in in_json


def sites_file(folder: Path, site: LiveSite, email: str) -> Path:
    """Write the sites file of one who has this account."""
    path = folder / "sites.yaml"
    entry = {"site_id": SITE, "url": site.url, "email": email, "password": password_of(email)}
    path.write_text(yaml.safe_dump({"sites": [entry]}), encoding="utf-8")
    return path


def test_an_auditor_reads_and_checks_the_log_from_elsewhere(site: LiveSite, tmp_path: Path) -> None:
    """All rows, and the hash that the operator's command prints; reading is a row itself."""
    verified = run_datasite("audit", "verify", "-c", str(site.config))
    ended = orchestrator("audit", sites_file(tmp_path, site, AUDITOR), "--site", SITE, "--json")
    assert ended.returncode == 0, ended.stderr
    rows = [json.loads(line) for line in ended.stdout.splitlines()]
    assert rows == [{**row} for row in site.audit()[: len(rows)]]
    assert rows[-1]["sha256"] in verified
    assert outcomes(site, "audit read") == [(AUDITOR, {"after": 0})]


def test_an_auditor_sees_what_came_since(site: LiveSite, tmp_path: Path) -> None:
    """The whole chain is checked all the same."""
    file = sites_file(tmp_path, site, AUDITOR)
    ended = orchestrator("audit", file, "--site", SITE, "--since", "2999-01-01")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("nothing has happened in that time\n")
    assert f"{len(site.audit()) - 1} rows, all as they were written" in ended.stdout


def test_an_auditor_sees_every_researchers_plan(site: LiveSite, tmp_path: Path) -> None:
    """With what was asked for, and how it was decided."""
    plan = log_in(site, RESEARCHER).request(
        cast("PlanProposal", proposal(run_id="seen")), PlanDecision, SITE
    )
    file = sites_file(tmp_path, site, AUDITOR)
    ended = orchestrator("audit", file, "--site", SITE, "--plans", "--json")
    plans = {each["plan_id"]: each for each in map(json.loads, ended.stdout.splitlines())}
    assert plans[plan["plan_id"]]["proposal"]["run_id"] == "seen"
    assert plans[plan["plan_id"]]["decided_by"] == "rule 'lab'"


def test_a_researcher_is_no_auditor(site: LiveSite, tmp_path: Path) -> None:
    """The command says whom to ask; exit code 1."""
    ended = orchestrator("audit", sites_file(tmp_path, site, RESEARCHER), "--site", SITE)
    assert ended.returncode == 1
    assert "'audit' is not for a researcher; ask the operator" in ended.stderr


def guess(site: LiveSite, email: str, *, host: str) -> httpx.Response:
    """Try a wrong password from one of this machine's addresses."""
    transport = httpx.HTTPTransport(local_address=host)
    with httpx.Client(transport=transport, timeout=30) as client:
        return client.post(site.url + LOG_IN, json={"email": email, "password": WRONG})


def test_who_guesses_must_wait_and_the_owner_need_not(site: LiveSite) -> None:
    """After five failures 429 says when; from elsewhere, and for who is in already, all goes on."""
    email = open_account(site, "guessed")
    ours = log_in(site, email)
    answers = [guess(site, email, host=_OTHER_ADDRESS) for _ in range(_MANY)]
    assert [answer.status_code for answer in answers[:FREE_TRIES]] == [200] * FREE_TRIES
    waits = [answer for answer in answers if answer.status_code == 429]
    assert waits
    assert all(1 <= int(answer.headers["retry-after"]) <= 8 for answer in waits)
    assert ours.request(DESCRIBE, SiteDescription, SITE)["datasite_id"] == SITE
    log_in(site, email).request(DESCRIBE, SiteDescription, SITE)
    assert site.refusals_of(email) >= FREE_TRIES


def test_our_client_says_when_to_try_again(site: LiveSite) -> None:
    """Not as an error of the network, and it does not try on by itself."""
    email = open_account(site, "forgetful")
    said = ""
    for _ in range(_MANY):
        with pytest.raises(AuthenticationError) as refusal:
            log_in(site, email, WRONG)
        assert not refusal.value.retryable
        said += str(refusal.value)
    assert "too many log-ins failed, of this account or from this machine" in said
    assert re.search(r"the site takes the next in [1-8] s", said)


def test_neither_answer_nor_time_tells_whether_an_account_exists(site: LiveSite) -> None:
    """Known, disabled or unknown: the same status, headers and bytes, a second after each."""
    known, disabled = open_account(site, "timed"), open_account(site, "timed-out")
    with site.door() as door:
        door.disable_user(disabled)
    emails = (known, disabled, "unknown@lab.example.com")
    answers, took_s = {}, dict.fromkeys(emails, inf)
    for _ in range(FREE_TRIES - 1):
        for email in emails:  # in turn, so that what else the machine does is the same for all
            began = time.monotonic()
            answer = guess(site, email, host="127.0.0.3")
            took_s[email] = min(took_s[email], time.monotonic() - began)
            answers[answer.status_code, answer.content, str(sorted(answer.headers.items()))] = email
    assert len(answers) == 1
    quickest = took_s.values()  # a busy machine makes an answer later, never earlier
    assert min(quickest) >= REFUSED_AFTER_S
    assert max(quickest) - min(quickest) < 0.1


def test_a_guest_session_and_sign_up_open_nothing(site: LiveSite) -> None:
    """PySyft's own client, as a stranger would use it."""
    guest = sy.login_as_guest(url=site.url)
    assert isinstance(signed_call(guest, "dataset.get_all"), SyftError)
    with pytest.raises(Exception, match="404"):
        guest.connection.register(b"x")


def test_a_restart_opens_no_account_again(site: LiveSite) -> None:
    """What was disabled stays so, though site.yaml names it; another password stays another."""
    with site.door() as door:
        door.disable_user(RIVAL)
        door.set_password(AUDITOR, "Another-password-1")
    site.end()
    site.start()
    with pytest.raises(AuthenticationError):
        log_in(site, RIVAL)
    with pytest.raises(AuthenticationError):
        log_in(site, AUDITOR)
    log_in(site, AUDITOR, "Another-password-1").request(DESCRIBE, SiteDescription, SITE)
    assert "as they were written" in run_datasite("audit", "verify", "-c", str(site.config))
