"""How many pairs a batch has, where the host would wait for a device to say so: there sizes are the
most that they can be, and what is too many counts nothing.
"""

from torch import Tensor

# The class of a reference that is none: it is neither positive nor negative of anything.
NO_CLASS = 2**63 - 1


def seen(x: Tensor) -> bool:
    """Whether the host may look at a number of this tensor: on a CPU it costs nothing, elsewhere a
    wait.
    """
    return x.device.type == "cpu"


def at_most(count: Tensor, bound: int) -> int:
    """The count, or `bound`, that it cannot exceed, where the host would wait for it."""
    return min(int(count), bound) if seen(count) else bound
