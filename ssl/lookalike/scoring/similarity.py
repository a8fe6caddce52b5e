"""How near a gallery's rows are to a query's, as whole numbers, so that what is noise apart is
equally near.

Cosine similarity or Euclidean distance in float64, rounded to steps of `STEP`, far above the
rounding noise of the product and far below what two images differ by. Ranked lists are then ranked
by whole numbers: no sum's order, no library and no chunk decides who comes first.
"""

import torch
from torch import Tensor

from lookalike.errors import Error
from lookalike.geometry import DISTANCES, Distance
from lookalike.scoring.knn import STEP, check

FARTHEST = 2**30 - 2
"""Steps beyond which rows are equally far: twice it and one more is an int32. Cosine needs a
millionth of it.
"""


def is_cosine(distance: Distance) -> bool:
    """Whether it is the cosine. Raises Error for what is neither that nor Euclidean."""
    if distance not in DISTANCES:
        raise Error(f"distance: {distance!r}; pass one of {', '.join(DISTANCES)}")
    return distance == "cosine"


def points(query_QD: Tensor, gallery_ND: Tensor, distance: Distance) -> tuple[Tensor, Tensor]:
    """Float64 rows of queries and gallery; one tensor where they are one.

    Cosine: of unit length, zero rows stay zero. Euclidean: centred on the gallery's mean, in units
    of its root mean square distance from it. Raises Error when one is not a full matrix of numbers
    or the widths differ.
    """
    check(query_QD, "query")
    check(gallery_ND, "gallery")
    if query_QD.shape[1] != gallery_ND.shape[1]:
        widths = f"{query_QD.shape[1]} of the queries, {gallery_ND.shape[1]} of the gallery"
        raise Error(f"features: width {widths}; use one model for both")
    to_ND = gallery_ND.double()
    to_ND = to_ND.clone() if to_ND is gallery_ND else to_ND
    from_QD = to_ND if query_QD is gallery_ND else query_QD.double().clone()
    if is_cosine(distance):
        for x in (to_ND,) if from_QD is to_ND else (to_ND, from_QD):
            x.div_(torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(1e-12))
        return from_QD, to_ND
    mean_D = to_ND.mean(0)
    to_ND.sub_(mean_D)
    spread = torch.linalg.vector_norm(to_ND) / len(to_ND) ** 0.5
    spread = spread.where(spread > 0, 1)
    to_ND.div_(spread)
    return (to_ND if from_QD is to_ND else from_QD.sub_(mean_D).div_(spread)), to_ND


def nearness(from_BD: Tensor, to_ND: Tensor, distance: Distance) -> Tensor:
    """Cosine similarity or negated Euclidean distance of rows made by `points`, in whole `STEP`s,
    int32 `(B, N)`.
    """
    near_BN = from_BD @ to_ND.T if distance == "cosine" else squares(from_BD, to_ND).sqrt_().neg_()
    return near_BN.div_(STEP).round_().clamp_min_(-FARTHEST).int()


def squares(a_BD: Tensor, b_ND: Tensor) -> Tensor:
    """Squared Euclidean distances, `(B, N)`, never below 0."""
    d_BN = (a_BD @ b_ND.T).mul_(-2)
    return (
        d_BN.add_(a_BD.square().sum(1)[:, None])
        .add_(torch.linalg.vector_norm(b_ND, dim=1).square())
        .clamp_min_(0)
    )


def of_distances(distance_QN: Tensor) -> Tensor:
    """Negated distances of one's own making, in whole millionths of the largest, int32 `(Q, N)`.

    Raises Error when they are not a full matrix of finite numbers of at least 0.
    """
    if distance_QN.ndim != 2 or 0 in distance_QN.shape:
        raise Error(
            f"distances: shape {tuple(distance_QN.shape)}; pass a full (queries, gallery) matrix"
        )
    if not bool(distance_QN.isfinite().all()) or float(distance_QN.min()) < 0:
        raise Error("distances: some are NaN, Inf or below 0; pass distances, not similarities")
    largest = float(distance_QN.max()) or 1.0
    return distance_QN.to(torch.float64, copy=True).div_(-largest * STEP).round_().int()
