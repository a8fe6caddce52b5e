"""Re-identification: find the same identity in the images of other cameras. CMC, mAP, mINP.

Protocol: Zheng et al., "Scalable Person Re-identification: A Benchmark", ICCV 2015 (Market-1501).
Of a query's gallery, images of its own identity by its own camera are junk: neither hit nor miss,
they take no place. Identity -1 (bad detections) is left out. A distractor is wrong for all, because
no query bears its identity: Market-1501's 0 needs no rule, and a data set that counts its
identities from 0 loses none. Ties are pessimistic, see `ranks`.
"""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from lookalike.errors import Error
from lookalike.geometry import Distance
from lookalike.scoring import ranks
from lookalike.scoring.ranks import PerQuery
from lookalike.scoring.rows import check
from lookalike.scoring.similarity import Bank, nearness_to, of_distances, refuse_widths

AP = Literal["step", "trapezoid"]

SKIPPED = -1
"""The identity of images that are left out."""


@torch.no_grad()
def each(
    query_QD: Tensor,
    ids_Q: Tensor,
    cameras_Q: Tensor | None,
    gallery_ND: Tensor,
    ids_N: Tensor,
    cameras_N: Tensor | None,
    *,
    ks: Sequence[int] = (1, 5, 10),
    ap: AP = "step",
    chunk: int | None = None,
    distance: Distance = "cosine",
) -> PerQuery:
    """`cmc@k` for each k, `map` and `minp` of each query that has something to find, from
    embeddings.

    Cosine similarity, or Euclidean distance, by `distance`. `ap`: `step`, 1/R Σ m / place_m,
    or `trapezoid`, the official Market-1501 code's. CMC@k beyond the end of a list is that of its
    end. Memory: about 20 bytes × `chunk` × N. All ranks call this with the same rows and share the
    queries. Raises Error when something cannot be scored, cameras are missing, or no query has a
    match.
    """
    check(query_QD, "query", ids_Q)
    check(gallery_ND, "gallery", ids_N)
    kept_N = _kept(ids_N)
    refuse_widths(query_QD, gallery_ND)
    bank = Bank(gallery_ND if bool(kept_N.all()) else gallery_ND[kept_N], distance)
    cameras_Q, cameras_N = (
        _cameras(cameras_Q, ids_Q, "query"),
        _cameras(cameras_N, ids_N, "gallery"),
    )

    to_gallery = nearness_to(bank)

    def near(row_B: Tensor) -> Tensor:
        return to_gallery(bank.placed(query_QD[row_B])).to(query_QD.device)

    return _each(near, ids_Q, cameras_Q, ids_N[kept_N], cameras_N[kept_N], ks, ap, chunk)


@torch.no_grad()
def each_of_distances(
    distance_QN: Tensor,
    ids_Q: Tensor,
    cameras_Q: Tensor | None,
    ids_N: Tensor,
    cameras_N: Tensor | None,
    *,
    ks: Sequence[int] = (1, 5, 10),
    ap: AP = "step",
    chunk: int | None = None,
) -> PerQuery:
    """The same from distances of one's own making, such as `rerank`'s; compared in millionths of
    the largest.
    """
    near_QN = of_distances(distance_QN)
    if near_QN.shape != (len(ids_Q), len(ids_N)):
        raise Error(
            f"distances: shape {tuple(near_QN.shape)} for {len(ids_Q)} queries, {len(ids_N)} in "
            "the gallery"
        )
    kept_N = _kept(ids_N)
    cameras_Q, cameras_N = (
        _cameras(cameras_Q, ids_Q, "query"),
        _cameras(cameras_N, ids_N, "gallery"),
    )

    def near(row_B: Tensor) -> Tensor:
        return near_QN[row_B][:, kept_N]

    return _each(near, ids_Q, cameras_Q, ids_N[kept_N], cameras_N[kept_N], ks, ap, chunk)


def scores(
    query_QD: Tensor,
    ids_Q: Tensor,
    cameras_Q: Tensor | None,
    gallery_ND: Tensor,
    ids_N: Tensor,
    cameras_N: Tensor | None,
    *,
    ks: Sequence[int] = (1, 5, 10),
    ap: AP = "step",
    chunk: int | None = None,
    distance: Distance = "cosine",
) -> dict[str, float]:
    """Means of `each` in [0, 1]; `queries` averaged over; `dropped`: queries left without a
    relevant image.
    """
    found = each(
        query_QD,
        ids_Q,
        cameras_Q,
        gallery_ND,
        ids_N,
        cameras_N,
        ks=ks,
        ap=ap,
        chunk=chunk,
        distance=distance,
    )
    return ranks.summary(found)


def pooled(
    query_QD: Tensor, ids_Q: Tensor, cameras_Q: Tensor | None, *, distance: Distance = "cosine"
) -> tuple[Tensor, Tensor, Tensor]:
    """Multi-query: all images of one identity by one camera as one query, the mean of their rows
    (of unit rows for cosine), in float64; with their identities and cameras, in the order of
    (identity, camera).
    """
    check(query_QD, "query", ids_Q)
    key_2Q = torch.stack([ids_Q.long(), _cameras(cameras_Q, ids_Q, "query")])
    key_2P, group_Q, size_P = torch.unique(key_2Q, dim=1, return_inverse=True, return_counts=True)
    row_QD = F.normalize(query_QD.double()) if distance == "cosine" else query_QD.double()
    sum_PD = row_QD.new_zeros(len(size_P), row_QD.shape[1]).index_add_(0, group_Q, row_QD)
    return sum_PD / size_P[:, None], key_2P[0], key_2P[1]


def _kept(ids_N: Tensor) -> Tensor:
    """Which images of the gallery are not left out, bool `(N,)`. Raises Error when none is."""
    kept_N = ids_N != SKIPPED
    if not bool(kept_N.any()):
        raise Error("gallery: every image has identity -1; none is left to search in")
    return kept_N


def _cameras(cameras_N: Tensor | None, ids_N: Tensor, name: str) -> Tensor:
    """The cameras as int64. Raises Error where they are missing: without them every score is
    another protocol's.
    """
    remedy = "re-identification needs the camera of every image; `retrieval` scores images without"
    if cameras_N is None:
        raise Error(f"{name} cameras: missing; {remedy}")
    if cameras_N.shape != ids_N.shape:
        raise Error(
            f"{name} cameras: shape {tuple(cameras_N.shape)} for {len(ids_N)} rows; pass one per "
            "row"
        )
    if cameras_N.is_floating_point() or cameras_N.is_complex() or cameras_N.dtype == torch.bool:
        raise Error(f"{name} cameras: dtype {cameras_N.dtype}; pass whole numbers")
    if int(cameras_N.min()) < 0:
        raise Error(f"{name} cameras: {int((cameras_N < 0).sum())} below 0, so unknown; {remedy}")
    return cameras_N.long()


def _each(
    near: Callable[[Tensor], Tensor],
    ids_Q: Tensor,
    cameras_Q: Tensor,
    ids_N: Tensor,
    cameras_N: Tensor,
    ks: Sequence[int],
    ap: AP,
    chunk: int | None,
) -> PerQuery:
    """What is right, what is junk, and the measures; `near`: of some queries."""
    if (chunk is not None and chunk < 1) or not ks or min(ks) < 1 or ap not in get_args(AP):
        names = " or ".join(get_args(AP))
        raise Error(
            f"re-identification: ks {tuple(ks)}, chunk {chunk}, ap {ap!r}; ks and chunk above 0, "
            f"ap {names}"
        )
    relevant_Q, _ = relevant_and_junk(ids_Q, cameras_Q, ids_N, cameras_N)
    if not bool(relevant_Q.any()):
        raise Error(
            "re-identification: no query has an image by another camera in the gallery; check the "
            "identities"
        )
    precision = ranks.average_precision if ap == "step" else ranks.trapezoid_precision

    width = int(relevant_Q.max())

    def places(row_B: Tensor) -> Tensor:
        same_BN, seen_BN = ids_Q[row_B][:, None] == ids_N, cameras_Q[row_B][:, None] == cameras_N
        marks = (same_BN & ~seen_BN, same_BN & seen_BN)
        return ranks.rank_positions(near(row_B), *marks, width)

    def measures(place_BR: Tensor, relevant_B: Tensor) -> dict[str, Tensor]:
        cmc = {f"cmc@{k}": ranks.found_within(place_BR, k) for k in ks}
        return cmc | {
            "map": precision(place_BR, relevant_B),
            "minp": ranks.inverse_penalty(place_BR, relevant_B),
        }

    return ranks.evaluate_queries(places, measures, relevant_Q, chunk or ranks.at_once(len(ids_N)))


def relevant_and_junk(
    ids_Q: Tensor, cameras_Q: Tensor, ids_N: Tensor, cameras_N: Tensor
) -> tuple[Tensor, Tensor]:
    """How many images of its identity each query has by other cameras, and by its own; int64 `(Q,)`
    both.
    """
    _, id_K = torch.unique(torch.cat([ids_Q.long(), ids_N.long()]), return_inverse=True)
    _, camera_K = torch.unique(torch.cat([cameras_Q, cameras_N]), return_inverse=True)
    both_Q, both_N = (id_K * (int(camera_K.max()) + 1) + camera_K).split([len(ids_Q), len(ids_N)])
    junk_Q = ranks.count_twins(both_Q, both_N)
    return ranks.count_twins(ids_Q, ids_N) - junk_Q, junk_Q
