"""Weighted k-nearest-neighbour vote over frozen features.

Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018,
arXiv 1805.01978, section 3.4, with k and temperature as in DINO (Caron et al., ICCV 2021, arXiv
2104.14294).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lookalike.errors import Error

STEP = 1e-6
"""Cosine similarities are compared in steps of this size: a smaller difference is noise, so a tie.
"""

PAIRS = 2**27
"""Similarities in memory at once, each taking 12 bytes."""


def check(features_ND: Tensor, name: str, labels_N: Tensor | None = None) -> None:
    """Raises Error, with `name`, for features `(N, D)` or labels `(N,)` that cannot be scored.

    Raises RuntimeError under autocast, which would score in half precision.
    """
    if torch.is_autocast_enabled(features_ND.device.type):
        raise RuntimeError(
            "scoring under torch.autocast; leave it first, half precision changes the ranking"
        )
    if features_ND.ndim != 2 or 0 in features_ND.shape:
        raise Error(
            f"{name} features: shape {tuple(features_ND.shape)}; pass a full (rows, width) tensor"
        )
    if not bool(features_ND.isfinite().all()):
        bad = int((~features_ND.isfinite().all(1)).sum())
        raise Error(
            f"{name} features: NaN or Inf in {bad} rows; check the weights and the precision"
        )
    if labels_N is None:
        return
    if labels_N.shape != features_ND.shape[:1]:
        rows = len(features_ND)
        raise Error(
            f"{name} labels: shape {tuple(labels_N.shape)} for {rows} rows; pass one per row"
        )
    if labels_N.is_floating_point() or labels_N.is_complex() or labels_N.dtype == torch.bool:
        raise Error(f"{name} labels: dtype {labels_N.dtype}; pass whole numbers, best int64")


def same_width(train_ND: Tensor, test_MD: Tensor) -> None:
    """Raises Error when train `(N, D)` and test `(M, D)` differ in D."""
    if train_ND.shape[1] != test_MD.shape[1]:
        widths = f"{train_ND.shape[1]} in train, {test_MD.shape[1]} in test"
        raise Error(f"features: width {widths}; use one backbone for both")


def dense(train_labels_N: Tensor, test_labels_M: Tensor) -> tuple[int, Tensor, Tensor]:
    """The number C of train classes, and all labels as 0 … C-1 in their order; -1 for a class train
    lacks.
    """
    classes_C, train_N = torch.unique(train_labels_N, return_inverse=True)
    test_M = torch.searchsorted(classes_C, test_labels_M).clamp_max(len(classes_C) - 1)
    return len(classes_C), train_N, test_M.where(classes_C[test_M] == test_labels_M, -1)


def rank(scores_MC: Tensor, labels_M: Tensor) -> Tensor:
    """How many classes precede the true one, `(M,)`: higher scores, and the lower classes among
    equals.
    """
    own_M1 = scores_MC.gather(1, labels_M.clamp_min(0)[:, None])
    lower_MC = torch.arange(scores_MC.shape[1], device=scores_MC.device) < labels_M[:, None]
    ahead_M = ((scores_MC > own_M1) | ((scores_MC == own_M1) & lower_MC)).sum(1)
    return ahead_M.where(labels_M >= 0, scores_MC.shape[1])


def hits(rank_M: Tensor, classes: int) -> dict[str, float]:
    """`top1`, and `top5` with more than 5 classes, in [0, 1], from the ranks `(M,)` of the true
    class.
    """
    return {f"top{k}": float((rank_M < k).double().mean()) for k in (1, 5) if k == 1 or classes > 5}


@torch.no_grad()
def votes(
    train_ND: Tensor,
    train_labels_N: Tensor,
    test_MD: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
    classes: int | None = None,
    chunk: int = 2048,
) -> Tensor:
    """Sum of exp((s - s_max) / temperature) over the k nearest train rows of each class, float64
    `(M, C)`.

    s: fp32 cosine similarity rounded to `STEP`; at equal s the earlier train row is nearer; k above
    N is N. Memory: 12 bytes × chunk × N, with fewer at once where that were more than `PAIRS`, and
    a float32 copy of the train rows. Labels lie in 0 … C-1; C is the highest label + 1 unless
    `classes` is given. Raises Error when features or labels cannot be scored, or k, temperature or
    chunk is not above 0.
    """
    check(train_ND, "train", train_labels_N)
    check(test_MD, "test")
    same_width(train_ND, test_MD)
    if k < 1 or chunk < 1 or temperature <= 0:
        raise Error(f"kNN: k {k}, temperature {temperature}, chunk {chunk}; each must be above 0")
    labels_N = train_labels_N.long()
    width = classes or int(labels_N.max()) + 1
    if int(labels_N.min()) < 0 or int(labels_N.max()) >= width:
        span = f"{int(labels_N.min())} to {int(labels_N.max())}"
        raise Error(f"train labels: {span}; number the {width} classes from 0")
    near_ND = F.normalize(train_ND.float())
    parts = [
        _votes(
            F.normalize(part_QD.float()),
            near_ND,
            labels_N,
            min(k, len(train_ND)),
            temperature,
            width,
        )
        for part_QD in torch.split(test_MD, min(chunk, max(1, PAIRS // len(train_ND))))
    ]
    return torch.cat(parts)


def _votes(
    test_QD: Tensor, train_ND: Tensor, labels_N: Tensor, k: int, temperature: float, classes: int
) -> Tensor:
    """Votes of one chunk of unit rows `(Q, D)`; summed as whole numbers, so that the order does not
    show.
    """
    rows = len(train_ND)
    key_QN = (test_QD @ train_ND.T).div_(STEP).round_().long()
    key_QN.mul_(rows).add_(torch.arange(rows - 1, -1, -1, device=key_QN.device))
    key_Qk, row_Qk = key_QN.topk(k, dim=1)
    steps_Qk = key_Qk.div(rows, rounding_mode="floor")
    unit = 2.0 ** (62 - k.bit_length())
    weight_Qk = ((steps_Qk - steps_Qk[:, :1]).double() * (STEP / temperature)).exp()
    whole_Qk = (weight_Qk * unit).round().long().clamp_min(1)
    total_QC = whole_Qk.new_zeros(len(test_QD), classes).scatter_add_(1, labels_N[row_Qk], whole_Qk)
    return total_QC.double() / unit


def predict(
    train_ND: Tensor,
    train_labels_N: Tensor,
    test_MD: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> Tensor:
    """The class with most votes, `(M,)`; the lowest of those that tie."""
    return votes(train_ND, train_labels_N, test_MD, k=k, temperature=temperature).argmax(1)


@torch.no_grad()
def accuracy(
    train_ND: Tensor,
    train_labels_N: Tensor,
    test_MD: Tensor,
    test_labels_M: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
    chunk: int = 2048,
) -> dict[str, float]:
    """`top1`, and `top5` with more than 5 classes, in [0, 1]: the lowest class wins a tie, no vote
    is no hit.

    Labels may be any whole numbers; a test class that train lacks is a miss.
    Raises Error when features or labels cannot be scored, or train has one class only.
    """
    check(train_ND, "train", train_labels_N)
    check(test_MD, "test", test_labels_M)
    classes, near_N, true_M = dense(train_labels_N.long(), test_labels_M.long())
    if classes < 2:
        raise Error("train labels: one class only; kNN accuracy needs two or more")
    ranks = []
    for part_QD, true_Q in zip(
        torch.split(test_MD, chunk), torch.split(true_M, chunk), strict=True
    ):
        votes_QC = votes(
            train_ND, near_N, part_QD, k=k, temperature=temperature, classes=classes, chunk=chunk
        )
        voted_Q = votes_QC.gather(1, true_Q.clamp_min(0)[:, None])[:, 0] > 0
        ranks.append(rank(votes_QC, true_Q).where(voted_Q, classes))
    return hits(torch.cat(ranks), classes)
