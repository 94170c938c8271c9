"""Whether the site's private files are still what was registered, asked before every request.

A file is hashed when it is first asked for, and again whenever its size, its place on the disk or
one of its times is another. The trainer compares what it reads with the hash as well.
"""

from pathlib import Path

from core.exceptions import SecurityError
from datasite.registry import Dataset, file_sha256

_Stamp = tuple[int, int, int, int]


class Seals:
    """Remembers which files were found to be as registered.

    Args:
        site_id: Named in errors.
    """

    def __init__(self, *, site_id: str) -> None:
        self._site_id = site_id
        self._unbroken: dict[str, _Stamp] = {}

    def require_unbroken(self, dataset: Dataset) -> None:
        """Do nothing when the dataset's file is as it was registered.

        Raises:
            SecurityError: It was changed, or it is gone.
        """
        try:
            stamp = _stamp(dataset.file)
            if self._unbroken.get(dataset.sha256) == stamp:
                return
            is_same = file_sha256(dataset.file) == dataset.sha256
        except OSError:
            is_same = False
        if not is_same:
            self._unbroken.pop(dataset.sha256, None)
            raise SecurityError(
                f"{self._site_id}: the registered data of {dataset.name!r} (version "
                f"{dataset.version}) changed on disk since registration; the operator must "
                "remove and register them again",
                site_id=self._site_id,
            )
        self._unbroken[dataset.sha256] = stamp


def _stamp(file: Path) -> _Stamp:
    found = file.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
