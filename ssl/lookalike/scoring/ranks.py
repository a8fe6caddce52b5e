"""Ranks of the relevant items: all that the measures of a ranked list need, by counting, without
the list.

The m-th nearest relevant item stands at place m + (wrong items at least as near): at equal nearness
the wrong ones come first, so a collapsed embedding scores badly. Every measure here is a function
of these places, 1 the first.

Recall@k: Jégou et al., PAMI 2011. R-precision, MAP@R: Musgrave, Belongie, Lim, "A Metric Learning
Reality Check", ECCV 2020, arXiv 2003.08505, equation 2. Trapezoid AP: the code of Zheng et al.,
"Scalable Person Re-identification: A Benchmark", ICCV 2015 (Market-1501). INP: Ye et al., "Deep
Learning for Person Re-identification", PAMI 2021, arXiv 2001.04193, equation 7.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lookalike import comm
from lookalike.scoring.rows import shared, split

ABSENT = -(2**31) + 1
"""Below every key; odd, like a wrong item's."""

COUNTED = 32
"""With at most so many relevant items a query, wrong ones are counted for each; with more, rows are
sorted.
"""

PAIRS = 2**24
"""Similarities in memory at once, each taking about 20 bytes."""

BLOCK = 2**19
"""Similarities ranked at once: what a processor's cache holds."""


class PerQuery(NamedTuple):
    """Each measure of each query that has something to find, float64 `(Q,)`; `row_Q`: which they
    are, ascending.
    """

    row_Q: Tensor
    values: dict[str, Tensor]
    dropped: int


def evaluate_queries(
    places: Callable[[Tensor], Tensor],
    measures: Callable[[Tensor, Tensor], dict[str, Tensor]],
    relevant_Q: Tensor,
    chunk: int,
) -> PerQuery:
    """The measures of all queries that have something to find, of which there is one, `chunk` at a
    time, shared among ranks.

    `places`: of the right items of the queries of these numbers, as `rank_positions` gives them;
    `measures`: values `(B,)` from places and numbers of relevant items; relevant: how many each
    query has, int64.
    """
    query_Q = relevant_Q.nonzero()[:, 0]
    mine = query_Q[shared(len(query_Q), chunk).to(query_Q.device)]
    # A rank without a query still has to know what is measured.
    parts = [measures(places(row_B), relevant_Q[row_B]) for row_B in split(mine, chunk)]
    empty = measures(relevant_Q.new_ones(0, 1), relevant_Q[:0])
    values = {
        name: comm.cat(torch.cat([value, *(part[name] for part in parts)]))
        for name, value in empty.items()
    }
    return PerQuery(query_Q, values, len(relevant_Q) - len(query_Q))


def at_once(rows: int) -> int:
    """Queries whose lists of so many rows are ranked at once: few enough for `PAIRS`, and for ranks
    to share them.
    """
    return max(1, min(1024, PAIRS // rows))


def count_twins(of_Q: Tensor, among_N: Tensor) -> Tensor:
    """How often each whole number occurs among others, int64 `(Q,)`."""
    _, group_K = torch.unique(torch.cat([of_Q.long(), among_N.long()]), return_inverse=True)
    group_Q, group_N = group_K.split([len(of_Q), len(among_N)])
    return torch.bincount(group_N, minlength=int(group_K.max()) + 1)[group_Q]


def summary(found: PerQuery) -> dict[str, float]:
    """The mean of each measure, `queries` averaged over, `dropped` ones that had nothing to
    find.
    """
    means = {name: float(value_Q.mean()) for name, value_Q in found.values.items()}
    return means | {"queries": float(len(found.row_Q)), "dropped": float(found.dropped)}


def rank_positions(near_BN: Tensor, right_BN: Tensor, absent_BN: Tensor, width: int) -> Tensor:
    """The place of each query's relevant items, ascending, int64 `(B, width)`, 0 behind the last.

    near: int32, larger is nearer, of size at most 2³⁰ - 2; right: bool, what is relevant; absent:
    bool, what is not in the query's list at all and not relevant. No query has more than `width`
    relevant items.
    """
    ranked = _counted if width <= COUNTED else _sorted
    rows = max(1, BLOCK // near_BN.shape[1])
    parts = []
    for start in range(0, len(near_BN), rows):
        part = slice(start, start + rows)
        parts.append(ranked(near_BN[part], right_BN[part], absent_BN[part], width))
    return torch.cat(parts)


def padded(value_K: Tensor, row_K: Tensor, rows: int, width: int, fill: int) -> Tensor:
    """Values listed row by row as a matrix `(rows, width)`, `fill` where a row has no more."""
    size_B = torch.bincount(row_K, minlength=rows)
    place_K = torch.arange(len(row_K), device=row_K.device) - (size_B.cumsum(0) - size_B)[row_K]
    out_BR = value_K.new_full((rows, width), fill)
    out_BR[row_K, place_K] = value_K
    return out_BR


def _counted(near_BN: Tensor, right_BN: Tensor, absent_BN: Tensor, width: int) -> Tensor:
    """By a comparison of the row with each relevant item: width × N steps of a vector unit."""
    row_K, column_K = right_BN.nonzero(as_tuple=True)
    level_BR = (
        padded(near_BN[row_K, column_K], row_K, len(near_BN), width, ABSENT)
        .sort(1, descending=True)
        .values
    )
    wrong_BN = near_BN.masked_fill(right_BN | absent_BN, ABSENT)
    place_BR = torch.arange(1, width + 1, device=near_BN.device).repeat(len(near_BN), 1)
    ahead_BN = torch.empty_like(right_BN)
    for m in range(width):
        torch.ge(wrong_BN, level_BR[:, m : m + 1], out=ahead_BN)
        place_BR[:, m] += ahead_BN.view(torch.uint8).sum(1, dtype=torch.int32)
    return place_BR.masked_fill_(level_BR == ABSENT, 0)


def _sorted(near_BN: Tensor, right_BN: Tensor, absent_BN: Tensor, width: int) -> Tensor:
    """By sorting 2 * nearness + (1 if wrong): items of one key are interchangeable, so any sort
    will do.
    """
    key_BN = (near_BN * 2).add_(~right_BN).masked_fill_(absent_BN, ABSENT)
    if key_BN.device.type == "cpu":
        key_BN.numpy().sort(axis=1)  # several times faster than torch's
    else:
        key_BN = key_BN.sort(1).values
    row_K, column_K = ((key_BN & 1) == 0).flip(1).nonzero(as_tuple=True)
    return padded(column_K + 1, row_K, len(key_BN), width, 0)


def _hits(place_BR: Tensor) -> Tensor:
    """1, 2, … : how many relevant items have come by at each, float64 `(R,)`."""
    return torch.arange(1, place_BR.shape[1] + 1, device=place_BR.device).double()


def found_within(place_BR: Tensor, k: int) -> Tensor:
    """1 where a relevant item is among the first k, else 0: Recall@k and CMC@k, float64 `(B,)`.

    A list shorter than k has nothing more to offer: beyond its end the value stays that of its last
    place.
    """
    return (place_BR[:, 0] <= k).double()


def r_precision(place_BR: Tensor, relevant_B: Tensor) -> Tensor:
    """The share of relevant items among the first R, float64 `(B,)`; R is how many there are."""
    return ((place_BR <= relevant_B[:, None]) & (place_BR > 0)).sum(1).double() / relevant_B


def average_precision(place_BR: Tensor, relevant_B: Tensor) -> Tensor:
    """Step AP, 1/R Σ_m m / place_m, float64 `(B,)`."""
    return (_hits(place_BR) / place_BR).where(place_BR > 0, 0).sum(1) / relevant_B


def map_at_r(place_BR: Tensor, relevant_B: Tensor) -> Tensor:
    """Step AP of the first R places, divided by R and not by how many were found there, float64
    `(B,)`.
    """
    return average_precision(place_BR.where(place_BR <= relevant_B[:, None], 0), relevant_B)


def trapezoid_precision(place_BR: Tensor, relevant_B: Tensor) -> Tensor:
    """AP of the Market-1501 code: each step of recall times the mean of the precision at the hit
    and just before.

    Before the first place the precision is 1. float64 `(B,)`.
    """
    hit_R = _hits(place_BR)
    before_BR = ((hit_R - 1) / (place_BR - 1)).where(place_BR > 1, 1)
    return ((before_BR + hit_R / place_BR) / 2).where(place_BR > 0, 0).sum(1) / relevant_B


def inverse_penalty(place_BR: Tensor, relevant_B: Tensor) -> Tensor:
    """INP, R / place of the last relevant item, float64 `(B,)`; its mean is mINP."""
    return relevant_B.double() / place_BR.amax(1)
