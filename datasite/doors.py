"""Which of PySyft's calls a site serves; all others are refused because they are not named here.

PySyft 0.9.5 executes approved user code inside the server process (CVE-2026-31220), and lets any
account write files wherever the server may (`blob_storage.allocate` takes a path). A list of what
is dangerous would have to be complete, and again for each version; a list of what is needed is
short.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from core.exceptions import ConfigurationError
from datasite.caller import Role
from datasite.identity import require_strong_password

HANDLE_PATH: Final = "federation.handle"
SESSION_PATH: Final = "federation.open_session"

_AUDITOR_CALLS: Final = frozenset(
    {
        HANDLE_PATH,
        SESSION_PATH,
        "dataset.get_all",
        "dataset.search",
        "metadata.get_metadata",
        "user.get_current_user",
        "user.update",
    }
)
"""What logging in with PySyft's own client and listing datasets takes, and the own account.

No object is read by any of these: PySyft would give an auditor every one (`datasite.pysyft.roles`).
"""

_RESEARCHER_CALLS: Final = _AUDITOR_CALLS | {
    "action.get_mock",
    "blob_storage.read",  # a mock over 1 MB is read from there; private ones are not readable
}
"""Looking at mocks besides."""

_OPERATOR_CALLS: Final = _RESEARCHER_CALLS | {
    "action.delete",
    "action.get",
    "action.set",
    "blob_storage.allocate",
    "blob_storage.write_to_disk",
    "dataset.add",
    "dataset.delete",
    "dataset.get_by_id",
    "settings.get",
    "user.create",
    "user.delete",
    "user.get_all",
    "user.search",
    "user.view",
}
"""Accounts and datasets besides; nobody submits, approves or executes code, and nobody needs to."""

CALLS: Final = {
    Role.OPERATOR: _OPERATOR_CALLS,
    Role.AUDITOR: _AUDITOR_CALLS,
    Role.RESEARCHER: _RESEARCHER_CALLS,
}
"""The calls that each role is served."""

_SHOWN: Final = 100
_OWN_FIELDS: Final = frozenset({"uid", "name", "password", "communication_protocol"})


def reason_to_refuse(
    path: str, role: Role, *, args: Sequence[object], kwargs: Mapping[str, object], own_uid: object
) -> str | None:
    """Say why a call is not served, for the caller to read; None when it is.

    `own_uid` is the caller's own account's.
    """
    if path not in CALLS[role]:
        return (
            f"{path[:_SHOWN]!r} is not served; this site runs its installed training code only and "
            "takes no code, requests, jobs or endpoints from anybody"
        )
    if path in {"user.update", "user.create"}:
        return _weakness_of(kwargs) or _reach_of(path, role, args, kwargs, own_uid)
    return None


def changes_password(path: str, kwargs: Mapping[str, object]) -> bool:
    """Tell whether a call that is served gives an account another password."""
    return path == "user.update" and "password" in kwargs


def _weakness_of(kwargs: Mapping[str, object]) -> str | None:
    if "password" not in kwargs:
        return None
    try:
        require_strong_password(str(kwargs["password"]), email=str(kwargs.get("email", "")))
    except ConfigurationError as exc:
        return str(exc)
    return None


def _reach_of(
    path: str, role: Role, args: Sequence[object], kwargs: Mapping[str, object], own_uid: object
) -> str | None:
    """Keep all but the operator to name and password of their own account."""
    if args:
        return f"{path!r} takes its arguments by name"
    is_own = set(kwargs) <= _OWN_FIELDS and kwargs.get("uid") == own_uid
    if role is not Role.OPERATOR and not is_own:
        return "an account changes its own name and password only"
    return None
