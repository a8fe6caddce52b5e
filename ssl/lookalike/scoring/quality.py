"""What features are worth, told without labels: their spectrum, and how views lie on the sphere.

- RankMe: Garrido et al., "RankMe: Assessing the downstream performance of pretrained
  self-supervised representations by their rank", ICML 2023, arXiv 2210.02885, eq. 1.
- α-ReQ: Agrawal et al., "α-ReQ: Assessing Representation Quality in Self-Supervised Learning by
  measuring eigenspectrum decay", NeurIPS 2022.
- LiDAR: Thilak et al., "LiDAR: Sensing Linear Probing Performance in Joint Embedding SSL
  Architectures", ICLR 2024, arXiv 2312.04000, section 4.
- Uniformity and alignment: Wang & Isola, "Understanding Contrastive Representation Learning through
  Alignment and Uniformity on the Hypersphere", ICML 2020, arXiv 2005.10242, section 4.

All of it in float64; rows are shared among ranks, which call every function together and get the
same.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lookalike import comm, rng
from lookalike.errors import Error
from lookalike.scoring.blocks import dealt, taken, zeros
from lookalike.scoring.knn import check

ROWS = 25_600
"""Images that RankMe and α-ReQ look at: RankMe's, section 3."""
WIDEST = 4096
"""Beyond so many dimensions as many rows are looked at, so that a matrix of rows is decomposed."""
PAIRED = 8192
"""Rows of which uniformity compares all pairs."""
EPSILON, DELTA = 1e-7, 1e-4
"""What is added to each share of a spectrum, and, by LiDAR, to the variance within images."""
FIRST, LAST = 11, 50
"""Between which places the spectrum is held against a power law, as in the experiments of α-ReQ."""


class Spectrum(NamedTuple):
    """Singular values of the rows as they are, and eigenvalues of their covariance; descending."""

    singular_R: Tensor
    variance_R: Tensor


def sample(rows: int, most: int, seed: int) -> Tensor:
    """At most so many row numbers, drawn by `seed`, ascending."""
    if rows <= most:
        return torch.arange(rows)
    return rng.permutation(rows, seed, "quality")[:most].sort().values


@torch.no_grad()
def spectrum(features_ND: Tensor, seed: int = 0) -> Spectrum:
    """Of `ROWS` rows, or of `WIDEST` where there are more dimensions than that."""
    check(features_ND, "train")
    width = features_ND.shape[1]
    rows_K = sample(len(features_ND), ROWS if width <= WIDEST else WIDEST, seed)
    if len(rows_K) < width:
        return _of_rows(taken(features_ND, rows_K))
    return _of_dimensions(features_ND, rows_K)


def _of_rows(x_KD: Tensor) -> Spectrum:
    """By products of rows, of which there are fewer than dimensions; each rank does it whole."""
    centred_KD = x_KD - x_KD.mean(0)
    around_K, about_K = (torch.linalg.eigvalsh(y @ y.T) for y in (x_KD, centred_KD))
    return _descending(around_K, about_K / len(x_KD))


def _of_dimensions(features_ND: Tensor, rows_K: Tensor) -> Spectrum:
    rows, width = len(rows_K), features_ND.shape[1]
    sum_D, about_DD = zeros(width), zeros(width, width)
    for block in dealt(rows):
        sum_D += taken(features_ND, rows_K[block]).sum(0)
    mean_D = comm.all_sum(sum_D) / rows
    for block in dealt(rows):
        x_BD = taken(features_ND, rows_K[block]) - mean_D
        about_DD.addmm_(x_BD.T, x_BD)
    about_DD = comm.all_sum(about_DD)
    around_D = torch.linalg.eigvalsh(about_DD + rows * torch.outer(mean_D, mean_D))
    return _descending(around_D, torch.linalg.eigvalsh(about_DD) / rows)


def _descending(around_R: Tensor, variance_R: Tensor) -> Spectrum:
    return Spectrum(around_R.clamp_min(0).sqrt().flip(0), variance_R.clamp_min(0).flip(0))


def effective_rank(values_R: Tensor) -> float:
    """exp(-Σ p log p) of the shares p = value / sum + `EPSILON`: 1 of one value, R of R equal ones,
    to `EPSILON`. 1 where all are 0.
    """
    total = values_R.sum()
    if not total > 0:
        return 1.0
    p_R = values_R / total + EPSILON
    return float((-(p_R * p_R.log()).sum()).exp())


def rankme(found: Spectrum) -> float:
    """The effective rank of the rows' singular values (eq. 1)."""
    return effective_rank(found.singular_R)


def alpha_req(found: Spectrum) -> float | None:
    """α of the power law j^-α that the covariance's eigenvalues follow: by least squares of log λ
    on log j, each weighted by 1/j so that each octave weighs the same, from the `FIRST` to the
    `LAST` place, or in the same proportion to the last of fewer that are above 0; None of less than
    two.
    """
    variance_R = found.variance_R
    last = min(LAST, int((variance_R > variance_R[0] * 1e-12).sum()))
    first = max(1, last * FIRST // LAST)
    if last - first < 1:
        return None
    j_R = torch.arange(first, last + 1, dtype=torch.float64, device=variance_R.device)
    x_R, y_R = j_R.log(), variance_R[first - 1 : last].log()
    share_R = (1 / j_R) / (1 / j_R).sum()
    x_R, y_R = x_R - (share_R * x_R).sum(), y_R - (share_R * y_R).sum()
    return float(-(share_R * x_R * y_R).sum() / (share_R * x_R.square()).sum())


@torch.no_grad()
def uniformity(features_ND: Tensor, seed: int = 0, t: float = 2.0) -> float:
    """log of the mean of exp(-t ‖x - y‖²) over all pairs of `PAIRED` rows of length 1: lower is
    more even; 0 where all are one.
    """
    check(features_ND, "train")
    x_KD = F.normalize(taken(features_ND, sample(len(features_ND), PAIRED, seed)), dim=1)
    if len(x_KD) < 2:
        raise Error("features: one row only; uniformity compares pairs")
    total = zeros(1)
    for block in dealt(len(x_KD), 512):
        near_BK = x_KD[block] @ x_KD.T
        like_BK = (2 * t * (near_BK - 1)).exp()
        like_BK[:, block].fill_diagonal_(0)
        total += like_BK.sum()
    pairs = len(x_KD) * (len(x_KD) - 1)
    return float((comm.all_sum(total) / pairs).log())


@torch.no_grad()
def alignment(views_NQD: Tensor) -> float:
    """The mean squared distance of two views of one image, of length 1: 0 where views are one."""
    many = views_NQD.shape[1]
    mean_ND = F.normalize(views_NQD.double(), dim=2).mean(1)
    apart_N = 2 * many / (many - 1) * (1 - mean_ND.square().sum(1))
    return float(apart_N.mean())


@torch.no_grad()
def lidar(views_NQD: Tensor) -> float:
    """The effective rank of the variance between images in units of that between views of one.

    Of N images in Q views each: Σ_b the covariance of images' means, Σ_w that of views about their
    image's mean, + `DELTA` · I; the eigenvalues of Σ_w^-½ Σ_b Σ_w^-½ as `effective_rank` takes
    them. The paper takes N = 1,000.
    """
    x_NQD = views_NQD.double()
    images, views, width = x_NQD.shape
    mean_ND = x_NQD.mean(1)
    apart_ND, within_PD = mean_ND - mean_ND.mean(0), (x_NQD - mean_ND[:, None]).flatten(0, 1)
    within_DD = within_PD.T @ within_PD / (images * views)
    within_DD += DELTA * torch.eye(width, dtype=torch.float64, device=x_NQD.device)
    root_DD = torch.linalg.cholesky(within_DD)
    y_DN = torch.linalg.solve_triangular(root_DD, apart_ND.T, upper=False)
    gram = y_DN @ y_DN.T if width <= images else y_DN.T @ y_DN
    return effective_rank(torch.linalg.eigvalsh(gram / images).clamp_min(0))
