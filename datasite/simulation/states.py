"""What simulated sites keep from round to round for an algorithm: a file for each site and round.

A file's name says its round and the round that it follows; what is found and what is forgotten is
as in `datasite.states`. They are on disk for runs that are resumed, and because FedDyn has twice a
model for each site. They are not forced onto the disk as a ledger's are: after a power cut, a run
whose algorithm keeps states may have to start anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.exceptions import DataSiteError
from datasite.states import no_such_state, rounds_to_keep

if TYPE_CHECKING:
    from pathlib import Path

_SUFFIX = ".state"


class StateFiles:
    """The kept states of simulated sites.

    Args:
        folder: Where they are kept; made with the first.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, site_id: str, plan_id: str, round_num: int) -> bytes:
        """Give the site's state of the plan as it was after round `round_num`.

        Raises:
            DataSiteError: The site has none of that round, or has none any more.
        """
        found = self._files(site_id, plan_id).get(round_num)
        if found is None:
            raise no_such_state(site_id, plan_id, round_num)
        try:
            return found[1].read_bytes()
        except OSError as exc:
            raise DataSiteError(
                f"{site_id}: {found[1]} cannot be read: {exc.strerror}", site_id=site_id
            ) from exc

    def keep(
        self, site_id: str, plan_id: str, round_num: int, state: bytes, *, follows: int
    ) -> None:
        """Store a state, and drop what no run can go back to.

        Raises:
            DataSiteError: It cannot be written.
        """
        folder = self._of(site_id, plan_id)
        target = folder / f"{round_num}_{follows}{_SUFFIX}"
        part = target.with_suffix(".part")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            files = self._files(site_id, plan_id)
            part.write_bytes(state)
            part.replace(target)
            if round_num in files and files[round_num][1] != target:
                files[round_num][1].unlink()
            files[round_num] = (follows, target)
            before = {number: followed for number, (followed, _) in files.items()}
            for number in files.keys() - rounds_to_keep(before, round_num):
                files[number][1].unlink()
        except OSError as exc:
            raise DataSiteError(
                f"{site_id}: its state cannot be kept in {folder}: {exc.strerror}", site_id=site_id
            ) from exc

    def _files(self, site_id: str, plan_id: str) -> dict[int, tuple[int, Path]]:
        """Give, for each round with a state, the round that it follows, and the file."""
        found: dict[int, tuple[int, Path]] = {}
        for path in self._of(site_id, plan_id).glob(f"*{_SUFFIX}"):
            round_num, _, follows = path.stem.partition("_")
            found[int(round_num)] = (int(follows), path)
        return found

    def _of(self, site_id: str, plan_id: str) -> Path:
        return self._folder / plan_id[:16] / site_id
