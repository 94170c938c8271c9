"""What was read of the ledger, kept until somebody changes it.

Each request asks for its plan and its data, which change when an operator decides something and not
from round to round. Whether that has happened costs one look at SQLite's counter of changes.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from datasite.ledger import Ledger, Mark

T = TypeVar("T")

_KEPT: Final = 64


class Fresh(Generic[T]):
    """Values of one kind, by their keys; the ones asked for the longest ago are let go of.

    They are of tables that no `Ledger.transaction` writes, since its own changes are not counted.

    Args:
        ledger: Of which they are read.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._kept: OrderedDict[Hashable, tuple[Mark, T]] = OrderedDict()

    def get(self, key: Hashable, read: Callable[[], T], mark: Mark | None = None) -> T:
        """Give the value as it is now, or was at a mark.

        Args:
            key: Its name.
            read: Reads it.
            mark: From a while ago, or of the transaction that depends on the value; by default the
                newest.
        """
        if mark is None:
            mark = self._ledger.mark()
        known = self._kept.get(key)
        if known is not None and known[0] == mark:
            return known[1]
        value = read()  # after the mark: what changes meanwhile is seen the next time
        if mark is None:
            return value
        self._kept[key] = (mark, value)
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return value
