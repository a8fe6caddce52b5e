"""Cells of a large matrix, so that a search looks at a share of its rows: approximate, for many
millions.

An inverted file: the rows nearest to each of C centres that k-means finds (by faiss, which only
this needs); a query looks at the cells whose centres are nearest to it, exactly as without cells,
and misses what lies in others. Sivic & Zisserman, "Video Google", ICCV 2003; Jégou, Douze & Schmid,
PAMI 2011, section IV.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lookalike.errors import Error
from lookalike.geometry import Distance
from lookalike.scoring.search import nearest
from lookalike.scoring.similarity import Frame

SHARE = 16
"""One in so many rows is looked at."""

_ROWS = 65_536
_SAMPLE = 256  # rows a centre that k-means sees


class InvertedLists(NamedTuple):
    """Centres, float32; all rows, cell by cell; where each cell begins in them and where the last
    ends, int64.
    """

    centre_CD: Tensor
    row_N: Tensor
    start_C1: Tensor


def train_ivf(x_ND: Tensor, distance: Distance) -> InvertedLists:
    """√N cells by k-means, spherical for cosine similarity; the same for the same rows. Raises
    Error without faiss.
    """
    try:
        import faiss
    except ImportError as error:
        raise Error(
            "--approximate needs faiss: pip install lookalike[faiss], or leave it out"
        ) from error
    count = max(1, round(len(x_ND) ** 0.5))
    place_N = torch.linspace(0, len(x_ND) - 1, min(len(x_ND), count * _SAMPLE)).long()
    how = {"niter": 10, "seed": 0, "spherical": distance == "cosine", "min_points_per_centroid": 1}
    means = faiss.Kmeans(x_ND.shape[1], count, **how)
    means.train(_rows(x_ND[place_N], distance))
    parts = [
        means.index.search(_rows(part_BD, distance), 1)[1][:, 0]
        for part_BD in torch.split(x_ND, _ROWS)
    ]
    cell_N = torch.from_numpy(np.concatenate(parts))
    start_C1 = torch.cat(
        (torch.zeros(1, dtype=torch.int64), torch.bincount(cell_N, minlength=count).cumsum(0))
    )
    return InvertedLists(torch.from_numpy(means.centroids), cell_N.argsort(stable=True), start_C1)


def _rows(x_BD: Tensor, distance: Distance) -> np.ndarray:
    return (F.normalize(x_BD) if distance == "cosine" else x_BD).contiguous().numpy()


def nearest_in_lists(
    query_QD: Tensor,
    x_ND: Tensor,
    k: int,
    cells: InvertedLists,
    *,
    distance: Distance = "cosine",
    known: Frame | None = None,
) -> tuple[Tensor, Tensor]:
    """As `nearest` gives, among the rows of the nearest cells: at least k, and one in `SHARE`."""
    wanted = min(len(x_ND), max(k, -(-len(x_ND) // SHARE)))
    found = []
    for query_1D in torch.split(query_QD, 1):
        row_M = _looked_at(query_1D, cells, wanted, distance)
        of_rows = known and known._replace(length_N=known.length_N[row_M])
        place_1k, near_1k = nearest(query_1D, x_ND[row_M], k, distance=distance, known=of_rows)
        found.append((row_M[place_1k], near_1k))
    row_Qk, near_Qk = (torch.cat(part) for part in zip(*found, strict=True))
    return row_Qk, near_Qk


def _looked_at(query_1D: Tensor, cells: InvertedLists, wanted: int, distance: Distance) -> Tensor:
    """Rows of the nearest cells, ascending: so many cells that they hold `wanted`."""
    order_C = nearest(query_1D, cells.centre_CD, len(cells.centre_CD), distance=distance)[0][0]
    size_C = (cells.start_C1[1:] - cells.start_C1[:-1])[order_C]
    last = int((size_C.cumsum(0) < wanted).sum())
    spans = [
        cells.row_N[cells.start_C1[c] : cells.start_C1[c + 1]] for c in order_C[: last + 1].tolist()
    ]
    return torch.cat(spans).sort().values
