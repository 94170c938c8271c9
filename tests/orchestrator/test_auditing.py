"""An auditor's reading of a site: page by page, and believed only as far as the chain goes."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from sites import APPROVE, ask, encoded, inline, proposal, site_settings
from sqlalchemy import text

from core import auditchain, wire
from core.exceptions import ProtocolError, SecurityError
from core.wire import Parcel
from datasite import audit, oversight
from datasite.caller import Caller, Role
from datasite.site import FactoryDataSite
from orchestrator.auditing import read_log, read_plans
from orchestrator.communication.memory import MemoryCommunication

SITE = "factory-1"
AUDITOR = "auditor@authority.example.com"
OPERATOR = "operator@factory.example.com"
ROLES = {AUDITOR: Role.AUDITOR, OPERATOR: Role.OPERATOR}

Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[FactoryDataSite]:
    """Give a site whose log has 30 rows."""
    made = FactoryDataSite(inline)
    made.initialize_datasite(site_settings(tmp_path, policy=APPROVE))
    for number in range(30):
        with made.ledger.transaction() as connection:
            audit.append(connection, audit.Entry(who="r", action="train", detail={"n": number}))
    yield made
    made.close()


def leave_alone(page: dict[str, Any]) -> None:
    """Change nothing."""


def connected(
    site: FactoryDataSite, email: str = AUDITOR, change: Change = leave_alone
) -> MemoryCommunication:
    """Log in to the site; somebody on the way changes what it answers."""

    def handle(request: Parcel, caller: str) -> Parcel:
        role = ROLES.get(caller, Role.RESEARCHER)
        reply = site.handle(request, Caller(email=caller, role=role))
        page = cast("dict[str, Any]", wire.decode(reply))
        change(page)
        return encoded(page)

    communication = MemoryCommunication({SITE: handle})
    communication.connect_to_datasite(f"memory://{SITE}", {"email": email, "password": "x"})
    return communication


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a page hold some seven rows, or plans."""
    monkeypatch.setattr(oversight, "_PAGE_BYTES", 3000)


@pytest.mark.parametrize("email", [AUDITOR, OPERATOR])
def test_the_whole_log_is_read_and_its_head_is_the_sites(site: FactoryDataSite, email: str) -> None:
    """In one page; that it was read is the next row."""
    rows, head = read_log(connected(site, email), SITE)
    assert [row["seq"] for row in rows] == list(range(1, 31))
    with site.ledger.read() as session:
        count = audit.verify(audit.written(session)).count
        newest = session.execute(text("SELECT who, action FROM audit WHERE seq = 31")).one()
        sha256 = session.execute(text("SELECT sha256 FROM audit WHERE seq = 30")).scalar_one()
    assert head == (30, sha256)
    assert (count, *newest) == (31, email, "audit read")


def test_a_long_log_is_read_in_pages(site: FactoryDataSite, small_pages: None) -> None:
    """None is missed between two, and reading does not go on after its own rows."""
    rows, head = read_log(connected(site), SITE)
    assert head[0] >= 30
    assert [row["seq"] for row in rows] == list(range(1, head[0] + 1))
    assert head[0] < 40


def drop_a_row(page: dict[str, Any]) -> None:
    """Leave one out."""
    del page["rows"][3]


def move_a_row(page: dict[str, Any]) -> None:
    """Exchange two."""
    page["rows"][3], page["rows"][4] = page["rows"][4], page["rows"][3]


def change_a_row(page: dict[str, Any]) -> None:
    """Have another done it."""
    page["rows"][3]["who"] = "nobody"


def change_and_seal_a_row(page: dict[str, Any]) -> None:
    """Have another done it, with the hash that fits."""
    row = page["rows"][3]
    row["who"] = "nobody"
    row["sha256"] = auditchain.digest(row)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (drop_a_row, "audit row 4 is missing: row 5 comes next"),
        (move_a_row, "audit row 4 is missing: row 5 comes next"),
        (change_a_row, "audit row 4 was changed after it was written"),
        (change_and_seal_a_row, "audit row 5 does not follow from the row before it"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_was_tampered_with_on_the_way_is_named(
    site: FactoryDataSite, change: Change, said: str
) -> None:
    """The site's own command would not see it."""
    with pytest.raises(SecurityError, match=said):
        read_log(connected(site, change=change), SITE)


def test_a_log_that_is_cut_short_is_not_taken_for_whole(site: FactoryDataSite) -> None:
    """Fewer rows than the site says there are."""

    def cut(page: dict[str, Any]) -> None:
        page["rows"] = [row for row in page["rows"] if row["seq"] <= 20]

    with pytest.raises(ProtocolError, match="shows 20 of 30 rows of its audit log"):
        read_log(connected(site, change=cut), SITE)


def test_a_page_has_bounds(site: FactoryDataSite) -> None:
    """Of rows, and of bytes where rows are long; one row at least."""
    for _ in range(600):
        with site.ledger.transaction() as connection:
            entry = audit.Entry(who="r", action="train", detail={"n": "x" * 4000})
            audit.append(connection, entry)
    caller = Caller(email=AUDITOR, role=Role.AUDITOR)
    page = ask(site, {"kind": "audit", "after": 0}, caller)
    assert 200 < len(page["rows"]) < 300
    assert page["newest"] == 630


def test_every_plan_is_read_in_pages(site: FactoryDataSite, small_pages: None) -> None:
    """Of every researcher, oldest first, with all that was asked for."""
    with site.ledger.write() as session:
        for number in range(12):
            session.execute(
                text(
                    "INSERT INTO plans (plan_id, researcher, proposal, status, reason, decided_by,"
                    " proposed_at, expires_at) VALUES (:id, 'r', :asked, 'WAITING', '', '', :at,"
                    " '2999-01-01T00:00:00+00:00')"
                ),
                {
                    "id": f"plan-{number:02}",
                    "asked": json.dumps(proposal()),
                    "at": f"2026-01-{number + 1:02}",
                },
            )
    plans = read_plans(connected(site), SITE)
    assert [plan["plan_id"] for plan in plans] == [f"plan-{number:02}" for number in range(12)]
    assert plans[0]["proposal"] == proposal()


@pytest.mark.parametrize("read", [read_log, read_plans])
def test_a_researcher_reads_neither(site: FactoryDataSite, read: Callable[..., object]) -> None:
    """The error names the role that it takes, and it is on the log."""
    with pytest.raises(SecurityError, match="is not for a researcher; ask the operator"):
        read(connected(site, "r@lab.example.com"), SITE)


@pytest.mark.parametrize("kind", ["propose", "plan_status", "statistics"])
def test_an_auditor_does_nothing_but_read(site: FactoryDataSite, kind: str) -> None:
    """Not even what would only wait for the operator."""
    plan = {"kind": kind, "plan_id": "p"}
    asked = proposal() if kind == "propose" else plan
    reply = ask(site, asked, Caller(email=AUDITOR, role=Role.AUDITOR))
    assert (reply["kind"], reply["error"]) == ("failure", "SecurityError")
    assert f"{kind!r} is not for an auditor" in reply["message"]
