"""Files in the making, made by many at once."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

from datasite.unfinished import unfinished_file

MAKERS = 8
FILES_EACH = 200


def test_nobody_deletes_what_another_has_just_begun(tmp_path: Path) -> None:
    """Each maker looks for abandoned files first, and every file is there until its maker ends."""
    together = Barrier(MAKERS)

    def make(_number: int) -> int:
        together.wait(timeout=30)
        lost = 0
        for _ in range(FILES_EACH):
            with unfinished_file(tmp_path) as part:
                lost += not part.exists()
        return lost

    with ThreadPoolExecutor(MAKERS) as threads:
        assert sum(threads.map(make, range(MAKERS))) == 0
    assert not list(tmp_path.iterdir())
