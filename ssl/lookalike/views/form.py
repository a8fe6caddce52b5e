"""What views are besides what is drawn for them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lookalike.views.erasing import ErasedWith
from lookalike.views.resample import Interpolation, Outside

Draws = Mapping[str, Tensor]


class ViewFormat(NamedTuple):
    """What the views are besides what is drawn for them; `sides`: height and width; `fill`: what
    stands for the mean where something is erased or moved out of sight, by default `mean` itself.
    """

    sides: tuple[int, int]
    interpolation: Interpolation
    sigma_max: float
    mean: Sequence[float]
    std: Sequence[float]
    dtype: torch.dtype = torch.float32
    outside: Outside = "zero"
    erase_with: ErasedWith = "mean"
    fill: Sequence[float] | None = None

    @property
    def filling(self) -> Sequence[float]:
        return self.mean if self.fill is None else self.fill
