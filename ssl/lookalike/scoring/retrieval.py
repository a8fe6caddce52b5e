"""Ranked lists over frozen embeddings, query = gallery: Recall@k, R-precision, MAP@R, mAP.

MAP@R: Musgrave, Belongie, Lim, "A Metric Learning Reality Check", ECCV 2020, arXiv 2003.08505, equation 2.
A query's own row is left out by its id; copies of it stay. Ties are pessimistic: among equally near items the
wrong ones come first, so a collapsed embedding scores badly.

Exact under ties: nearness is computed in float64 and rounded to `STEP`, far above its rounding noise, so
equal rows are equally near. The key 2 * nearness + (1 if wrong else 0), a whole number, is then the whole
ranking, highest first: items with the same key are interchangeable, so a sort may order them as it likes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lookalike.errors import Error
from lookalike.scoring.knn import STEP, check


@torch.no_grad()
def scores(
    embeddings_ND: Tensor,
    labels_N: Tensor,
    *,
    ks: Sequence[int] = (1, 5),
    chunk: int = 1024,
    normalize: bool = True,
    full: bool = False,
) -> dict[str, float]:
    """`recall@k` (a hit in the first k) for each k, `r_precision`, `map@r`, and with `full` `map`; in [0, 1].

    Cosine similarity, or Euclidean distance without `normalize`; compared in steps of 1e-6 (for Euclidean: of
    the root mean square distance from the mean). `queries`: rows averaged over; `dropped`: rows alone in
    their class. Memory grows with chunk × N. Raises Error when the embeddings or labels cannot be scored.
    """
    check(embeddings_ND, "retrieval", labels_N)
    if chunk < 1 or not ks or min(ks) < 1:
        raise Error(f"retrieval: ks {tuple(ks)}, chunk {chunk}; each must be above 0, with at least one k")
    point_ND = _points(embeddings_ND, normalize)
    _, class_N, size_C = torch.unique(labels_N, return_inverse=True, return_counts=True)
    relevant_N = size_C[class_N] - 1
    query_Q = relevant_N.nonzero()[:, 0]
    if not len(query_Q):
        raise Error("retrieval labels: no class has two rows, so no query has a match; pass more per class")
    depth = len(labels_N) - 1 if full else min(len(labels_N) - 1, max(*ks, int(relevant_N.max())))
    parts = []
    for row_B in torch.split(query_Q, chunk):
        right_BK = _ranking(point_ND, class_N, row_B, depth, normalize)
        parts.append(_measures(right_BK, relevant_N[row_B], ks, full))
    means = {name: float(torch.cat([part[name] for part in parts]).mean()) for name in parts[0]}
    return means | {"queries": float(len(query_Q)), "dropped": float(len(labels_N) - len(query_Q))}


def _points(embeddings_ND: Tensor, normalize: bool) -> Tensor:
    """Float64 rows: unit length for cosine; for Euclidean centred, with a root mean square length of 1."""
    if normalize:
        return F.normalize(embeddings_ND.double())
    point_ND = embeddings_ND.double() - embeddings_ND.double().mean(0)
    spread = point_ND.square().sum(1).mean().sqrt()
    return point_ND / spread.where(spread > 0, 1)


def _nearness(point_ND: Tensor, row_B: Tensor, normalize: bool) -> Tensor:
    """Cosine similarity or negated Euclidean distance of rows `row_B` to all, in whole `STEP`s, `(B, N)`."""
    near_BN = point_ND[row_B] @ point_ND.T
    if not normalize:
        square_N = point_ND.square().sum(1)
        near_BN.mul_(-2).add_(square_N[row_B][:, None]).add_(square_N).clamp_min_(0).sqrt_().neg_()
    return near_BN.div_(STEP).round_().long()


def _ranking(point_ND: Tensor, class_N: Tensor, row_B: Tensor, depth: int, normalize: bool) -> Tensor:
    """1 where the item at each of the first `depth` ranks is of the query's class, else 0, `(B, depth)`."""
    key_BN = _nearness(point_ND, row_B, normalize).mul_(2).add_(class_N[row_B][:, None] != class_N)
    key_BN.scatter_(1, row_B[:, None], torch.iinfo(torch.int64).min)
    return 1 - (key_BN.topk(depth, dim=1).values & 1)


def _measures(right_BK: Tensor, relevant_B: Tensor, ks: Sequence[int], full: bool) -> dict[str, Tensor]:
    """Each measure per query, float64 `(B,)`, from the ranking `(B, K)` and the number R of right items."""
    place_K = torch.arange(1, right_BK.shape[1] + 1, device=right_BK.device)
    first_BK = place_K <= relevant_B[:, None]
    precision_BK = right_BK.cumsum(1) * right_BK / place_K.double()
    out = {f"recall@{k}": right_BK[:, :k].any(1).double() for k in ks}
    out["r_precision"] = (right_BK * first_BK).sum(1).double() / relevant_B
    out["map@r"] = (precision_BK * first_BK).sum(1) / relevant_B
    if full:
        out["map"] = precision_BK.sum(1) / relevant_B
    return out
