"""Linear probe: multinomial logistic regression on frozen features, full batch L-BFGS, L2 chosen on
train.

Loss: mean cross-entropy + l2/2 · ‖W‖², bias free, features standardised by train. It is solved in
coordinates where the Hessian at the start is near the identity: rotated by the eigenvectors of
XᵀX/N and scaled by √(λ·v + l2), with λ the eigenvalues and v the mean of p(1 - p). The minimum is
the same, the path shorter.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, NotRequired, TypedDict

import torch
from torch import Tensor

from lookalike.errors import Error
from lookalike.scoring.knn import check, dense, hits, rank, same_width

GRID = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1e0, 1e1)

_DIMENSIONS = 4096

Point = tuple[float, Tensor]
Slope = Callable[[Tensor], Point]


class Linear(NamedTuple):
    """A fitted classifier on features standardised by `mean_D` and `std_D`; `converged`: within
    tolerance.
    """

    weight_CD: Tensor
    bias_C: Tensor
    mean_D: Tensor
    std_D: Tensor
    converged: bool

    def logits(self, features_MD: Tensor) -> Tensor:
        """Class scores, `(M, C)`."""
        x_MD = (features_MD.to(self.mean_D.dtype) - self.mean_D) / self.std_D
        return x_MD @ self.weight_CD.T + self.bias_C

    def predict(self, features_MD: Tensor) -> Tensor:
        """The class of highest score, `(M,)`; the lowest of those that tie."""
        return self.logits(features_MD).argmax(1)


class Probe(TypedDict):
    """What a probe found: accuracies in [0, 1]; `grid` maps each l2 to its held-out accuracy."""

    top1: float
    top5: NotRequired[float]
    l2: float
    held_out_top1: float
    grid: dict[float, float]
    grid_edge: bool
    converged: bool


class _Problem(NamedTuple):
    """Rotated features with a last column of ones, `E` = R + 1, and the way back to the given
    features.

    R is D, or where there are fewer rows than dimensions at most N: beyond the rows' span every
    weight is 0.
    """

    u_NE: Tensor
    labels_N: Tensor
    classes: int
    spectrum_E: Tensor
    axes_DR: Tensor
    mean_D: Tensor
    std_D: Tensor


def _standard(features_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation of each dimension; 1 where it is constant."""
    mean_D = features_ND.mean(0)
    std_D = features_ND.std(0, correction=0)
    constant_D = (features_ND.amax(0) == features_ND.amin(0)) | (std_D == 0)
    return mean_D, std_D.masked_fill(constant_D, 1)


def _problem(features_ND: Tensor, labels_N: Tensor, classes: int) -> _Problem:
    """Standardise and rotate; float64 features stay float64, all others become float32."""
    check(features_ND, "train", labels_N)
    if int(labels_N.min()) < 0 or int(labels_N.max()) >= classes or len(torch.unique(labels_N)) < 2:
        raise Error(
            f"train labels: two or more of the classes 0 to {classes - 1} are needed, and no others"
        )
    x_ND = features_ND if features_ND.dtype == torch.float64 else features_ND.float()
    mean_D, std_D = _standard(x_ND)
    x_ND = (x_ND - mean_D) / std_D
    spectrum_R, axes_DR = _axes(x_ND)
    u_NE = torch.cat([x_ND @ axes_DR, x_ND.new_ones(len(x_ND), 1)], 1)
    spectrum_E = torch.cat([spectrum_R.clamp_min(0), spectrum_R.new_ones(1)])
    return _Problem(u_NE, labels_N.long(), classes, spectrum_E, axes_DR, mean_D, std_D)


def _axes(x_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues of XᵀX/N, ascending, and its eigenvectors; of the R that the rows span where N <
    D.

    Then they come from XXᵀ/N, which is N × N: with u an eigenvector of that, Xᵀu is one of XᵀX/N.
    In double precision: single gives up on the nearly equal eigenvalues of features that almost
    collapsed.
    """
    rows, width = x_ND.shape
    if rows >= width:
        spectrum_D, axes_DD = torch.linalg.eigh((x_ND.T @ x_ND / rows).double())
        return spectrum_D.to(x_ND.dtype), axes_DD.to(x_ND.dtype)
    spectrum_N, u_NN = torch.linalg.eigh(_gram(x_ND) / rows)
    kept_N = spectrum_N > spectrum_N[-1] * rows * torch.finfo(torch.float64).eps
    lengths_R = (spectrum_N[kept_N] * rows).sqrt()
    axes_DR = x_ND.T @ (u_NN[:, kept_N] / lengths_R).to(x_ND.dtype)
    return spectrum_N[kept_N].to(x_ND.dtype), axes_DR


def _gram(x_ND: Tensor) -> Tensor:
    """XXᵀ in float64, a few thousand dimensions at a time."""
    gram_NN = x_ND.new_zeros(len(x_ND), len(x_ND), dtype=torch.float64)
    for part_NK in torch.split(x_ND, _DIMENSIONS, dim=1):
        gram_NN.addmm_(part_NK.double(), part_NK.double().T)
    return gram_NN


def _loss(problem: _Problem, w_CE: Tensor, l2_E: Tensor) -> Point:
    """Loss and its gradient `(C, E)`; 1 - p of the true class is summed from the others, exact near
    0.
    """
    log_p_NC = (problem.u_NE @ w_CE.T).log_softmax(1)
    true_N1 = problem.labels_N[:, None]
    loss = -log_p_NC.gather(1, true_N1).double().mean() + (w_CE.square() * l2_E).double().sum() / 2
    residual_NC = log_p_NC.exp_().scatter_(1, true_N1, 0)
    residual_NC.scatter_(1, true_N1, -residual_NC.sum(1, keepdim=True))
    return float(loss), residual_NC.T @ problem.u_NE / len(true_N1) + w_CE * l2_E


def _direction(gradient_CE: Tensor, memory: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Descent from the last steps s and gradient changes y; Nocedal and Wright 2006, algorithm
    7.4.
    """
    d_CE, shares = -gradient_CE, []
    for s_CE, y_CE in reversed(memory):
        shares.append((s_CE * d_CE).sum() / (s_CE * y_CE).sum())
        d_CE = d_CE - shares[-1] * y_CE
    if memory:
        s_CE, y_CE = memory[-1]
        d_CE = d_CE * ((s_CE * y_CE).sum() / y_CE.square().sum())
    for (s_CE, y_CE), share in zip(memory, reversed(shares), strict=True):
        d_CE = d_CE + s_CE * (share - (y_CE * d_CE).sum() / (s_CE * y_CE).sum())
    return d_CE


def _walk(slope: Slope, z_CE: Tensor, here: Point, d_CE: Tensor) -> tuple[Tensor, Point] | None:
    """Go along `d_CE` until most of the slope is gone; None if 20 trials do not get there.

    The slope decides: the loss is convex, so the slope only rises; near the minimum the loss is all
    noise.
    """
    first = float((here[1] * d_CE).sum())
    low, high, t = 0.0, float("inf"), 1.0
    for _ in range(20):
        new_CE = z_CE + t * d_CE
        there = slope(new_CE)
        now = float((there[1] * d_CE).sum())
        if not now <= -first / 2 or there[0] > here[0] + 1e-6 * (1 + abs(here[0])):
            high = t
        elif now < 0.9 * first:
            low = t
        else:
            return new_CE, there
        t = 2 * t if high == float("inf") else (low + high) / 2
    return None


def _minimise(slope: Slope, z_CE: Tensor, iterations: int, tolerance: float) -> tuple[Tensor, bool]:
    """L-BFGS with 10 remembered steps, and whether every entry of the gradient came within
    `tolerance`.

    Where the memory leads nowhere it is forgotten once; where the gradient alone does not, rounding
    ends it.
    """
    memory: deque[tuple[Tensor, Tensor]] = deque(maxlen=10)
    here = slope(z_CE)
    for _ in range(iterations):
        if float(here[1].abs().max()) <= tolerance:
            break
        walked = _walk(slope, z_CE, here, _direction(here[1], memory))
        if walked is None and not memory:
            break
        if walked is None:
            memory.clear()
            continue
        memory.append((walked[0] - z_CE, walked[1][1] - here[1]))
        z_CE, here = walked
    return z_CE, float(here[1].abs().max()) <= tolerance


def _solve(
    problem: _Problem, l2: float, start: Linear | None, iterations: int, tolerance: float
) -> Linear:
    """Minimise from `start` (zero if none), which may be standardised by other features."""
    l2_E = torch.full_like(problem.spectrum_E, l2)
    l2_E[-1] = 0
    w_CE = problem.u_NE.new_zeros(problem.classes, len(l2_E))
    if start is not None:
        w_CE = torch.cat([start.weight_CD @ problem.axes_DR, start.bias_C[:, None]], 1)
    p_NC = (problem.u_NE @ w_CE.T).softmax(1)
    scale_E = (problem.spectrum_E * (p_NC - p_NC.square()).mean().clamp_min(1e-6) + l2_E).sqrt()

    def slope(z_CE: Tensor) -> Point:
        loss, gradient_CE = _loss(problem, z_CE / scale_E, l2_E)
        return loss, gradient_CE / scale_E

    z_CE, converged = _minimise(slope, w_CE * scale_E, iterations, tolerance)
    w_CE = z_CE / scale_E
    return Linear(
        w_CE[:, :-1] @ problem.axes_DR.T, w_CE[:, -1], problem.mean_D, problem.std_D, converged
    )


@torch.no_grad()
def fit(
    features_ND: Tensor,
    labels_N: Tensor,
    l2: float,
    *,
    classes: int,
    start: Linear | None = None,
    max_iterations: int = 500,
    tolerance: float = 1e-5,
) -> Linear:
    """Fit labels 0 … classes-1; `tolerance` bounds every entry of the gradient in the scaled
    coordinates.

    float64 features are fitted in float64, all others in float32.
    Raises Error when features or labels cannot be fitted, or l2 is not above 0.
    """
    _check_grid([l2])
    return _solve(_problem(features_ND, labels_N, classes), l2, start, max_iterations, tolerance)


def _check_grid(grid: Sequence[float]) -> None:
    """Raises Error when the grid is empty or holds an l2 that is not above 0."""
    if not grid or not all(0 < l2 < float("inf") for l2 in grid):
        raise Error(f"l2: {list(grid)}; pass one or more finite values above 0")


def split(labels_N: Tensor, held_out: float, seed: int) -> tuple[Tensor, Tensor]:
    """Rows to fit on and rows to hold out, ascending: of each class round(n · held_out) rows drawn
    by `seed`.

    At least one row of a class is held out and at least one is fitted; a single row is fitted.
    Raises Error when held_out is not inside (0, 1) or every class has one row only.
    """
    if not 0 < held_out < 1:
        raise Error(f"held_out: {held_out}; pass a share between 0 and 1, such as 0.2")
    _, class_N, size_C = torch.unique(labels_N.cpu(), return_inverse=True, return_counts=True)
    held_C = (size_C.double() * held_out).round().long().clamp_min(1).minimum(size_C - 1)
    if not int(held_C.sum()):
        raise Error(
            "train labels: one row in every class, so none can be held out; pass more per class"
        )
    shuffled_N = torch.randperm(len(class_N), generator=torch.Generator().manual_seed(seed))
    order_N = shuffled_N[class_N[shuffled_N].argsort(stable=True)]
    place_N = torch.arange(len(order_N)) - (size_C.cumsum(0) - size_C)[class_N[order_N]]
    is_held_N = torch.zeros(len(order_N), dtype=torch.bool)
    is_held_N[order_N] = place_N < held_C[class_N[order_N]]
    fit_rows, held_rows = (~is_held_N).nonzero()[:, 0], is_held_N.nonzero()[:, 0]
    return fit_rows.to(labels_N.device), held_rows.to(labels_N.device)


def _sweep(
    problem: _Problem, grid: Sequence[float], iterations: int, tolerance: float
) -> dict[float, Linear]:
    """One fit for each l2, from strong to weak, each started from the one before."""
    fits: dict[float, Linear] = {}
    last: Linear | None = None
    for l2 in sorted(set(grid), reverse=True):
        last = fits[l2] = _solve(problem, l2, last, iterations, tolerance)
    return fits


@torch.no_grad()
def probe(
    train_ND: Tensor,
    train_labels_N: Tensor,
    test_MD: Tensor,
    test_labels_M: Tensor,
    *,
    grid: Sequence[float] = GRID,
    held_out: float = 0.2,
    seed: int = 0,
    max_iterations: int = 500,
    tolerance: float = 1e-5,
) -> Probe:
    """Choose l2 on a held-out part of train, refit on all of train, score test once.

    The best held-out accuracy wins, the strongest l2 of those that tie; `grid_edge`: an end of the
    grid won; `converged`: every fit did. Labels may be any whole numbers; a test class that train
    lacks is a miss. Raises Error when features, labels, grid or held_out cannot be used.
    """
    _check_grid(grid)
    check(train_ND, "train", train_labels_N)
    check(test_MD, "test", test_labels_M)
    same_width(train_ND, test_MD)
    classes, near_N, true_M = dense(train_labels_N.long(), test_labels_M.long())
    fit_rows, held_rows = split(near_N, held_out, seed)
    problem = _problem(train_ND[fit_rows], near_N[fit_rows], classes)
    fits = _sweep(problem, grid, max_iterations, tolerance)
    held_HD, held_labels_H = train_ND[held_rows], near_N[held_rows]
    found = {
        l2: hits(rank(one.logits(held_HD), held_labels_H), 1)["top1"] for l2, one in fits.items()
    }
    best = max(found, key=lambda l2: (found[l2], l2))
    final = _solve(_problem(train_ND, near_N, classes), best, fits[best], max_iterations, tolerance)
    scored = hits(rank(final.logits(test_MD), true_M), classes)
    result = Probe(
        top1=scored["top1"],
        l2=best,
        held_out_top1=found[best],
        grid=found,
        grid_edge=len(found) > 1 and best in (min(found), max(found)),
        converged=final.converged and all(one.converged for one in fits.values()),
    )
    if "top5" in scored:
        result["top5"] = scored["top5"]
    return result
