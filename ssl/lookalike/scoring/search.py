"""The nearest rows of a large matrix, exactly and in a few megabytes: block by block, by
`nearness`: ties are ties.

The matrix may be mapped from a file: it is read once for each `QUERIES` queries, and never copied
whole.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lookalike.errors import Error
from lookalike.geometry import Distance
from lookalike.scoring.knn import STEP, check
from lookalike.scoring.similarity import is_cosine, nearness

ROWS = 512
"""Rows at once: as float64 they stay in a processor's cache."""

QUERIES = 256


@torch.no_grad()
def nearest(
    query_QD: Tensor, x_ND: Tensor, k: int, *, distance: Distance = "cosine"
) -> tuple[Tensor, Tensor]:
    """Rows of the k nearest, int64 `(Q, k)`, nearest first, and their cosine similarity or
    Euclidean distance, float64.

    Nearness is compared in steps of `STEP`, of the root mean square distance from the mean where it
    is a distance; at equal nearness the earlier row is first. k above N is N. Raises Error for k
    below 1 and for what is no full matrix of numbers or of another width.
    """
    check(query_QD, "query")
    if k < 1:
        raise Error(f"k {k}: ask for at least 1")
    if x_ND.ndim != 2 or 0 in x_ND.shape:
        raise Error(
            f"gallery features: shape {tuple(x_ND.shape)}; pass a full (rows, width) tensor"
        )
    if x_ND.shape[1] != query_QD.shape[1]:
        widths = f"{query_QD.shape[1]} of the queries, {x_ND.shape[1]} of the gallery"
        raise Error(f"features: width {widths}; use one model for both")
    frame = None if is_cosine(distance) else _frame(x_ND)
    parts = [_nearest(part_QD, x_ND, k, frame) for part_QD in torch.split(query_QD, QUERIES)]
    row_Qk, steps_Qk = (torch.cat(part) for part in zip(*parts, strict=True))
    near_Qk = steps_Qk.double().mul_(STEP)
    return row_Qk, near_Qk if frame is None else near_Qk.mul_(-frame.unit).abs_()


class Frame(NamedTuple):
    """Where distances are measured: from the mean of the rows, in root mean squares of the distance
    from it.
    """

    mean_D: Tensor
    unit: float


def _nearest(query_QD: Tensor, x_ND: Tensor, k: int, frame: Frame | None) -> tuple[Tensor, Tensor]:
    """Rows and nearness in steps. One whole number an item, no two alike, below 2^62: nearness,
    then the row.
    """
    distance: Distance = "cosine" if frame is None else "euclidean"
    count, from_QD = len(x_ND), _placed(query_QD.to(torch.float64, copy=True), frame)
    best_Qk = torch.empty(len(from_QD), 0, dtype=torch.int64, device=from_QD.device)
    for start, to_BD in _blocks(x_ND):
        near_QB = nearness(from_QD, _placed(to_BD, frame), distance)
        last_B = torch.arange(
            count - 1 - start, count - 1 - start - len(to_BD), -1, device=from_QD.device
        )
        key_QB = torch.cat((best_Qk, near_QB.long().mul_(count).add_(last_B)), dim=1)
        best_Qk = key_QB.topk(min(k, key_QB.shape[1]), dim=1).values
    steps_Qk = best_Qk.div(count, rounding_mode="floor")
    return count - 1 - (best_Qk - steps_Qk * count), steps_Qk


def _blocks(x_ND: Tensor) -> Iterator[tuple[int, Tensor]]:
    """First row and float64 copy of each block. Raises Error where one is NaN or Inf."""
    for start in range(0, len(x_ND), ROWS):
        to_BD = x_ND[start : start + ROWS].to(torch.float64, copy=True)
        # A sum is a number only if all are: a quarter of the time of asking each.
        if not bool(to_BD.sum().isfinite()):
            row = start + int((~to_BD.isfinite().all(1)).nonzero()[0])
            raise Error(
                f"gallery features: NaN or Inf in row {row}; check the weights and the precision"
            )
        yield start, to_BD


def _frame(x_ND: Tensor) -> Frame:
    """As `nearness.points` takes them."""
    mean_D = x_ND.new_zeros(x_ND.shape[1], dtype=torch.float64)
    for _, to_BD in _blocks(x_ND):
        mean_D += to_BD.sum(0) / len(x_ND)
    square = sum(float((to_BD - mean_D).square().sum()) for _, to_BD in _blocks(x_ND))
    return Frame(mean_D, (square / len(x_ND)) ** 0.5 or 1.0)


def _placed(x_BD: Tensor, frame: Frame | None) -> Tensor:
    """Rows where `nearness` wants them: on the unit sphere (zero rows stay zero), or in the frame;
    in place.
    """
    if frame is None:
        return x_BD.div_(torch.linalg.vector_norm(x_BD, dim=1, keepdim=True).clamp_min(1e-12))
    return x_BD.sub_(frame.mean_D).div_(frame.unit)
