"""Names of many sites in few words."""

from collections.abc import Sequence

_MOST_NAMED = 8


def listed(names: Sequence[str], *, otherwise: str = "none") -> str:
    """Name the first few and count the rest: `factory-1, factory-2 and 98 more`.

    Args:
        names: In the order to be shown.
        otherwise: What to say of no names.
    """
    hidden = len(names) - _MOST_NAMED
    if hidden <= 1:  # to count one takes as much room as to name it
        return ", ".join(names) or otherwise
    return f"{', '.join(names[:_MOST_NAMED])} and {hidden} more"
