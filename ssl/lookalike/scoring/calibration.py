"""Whether a classifier's probabilities can be believed, and the temperature that mends them.

Guo, Pleiss, Sun & Weinberger, "On calibration of modern neural networks", ICML 2017, arXiv
1706.04599: expected calibration error (equation 3, 15 bins of equal width), negative
log-likelihood, and temperature scaling (section 4.2). Brier, Monthly Weather Review 78, 1950.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lookalike.errors import Error
from lookalike.scoring.classification import blocks

BINS = 15
# The inverse temperature is looked for within these; perfectly separated logits have none.
_LEAST, _MOST = 1e-3, 1e3


def calibration(
    logits_NC: Tensor, targets: Tensor, temperature: float = 1.0, *, bins: int = BINS
) -> dict[str, float]:
    """`ece`, `nll` and `brier` of probabilities at a temperature, in float64.

    With classes int64 (N,): softmax; the confidence is the largest probability, the Brier score
    sums over classes. With several labels bool (N, C): sigmoid, each answer for itself, confident
    in what it says, and all means are over images and classes.
    """
    parts = [
        _one(logits_NC[rows].double() / temperature, targets[rows]) for rows in blocks(logits_NC)
    ]
    sure_M, right_M = (torch.cat([part[n] for part in parts]) for n in (0, 1))
    nll, brier = (sum(float(part[n]) for part in parts) for n in (2, 3))
    count = len(sure_M)
    return {"ece": _ece(sure_M, right_M, bins), "nll": nll / count, "brier": brier / count}


def _one(z_BC: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Confidences, which are right, and the sums of NLL and of Brier scores, of some rows."""
    if targets.dim() == 2:
        p_BC, t_BC = z_BC.sigmoid(), targets.double()
        sure_M = torch.maximum(p_BC, 1 - p_BC).flatten()
        right_M = ((p_BC > 0.5) == targets).double().flatten()
        nll = F.binary_cross_entropy_with_logits(z_BC, t_BC, reduction="sum")
        return sure_M, right_M, nll, ((p_BC - t_BC) ** 2).sum()
    p_BC = z_BC.softmax(dim=1)
    sure_B, said_B = p_BC.max(dim=1)
    nll = F.cross_entropy(z_BC, targets, reduction="sum")
    brier = ((p_BC - F.one_hot(targets, p_BC.shape[1])) ** 2).sum()
    return sure_B, (said_B == targets).double(), nll, brier


def _ece(sure_M: Tensor, right_M: Tensor, bins: int) -> float:
    """The mean over bins, weighted by how many fall in, of |accuracy - confidence|; a bin holds
    its upper end.
    """
    bin_M = ((sure_M * bins).ceil().long() - 1).clamp(0, bins - 1)
    gaps = sure_M.new_zeros(bins).index_add_(0, bin_M, right_M - sure_M)
    return float(gaps.abs().sum() / len(sure_M))


def best_temperature(logits_NC: Tensor, targets: Tensor) -> float:
    """The temperature of the least NLL on these images, which learned nothing: between 0.001 and
    1,000.

    NLL is convex in the inverse temperature, so the zero of its slope is found by Newton's steps
    within a bracket that is halved where they leave it. Raises Error without images, or for logits
    that are NaN or Inf.
    """
    if not len(logits_NC) or not bool(logits_NC.isfinite().all()):
        raise Error("classify: no temperature can be fitted: there are no finite logits")
    low, high, beta = _LEAST, _MOST, 1.0
    for _ in range(100):
        slope, curve = _slope(logits_NC, targets, beta)
        low, high = (beta, high) if slope < 0 else (low, beta)
        step = beta - slope / curve if curve > 0 else math.inf
        new = step if low < step < high else math.sqrt(low * high)
        if abs(new - beta) <= 1e-12 * beta:
            break
        beta = new
    return 1 / beta


def _slope(logits_NC: Tensor, targets: Tensor, beta: float) -> tuple[float, float]:
    """First and second derivative of the summed NLL in the inverse temperature."""
    slope = curve = 0.0
    for rows in blocks(logits_NC):
        z_BC, some = logits_NC[rows].double(), targets[rows]
        if some.dim() == 2:
            p_BC = (beta * z_BC).sigmoid()
            slope += float(((p_BC - some.double()) * z_BC).sum())
            curve += float((p_BC * (1 - p_BC) * z_BC**2).sum())
            continue
        p_BC = (beta * z_BC).softmax(dim=1)
        mean_B = (p_BC * z_BC).sum(dim=1)
        slope += float((mean_B - z_BC.gather(1, some[:, None])[:, 0]).sum())
        curve += float(((p_BC * z_BC**2).sum(dim=1) - mean_B**2).sum())
    return slope, curve
