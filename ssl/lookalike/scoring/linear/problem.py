"""Multinomial logistic regression on any number of rows: loss, gradient and minimum, from blocks of
them that ranks share.

Loss: mean cross-entropy + l2/2 · ‖W‖², bias free, features standardised by train. It is solved in
coordinates where the Hessian at the start is near the identity: rotated by the eigenvectors of
XᵀX/N and scaled by √(λ·v + l2), with λ the eigenvalues and v the mean of p(1 - p). The minimum is
the same, the path shorter.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lookalike import comm
from lookalike.errors import Error
from lookalike.scoring.knn import rank
from lookalike.scoring.linear.lbfgs import Point, minimise
from lookalike.scoring.linear.rows import Exact, Moments, Rows, moments
from lookalike.scoring.linear.table import Block, Table
from lookalike.scoring.linear.turn import Turn, turned
from lookalike.scoring.similarity import full_precision

LOWEST = -80.0
"""Logits this far below the highest are none the lower: e^-88 and less are denormal in float32, and
a processor takes several times as long with them."""

PREDICTED = 4096
"""Rows that are classified at once."""


class Linear(NamedTuple):
    """A fitted classifier on features standardised by `mean_D` and `std_D`; `converged`: within
    tolerance.
    """

    weight_CD: Tensor
    bias_C: Tensor
    mean_D: Tensor
    std_D: Tensor
    converged: bool

    def logits(self, features_MD: Tensor) -> Tensor:
        """Class scores, `(M, C)`."""
        return torch.cat([self._logits(part_BD) for part_BD in torch.split(features_MD, PREDICTED)])

    def predict(self, features_MD: Tensor) -> Tensor:
        """The class of highest score, `(M,)`; the lowest of those that tie."""
        parts = torch.split(features_MD, PREDICTED)
        return torch.cat([self._logits(part_BD).argmax(1) for part_BD in parts])

    def _logits(self, features_BD: Tensor) -> Tensor:
        x_BD = (features_BD.to(self.mean_D.dtype) - self.mean_D) / self.std_D
        return x_BD @ self.weight_CD.T + self.bias_C


@dataclass(frozen=True)
class Problem:
    """Rows with labels 0 … classes-1, turned; products are taken of the table's rows and, where
    `folded`, of weights turned back.
    """

    rows: Rows
    labels_N: Tensor
    classes: int
    moments: Moments
    table: Table
    spectrum_E: Tensor
    turn: Turn
    folded: bool

    def slope(self, w_CE: Tensor, l2_E: Tensor) -> tuple[float, Tensor, float]:
        """Loss, its gradient, float64 `(C, E)`, and the mean of p(1 - p)."""
        with full_precision():
            loss, gradient_CF, spread = self._data(self._product_side(w_CE))
        penalty = (w_CE.square() * l2_E).sum() / 2
        gradient_CE = gradient_CF
        if self.folded:
            parts = [self.turn.into(gradient_CF[:, :-1]), gradient_CF[:, -1:]]
            gradient_CE = torch.cat(parts, 1)
        return float(loss + penalty), gradient_CE + w_CE * l2_E, spread

    def _product_side(self, w_CE: Tensor) -> Tensor:
        """Weights as the table's rows take them."""
        if self.folded:
            w_CE = torch.cat([self.turn.back(w_CE[:, :-1]), w_CE[:, -1:]], 1)
        return w_CE.to(self.table.dtype)

    def _data(self, w_CF: Tensor) -> tuple[Tensor, Tensor, float]:
        """Mean cross-entropy, its gradient, and the mean of p(1 - p): summed over blocks and
        ranks at once.
        """
        count, blocks, numbers = len(self.rows), len(self.table.blocks), w_CF.numel()
        total = w_CF.new_zeros(numbers + 2 * blocks, dtype=torch.float64)
        per_block_2K = total[numbers:].view(2, blocks)
        gradient = Exact(total[:numbers].view_as(w_CF), count * max(1.0, self.moments.longest))
        for block in self.table:
            residual_BC = self._residual(block, w_CF, per_block_2K[:, block.number])
            out_CF = self.table.scratch("gradient", *w_CF.shape)
            gradient.add(torch.mm(residual_BC.T, block.x_BE, out=out_CF))
        total = comm.all_sum(total)
        loss, spread = total[numbers:].view(2, blocks).sum(1) / count
        return loss, total[:numbers].view_as(w_CF) / count, float(spread) / self.classes

    def _residual(self, block: Block, w_CF: Tensor, sums_2: Tensor) -> Tensor:
        """p less 1 at the true class, `(B, C)`, for all chunks of a block; adds their loss and
        p(1 - p).

        What the true class lacks is summed from the others, exact near 0.
        """
        residual_BC = self.table.scratch("residual", len(block.rows), self.classes)
        true_B1 = self.labels_N[block.rows.start : block.rows.stop, None]
        for at in block.chunks:
            p_QC, true_Q1 = residual_BC[at], true_B1[at]
            torch.mm(block.x_BE[at], w_CF.T, out=p_QC)
            p_QC.sub_(p_QC.amax(1, keepdim=True))
            own_Q1 = p_QC.gather(1, true_Q1).double()
            p_QC.clamp_min_(LOWEST).exp_().scatter_(1, true_Q1, 0)
            others_Q1 = p_QC.sum(1, keepdim=True).double()
            total_Q1 = own_Q1.exp() + others_Q1
            lacks_Q1 = others_Q1 / total_Q1
            p_QC.mul_(total_Q1.reciprocal().to(p_QC)).scatter_(1, true_Q1, -lacks_Q1.to(p_QC))
            flat = p_QC.view(-1)
            sums_2[0] += total_Q1.log_().sub_(own_Q1).sum()
            sums_2[1] += 2 * lacks_Q1.sum() - torch.dot(flat, flat)
        return residual_BC

    def solve(self, l2: float, start: Linear | None, iterations: int, tolerance: float) -> Linear:
        """Minimise from `start` (zero if none), which may be standardised by other features."""
        l2_E = torch.full_like(self.spectrum_E, l2)
        l2_E[-1] = 0
        w_CE = self.spectrum_E.new_zeros(self.classes, len(l2_E))
        if start is not None:
            w_CE[:, :-1] = self.turn.into(start.weight_CD.to(w_CE))
            w_CE[:, -1] = start.bias_C
        loss, gradient_CE, spread = self.slope(w_CE, l2_E)
        scale_E = (self.spectrum_E * max(spread, 1e-6) + l2_E).sqrt()

        def slope(z_CE: Tensor) -> Point:
            loss, gradient_CE, _ = self.slope(z_CE / scale_E, l2_E)
            return loss, gradient_CE / scale_E

        here = loss, gradient_CE / scale_E
        z_CE, converged = minimise(slope, w_CE * scale_E, here, iterations, tolerance)
        return self._head(z_CE / scale_E, converged)

    def _head(self, w_CE: Tensor, converged: bool) -> Linear:
        """The classifier of standardised features, in their precision and where they are."""
        constant_D = self.moments.inverse_D == 0
        weight_CD = self.turn.back(w_CE[:, :-1]).masked_fill(constant_D, 0)
        device, dtype = self.rows.source_MD.device, self.rows.dtype
        mean_D, std_D = (x.to(device, dtype) for x in (self.moments.mean_D, self.moments.std_D))
        bias_C = w_CE[:, -1].to(device, dtype)
        return Linear(weight_CD.to(device, dtype), bias_C, mean_D, std_D, converged)


def problem(rows: Rows, labels_N: Tensor, classes: int) -> Problem:
    """Raises Error for labels that cannot be fitted."""
    if int(labels_N.min()) < 0 or int(labels_N.max()) >= classes or len(torch.unique(labels_N)) < 2:
        raise Error(
            f"train labels: two or more of the classes 0 to {classes - 1} are needed, and no others"
        )
    found = moments(rows)
    return Problem(
        rows, labels_N.long().to(rows.device), classes, found, *turned(rows, found, classes)
    )


def places(head: Linear, rows: Rows, labels_N: Tensor) -> Tensor:
    """How many classes a row's true one comes after, `(N,)` on all ranks; see `knn.rank`."""
    weight_CE = torch.cat([head.weight_CD, head.bias_C[:, None]], 1)
    table = Table(rows, head.mean_D, head.std_D.reciprocal(), columns=len(weight_CE), keep=False)
    weight_CE, labels_N = weight_CE.to(table.device, table.dtype), labels_N.to(table.device)
    place_N = torch.zeros_like(labels_N)
    for block in table:
        own_B, true_B = (x_N[block.rows.start : block.rows.stop] for x_N in (place_N, labels_N))
        logits_BC = table.scratch("logits", len(block.rows), len(weight_CE))
        for at in block.chunks:
            torch.mm(block.x_BE[at], weight_CE.T, out=logits_BC[at])
            own_B[at] = rank(logits_BC[at], true_B[at])
    return comm.all_sum(place_N)
