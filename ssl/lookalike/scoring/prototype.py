"""Nearest class mean: a test image is of the class whose train images' mean is nearest.

Snell et al., "Prototypical Networks for Few-shot Learning", NeurIPS 2017, arXiv 1703.05175, eq. 1
and 2, on frozen features; by cosine as in Wang et al., "SimpleShot", arXiv 1911.04623, section 3.1.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lookalike import comm
from lookalike.errors import Error
from lookalike.scoring.blocks import dealt, hit, shares, taken, zeros
from lookalike.scoring.knn import check, dense, same_width

Nearness = Literal["cosine", "euclidean"]


def means(
    features_ND: Tensor, labels_N: Tensor, classes: int, *, by: Nearness = "cosine"
) -> Tensor:
    """The mean of each class 0 … C-1, float64 (C, D), by all ranks; `cosine`: of rows of length 1,
    then brought to length 1 itself. A label outside, as -1, belongs to none.
    """
    sum_CD, count_C = zeros(classes, features_ND.shape[1]), zeros(classes)
    for block in dealt(len(features_ND)):
        x_BD, label_B = taken(features_ND, block), labels_N[block].to(sum_CD.device)
        known_B = (label_B >= 0) & (label_B < classes)
        x_BD = F.normalize(x_BD, dim=1) if by == "cosine" else x_BD
        sum_CD.index_add_(0, label_B[known_B], x_BD[known_B])
        count_C += torch.bincount(label_B[known_B], minlength=classes)
    mean_CD = comm.all_sum(sum_CD) / comm.all_sum(count_C)[:, None].clamp_min(1)
    return F.normalize(mean_CD, dim=1) if by == "cosine" else mean_CD


def scores(features_MD: Tensor, mean_CD: Tensor, *, by: Nearness = "cosine") -> Tensor:
    """How near each row is to each mean, (M, C), larger is nearer: the cosine, or minus half the
    squared distance, up to what is the same for all classes.
    """
    if by == "cosine":
        return F.normalize(features_MD, dim=1) @ mean_CD.T
    return features_MD @ mean_CD.T - mean_CD.square().sum(1) / 2


@torch.no_grad()
def accuracy(
    train_ND: Tensor,
    train_labels_N: Tensor,
    test_MD: Tensor,
    test_labels_M: Tensor,
    *,
    by: Nearness = "cosine",
) -> dict[str, float]:
    """`top1`, and `top5` with more than 5 classes, in [0, 1], the same on every rank, which all
    call it; the lowest class wins a tie.

    Labels may be any whole numbers; a test class that train lacks is a miss. In float64, by blocks
    of rows. Raises Error when features or labels cannot be scored, or train has one class only.
    """
    check(train_ND, "train", train_labels_N)
    check(test_MD, "test", test_labels_M)
    same_width(train_ND, test_MD)
    classes, near_N, true_M = dense(
        train_labels_N.long().contiguous(), test_labels_M.long().contiguous()
    )
    if classes < 2:
        raise Error("train labels: one class only; the nearest class mean needs two or more")
    mean_CD = means(train_ND, near_N, classes, by=by)
    hits_K = zeros(2)
    for block in dealt(len(test_MD)):
        near_BC = scores(taken(test_MD, block), mean_CD, by=by)
        hits_K += hit(near_BC, true_M[block].to(near_BC.device))
    return shares(comm.all_sum(hits_K), len(test_MD), classes)
