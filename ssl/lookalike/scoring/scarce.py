"""Logistic regression on few labelled rows of many.

As `linear`: mean cross-entropy + l2/2 · ‖W‖², bias free, to the optimum, by L-BFGS in the rotated
coordinates in which the Hessian is near the identity; everything in float64. Two things differ.
Rows are standardised by mean and standard deviation of all train rows, labelled or not: of one row
a class the standard deviation says nothing. And the L2 is chosen by cross-validation among the
labelled rows alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lookalike import comm
from lookalike.scoring.blocks import ROWS, dealt, hit, shares, taken, zeros
from lookalike.scoring.knn import dense

L2_OF_ONE = 1e-2
"""The strength where a class has one row, so that none can be held out: the middle of a range over
which it hardly matters, between the largest margin (0) and class means (infinity).
"""
FOLDS = 5
FOLDED = 10_000
"""Up to so many rows there are `FOLDS` folds, beyond it one fold of as many is held out."""
MOST_STEPS = 500
EXACT, LOOSE = 1e-8, 1e-5
"""The largest entry of the gradient at an optimum, and of a fit that is only compared by its
held-out accuracy.
"""


class Standard(NamedTuple):
    """Mean and population standard deviation of each dimension, 1 where it is constant, float64."""

    mean_D: Tensor
    std_D: Tensor

    def of(self, x_ND: Tensor) -> Tensor:
        """The rows standardised."""
        return (x_ND - self.mean_D) / self.std_D


class Scarce(NamedTuple):
    """A fitted classifier on standardised rows, and the L2 that it was fitted with."""

    weight_CD: Tensor
    bias_C: Tensor
    l2: float


def standard(features_ND: Tensor) -> Standard:
    """Of all rows, by blocks, by all ranks, which call it together."""
    rows, width = features_ND.shape
    sum_D = zeros(width)
    for block in dealt(rows):
        sum_D += taken(features_ND, block).sum(0)
    mean_D = comm.all_sum(sum_D) / rows
    square_D = zeros(width)
    for block in dealt(rows):
        square_D += (taken(features_ND, block) - mean_D).square().sum(0)
    std_D = (comm.all_sum(square_D) / rows).sqrt()
    return Standard(mean_D, std_D.masked_fill(std_D <= 1e-12 * mean_D.abs(), 1))


class _Rotated(NamedTuple):
    """Rows in the axes of their second moment with a last column of ones, (K, R + 1); the moment's
    eigenvalues; the way back.
    """

    u_KE: Tensor
    spectrum_E: Tensor
    axes_DR: Tensor


def _rotated(x_KD: Tensor) -> _Rotated:
    rows, width = x_KD.shape
    if rows >= width:
        spectrum_R, axes_DR = torch.linalg.eigh(x_KD.T @ x_KD / rows)
    else:
        spectrum_R, u_KR = torch.linalg.eigh(x_KD @ x_KD.T / rows)
        kept_R = spectrum_R > spectrum_R[-1] * rows * torch.finfo(torch.float64).eps
        spectrum_R = spectrum_R[kept_R]
        axes_DR = x_KD.T @ (u_KR[:, kept_R] / (spectrum_R * rows).sqrt())
    u_KE = torch.cat([x_KD @ axes_DR, x_KD.new_ones(rows, 1)], 1)
    spectrum_E = torch.cat([spectrum_R.clamp_min(0), spectrum_R.new_ones(1)])
    return _Rotated(u_KE, spectrum_E, axes_DR)


def _solve(
    rotated: _Rotated,
    labels_K: Tensor,
    classes: int,
    l2: float,
    start_CE: Tensor | None,
    tolerance: float,
) -> Tensor:
    """The weights (C, R + 1) of the optimum."""
    u_KE, spectrum_E, _ = rotated
    l2_E = torch.full_like(spectrum_E, l2)
    l2_E[-1] = 0
    scale_E = (spectrum_E * (1 - 1 / classes) / classes + l2_E).sqrt()
    w_CE = u_KE.new_zeros(classes, len(l2_E)) if start_CE is None else start_CE
    z_CE = (w_CE * scale_E).requires_grad_()
    steps = torch.optim.LBFGS(
        [z_CE],
        max_iter=MOST_STEPS,
        tolerance_grad=tolerance,
        tolerance_change=1e-6 * tolerance,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        steps.zero_grad()
        w_CE = z_CE / scale_E
        value = F.cross_entropy(u_KE @ w_CE.T, labels_K) + (l2_E * w_CE.square()).sum() / 2
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        steps.step(loss)  # type: ignore[no-untyped-call]
    return z_CE.detach() / scale_E


def _path(
    x_KD: Tensor,
    labels_K: Tensor,
    classes: int,
    strengths: Sequence[float],
    tolerance: float = EXACT,
) -> list[tuple[Tensor, Tensor]]:
    """Weights (C, D) and biases of each strength, from strong to weak, each from the one before."""
    rotated, w_CE, found = _rotated(x_KD), None, []
    for l2 in strengths:
        w_CE = _solve(rotated, labels_K, classes, l2, w_CE, tolerance)
        found.append((w_CE[:, :-1] @ rotated.axes_DR.T, w_CE[:, -1]))
    return found


def folds(labels_K: Tensor) -> list[Tensor]:
    """Which rows each fold holds out, bool (K,): of each class in turn, so that all have the same
    share of it; none where a class has one row.
    """
    count_C = torch.bincount(labels_K)
    if not len(count_C) or int(count_C[count_C > 0].min()) < 2:
        return []
    order_K = labels_K.argsort(stable=True)
    place_K = torch.empty_like(order_K)
    first_C = count_C.cumsum(0) - count_C
    place_K[order_K] = (
        torch.arange(len(order_K), device=order_K.device) - first_C[labels_K[order_K]]
    )
    many = min(FOLDS, int(count_C[count_C > 0].min()))
    fold_K = place_K % many
    return [fold_K == fold for fold in range(many if len(labels_K) <= FOLDED else 1)]


def chosen(x_KD: Tensor, labels_K: Tensor, classes: int, grid: Sequence[float]) -> float:
    """The L2 of the grid that classifies most held-out rows rightly, the strongest of those that
    tie; `L2_OF_ONE` where none can be held out.
    """
    strengths, parts = sorted(set(grid), reverse=True), folds(labels_K)
    if not parts:
        return L2_OF_ONE
    right_G = torch.zeros(len(strengths), dtype=torch.int64)
    for held_K in parts:
        fits = _path(x_KD[~held_K], labels_K[~held_K], classes, strengths, LOOSE)
        for g, (weight_CD, bias_C) in enumerate(fits):
            guess_H = (x_KD[held_K] @ weight_CD.T + bias_C).argmax(1)
            right_G[g] += int((guess_H == labels_K[held_K]).sum())
    return strengths[int(right_G.argmax())]


def fit(x_KD: Tensor, labels_K: Tensor, classes: int, grid: Sequence[float]) -> Scarce:
    """Labels 0 … C-1 on standardised float64 rows; the L2 chosen among them, then fitted on all."""
    l2 = chosen(x_KD, labels_K, classes, grid)
    ((weight_CD, bias_C),) = _path(x_KD, labels_K, classes, [l2])
    return Scarce(weight_CD, bias_C, l2)


@torch.no_grad()
def accuracy(
    train_ND: Tensor,
    labels_N: Tensor,
    rows_K: Tensor,
    test_MD: Tensor,
    test_labels_M: Tensor,
    of_all: Standard,
    grid: Sequence[float],
) -> dict[str, float]:
    """`top1`, `top5` with more than 5 classes, and the `l2` of a classifier that knows the labels
    of `rows_K` only. By this rank alone: ranks take different draws.
    """
    labels_K = labels_N[rows_K].long()
    classes, near_K, true_M = dense(labels_K, test_labels_M.long().contiguous())
    device = comm.exact_device()
    fitted = fit(of_all.of(taken(train_ND, rows_K)), near_K.to(device), classes, grid)
    hits_2 = zeros(2)
    for start in range(0, len(test_MD), ROWS):
        part = slice(start, start + ROWS)
        x_BD = of_all.of(taken(test_MD, part))
        hits_2 += hit(x_BD @ fitted.weight_CD.T + fitted.bias_C, true_M[part].to(device))
    return {**shares(hits_2, len(test_MD), classes), "l2": fitted.l2}
