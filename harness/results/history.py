"""History: the rows that a session knows, as a list and as one table that is rebuilt only when the rows change."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from .rows import frame

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
T = TypeVar("T")


class History:
    """The rows of this machine and, in a shared study, those of other machines, by trial and run."""

    def __init__(self, own: Sequence[Row] = ()) -> None:
        self._own, self._others = _sorted(own), list[Row]()
        self._derived: dict[Callable[[pd.DataFrame], Any], Any] = {}

    @property
    def own(self) -> list[Row]:
        """The rows of this machine."""
        return self._own

    @functools.cached_property
    def known(self) -> list[Row]:
        """All rows."""
        return _sorted([*self._own, *self._others]) if self._others else self._own

    @functools.cached_property
    def table(self) -> pd.DataFrame:
        """All rows as a data frame."""
        return frame(self.known)

    @functools.cached_property
    def own_table(self) -> pd.DataFrame:
        """The rows of this machine as a data frame."""
        return frame(self._own) if self._others else self.table

    def derived(self, function: Callable[[pd.DataFrame], T]) -> T:
        """What a function makes of the table of all rows, computed once for the same rows."""
        if function not in self._derived:
            self._derived[function] = function(self.table)
        return self._derived[function]  # type: ignore[no-any-return]

    @property
    def next_sequence(self) -> int:
        """The sequence number of the next row of this machine. Rows of older versions have none and come first."""
        return 1 + max([len(self._own), *(r["sequence"] or 0 for r in self._own)])

    def add(self, row: Row) -> None:
        """Add a row of this machine."""
        self._own = _sorted([*self._own, row])
        self._forget()

    def set_others(self, rows: Sequence[Row]) -> None:
        """Replace the rows of other machines."""
        if list(rows) != self._others:
            self._others = list(rows)
            self._forget()

    def _forget(self) -> None:
        self._derived.clear()
        for name in ("known", "table", "own_table"):
            self.__dict__.pop(name, None)


def _sorted(rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    return sorted(rows, key=lambda r: (r["trial"], r["run"]))
