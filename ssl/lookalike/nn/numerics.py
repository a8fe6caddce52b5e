"""Precision and length of rows: what losses and statistics are computed in."""

import torch
import torch.nn.functional as F
from torch import Tensor


def l2_normalize(x_BD: Tensor) -> Tensor:
    """Rows of length one, in fp32 or better; a row of zeros stays zero, and has a gradient of
    zeros.
    """
    x_BD = at_least_fp32(x_BD)
    # Scaled by the largest entry first: the squares of huge or tiny rows would leave the range of
    # fp32.
    largest_B1 = x_BD.detach().abs().amax(dim=1, keepdim=True)
    nonzero_B1 = largest_B1 > 0
    return F.normalize(x_BD / torch.where(nonzero_B1, largest_B1, 1.0), dim=1) * nonzero_B1


def at_least_fp32(x: Tensor) -> Tensor:
    """In fp32, or fp64 where it came so: what losses and statistics are computed in."""
    return x if x.dtype == torch.float64 else x.float()
