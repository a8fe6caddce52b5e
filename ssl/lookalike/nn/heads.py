"""Heads on a backbone: multi-layer perceptrons and prototypes."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lookalike.nn.numerics import exact, l2_normalize

LastNorm = Literal["none", "plain", "affine"]


def mlp(
    widths: Sequence[int], *, last_norm: LastNorm = "none", bias: bool = False
) -> nn.Sequential:
    """Linear, BatchNorm, ReLU for each step of `widths`; the last step is Linear and, if asked, a
    BatchNorm.

    `last_norm`: "affine" is BatchNorm with scale and shift, "plain" without; `bias`: of the last
    Linear.
    """
    layers: list[nn.Module] = []
    for wide, (d_in, d_out) in enumerate(zip(widths, widths[1:], strict=False), start=2):
        last = wide == len(widths)
        layers.append(nn.Linear(d_in, d_out, bias=bias and last))
        if not last:
            layers += [nn.BatchNorm1d(d_out), nn.ReLU(inplace=True)]
        elif last_norm != "none":
            layers.append(nn.BatchNorm1d(d_out, affine=last_norm == "affine"))
    return nn.Sequential(*layers)


def mlp_back(projector: Sequence[int], predictor: Sequence[int], **how: Any) -> nn.Sequential:
    """The predictor, an mlp from the projector's embeddings to what is compared with them.

    Raises ValueError when its width is not theirs.
    """
    if predictor[-1] != projector[-1]:
        raise ValueError(
            f"predictor ends {predictor[-1]} wide and projector {projector[-1]}: make them equal"
        )
    return mlp([projector[-1], *predictor], **how)


class Prototypes(nn.Module):
    """Cosines with K learned directions: unit rows (B, D) -> (B, K). While `frozen` they have a
    gradient of zeros.
    """

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.randn(count, dim), dim=1))
        self.frozen = False

    @exact
    def forward(self, z_BD: Tensor) -> Tensor:
        """(B, D) -> (B, K)."""
        weight_KD: Tensor = self.weight
        if self.frozen:  # zeros rather than None: every engine and optimizer then does the same
            weight_KD = weight_KD.detach() + 0 * (weight_KD - weight_KD.detach())
        return z_BD @ l2_normalize(weight_KD).to(z_BD.dtype).T
