"""What an objective of ours may say of itself; a loss of another library is never asked."""

from typing import ClassVar

from torch import Tensor


class OwnLoss:
    """Stands before the library's base among the bases of a loss; its defaults are the library's
    ways.
    """

    # Whether it wants rows of any length as they are; else it gets them of length one.
    unnormalised: ClassVar[bool] = False

    def affine(self) -> tuple[Tensor, Tensor] | None:
        """(W, b) of its own map before what it compares, to be folded into the head, if any."""
        return None
