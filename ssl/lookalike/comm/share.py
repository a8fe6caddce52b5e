"""Work that ranks share: what there is to do is cut into blocks of a fixed size, and each rank does
some of them.

What stands in a block does not depend on the number of ranks, so its numbers are the same whoever
computes them.
"""

from collections.abc import Sequence
from typing import TypeVar

from lookalike.comm.topology import rank, world_size

T = TypeVar("T")


def cut(count: int, size: int) -> list[range]:
    """0 … count - 1 in ranges of `size`, the last one shorter; of nothing none."""
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


def consecutive(items: Sequence[T]) -> Sequence[T]:
    """This rank's items, one after another, so that what `cat` lays together is in order: as many
    for each rank, one more for the first ones where that does not come out even.
    """
    each, more = divmod(len(items), world_size())
    first = each * rank() + min(rank(), more)
    return items[first : first + each + (rank() < more)]


def in_turn(items: Sequence[T]) -> Sequence[T]:
    """This rank's items, every W-th of W ranks: for items in an order in which their cost
    changes.
    """
    return items[rank() :: world_size()]
