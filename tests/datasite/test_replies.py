"""Large replies, which lie in files beside the ledger: kept, checked, overwritten and removed."""

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from sites import (
    RESEARCHER,
    TRAINING,
    ask,
    encoded,
    parameters,
    planned,
    register,
    train_request,
)
from sqlalchemy import select

from core import wire
from core.parameters import digest
from core.wire import Parcel
from datasite.ledger import AuditRow, ReplyRow
from datasite.replies import PLANS_WITH_ROWS
from datasite.site import FactoryDataSite
from datasite.trainer import InlineTrainer, Watch
from datasite.training.work import Assignment, Done

LARGE: Final = {"type": "cnn", "options": {"channels": 192, "blocks": 2}}
"""A model of a third of a megabyte."""

KEPT_IN_A_FILE_BYTES: Final = 1 << 18

OpenSite = Callable[..., FactoryDataSite]


class Counts(InlineTrainer):
    """Trains, and counts how often."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs = 0

    def perform(self, assignment: Assignment, *, deadline_s: float, watch: Watch) -> Done:
        """Train in the calling thread."""
        self.jobs += 1
        return super().perform(assignment, deadline_s=deadline_s, watch=watch)


def plan(site: FactoryDataSite, run_id: str = "run-1", rounds: int = 9) -> str:
    """Propose a plan of the large model; its id."""
    return planned(site, model=LARGE, run_id=run_id, rounds=rounds)


def request(plan_id: str, round_num: int = 0, **changes: object) -> Parcel:
    """Give the request of a round of the large model, as it travels."""
    given = {"model": LARGE, "parameters": parameters(round_num, LARGE), **changes}
    return encoded(train_request(plan_id, round_num=round_num, **given))


def train(site: FactoryDataSite, asked: Parcel) -> Parcel:
    """Have a round trained; the site's answer."""
    reply = site.handle(asked, RESEARCHER)
    assert wire.decode(reply)["kind"] == "update"
    assert len(reply.body) > KEPT_IN_A_FILE_BYTES
    return reply


def fitted(reply: Parcel) -> str:
    """Give the digest of an update's parameters."""
    update: Any = wire.decode(reply)
    return digest(update["parameters"])


def files(folder: Path) -> list[Path]:
    """Give the files that replies lie in."""
    return sorted((folder / "state" / "replies").iterdir())


def rows(site: FactoryDataSite) -> list[ReplyRow]:
    """Give what the ledger has of replies."""
    with site.ledger.read() as session:
        return list(session.scalars(select(ReplyRow).order_by(ReplyRow.round_num)))


@pytest.fixture
def trainer() -> Counts:
    """Give a trainer that counts."""
    return Counts()


@pytest.fixture
def site(open_site: OpenSite, tmp_path: Path, trainer: Counts) -> FactoryDataSite:
    """A site with `press` registered, over that trainer."""
    opened = open_site(lambda _config: trainer)
    register(opened, tmp_path)
    return opened


def test_a_large_reply_is_given_again_after_a_restart(
    open_site: OpenSite, site: FactoryDataSite, tmp_path: Path
) -> None:
    """The same bytes under the same name, from its file; nothing is trained."""
    asked = request(plan(site))
    first = train(site, asked)
    (file,) = files(tmp_path)
    assert file.read_bytes() == bytes(first.body)
    site.close()
    trainer = Counts()
    again = train(open_site(lambda _config: trainer), asked)
    assert (again, again.name, trainer.jobs) == (first, first.name, 0)


def test_only_what_is_large_lies_in_a_file(site: FactoryDataSite, tmp_path: Path) -> None:
    """A small reply is the ledger's row, and a large one's row has no body."""
    assert ask(site, train_request(planned(site)))["kind"] == "update"
    assert not (tmp_path / "state" / "replies").exists()
    train(site, request(plan(site)))
    small, large = sorted(rows(site), key=lambda row: row.file is not None)
    assert (small.file, len(small.body) > 0) == (None, True)
    assert (large.file, large.body) == (files(tmp_path)[0].name, b"")


def test_a_reply_is_its_owners_alone(site: FactoryDataSite, tmp_path: Path) -> None:
    """The folder is 0700 and each file 0600, whatever the process would allow."""
    before = os.umask(0)
    try:
        train(site, request(plan(site)))
    finally:
        os.umask(before)
    (file,) = files(tmp_path)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (file.parent, file)]
    assert modes == [0o700, 0o600]


def damage(file: Path) -> None:
    """Change one bit in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def shorten(file: Path) -> None:
    """Leave what a power cut may leave."""
    os.truncate(file, file.stat().st_size // 2)


def empty(file: Path) -> None:
    """Leave nothing."""
    os.truncate(file, 0)


def lengthen(file: Path) -> None:
    """Add a byte."""
    with file.open("ab") as opened:
        opened.write(b"x")


def remove(file: Path) -> None:
    """Take it away."""
    file.unlink()


def replace_by_a_folder(file: Path) -> None:
    """Put something in its place that cannot be read."""
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize(
    "harm", [damage, shorten, empty, lengthen, remove], ids=lambda harm: harm.__name__
)
def test_a_file_that_is_not_the_reply_is_none(
    site: FactoryDataSite, trainer: Counts, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    """The round is trained again, to the same parameters, and that answer is kept."""
    asked = request(plan(site))
    first = train(site, asked)
    (file,) = files(tmp_path)
    harm(file)
    again = train(site, asked)
    assert (fitted(again), trainer.jobs) == (fitted(first), 2)
    assert train(site, asked) == again
    assert trainer.jobs == 2
    assert file.read_bytes() == bytes(again.body)


def test_a_file_that_cannot_be_written_is_a_failure_and_no_half_state(
    site: FactoryDataSite, trainer: Counts, tmp_path: Path
) -> None:
    """The update does not leave, nothing says that it was made; it is, once there is a way."""
    asked = request(plan(site))
    first = train(site, asked)
    (file,) = files(tmp_path)
    replace_by_a_folder(file)
    failure: Any = wire.decode(site.handle(asked, RESEARCHER))
    assert (failure["kind"], failure["error"]) == ("failure", "DataSiteError")
    assert "the reply cannot be kept" in failure["message"]
    with site.ledger.read() as session:
        outcomes = session.scalars(
            select(AuditRow.outcome).where(AuditRow.action == "train").order_by(AuditRow.seq)
        ).all()
    assert list(outcomes) == ["ok", "DataSiteError"]
    file.rmdir()
    assert fitted(train(site, asked)) == fitted(first)
    assert trainer.jobs == 3


def test_a_round_takes_the_file_of_one_that_is_over(
    site: FactoryDataSite, trainer: Counts, tmp_path: Path
) -> None:
    """Three files for any number of rounds; the last two are answered, and no other."""
    plan_id = plan(site)
    asked = [request(plan_id, round_num) for round_num in range(8)]
    replies = [train(site, one) for one in asked]
    assert len(files(tmp_path)) == 3
    assert [row.round_num for row in rows(site)] == [6, 7]
    assert [train(site, one) for one in asked[-2:]] == replies[-2:]
    assert trainer.jobs == 8
    assert fitted(train(site, asked[5])) == fitted(replies[5])
    assert trainer.jobs == 9


def test_a_shorter_reply_over_a_longer_one_is_whole(site: FactoryDataSite, tmp_path: Path) -> None:
    """Nothing of the old one is left behind it."""
    train(site, request(plan(site)))
    (file,) = files(tmp_path)
    with file.open("ab") as opened:
        opened.write(bytes(1000))
    asked = request(plan(site), training=TRAINING | {"learning_rate": 0.05})
    reply = train(site, asked)
    assert file.read_bytes() == bytes(reply.body)
    assert train(site, asked) == reply


def test_another_request_for_a_round_takes_the_place_of_the_first(
    site: FactoryDataSite, trainer: Counts, tmp_path: Path
) -> None:
    """One file and one row; the first request is trained again, and never answered wrongly."""
    plan_id = plan(site)
    asked, other = request(plan_id), request(plan_id, parameters=parameters(5, LARGE))
    first, second = train(site, asked), train(site, other)
    assert fitted(first) != fitted(second)
    assert (len(files(tmp_path)), len(rows(site))) == (1, 1)
    assert train(site, other) == second
    assert fitted(train(site, asked)) == fitted(first)
    assert trainer.jobs == 3


def test_the_replies_of_plans_that_trained_the_longest_ago_are_removed(
    site: FactoryDataSite, trainer: Counts, tmp_path: Path
) -> None:
    """Those of four plans stay, the new one among them; which, is a matter of when they trained."""
    plans = [plan(site, f"run-{number}") for number in range(5)]
    asked = [request(plan_id) for plan_id in plans]
    replies = []
    for number, one in enumerate(asked[:4]):
        replies.append(train(site, one))
        (file,) = (file for file in files(tmp_path) if plans[number].startswith(file.name[:32]))
        # Plan 0 is the one that trained last, and plan 1 the longest ago.
        trained_at = 1_000_000 + (number or 9)
        os.utime(file, (trained_at, trained_at))
    replies.append(train(site, asked[4]))
    there = {file.name[:32] for file in files(tmp_path)}
    assert there == {plans[number][:32] for number in (0, 2, 3, 4)}
    assert [train(site, asked[number]) for number in (0, 2, 3, 4)] == [
        replies[number] for number in (0, 2, 3, 4)
    ]
    assert trainer.jobs == 5
    assert fitted(train(site, asked[1])) == fitted(replies[1])
    assert trainer.jobs == 6


def test_a_plan_that_goes_on_removes_nobodys_replies(site: FactoryDataSite, tmp_path: Path) -> None:
    """Only a plan's new file makes room, and never by its own others."""
    plans = [plan(site, f"run-{number}") for number in range(4)]
    for round_num in range(3):
        for plan_id in plans:
            train(site, request(plan_id, round_num))
    before = [file.name for file in files(tmp_path)]
    assert len(before) == 12
    for plan_id in plans:
        train(site, request(plan_id, 3))
    assert [file.name for file in files(tmp_path)] == before


def test_small_replies_go_with_the_plans_that_trained_the_longest_ago(
    site: FactoryDataSite, trainer: Counts
) -> None:
    """However many runs there were, those that trained last are answered from the ledger."""
    plans = [planned(site, run_id=f"run-{number}") for number in range(PLANS_WITH_ROWS + 1)]
    for plan_id in plans[:-1]:
        site.handle(encoded(train_request(plan_id)), RESEARCHER)
    site.handle(encoded(train_request(plans[0], round_num=1)), RESEARCHER)
    site.handle(encoded(train_request(plans[-1])), RESEARCHER)
    assert {row.plan_id for row in rows(site)} == {plans[0], *plans[2:]}
    jobs = trainer.jobs
    for plan_id in (plans[0], plans[2], plans[-1]):
        site.handle(encoded(train_request(plan_id)), RESEARCHER)
    assert trainer.jobs == jobs


FULL_DISK = """
import resource, sys
from pathlib import Path
sys.path[:0] = {path!r}
from sites import ask, encoded, inline, register, site_settings, RESEARCHER
from test_replies import files, fitted, plan, request, rows, train
from core import wire
from datasite.replies import PLANS_WITH_ROWS
from datasite.site import FactoryDataSite

folder = Path(sys.argv[1])
site = FactoryDataSite(inline)
site.initialize_datasite(site_settings(folder))
register(site, folder)
plan_id = plan(site)
replies = [train(site, request(plan_id, round_num)) for round_num in range(2)]
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
for _ in range(2):
    reply = wire.decode(site.handle(request(plan_id, 2), RESEARCHER))
    print(reply["kind"], reply["error"])
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
print([row.round_num for row in rows(site)])
print([train(site, request(plan_id, n)) == replies[n] for n in range(2)])
site.close()
site.initialize_datasite(site_settings(folder))
last = train(site, request(plan_id, 2))
print([row.round_num for row in rows(site)], train(site, request(plan_id, 2)) == last)
"""


def test_a_full_disk_leaves_the_replies_before_it_as_they_were(tmp_path: Path) -> None:
    """Half a file has no row; the rounds before are answered, and the round once there is room."""
    tests = Path(__file__).resolve().parents[1]
    paths = [str(tests), str(tests.parent), str(tests / "datasite")]
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK.format(path=paths), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.splitlines() == [
        *["failure DataSiteError"] * 2,
        "[0, 1]",
        "[True, True]",
        "[1, 2] True",
    ], done.stderr
