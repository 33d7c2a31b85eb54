"""A step whose views several processes share: what each has of it, and how they make one result of their parts."""

from collections.abc import Sequence
from typing import Protocol, final, runtime_checkable

from torch import Tensor


@runtime_checkable
class Share(Protocol):
    """Which of a step's views are here. What is random is drawn for all views, everywhere alike, and then shared."""

    @property
    def first(self) -> int:
        """The place of the first of them among all."""
        ...

    def total(self, own: int) -> int:
        """Views of the whole step, of which ``own`` are here."""
        ...

    def own(self, drawn: Tensor) -> Tensor:
        """Of values [total, ...] the rows [b, ...] of the views that are here."""
        ...

    def gather(self, rows: Tensor) -> Tensor:
        """Rows [b, ...] of the views that are here, and of all others: [total, ...]."""
        ...

    def average(self, means: Sequence[Tensor]) -> None:
        """Turn means over the views that are here, in place, into means over all; every process calls it alike."""
        ...


@final
class Whole:
    """All views of a step are here."""

    first = 0

    def total(self, own: int) -> int:
        """See ``Share.total``."""
        return own

    def own(self, drawn: Tensor) -> Tensor:
        """See ``Share.own``."""
        return drawn

    def gather(self, rows: Tensor) -> Tensor:
        """See ``Share.gather``."""
        return rows

    def average(self, means: Sequence[Tensor]) -> None:
        """See ``Share.average``."""


WHOLE: Share = Whole()
