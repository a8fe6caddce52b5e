"""One fit, and the choice among several l2 by rows that are held out."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, NotRequired, TypedDict

import torch
from torch import Tensor

from lookalike.errors import Error
from lookalike.scoring.knn import dense, hits, same_width
from lookalike.scoring.linear.kept import Kept
from lookalike.scoring.linear.problem import Linear, places, problem
from lookalike.scoring.linear.rows import Rows, refuse

GRID = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1e0, 1e1)

LOOSE = 10
"""A fit that only competes for its l2 may end at so many times the tolerance of the one that is
scored."""


class Probe(TypedDict):
    """What a probe found: accuracies in [0, 1]; `grid` maps each l2 that was tried to its held-out
    accuracy, `untried` holds those that were not.
    """

    top1: float
    top5: NotRequired[float]
    l2: float
    held_out_top1: float
    grid: dict[float, float]
    grid_edge: bool
    converged: bool
    untried: NotRequired[list[float]]


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
    refuse(features_ND, "train", labels_N)
    posed = problem(Rows(features_ND), labels_N, classes)
    return posed.solve(l2, start, max_iterations, tolerance)


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


class _Held(NamedTuple):
    """Train features, labels, and the rows to fit on and to hold out."""

    train_ND: Tensor
    labels_N: Tensor
    fit_rows: Tensor
    held_rows: Tensor


class _Sweep(NamedTuple):
    """The l2 that won and its fit; each that was tried with its held-out accuracy; whether every
    fit converged.
    """

    l2: float
    best: Linear
    found: dict[float, float]
    converged: bool


def _sweep(
    held: _Held,
    classes: int,
    grid: Sequence[float],
    iterations: int,
    tolerance: float,
    patience: int | None,
    kept: Kept,
) -> _Sweep:
    """One fit for each l2, from strong to weak, each started from the one before, until so many in
    a row lie below the best on the rows held out.
    """
    train_ND, home = held.train_ND, held.train_ND.device
    posed = problem(Rows(train_ND, held.fit_rows.to(home)), held.labels_N[held.fit_rows], classes)
    rows, labels_N = Rows(train_ND, held.held_rows.to(home)), held.labels_N[held.held_rows]
    last = best = None
    won, found, converged = 0.0, {}, True
    for l2 in sorted(set(grid), reverse=True):
        last = kept.read(l2) or kept.write(l2, posed.solve(l2, last, iterations, tolerance))
        found[l2] = hits(places(last, rows, labels_N), 1)["top1"]
        converged &= last.converged
        if best is None or found[l2] > found[won]:
            won, best = l2, last
        if patience is not None and _behind(list(found.values())) >= patience:
            break
    assert best is not None
    return _Sweep(won, best, found, converged)


def _behind(scores: Sequence[float]) -> int:
    """How many scores in a row, up to the last one, lie below the best, or cannot be above it."""
    best = max(scores)
    since = scores.index(best) + 1 if best == 1 else len(scores) - scores[::-1].index(best)
    return len(scores) - since


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
    patience: int | None = 2,
    folder: Path | None = None,
) -> Probe:
    """The scores of `chosen`."""
    found, _ = chosen(
        train_ND,
        train_labels_N,
        test_MD,
        test_labels_M,
        grid=grid,
        held_out=held_out,
        seed=seed,
        max_iterations=max_iterations,
        tolerance=tolerance,
        patience=patience,
        folder=folder,
    )
    return found


@torch.no_grad()
def chosen(
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
    patience: int | None = 2,
    folder: Path | None = None,
) -> tuple[Probe, Linear]:
    """Choose l2 on a held-out part of train, refit on all of train, score test once; the scores,
    and the classifier that was scored.

    The grid is walked from strong to weak, each fit from the one before, to `LOOSE` times the
    tolerance; once `patience` held-out accuracies in a row lie below the best, weaker l2 are left
    `untried` (None: all are tried). The best held-out accuracy wins, the strongest l2 of those that
    tie; `grid_edge`: an end of the grid won; `converged`: every fit did. Labels may be any
    whole numbers; a test class that train lacks is a miss. With `folder` a killed probe goes on
    after the last l2 that was done. Raises Error when features, labels, grid or held_out cannot be
    used.
    """
    _check_grid(grid)
    refuse(train_ND, "train", train_labels_N)
    refuse(test_MD, "test", test_labels_M)
    same_width(train_ND, test_MD)
    classes, near_N, true_M = dense(train_labels_N.long(), test_labels_M.long())
    words = (sorted(set(grid)), held_out, seed, max_iterations, tolerance)
    kept = Kept(folder, train_ND, near_N, words)
    fit_rows, held_rows = split(near_N, held_out, seed)
    held = _Held(train_ND, near_N, fit_rows, held_rows)
    sweep = _sweep(held, classes, grid, max_iterations, tolerance * LOOSE, patience, kept)
    whole = problem(Rows(train_ND), near_N, classes)
    final = whole.solve(sweep.l2, sweep.best, max_iterations, tolerance)
    scored = hits(places(final, Rows(test_MD), true_M), classes)
    result = Probe(
        top1=scored["top1"],
        l2=sweep.l2,
        held_out_top1=sweep.found[sweep.l2],
        grid=sweep.found,
        grid_edge=len(set(grid)) > 1 and sweep.l2 in (min(grid), max(grid)),
        converged=final.converged and sweep.converged,
    )
    if "top5" in scored:
        result["top5"] = scored["top5"]
    if untried := sorted(set(grid) - set(sweep.found), reverse=True):
        result["untried"] = untried
    kept.clear()
    return result, final
