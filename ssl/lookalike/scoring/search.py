"""The nearest rows of a large matrix, exactly and in a few megabytes: see `topk`; ties are ties."""

import torch
from torch import Tensor

from lookalike.errors import Error
from lookalike.geometry import Distance
from lookalike.scoring.rows import check
from lookalike.scoring.similarity import Bank, Frame, refuse_widths
from lookalike.scoring.topk import topk


@torch.no_grad()
def nearest(
    query_QD: Tensor,
    x_ND: Tensor,
    k: int,
    *,
    distance: Distance = "cosine",
    known: Frame | None = None,
) -> tuple[Tensor, Tensor]:
    """Rows of the k nearest, int64 `(Q, k)`, nearest first, and their cosine similarity or
    Euclidean distance, float64.

    Nearness is compared in steps of 1e-6, of the root mean square distance from the mean where it
    is a distance; at equal nearness the earlier row is first. k above N is N. `x_ND` may be half
    precision, or mapped from a file: it is read once for each 256 queries, and never copied whole;
    `known`: its `frame`, which is measured where it is not given. Raises Error for k below 1 and
    for what is no full matrix of numbers or of another width.
    """
    check(query_QD, "query")
    if k < 1:
        raise Error(f"k {k}: ask for at least 1")
    bank = Bank(x_ND, distance, known)
    refuse_widths(query_QD, x_ND)
    top = topk(query_QD, bank, k)
    return top.row_Qk, bank.similarity(top.steps_Qk)
