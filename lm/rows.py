"""Which rows of each batch a host makes."""

from typing import NamedTuple


class HostRows(NamedTuple):
    """Some of the equal parts that a batch is cut into; what is left out is all rows.

    >>> HostRows(4, (0, 2)).of(8)
    [0, 1, 4, 5]

    Attributes:
        parts: how many there are.
        own: which, ascending.
    """

    parts: int = 1
    own: tuple[int, ...] = (0,)

    def of(self, size: int) -> list[int]:
        """Returns the numbers of the rows, of a batch of so many."""
        each = size // self.parts
        return [part * each + row for part in self.own for row in range(each)]


ALL = HostRows()
