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
from lookalike.scoring.knn import STEP
from lookalike.scoring.similarity import nearness, points

RIGHT, JUNK, WRONG, ABSENT = 0, 1, 2, 3
"""What an item is to a query; junk is listed and takes no place, what is absent is not listed."""

QUERIES = 16
"""Queries at once; each takes about 30 bytes an item."""


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


def kinds(sets: Gallery, query_B: Tensor) -> Tensor:
    """What every item is to these queries, int8 `(B, N)`."""
    same_BN = sets.labels_Q[query_B][:, None] == sets.labels_N
    kind_BN = torch.where(same_BN, RIGHT, WRONG).to(torch.int8)
    if sets.cameras_Q is not None and sets.cameras_N is not None:
        kind_BN[same_BN & (sets.cameras_Q[query_B][:, None] == sets.cameras_N)] = JUNK
    has_H = (sets.own_Q[query_B] >= 0).nonzero()[:, 0]
    kind_BN[has_H, sets.own_Q[query_B[has_H]]] = ABSENT
    return kind_BN


@torch.no_grad()
def nearest(sets: Gallery, query_B: Tensor, k: int) -> Nearest:
    """The first `k` items of the lists of these queries, int64 `(B,)`. Raises Error when k is not
    above 0.
    """
    if k < 1:
        raise Error(f"nearest: k {k}; it must be above 0")
    from_QD, to_ND = points(sets.query_QD, sets.gallery_ND, sets.distance)
    rows, k = len(to_ND), min(k, len(to_ND))
    last_N = torch.arange(rows - 1, -1, -1, device=to_ND.device)
    parts = []
    for row_B in torch.split(query_B, QUERIES):
        near_BN, kind_BN = nearness(from_QD[row_B], to_ND, sets.distance), kinds(sets, row_B)
        # One whole number an item, no two alike: nearness, then what it is, then the row; below
        # 2^62.
        key_BN = (near_BN.long() * 4 + kind_BN).mul_(rows).add_(last_N)
        key_BN.masked_fill_(kind_BN == ABSENT, torch.iinfo(torch.int64).min)
        row_BK = key_BN.topk(k, dim=1).indices
        kind_BK, near_BK = kind_BN.gather(1, row_BK), near_BN.gather(1, row_BK).double().mul_(STEP)
        row_BK = row_BK.masked_fill(kind_BK == ABSENT, -1)
        parts.append((row_BK, near_BK if sets.distance == "cosine" else -near_BK, kind_BK))
    return Nearest(*(torch.cat(part) for part in zip(*parts, strict=True)))
