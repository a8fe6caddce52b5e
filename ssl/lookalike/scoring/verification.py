"""Are two images of the same one? ROC AUC, EER, TAR@FAR, best accuracy, and accuracy over folds.

A score says how alike a pair is: larger is more alike; for distances pass their negation. A pair is
accepted when its score is at least the threshold. TAR: share of same pairs accepted; FAR: share of
different pairs accepted. Folds: Huang et al., "Labeled Faces in the Wild", UMass Amherst TR 07-49,
2007, section 5 (10 folds of 600 pairs; the threshold of each comes from the nine others; mean and
standard error).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lookalike.errors import Error
from lookalike.geometry import Distance
from lookalike.scoring.knn import STEP
from lookalike.scoring.similarity import points


class Roc(NamedTuple):
    """Counts of accepted pairs at each threshold, from above all scores (none) down to the lowest
    (all).
    """

    threshold_T: Tensor
    false_T: Tensor
    true_T: Tensor

    @property
    def negatives(self) -> int:
        """Pairs of two different ones."""
        return int(self.false_T[-1])

    @property
    def positives(self) -> int:
        """Pairs of the same one."""
        return int(self.true_T[-1])


class Folds(NamedTuple):
    """Accuracy of each fold with the threshold of the others; their mean and its standard error, s
    / √F.
    """

    accuracy_F: Tensor
    threshold_F: Tensor
    mean: float
    error: float

    def scores(self) -> dict[str, float]:
        """`accuracy` and `accuracy_error`."""
        return {"accuracy": self.mean, "accuracy_error": self.error}


@torch.no_grad()
def similarity(embeddings_ND: Tensor, pairs_P2: Tensor, *, distance: Distance = "cosine") -> Tensor:
    """Cosine similarity, or negated Euclidean distance, of each pair of rows, float64 `(P,)` in
    steps of 1e-6.

    Euclidean: in units of the rows' root mean square distance from their mean.
    Raises Error when the embeddings cannot be scored or a pair names no row.
    """
    if (
        pairs_P2.ndim != 2
        or pairs_P2.shape[1] != 2
        or pairs_P2.dtype != torch.int64
        or not len(pairs_P2)
    ):
        raise Error(
            f"pairs: {pairs_P2.dtype} {tuple(pairs_P2.shape)}; pass int64 row numbers, (pairs, 2)"
        )
    if int(pairs_P2.min()) < 0 or int(pairs_P2.max()) >= len(embeddings_ND):
        raise Error(
            f"pairs: rows {int(pairs_P2.min())} to {int(pairs_P2.max())} of {len(embeddings_ND)}"
        )
    point_ND, _ = points(embeddings_ND, embeddings_ND, distance)
    parts = []
    for part_B2 in torch.split(pairs_P2, max(1, 2**22 // point_ND.shape[1])):
        a_BD, b_BD = point_ND[part_B2[:, 0]], point_ND[part_B2[:, 1]]
        parts.append(
            (a_BD * b_BD).sum(1)
            if distance == "cosine"
            else -torch.linalg.vector_norm(a_BD - b_BD, dim=1)
        )
    return torch.cat(parts).div_(STEP).round_().mul_(STEP)


def _checked(scores_P: Tensor, same_P: Tensor) -> tuple[Tensor, Tensor]:
    """Scores as float64 and labels as bool. Raises Error when they cannot be used or are of one
    kind only.
    """
    if scores_P.ndim != 1 or scores_P.shape != same_P.shape or not len(scores_P):
        raise Error(
            f"pairs: scores {tuple(scores_P.shape)}, same {tuple(same_P.shape)}; pass one of each "
            "per pair"
        )
    if not bool(scores_P.isfinite().all()):
        raise Error(
            f"pairs: NaN or Inf in {int((~scores_P.isfinite()).sum())} scores; check the weights"
        )
    if same_P.is_floating_point() or not bool(((same_P == 0) | (same_P == 1)).all()):
        raise Error("pairs: `same` must be true (1) or false (0) for every pair")
    same_P = same_P.bool()
    if bool(same_P.all()) or not bool(same_P.any()):
        raise Error("pairs: of one kind only; verification needs same and different pairs")
    return scores_P.double(), same_P


def roc(scores_P: Tensor, same_P: Tensor) -> Roc:
    """Accepted pairs at every threshold that makes a difference; equal scores are accepted
    together.

    Raises Error when scores are not finite, labels are not true or false, or the pairs are of one
    kind only.
    """
    scores_P, same_P = _checked(scores_P, same_P)
    return _roc(scores_P, same_P)


def _roc(scores_P: Tensor, same_P: Tensor) -> Roc:
    """`roc` of what was checked."""
    level_T, of_P = torch.unique(scores_P, return_inverse=True)
    true_T = torch.bincount(of_P[same_P], minlength=len(level_T)).flip(0).cumsum(0)
    false_T = torch.bincount(of_P[~same_P], minlength=len(level_T)).flip(0).cumsum(0)
    above, none = level_T.new_tensor([torch.inf]), true_T.new_zeros(1)
    return Roc(
        torch.cat([above, level_T.flip(0)]), torch.cat([none, false_T]), torch.cat([none, true_T])
    )


def auc(found: Roc) -> float:
    """Area under TAR over FAR: the chance that a same pair outscores a different one, a tie
    counting half.
    """
    area = torch.trapezoid(found.true_T.double(), found.false_T.double())
    return float(area) / found.negatives / found.positives


def eer(found: Roc) -> float:
    """The error where FAR and 1 - TAR are equal, on the straight line between the thresholds next
    to it.
    """
    far_T, frr_T = (
        found.false_T.double() / found.negatives,
        1 - found.true_T.double() / found.positives,
    )
    after = int((far_T >= frr_T).nonzero()[0, 0])
    gap_before, gap_after = frr_T[after - 1] - far_T[after - 1], far_T[after] - frr_T[after]
    share = gap_before / (gap_before + gap_after)
    return float(far_T[after - 1] + share * (far_T[after] - far_T[after - 1]))


def measurable(far: float, negatives: int) -> bool:
    """Whether so many different pairs can tell this FAR from none, and it is below 1."""
    return far < 1 and far * negatives >= 1 - 1e-9


def tar_at_far(found: Roc, far: float) -> float:
    """The highest TAR at a threshold whose FAR is at most `far`; nothing is interpolated.

    Raises Error when `far` is below 1 / negatives, which so few pairs cannot measure, or not below
    1.
    """
    if not measurable(far, found.negatives):
        least = f"1/{found.negatives} = {1 / found.negatives:.3g}"
        raise Error(
            f"TAR@FAR: FAR {far:g} with {found.negatives} different pairs; from {least} to below 1 "
            "can be measured"
        )
    within_T = found.false_T <= far * found.negatives + 1e-9
    return float(found.true_T[within_T].max()) / found.positives


def best_accuracy(found: Roc) -> float:
    """The accuracy at the best threshold for these very pairs: an upper bound, not an estimate; see
    `over_folds`.
    """
    right_T = found.true_T + found.negatives - found.false_T
    return float(right_T.max()) / (found.negatives + found.positives)


def threshold(scores_P: Tensor, same_P: Tensor) -> float:
    """The most accurate threshold, halfway between two scores or infinite; the middle one of those
    that tie.
    """
    found = _roc(scores_P, same_P)
    right_T = found.true_T - found.false_T
    best = (right_T == right_T.max()).nonzero()[:, 0]
    at = int(best[(len(best) - 1) // 2])
    below = float(found.threshold_T[at + 1]) if at + 1 < len(right_T) else -torch.inf
    return (float(found.threshold_T[at]) + below) / 2


def over_folds(scores_P: Tensor, same_P: Tensor, folds_P: Tensor) -> Folds:
    """Accuracy of each fold's pairs with the threshold that is best on all other folds' pairs.

    `folds_P`: whole numbers, the fold of each pair; LFW's are `torch.arange(6000) // 600`, in the
    order of its file. Raises Error when the pairs cannot be scored or there are fewer than two
    folds.
    """
    scores_P, same_P = _checked(scores_P, same_P)
    if (
        folds_P.shape != scores_P.shape
        or folds_P.is_floating_point()
        or len(folds := torch.unique(folds_P)) < 2
    ):
        raise Error("folds: pass the fold of every pair, two or more of them")
    accuracies, thresholds = [], []
    for fold in folds:
        held_P = folds_P == fold
        thresholds.append(threshold(scores_P[~held_P], same_P[~held_P]))
        accepted = scores_P[held_P] >= thresholds[-1]
        accuracies.append((accepted == same_P[held_P]).double().mean())
    accuracy_F = torch.stack(accuracies)
    error = float(accuracy_F.std(correction=1)) / len(folds) ** 0.5
    return Folds(
        accuracy_F, torch.tensor(thresholds, dtype=torch.float64), float(accuracy_F.mean()), error
    )


def scores(
    scores_P: Tensor, same_P: Tensor, folds_P: Tensor | None = None, *, fars: Sequence[float] = ()
) -> dict[str, float]:
    """`auc`, `eer`, `best_accuracy`, `tar@far=F` for each F; with folds `accuracy` and
    `accuracy_error`.

    Raises Error when the pairs or folds cannot be scored, or a FAR is below 1 / different pairs.
    """
    found = roc(scores_P, same_P)
    out = {"auc": auc(found), "eer": eer(found), "best_accuracy": best_accuracy(found)}
    out |= {f"tar@far={far:g}": tar_at_far(found, far) for far in fars}
    if folds_P is not None:
        out |= over_folds(scores_P, same_P, folds_P).scores()
    return out
