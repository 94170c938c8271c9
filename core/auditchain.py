"""How the rows of a site's audit log are bound together: anybody who has them all can check it.

Each row has the SHA-256 of itself and of the row before it. The first follows from 64 zeros.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Final

from core.exceptions import SecurityError

FIRST: Final = "0" * 64
HASHED: Final = ("previous_sha256", "seq", "at", "who", "action", "plan_id", "outcome", "detail")

Head = tuple[int, str]
"""How many rows there are, and the newest one's hash: noted elsewhere, it proves all of them."""

EMPTY: Final[Head] = (0, FIRST)


def digest(row: Mapping[str, object]) -> str:
    """Give the hash that a row of these fields must have."""
    text = json.dumps([row[name] for name in HASHED], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def follow(rows: Iterable[Mapping[str, object]], head: Head = EMPTY) -> Head:
    """Check that `rows` carry on from `head` in an unbroken chain; the head after them.

    Raises:
        SecurityError: One was changed, removed or moved; the message names it.
    """
    for row in rows:
        count, previous = head
        if row["seq"] != count + 1:
            message = f"audit row {count + 1} is missing: row {row['seq']} comes next"
            raise SecurityError(message)
        if row["previous_sha256"] != previous:
            raise SecurityError(f"audit row {row['seq']} does not follow from the row before it")
        if row["sha256"] != digest(row):
            raise SecurityError(f"audit row {row['seq']} was changed after it was written")
        head = (count + 1, str(row["sha256"]))
    return head
