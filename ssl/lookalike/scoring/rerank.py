"""Re-ranking by k-reciprocal neighbours: who has me among his neighbours, and whose neighbours are
mine.

Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017, arXiv
1701.08398, and its authors' code: Euclidean distances among queries and gallery together, squared,
each row divided by its largest; k-reciprocal sets R(p, k1), enlarged by R(q, k1/2) where more than
two thirds of it are in R(p, k1) (equation 5); weights exp(-d) of sum 1 (equation 7), averaged over
the k2 nearest (equation 11); Jaccard distance (equation 10); (1 - λ) Jaccard + λ d (equation 12).
Rows are sets of some hundred entries here, never an n × n matrix.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lookalike.errors import Error
from lookalike.geometry import Distance
from lookalike.scoring.similarity import points, squares

ENTRIES = 2**22
"""Numbers in one temporary."""


class _Sets(NamedTuple):
    """Sparse rows: row n holds columns `column_K` and weights `weight_K` at `start_N[n] : start_N[n
    + 1]`.
    """

    start_N: Tensor
    column_K: Tensor
    weight_K: Tensor


@torch.no_grad()
def distances(
    query_QD: Tensor,
    gallery_ND: Tensor,
    *,
    k1: int = 20,
    k2: int = 6,
    weight: float = 0.3,
    distance: Distance = "cosine",
) -> Tensor:
    """Re-ranked distances, float32 `(Q, N)` in [0, 1], from Euclidean distances; `weight` is λ, 1
    keeps the old order.

    For cosine rows are first brought to unit length, so that the old order is that of cosine
    similarity. A row is always its own first neighbour; other ties fall as the sort makes them. k1
    and k2 above the n = Q + N rows mean all of them. Memory: the result, 8 bytes × n × D, about 16
    bytes × n × (size of a set, some hundred) and 0.5 GB. Runs where the embeddings lie. Raises
    Error when the embeddings cannot be used or a setting is out of range.
    """
    if k1 < 1 or k2 < 1 or not 0 <= weight <= 1:
        raise Error(
            f"re-ranking: k1 {k1}, k2 {k2}, weight {weight}; k1 and k2 above 0, weight from 0 to 1"
        )
    from_QD, to_ND = points(query_QD, gallery_ND, distance)
    row_ND, queries = torch.cat([from_QD, to_ND]), len(from_QD)
    near_NK, largest_N = _neighbours(row_ND, min(max(k1 + 1, k2), len(row_ND)))
    sets = _reciprocal_sets(row_ND, near_NK[:, : k1 + 1], largest_N, round(k1 / 2) + 1)
    if k2 > 1:
        sets = _averaged(sets, near_NK[:, :k2])
    return _mixed(sets, row_ND, largest_N, queries, weight)


def _chunks(rows: int, each: int, device: torch.device) -> tuple[Tensor, ...]:
    """The numbers 0 … rows-1 in parts whose temporaries, `each` entries a row, stay within
    `ENTRIES`.
    """
    return torch.split(torch.arange(rows, device=device), max(1, ENTRIES // each))


def _neighbours(row_ND: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest rows of each, itself first, `(N, k)`, and its largest squared distance,
    `(N,)`.
    """
    nearest, largest = [], []
    for row_B in _chunks(len(row_ND), len(row_ND), row_ND.device):
        d_BN = squares(row_ND[row_B], row_ND)
        largest.append(d_BN.amax(1))
        d_BN.scatter_(1, row_B[:, None], -1)
        nearest.append(d_BN.topk(k, dim=1, largest=False).indices)
    largest_N = torch.cat(largest)
    return torch.cat(nearest), largest_N.where(largest_N > 0, 1)


def _mutual(near_NK: Tensor) -> Tensor:
    """Where a row is among the neighbours of its neighbour, bool `(N, K)`."""
    parts = [
        (near_NK[near_NK[row_B]] == row_B[:, None, None]).any(2)
        for row_B in _chunks(len(near_NK), near_NK.shape[1] ** 2, near_NK.device)
    ]
    return torch.cat(parts)


def _reciprocal_sets(row_ND: Tensor, near_NK: Tensor, largest_N: Tensor, half: int) -> _Sets:
    """Each row's enlarged k-reciprocal set, with weights exp(-d) of sum 1."""
    near_NH = near_NK[:, :half]
    mutual_NK, mutual_NH = _mutual(near_NK), _mutual(near_NH)
    k, rows, owners, members, weights = near_NK.shape[1], len(near_NK), [], [], []
    for row_B in _chunks(rows, k * k * near_NH.shape[1], near_NK.device):
        set_BK, in_BK = near_NK[row_B], mutual_NK[row_B]
        other_BKH, in_BKH = near_NH[set_BK], mutual_NH[set_BK] & in_BK[:, :, None]
        common_BKH = ((other_BKH[..., None] == set_BK[:, None, None]) & in_BK[:, None, None]).any(
            3
        ) & in_BKH
        taken_BK1 = (3 * common_BKH.sum(2) > 2 * in_BKH.sum(2))[:, :, None]
        own_BK, more_BKH = set_BK.where(in_BK, rows), other_BKH.where(in_BKH & taken_BK1, rows)
        all_BS = torch.cat([own_BK, more_BKH.flatten(1)], 1).sort(1).values
        new_BS = all_BS < rows
        new_BS[:, 1:] &= all_BS[:, 1:] != all_BS[:, :-1]
        owner_K, column_K = row_B[new_BS.nonzero()[:, 0]], all_BS[new_BS]
        weight_K = torch.exp(-_pairs(row_ND, owner_K, column_K) / largest_N[owner_K])
        owners.append(owner_K)
        members.append(column_K)
        weights.append(weight_K)
    owner_K, weight_K = torch.cat(owners), torch.cat(weights)
    sum_N = weight_K.new_zeros(rows).index_add_(0, owner_K, weight_K)
    return _Sets(_starts(owner_K, rows), torch.cat(members), weight_K / sum_N[owner_K])


def _pairs(row_ND: Tensor, a_K: Tensor, b_K: Tensor) -> Tensor:
    """Squared Euclidean distances of pairs of rows, `(K,)`."""
    size = max(1, ENTRIES // row_ND.shape[1])
    both = zip(torch.split(a_K, size), torch.split(b_K, size), strict=True)
    return torch.cat([(row_ND[a] - row_ND[b]).square().sum(1) for a, b in both])


def _starts(owner_K: Tensor, rows: int) -> Tensor:
    """Where each row begins in a list sorted by row, `(rows + 1,)`."""
    size_N = torch.bincount(owner_K, minlength=rows)
    return torch.cat([size_N.new_zeros(1), size_N.cumsum(0)])


def _entries(start_N: Tensor, row_B: Tensor) -> tuple[Tensor, Tensor]:
    """All entries of some rows: for each, which of the rows it is of and where it lies, `(K,)`
    both.
    """
    size_B = start_N[row_B + 1] - start_N[row_B]
    of_K = torch.repeat_interleave(torch.arange(len(row_B), device=row_B.device), size_B)
    place_K = torch.arange(len(of_K), device=row_B.device) - (size_B.cumsum(0) - size_B)[of_K]
    return of_K, start_N[row_B][of_K] + place_K


def _averaged(sets: _Sets, near_Nk: Tensor) -> _Sets:
    """Local query expansion: each row becomes the mean of its nearest rows'."""
    rows, k = near_Nk.shape
    owners, members, weights = [], [], []
    typical = 1 + len(sets.column_K) // rows
    for row_B in _chunks(rows, 4 * k * typical, near_Nk.device):
        of_K, at_K = _entries(sets.start_N, near_Nk[row_B].flatten())
        key_K, into_K = torch.unique(of_K // k * rows + sets.column_K[at_K], return_inverse=True)
        owners.append(row_B[key_K // rows])
        members.append(key_K % rows)
        weights.append(
            sets.weight_K.new_zeros(len(key_K)).index_add_(0, into_K, sets.weight_K[at_K]) / k
        )
    return _Sets(_starts(torch.cat(owners), rows), torch.cat(members), torch.cat(weights))


def _mixed(sets: _Sets, row_ND: Tensor, largest_N: Tensor, queries: int, weight: float) -> Tensor:
    """(1 - λ) Jaccard distance + λ d of the first `queries` rows to the others; Σ max = 2 - Σ min,
    as sums are 1.
    """
    rows, gallery = len(row_ND), len(row_ND) - queries
    owner_K, at_K = _entries(sets.start_N, torch.arange(queries, rows, device=row_ND.device))
    order_K = sets.column_K[at_K].argsort(stable=True)
    owner_K, at_K = owner_K[order_K], at_K[order_K]
    start_N, out_QN = (
        _starts(sets.column_K[at_K], rows),
        torch.empty(queries, gallery, device=row_ND.device),
    )
    for row_B in _chunks(queries, 4 * gallery, row_ND.device):
        of_E, at_E = _entries(sets.start_N, row_B)
        pair_P, hit_P = _entries(start_N, sets.column_K[at_E])
        least_P = torch.minimum(sets.weight_K[at_E][pair_P], sets.weight_K[at_K[hit_P]])
        least_BN = least_P.new_zeros(len(row_B) * gallery)
        least_BN.index_add_(0, of_E[pair_P] * gallery + owner_K[hit_P], least_P)
        least_BN = least_BN.view(len(row_B), gallery)
        d_BN = squares(row_ND[row_B], row_ND[queries:]) / largest_N[row_B][:, None]
        out_QN[row_B] = (
            (1 - weight) * (1 - least_BN / (2 - least_BN)).clamp_min(0) + weight * d_BN
        ).float()
    return out_QN
