"""Who approves: persons that site.yaml names, each with a password that only that person knows.

The operator's commands run under one account of the machine, which says nothing of who types. A
password of one's own keeps a person from approving twice under another's name. It does not keep
out somebody who may write the site's files: site.yaml has the hashes, and the ledger the decisions.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import TYPE_CHECKING, Final

from core.exceptions import SecurityError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datasite.configuration import Approver

SCRYPT_FORM: Final = r"^scrypt:[0-9a-f]{32}:[0-9a-f]{64}$"
"""Of a hash: a salt of 16 bytes, then the key at the costs below: 32 MiB, a tenth of a second."""

_COSTS: Final = {"n": 1 << 15, "r": 8, "p": 1, "maxmem": 1 << 26, "dklen": 32}


def hash_password(password: str) -> str:
    """Give what site.yaml keeps of a password."""
    return _hashed(password, secrets.token_bytes(16))


def require_approver(
    approvers: Sequence[Approver], name: str, password: str, *, site_id: str
) -> None:
    """Do nothing when `password` is that of the approver `name`.

    Raises:
        SecurityError: It is not, or there is no such approver.
    """
    known = {approver.name: approver.password_hash for approver in approvers}
    kept = known.get(name)
    if kept is None:
        raise SecurityError(
            f"{site_id}: {name!r} is no approver; site.yaml names {', '.join(known)}",
            site_id=site_id,
        )
    salt = bytes.fromhex(kept.split(":")[1])
    if not hmac.compare_digest(_hashed(password, salt), kept):
        raise SecurityError(
            f"{site_id}: this is not the password of {name}; nothing was approved", site_id=site_id
        )


def _hashed(password: str, salt: bytes) -> str:
    key = hashlib.scrypt(password.encode(), salt=salt, **_COSTS)
    return f"scrypt:{salt.hex()}:{key.hex()}"
