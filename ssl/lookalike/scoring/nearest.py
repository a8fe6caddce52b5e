"""The first places of a ranked list, to be looked at: the similarity, the ties and the junk of the
scores.

Among equally near items wrong ones come first, then junk, then right ones, each by row, as `ranks`
counts them.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lookalike.errors import Error
from lookalike.geometry import Distance
from lookalike.scoring.rows import STEP, check
from lookalike.scoring.similarity import Bank, refuse_widths
from lookalike.scoring.topk import Kind, topk

RIGHT, JUNK, WRONG, ABSENT = 0, 1, 2, 3
"""What an item is to a query; junk is listed and takes no place, what is absent is not listed."""


class Nearest(NamedTuple):
    """The first K items of B lists: rows of the gallery, int64; cosine similarity or distance; what
    they are.

    Behind the end of a shorter list the row is -1 and the kind ABSENT.
    """

    row_BK: Tensor
    near_BK: Tensor
    kind_BK: Tensor


class Gallery(NamedTuple):
    """Two sets of embeddings, one tensor twice where they are one set, with their classes and
    perhaps cameras.

    `own_Q`: which row of the gallery a query is, -1 for none; it is never listed. Items of a
    query's own class and camera are junk; without cameras there is none.
    """

    query_QD: Tensor
    labels_Q: Tensor
    cameras_Q: Tensor | None
    gallery_ND: Tensor
    labels_N: Tensor
    cameras_N: Tensor | None
    own_Q: Tensor
    distance: Distance


def kinds(sets: Gallery, query_B: Tensor, row_BK: Tensor) -> Tensor:
    """What some items are to these queries, int64 `(B, K)`."""
    label_B1, label_BK = sets.labels_Q[query_B][:, None], sets.labels_N[row_BK]
    kind_BK = torch.where(label_B1 == label_BK, RIGHT, WRONG)
    if sets.cameras_Q is not None and sets.cameras_N is not None:
        seen_BK = sets.cameras_Q[query_B][:, None] == sets.cameras_N[row_BK]
        kind_BK[(label_B1 == label_BK) & seen_BK] = JUNK
    return kind_BK.masked_fill_(sets.own_Q[query_B][:, None] == row_BK, ABSENT)


@torch.no_grad()
def nearest(sets: Gallery, query_B: Tensor, k: int) -> Nearest:
    """The first `k` items of the lists of these queries, int64 `(B,)`. Raises Error when k is not
    above 0.
    """
    if k < 1:
        raise Error(f"nearest: k {k}; it must be above 0")
    check(sets.query_QD, "query")
    check(sets.gallery_ND, "gallery")
    refuse_widths(sets.query_QD, sets.gallery_ND)
    bank = Bank(sets.gallery_ND, sets.distance)
    top = topk(sets.query_QD[query_B], bank, k, kind=_kind(sets, query_B))
    near_BK = top.steps_Qk.double().mul_(STEP)
    near_BK = near_BK if bank.cosine else near_BK.abs_()  # in units of the spread
    absent_BK = top.row_Qk < 0
    return Nearest(top.row_Qk, near_BK, top.kind_Qk.masked_fill(absent_BK, ABSENT).to(torch.int8))


def _kind(sets: Gallery, query_B: Tensor) -> Kind:
    """The same as `topk` asks for it, wherever that computes."""

    def kind(place_B: Tensor, row_BK: Tensor) -> Tensor:
        kind_BK = kinds(sets, query_B[place_B.cpu()], row_BK.cpu())
        return kind_BK.masked_fill_(kind_BK == ABSENT, -1).to(row_BK.device)

    return kind
