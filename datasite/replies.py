"""Stored replies: a request that was answered is answered the same way, without the work.

A small body lies in the ledger. A large one lies in a file beside it, because the ledger takes
much longer over it: the file is written before the ledger's row, over that of an older round,
whose room it takes. The row has its hash. So a body that a power cut left unfinished is none, and
the round is trained again, to the same parameters; except where that would cost privacy again: then
the file is brought to disk first.
"""

import os
from pathlib import Path
from typing import Final, TypedDict

from sqlalchemy import bindparam, delete, func, insert, select

from core.arena import Buffer
from core.exceptions import DataSiteError
from core.packing import content_hash
from core.wire import Parcel
from datasite.ledger import Ledger, ReplyRow, Table, all_but_newest
from datasite.statements import Executes

_ROUNDS_KEPT: Final = 2
"""A resumed run asks for the round it was in or the one before; older replies are dropped."""

_PLANS_KEPT: Final = 4
"""Whose large replies are kept: of those that trained last."""

PLANS_WITH_ROWS: Final = 64
"""Whose small replies are kept: likewise."""

_LARGE_BYTES: Final = 1 << 18
_NONE: Final = -1


class Answers(TypedDict):
    """Which request a reply answers; `request` is its name."""

    plan_id: str
    round_num: int
    kind: str
    request: str


class Replies:
    """The stored replies of one site.

    Args:
        ledger: Where they are kept.
        folder: Where large ones are; made when the first comes.
        site_id: Named in errors.
    """

    def __init__(self, ledger: Ledger, folder: Path, *, site_id: str) -> None:
        self._ledger = ledger
        self._folder = folder
        self._site_id = site_id
        self._newest_of: dict[tuple[str, str], int] = {}

    def find(self, answers: Answers) -> Parcel | None:
        """Give the reply to this very request, or None when it was not answered yet."""
        if answers["round_num"] > self._newest(answers["plan_id"], answers["kind"]):
            return None
        rows = self._ledger.rows(_ANSWER, **answers)
        if not rows:
            return None
        row = rows[0]
        body = row.body if row.file is None else self._read(row.file)
        if content_hash(body) != row.body_hash:
            return None
        return Parcel(bytes(row.head), body, bytes(row.body_hash))

    def keep(
        self, connection: Executes, answers: Answers, reply: Parcel, *, is_paid: bool = False
    ) -> None:
        """Store a reply within the caller's transaction, instead of one to another request.

        Args:
            connection: The transaction's.
            answers: Which request.
            reply: The reply.
            is_paid: It costs privacy, and so is on disk before the transaction ends, for good: to
                train again would cost as much again.

        Raises:
            DataSiteError: There is no room for it.
        """
        is_large = len(reply.body) > _LARGE_BYTES
        file = self._write(answers, reply.body, is_paid=is_paid) if is_large else None
        oldest = answers["round_num"] - _ROUNDS_KEPT
        values = {"of_plan": answers["plan_id"], "of_kind": answers["kind"], "oldest": oldest}
        connection.execute(_FORGET, values)  # before: the new row then takes the old one's pages
        row = {
            **answers,
            "head": reply.head,
            "body": b"" if is_large else bytes(reply.body),
            "body_hash": reply.body_hash,
            "file": file,
        }
        connection.execute(_REPLACE, row)
        newest = self._newest(answers["plan_id"], answers["kind"])
        self._newest_of[answers["plan_id"], answers["kind"]] = max(newest, answers["round_num"])
        if newest == _NONE:
            connection.execute(_FORGET_PLANS)

    def _newest(self, plan_id: str, kind: str) -> int:
        """Give a round after which none was answered; `_NONE` when none was.

        Only this process answers, so the ledger need not be asked in each round.
        """
        key = plan_id, kind
        if key not in self._newest_of:
            rows = self._ledger.rows(_NEWEST, of_plan=plan_id, of_kind=kind)
            self._newest_of[key] = _NONE if rows[0][0] is None else int(rows[0][0])
        return self._newest_of[key]

    def _write(self, answers: Answers, body: Buffer, *, is_paid: bool) -> str:
        """Write a body over that of a round whose row goes; the file's name."""
        slot = answers["round_num"] % (_ROUNDS_KEPT + 1)
        name = f"{answers['plan_id'][:32]}-{answers['kind']}-{slot}"
        try:
            self._make_room(name)
            descriptor = os.open(self._folder / name, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                view = memoryview(body)
                while view:
                    view = view[os.write(descriptor, view) :]
                os.ftruncate(descriptor, len(body))
                if is_paid:
                    os.fsync(descriptor)
                    _sync(self._folder)
            finally:
                os.close(descriptor)
        except OSError as exc:
            raise DataSiteError(
                f"{self._site_id}: the reply cannot be kept: {exc.strerror}; is the disk full?",
                site_id=self._site_id,
            ) from exc
        return name

    def _make_room(self, name: str) -> None:
        """Remove the files of the plans that trained the longest ago, before a new plan's first."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        if (self._folder / name).exists():
            return
        files = sorted(self._folder.iterdir(), key=lambda file: file.stat().st_mtime, reverse=True)
        plans = list(dict.fromkeys(_plan_of(file.name) for file in files))
        kept = {_plan_of(name), *plans[: _PLANS_KEPT - 1]}
        for file in files:
            if _plan_of(file.name) not in kept:
                file.unlink()

    def _read(self, name: str) -> bytes:
        try:
            return (self._folder / name).read_bytes()
        except OSError:
            return b""  # which is not what the row names


def _sync(folder: Path) -> None:
    """Have the folder's entries on disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _plan_of(name: str) -> str:
    return name.split("-", maxsplit=1)[0]


_TABLE = Table.metadata.tables[ReplyRow.__tablename__]
_ANSWER = select(_TABLE.c.head, _TABLE.c.body, _TABLE.c.body_hash, _TABLE.c.file).where(
    *(_TABLE.c[name] == bindparam(name) for name in ("plan_id", "round_num", "kind", "request"))
)
_NEWEST = select(func.max(_TABLE.c.round_num)).where(
    _TABLE.c.plan_id == bindparam("of_plan"), _TABLE.c.kind == bindparam("of_kind")
)
_REPLACE = insert(_TABLE).prefix_with("OR REPLACE")
_FORGET = delete(_TABLE).where(
    _TABLE.c.plan_id == bindparam("of_plan"),
    _TABLE.c.kind == bindparam("of_kind"),
    _TABLE.c.round_num <= bindparam("oldest"),
)
_FORGET_PLANS = all_but_newest(_TABLE, PLANS_WITH_ROWS)
