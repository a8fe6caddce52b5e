"""Weighted k-nearest-neighbour vote over frozen features.

Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018,
arXiv 1805.01978, section 3.4, with k and temperature as in DINO (Caron et al., ICCV 2021, arXiv
2104.14294).
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lookalike import comm
from lookalike.errors import Error
from lookalike.scoring.rows import STEP, check, same_width, shared, split
from lookalike.scoring.similarity import Bank
from lookalike.scoring.topk import QUERIES, topk

__all__ = [
    "STEP",
    "accuracies",
    "accuracy",
    "check",
    "dense",
    "hits",
    "predict",
    "rank",
    "same_width",
    "votes",
]

CHUNK = 4096
"""Test rows at once."""

VOTES = 2**23
"""Votes in memory at once, queries × classes, each taking about 24 bytes."""


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
    chunk: int = CHUNK,
) -> Tensor:
    """Sum of exp((s - s_max) / temperature) over the k nearest train rows of each class, float64
    `(M, C)`.

    s: cosine similarity in float64 rounded to `STEP`; at equal s the earlier train row is nearer; k
    above N is N. Labels lie in 0 … C-1; C is the highest label + 1 unless `classes` is given.
    `chunk` test rows are answered at once. Features may be half precision or mapped from a file,
    which is never copied whole: see `topk`. Raises Error when features or labels cannot be scored,
    or k, temperature or chunk is not above 0.
    """
    check(train_ND, "train", train_labels_N)
    check(test_MD, "test")
    _refuse(train_ND, test_MD, (k,), temperature, chunk)
    labels_N = train_labels_N.long()
    width = classes or int(labels_N.max()) + 1
    if int(labels_N.min()) < 0 or int(labels_N.max()) >= width:
        span = f"{int(labels_N.min())} to {int(labels_N.max())}"
        raise Error(f"train labels: {span}; number the {width} classes from 0")
    every_M = torch.arange(len(test_MD))
    ballots = _ballots(Bank(train_ND, "cosine"), labels_N, test_MD, every_M, k, _size(chunk, width))
    parts = [_votes(steps, label, k, temperature, width) for _, steps, label in ballots]
    return torch.cat(parts)


def _refuse(
    train_ND: Tensor, test_MD: Tensor, ks: Sequence[int], temperature: float, chunk: int
) -> None:
    """Raises Error for what kNN cannot be asked."""
    same_width(train_ND, test_MD)
    if not ks or min(ks) < 1 or chunk < 1 or temperature <= 0:
        asked = ", ".join(str(k) for k in ks) or "missing"
        raise Error(
            f"kNN: k {asked}, temperature {temperature}, chunk {chunk}; each must be above 0"
        )


def _ballots(
    bank: Bank, labels_N: Tensor, test_MD: Tensor, row_M: Tensor, k: int, size: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Some rows of the test set, and their k nearest train rows: similarity in steps, and class,
    int64 `(Q, k)` both.
    """
    for row_Q in split(row_M, size):
        top = topk(test_MD[row_Q[0] : row_Q[-1] + 1], bank, k)
        yield row_Q, top.steps_Qk, labels_N[top.row_Qk]


def _size(chunk: int, classes: int) -> int:
    return max(1, min(chunk, VOTES // classes))


def _votes(steps_Qk: Tensor, label_Qk: Tensor, k: int, temperature: float, classes: int) -> Tensor:
    """Votes of the first k of some lists, `(Q, C)`; summed as whole numbers, so that the order does
    not show.
    """
    steps_Qk, label_Qk = steps_Qk[:, :k], label_Qk[:, :k]
    unit = 2.0 ** (62 - steps_Qk.shape[1].bit_length())
    weight_Qk = ((steps_Qk - steps_Qk[:, :1]).double() * (STEP / temperature)).exp()
    whole_Qk = (weight_Qk * unit).round().long().clamp_min(1)
    total_QC = whole_Qk.new_zeros(len(steps_Qk), classes).scatter_add_(1, label_Qk, whole_Qk)
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
def accuracies(
    train_ND: Tensor,
    train_labels_N: Tensor,
    test_MD: Tensor,
    test_labels_M: Tensor,
    *,
    ks: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
    chunk: int = CHUNK,
) -> dict[int, dict[str, float]]:
    """For each k `top1`, and `top5` with more than 5 classes, in [0, 1]: the lowest class wins a
    tie, no vote is no hit. The neighbours are looked for once.

    Labels may be any whole numbers; a test class that train lacks is a miss. All ranks call this
    with the same rows, share the test rows and get the same numbers. Memory: see `topk`, and
    `VOTES`. Raises Error as `votes` does, or when train has one class only.
    """
    check(train_ND, "train", train_labels_N)
    check(test_MD, "test", test_labels_M)
    _refuse(train_ND, test_MD, ks, temperature, chunk)
    classes, near_N, true_M = dense(train_labels_N.long(), test_labels_M.long())
    if classes < 2:
        raise Error("train labels: one class only; kNN accuracy needs two or more")
    bank, mine_M = Bank(train_ND, "cosine"), shared(len(test_MD), QUERIES)
    size = _size(chunk, classes)
    parts = [torch.empty(0, len(ks), dtype=torch.int64)]
    for row_Q, steps_Qk, label_Qk in _ballots(bank, near_N, test_MD, mine_M, max(ks), size):
        ballots = (_votes(steps_Qk, label_Qk, k, temperature, classes) for k in ks)
        parts.append(torch.stack([_rank(each, true_M[row_Q]) for each in ballots], 1).cpu())
    rank_MK = comm.cat(torch.cat(parts))
    return {k: hits(rank_M, classes) for k, rank_M in zip(ks, rank_MK.T, strict=True)}


def _rank(votes_QC: Tensor, true_Q: Tensor) -> Tensor:
    """As `rank`; behind all where nobody voted for the true class."""
    voted_Q = votes_QC.gather(1, true_Q.clamp_min(0)[:, None])[:, 0] > 0
    return rank(votes_QC, true_Q).where(voted_Q, votes_QC.shape[1])


def accuracy(
    train_ND: Tensor,
    train_labels_N: Tensor,
    test_MD: Tensor,
    test_labels_M: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
    chunk: int = CHUNK,
) -> dict[str, float]:
    """`accuracies` for one k."""
    sets = (train_ND, train_labels_N, test_MD, test_labels_M)
    return accuracies(*sets, ks=(k,), temperature=temperature, chunk=chunk)[k]
