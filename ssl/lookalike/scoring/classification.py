"""What logits are worth against labels: top-k, per class, who is taken for whom, and with several
labels an image average precision and F1.

Ties are decided against the model, as everywhere in scoring/. Rows are looked at in blocks, so that
nothing of the size of the logits is made beside them.
"""

from typing import Any

import torch
from torch import Tensor

_BYTES = 2**26
"""Of so many bytes a temporary tensor is."""


def blocks(logits_NC: Tensor) -> list[slice]:
    """Rows to be looked at together."""
    rows = max(1, _BYTES // (8 * max(1, logits_NC.shape[1])))
    return [slice(start, start + rows) for start in range(0, len(logits_NC), rows)]


def right(logits_NC: Tensor, labels_N: Tensor, ks: tuple[int, ...] = (1, 5)) -> dict[int, Tensor]:
    """For each k whether the class is among the k largest logits, float64 (N,); a tie does not
    count for the model.
    """
    ranks = []
    for rows in blocks(logits_NC):
        block_BC, labels_B = logits_NC[rows], labels_N[rows]
        own_B1 = block_BC.gather(1, labels_B[:, None])
        ranks.append((block_BC >= own_B1).sum(dim=1) - 1)
    rank_N = torch.cat(ranks)
    return {k: (rank_N < k).double() for k in ks}


def confusion(predicted_N: Tensor, labels_N: Tensor, classes: int) -> Tensor:
    """How many images of each class (rows) are taken for each (columns), int64 (C, C)."""
    cells_N = labels_N * classes + predicted_N
    return torch.bincount(cells_N, minlength=classes**2).reshape(classes, classes)


def predictions(logits_NC: Tensor) -> Tensor:
    """The class of the largest logit, int64 (N,); of equal ones the first."""
    return torch.cat([logits_NC[rows].argmax(dim=1) for rows in blocks(logits_NC)])


def per_class(predicted_N: Tensor, labels_N: Tensor, classes: int) -> dict[str, list[float | int]]:
    """`images`, `recall`, `precision` and `f1` of each class; 0 where there is nothing to divide
    by, as scikit-learn has it.
    """
    hit_N = labels_N[predicted_N == labels_N]
    hit_C, images_C, taken_C = (
        torch.bincount(rows_M, minlength=classes) for rows_M in (hit_N, labels_N, predicted_N)
    )
    ratios = _ratios(hit_C.double(), images_C.double(), taken_C.double())
    return {"images": images_C.tolist(), **ratios}


def _ratios(hit_C: Tensor, images_C: Tensor, taken_C: Tensor) -> dict[str, list[float | int]]:
    return {
        "recall": _share(hit_C, images_C).tolist(),
        "precision": _share(hit_C, taken_C).tolist(),
        "f1": _share(2 * hit_C, images_C + taken_C).tolist(),
    }


def _share(part_C: Tensor, whole_C: Tensor) -> Tensor:
    return torch.where(whole_C > 0, part_C / whole_C.clamp(min=1), 0.0)


def average_precision(logits_NC: Tensor, several_NC: Tensor) -> Tensor:
    """Of each class the average precision of the images ranked by its logit, float64 (C,): the sum
    over recall's steps of precision there, images of one logit together; NaN for a class that no
    image has.

    As scikit-learn's average_precision_score; its mean over classes is mAP.
    """
    columns = zip(logits_NC.T, several_NC.T, strict=True)
    found = [_average_precision(logits_N, has_N) for logits_N, has_N in columns]
    return torch.tensor(found, dtype=torch.float64)


def _average_precision(logits_N: Tensor, has_N: Tensor) -> float:
    sorted_N, order_N = logits_N.sort(descending=True, stable=True)
    hits_N = has_N[order_N].cumsum(0).double()
    if not len(hits_N) or hits_N[-1] == 0:
        return float("nan")
    last_N = torch.ones(len(hits_N), dtype=torch.bool)
    last_N[:-1] = sorted_N[1:] != sorted_N[:-1]
    hits_M, seen_M = hits_N[last_N], torch.nonzero(last_N).flatten().double() + 1
    recall_M = hits_M / hits_N[-1]
    steps_M = recall_M.diff(prepend=recall_M.new_zeros(1))
    return float((steps_M * hits_M / seen_M).sum())


def several_labels(logits_NC: Tensor, several_NC: Tensor) -> dict[str, Any]:
    """Scores where an image has any number of labels, a class being said above 0, a probability of
    a half: mAP over the classes that some image has, F1 over all answers (micro) and as the mean of
    classes (macro), the share of images whose labels are all right (`exact_N`: which,
    float64), and the classes' own.
    """
    hit_C, images_C, taken_C = logits_NC.new_zeros(3, several_NC.shape[1], dtype=torch.float64)
    exact = []
    for rows in blocks(logits_NC):
        said_BC, has_BC = logits_NC[rows] > 0, several_NC[rows]
        hit_C += (said_BC & has_BC).sum(dim=0)
        images_C += has_BC.sum(dim=0)
        taken_C += said_BC.sum(dim=0)
        exact.append((said_BC == has_BC).all(dim=1).double())
    exact_N = torch.cat(exact)
    ap_C, there_C = average_precision(logits_NC, several_NC), images_C > 0
    classes = {
        "images": images_C.long().tolist(),
        "ap": [None if value != value else value for value in ap_C.tolist()],
        **_ratios(hit_C, images_C, taken_C),
    }
    micro = _share(2 * hit_C.sum(), images_C.sum() + taken_C.sum())
    return {
        "map": float(ap_C[there_C].mean()) if bool(there_C.any()) else 0.0,
        "f1_micro": float(micro),
        "f1_macro": float(torch.tensor(classes["f1"], dtype=torch.float64).mean()),
        "exact": float(exact_N.mean()),
        "exact_N": exact_N,
        "per_class": classes,
    }
