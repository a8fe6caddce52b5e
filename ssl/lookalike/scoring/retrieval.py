"""Ranked lists over frozen embeddings: Recall@k, P@1, R-precision, MAP@R, mAP over the whole list.

Queries and gallery are one set, each query's own row left out by its number, never by its place in
the list (copies of it stay, and may come before it), or two sets. Ties are pessimistic: among
equally near items the wrong ones come first. See `ranks` for the measures, `nearness` for what
equally near means.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from lookalike.errors import Error
from lookalike.geometry import Distance
from lookalike.scoring import ranks
from lookalike.scoring.ranks import PerQuery
from lookalike.scoring.rows import check
from lookalike.scoring.similarity import Bank, nearness_to, refuse_widths
from lookalike.scoring.topk import DIRECT, QUERIES, topk

BEYOND = 2**40
"""The place of what a list that is not ranked to its end does not reach."""

_RIGHT, _WRONG, _ITSELF = 0, 1, -1


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
    whole: bool = True,
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
    else:
        check(gallery_MD, "gallery", gallery_labels_M)
    own_N = _own(own_N, labels_N, len(gallery_MD))
    relevant_N = relevant(labels_N, gallery_labels_M, own_N)
    if not bool(relevant_N.any()):
        raise Error(
            "retrieval labels: no query has a match (no class has two rows); pass more per class"
        )
    refuse_widths(embeddings_ND, gallery_MD)
    bank, width = Bank(gallery_MD, distance), int(relevant_N.max())
    class_N, class_M = (part.to(bank.device) for part in _numbered(labels_N, gallery_labels_M))
    asked = _Asked(embeddings_ND, class_N, class_M, own_N.to(bank.device), bank, width)
    reach = max(width, *ks)
    short = not whole and (reach + 1) * DIRECT <= len(bank)
    some = 4 * QUERIES if short else ranks.at_once(len(bank))
    return ranks.evaluate_queries(
        _short(asked, reach) if short else _whole(asked),
        partial(_measures, ks=ks, whole=whole),
        relevant_N,
        chunk or some,
    )


class _Asked(NamedTuple):
    """Queries and gallery, their classes as int32, which row of the gallery a query is, and how
    many match at most. All but the rows lie where the bank computes.
    """

    query_ND: Tensor
    class_N: Tensor
    class_M: Tensor
    own_N: Tensor
    bank: Bank
    width: int


def _whole(asked: _Asked) -> Callable[[Tensor], Tensor]:
    """The places of the right items in the whole list, `(B, width)`."""
    near = nearness_to(asked.bank)

    def places(row_B: Tensor) -> Tensor:
        from_BD, row_B = asked.bank.placed(asked.query_ND[row_B]), row_B.to(asked.bank.device)
        marks = _marks(asked.class_N[row_B], asked.class_M, asked.own_N[row_B])
        return ranks.rank_positions(near(from_BD), *marks, asked.width).to(asked.query_ND.device)

    return places


def _short(asked: _Asked, reach: int) -> Callable[[Tensor], Tensor]:
    """The places of the right items among the first `reach`, `BEYOND` for others."""

    def kind(row_B: Tensor, row_BK: Tensor) -> Tensor:
        wrong_BK = asked.class_N[row_B][:, None] != asked.class_M[row_BK]
        itself_BK = asked.own_N[row_B][:, None] == row_BK
        return torch.where(wrong_BK, _WRONG, _RIGHT).masked_fill_(itself_BK, _ITSELF)

    def places(row_B: Tensor) -> Tensor:
        there_B = row_B.to(asked.bank.device)
        top = topk(
            asked.query_ND[row_B],
            asked.bank,
            reach,
            kind=lambda place_B, row_BK: kind(there_B[place_B], row_BK),
        )
        of_K, place_K = ((top.kind_Qk == _RIGHT) & (top.row_Qk >= 0)).nonzero(as_tuple=True)
        return ranks.padded(place_K + 1, of_K, len(row_B), asked.width, BEYOND)

    return places


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
    whole: bool = True,
) -> dict[str, float]:
    """`recall@k` (a hit in the first k) for each k, `p@1`, `r_precision`, `map@r` and `map`, means
    in [0, 1].

    Cosine similarity, or Euclidean distance, by `distance`; compared in steps of 1e-6 (for
    Euclidean: of the root mean square distance from the mean). `queries`: rows averaged over;
    `dropped`: rows without a match. Labels are whole numbers, exact up to 2⁶³.

    `map` alone needs the `whole` list; without it only the first max(k, R) places are looked for, R
    the most that a query has to find, and all other measures are the same to the bit. `chunk`
    queries at a time: of the whole list about 20 bytes × chunk × M, and 8 bytes a number of the
    gallery up to `KEPT`. All ranks call this with the same rows, share the queries and get the same
    numbers. Raises Error when the embeddings or labels cannot be scored.
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
        whole=whole,
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


def _measures(
    place_BR: Tensor, relevant_B: Tensor, ks: Sequence[int], whole: bool
) -> dict[str, Tensor]:
    """Each measure per query, float64 `(B,)`, from the places of its R right items."""
    out = {f"recall@{k}": ranks.found_within(place_BR, k) for k in ks}
    out["p@1"] = ranks.found_within(place_BR, 1)
    out["r_precision"] = ranks.r_precision(place_BR, relevant_B)
    out["map@r"] = ranks.map_at_r(place_BR, relevant_B)
    if whole:
        out["map"] = ranks.average_precision(place_BR, relevant_B)
    return out
