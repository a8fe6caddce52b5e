"""Ranked lists over frozen embeddings: Recall@k, P@1, R-precision, MAP@R, mAP over the whole list.

Queries and gallery are one set, each query's own row left out by its number, never by its place in
the list (copies of it stay, and may come before it), or two sets. Ties are pessimistic: among
equally near items the wrong ones come first. See `ranks` for the measures, `nearness` for what
equally near means.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from lookalike.errors import Error
from lookalike.geometry import Distance
from lookalike.scoring import ranks
from lookalike.scoring.knn import check
from lookalike.scoring.ranks import PerQuery
from lookalike.scoring.similarity import nearness, points


@torch.no_grad()
def each(
    embeddings_ND: Tensor,
    labels_N: Tensor,
    gallery_MD: Tensor | None = None,
    gallery_labels_M: Tensor | None = None,
    *,
    own_N: Tensor | None = None,
    ks: Sequence[int] = (1, 5),
    chunk: int | None = None,
    distance: Distance = "cosine",
) -> PerQuery:
    """The measures of `scores` for each query that has something to find.

    Without a gallery the rows are each other's. With one, `own_N` says which of its rows a query
    is, -1 for none: that row is left out of the query's list. Raises Error when the embeddings or
    labels cannot be scored.
    """
    if (gallery_MD is None) != (gallery_labels_M is None):
        raise Error("retrieval: a gallery needs rows and labels; pass both or neither")
    check(embeddings_ND, "retrieval", labels_N)
    if (chunk is not None and chunk < 1) or not ks or min(ks) < 1:
        raise Error(
            f"retrieval: ks {tuple(ks)}, chunk {chunk}; each must be above 0, with at least one k"
        )
    if gallery_MD is None or gallery_labels_M is None:
        if own_N is not None:
            raise Error("retrieval: own_N names rows of a gallery; pass one, or leave it out")
        gallery_MD, gallery_labels_M = embeddings_ND, labels_N
        own_N = torch.arange(len(labels_N), device=labels_N.device)
    check(gallery_MD, "gallery", gallery_labels_M)
    own_N = _own(own_N, labels_N, len(gallery_MD))
    relevant_N = relevant(labels_N, gallery_labels_M, own_N)
    class_N, class_M = _numbered(labels_N, gallery_labels_M)
    if not bool(relevant_N.any()):
        raise Error(
            "retrieval labels: no query has a match (no class has two rows); pass more per class"
        )
    from_ND, to_MD = points(embeddings_ND, gallery_MD, distance)

    def lists(row_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        right_BM, absent_BM = _marks(class_N[row_B], class_M, own_N[row_B])
        return nearness(from_ND[row_B], to_MD, distance), right_BM, absent_BM

    return ranks.evaluate_queries(
        lists, partial(_measures, ks=ks), relevant_N, chunk or max(1, ranks.PAIRS // len(to_MD))
    )


def scores(
    embeddings_ND: Tensor,
    labels_N: Tensor,
    gallery_MD: Tensor | None = None,
    gallery_labels_M: Tensor | None = None,
    *,
    own_N: Tensor | None = None,
    ks: Sequence[int] = (1, 5),
    chunk: int | None = None,
    distance: Distance = "cosine",
) -> dict[str, float]:
    """`recall@k` (a hit in the first k) for each k, `p@1`, `r_precision`, `map@r` and `map`, means
    in [0, 1].

    Cosine similarity, or Euclidean distance, by `distance`; compared in steps of 1e-6 (for
    Euclidean: of the root mean square distance from the mean). `queries`: rows averaged over;
    `dropped`: rows without a match. Labels are whole numbers, exact up to 2⁶³. `chunk` queries at a
    time: about 20 bytes × chunk × M, and float64 copies of the embeddings. Raises Error when the
    embeddings or labels cannot be scored.
    """
    found = each(
        embeddings_ND,
        labels_N,
        gallery_MD,
        gallery_labels_M,
        own_N=own_N,
        ks=ks,
        chunk=chunk,
        distance=distance,
    )
    return ranks.summary(found)


def _own(own_N: Tensor | None, labels_N: Tensor, rows: int) -> Tensor:
    """The gallery's row that each query is, -1 for none."""
    if own_N is None:
        return torch.full_like(labels_N, -1, dtype=torch.int64)
    if own_N.shape != labels_N.shape or own_N.dtype != torch.int64:
        raise Error(
            f"own_N: {own_N.dtype} {tuple(own_N.shape)}; pass one int64 for each of "
            f"{len(labels_N)} queries"
        )
    if int(own_N.min()) < -1 or int(own_N.max()) >= rows:
        raise Error(
            f"own_N: {int(own_N.min())} to {int(own_N.max())}; the gallery has rows 0 to {rows - 1}"
        )
    return own_N


def relevant(labels_N: Tensor, gallery_labels_M: Tensor, own_N: Tensor) -> Tensor:
    """How many rows of the gallery match each query, int64 `(N,)`; `own_N`: which of them it is
    itself, -1 for none.
    """
    itself_N = (own_N >= 0) & (gallery_labels_M[own_N.clamp_min(0)] == labels_N)
    return ranks.count_twins(labels_N, gallery_labels_M) - itself_N.long()


def _numbered(labels_N: Tensor, gallery_labels_M: Tensor) -> tuple[Tensor, Tensor]:
    """Labels of queries and gallery numbered from 0, int32."""
    _, class_NM = torch.unique(
        torch.cat([labels_N.long(), gallery_labels_M.long()]), return_inverse=True
    )
    class_N, class_M = class_NM.int().split([len(labels_N), len(gallery_labels_M)])
    return class_N, class_M


def _marks(class_B: Tensor, class_M: Tensor, own_B: Tensor) -> tuple[Tensor, Tensor]:
    """What matches, and the query's own row, which is not in its list; bool `(B, M)` both."""
    right_BM = class_B[:, None] == class_M
    absent_BM = torch.zeros_like(right_BM)
    has_H = (own_B >= 0).nonzero()[:, 0]
    absent_BM[has_H, own_B[has_H]] = True
    return right_BM & ~absent_BM, absent_BM


def _measures(place_BR: Tensor, relevant_B: Tensor, ks: Sequence[int]) -> dict[str, Tensor]:
    """Each measure per query, float64 `(B,)`, from the places of its R right items."""
    out = {f"recall@{k}": ranks.found_within(place_BR, k) for k in ks}
    out["p@1"] = ranks.found_within(place_BR, 1)
    out["r_precision"] = ranks.r_precision(place_BR, relevant_B)
    out["map@r"] = ranks.map_at_r(place_BR, relevant_B)
    out["map"] = ranks.average_precision(place_BR, relevant_B)
    return out
