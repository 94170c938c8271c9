"""Sites whose data have drifted since their first version, as a warning that is given once."""

from collections.abc import Mapping
from typing import Any

from core.drift import LARGE, flagged

_SHOWN = 4


class DriftWarnings:
    """Gives the warnings of a run's rounds; each once, since a plan's data do not change."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def of(self, record: Mapping[str, Any]) -> list[str]:
        """Give the warnings of a round that were not given before, a line for each site."""
        lines = [
            f"{site_id}: its data have drifted from their first version: {_listed(found)}"
            for site_id, metrics in record["sites"].items()
            if (found := flagged(metrics))
        ]
        new = [line for line in lines if line not in self._given]
        self._given.update(new)
        return new


def _listed(found: Mapping[str, float]) -> str:
    shown = [
        f"{column} (PSI {psi:.2f}{', large' if psi > LARGE else ''})"
        for column, psi in list(found.items())[:_SHOWN]
    ]
    hidden = len(found) - len(shown)
    return ", ".join(shown) + (f" and {hidden} more" if hidden else "")
