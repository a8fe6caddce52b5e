"""CSML: a linear map after which the cosine tells pairs of one class from pairs of two.

Nguyen & Bai, "Cosine Similarity Metric Learning for Face Verification", ACCV 2010, eq. 2 and
algorithm 1: maximises Σ_pos CS(x, y, A) − α Σ_neg CS(x, y, A) − β‖A − A₀‖², CS(x, y, A) = (Ax)ᵀ(Ay)
/ ‖Ax‖‖Ay‖, α = n⁺ / n⁻.

Here all pairs of the rows count, and all is divided by n⁺ (β is the paper's over n⁺): mean cosine
of the positive pairs − mean cosine of the negative ones − β‖A − A₀‖². With unit rows z_i =
Ax_i/‖Ax_i‖, s_c their sum over a class and s over all, Σ_pos = (Σ_c ‖s_c‖² − N) / 2 and Σ_pos +
Σ_neg = (‖s‖² − N) / 2: N rows cost O(N), not N² pairs.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.random import RandomState
from sklearn.utils import check_random_state
from torch import Tensor

from lookalike.metric.estimators.descent import minimise
from lookalike.metric.estimators.linear_map import LinearMap
from lookalike.metric.estimators.scatter import Floats, Whole
from lookalike.recipe import Count, NonNegative, Positive, Width

# Rows of a fold whose pairs are verified: more would cost their square.
VERIFIED = 1000
Of = Literal["rows", "classes"]


def cosine_gap(a_PD: Tensor, x_ND: Tensor, onehot_NC: Tensor) -> Tensor:
    """Mean cosine of all positive pairs − mean cosine of all negative pairs, after A (P, D). Rows
    with Ax = 0 count 0.

    x_ND: (N, D) rows, onehot_NC: (N, C) their classes; there must be pairs of both kinds.
    """
    z_NP = torch.nn.functional.normalize(x_ND @ a_PD.T, dim=1)
    sums_CP, own = onehot_NC.T @ z_NP, z_NP.square().sum()
    within, overall = sums_CP.square().sum(), sums_CP.sum(dim=0).square().sum()
    size_C = onehot_NC.sum(dim=0)
    positive = (size_C * (size_C - 1)).sum() / 2
    negative = (size_C.sum() * (size_C.sum() - 1)) / 2 - positive
    return (within - own) / 2 / positive - (overall - within) / 2 / negative


class Rows(NamedTuple):
    """Centred rows (N, D) and one column a class (N, C), fp64."""

    x_ND: Tensor
    onehot_NC: Tensor


def csml_slope(a_PD: Floats, rows: Rows, beta: float, a0_PD: Floats) -> tuple[float, Floats]:
    """What is minimised, −(gap − β‖A − A₀‖²), and its gradient in A (P, D), by autograd in fp64."""
    a, a0 = torch.tensor(a_PD, requires_grad=True), torch.from_numpy(a0_PD)
    loss = beta * (a - a0).square().sum() - cosine_gap(a, *rows)
    (gradient_PD,) = torch.autograd.grad(loss, a)
    return float(loss.detach()), gradient_PD.numpy()


def verification_error(
    similarity_train: tuple[Floats, Floats], similarity_test: tuple[Floats, Floats]
) -> float:
    """(misses + false alarms) / 2 on the test pairs, at the threshold that is best on the train
    pairs.

    Each argument: the similarities of positive pairs and of negative pairs, in any order.
    """
    threshold = best_threshold(*similarity_train)
    positive, negative = similarity_test
    return float(((positive < threshold).mean() + (negative >= threshold).mean()) / 2)


def best_threshold(positive: Floats, negative: Floats) -> float:
    """The t for which (share of positives < t + share of negatives ≥ t) is least; half-way to the
    next value below.
    """
    values = np.unique(np.concatenate([positive, negative]))
    below = np.searchsorted(np.sort(positive), values) / len(positive)
    above = 1 - np.searchsorted(np.sort(negative), values) / len(negative)
    best = int((below + above).argmin())
    return float((values[best] + values[max(best - 1, 0)]) / 2)


def similarities(a_PD: Floats, rows: Rows) -> tuple[Floats, Floats]:
    """Cosines after A of the positive and of the negative pairs of rows, each pair once."""
    z_NP = torch.nn.functional.normalize(rows.x_ND @ torch.from_numpy(a_PD).T, dim=1)
    first_M, second_M = torch.triu_indices(len(z_NP), len(z_NP), 1)
    cosine_M = (z_NP @ z_NP.T)[first_M, second_M].numpy()
    class_N = rows.onehot_NC.argmax(dim=1)
    same_M = (class_N[first_M] == class_N[second_M]).numpy()
    return cosine_M[same_M], cosine_M[~same_M]


def deal(class_N: Whole, folds: int, random: RandomState, of: Of = "rows") -> Whole:
    """The fold (N,) of each row: the rows of each class, shuffled, dealt out in turn, on and on
    over the classes.

    `of` "classes": whole classes, shuffled, are dealt out in turn.
    """
    if of == "classes":
        fold_C: Whole = random.permutation(int(class_N.max()) + 1) % folds
        return fold_C[class_N]
    order = random.permutation(len(class_N))
    order = order[np.argsort(class_N[order], kind="stable")]
    fold_N = np.empty(len(class_N), dtype=np.int64)
    fold_N[order] = np.arange(len(order)) % folds
    return fold_N


class Fold(NamedTuple):
    """What A is learned on, rows of it whose pairs give the threshold, and rows whose pairs are
    verified.
    """

    learned: Rows
    known: Rows
    verified: Rows


class CSML(LinearMap):
    """A₀ is whitened PCA, ‖A₀‖² = P; after A* it becomes A*, until the verification error falls by
    `gain` no more.

    Each round takes the β of `betas` with the least verification error, by cross-validation over
    `folds` parts of the rows, or of the classes, for a metric of classes never seen; each fold has
    its own A₀ and threshold. The same βs, in `betas_`, then lead from A₀ to A on all rows: none
    where nothing was better than whitened PCA (`errors_` begins with its error). Cosines depend on
    the origin, which is the mean. `max_iter` bounds a minimisation, `rounds` the βs. Of a fold's
    rows at most 1,000 are verified.

    Raises ValueError when no fold has pairs of both kinds: too few rows, or classes, for
    cross-validation.
    """

    centres = True
    distance = "cosine"

    def __init__(
        self,
        *,
        n_components: Width | None = None,
        betas: tuple[NonNegative, ...] = (1e-3, 1e-2, 1e-1, 1.0),
        folds: Count = 3,
        folds_of: Of = "rows",
        rounds: Count = 10,
        gain: NonNegative = 1e-3,
        max_iter: Count = 200,
        tol: Positive = 1e-5,
        random_state: int | None = None,
    ) -> None:
        self.n_components = n_components
        self.betas = betas
        self.folds = folds
        self.folds_of = folds_of
        self.rounds = rounds
        self.gain = gain
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state

    def refuse_labels(self, y_N: Whole) -> None:
        """As of any estimator, and where no fold could tell one β from another."""
        super().refuse_labels(y_N)
        if not any(True for _ in self._sides(np.unique(y_N, return_inverse=True)[1])):
            raise ValueError(
                "CSML: no fold has pairs of one class and of two: give more rows, or classes, or "
                "fewer folds"
            )

    def learn(self, u_NR: Floats, class_N: Whole) -> Floats:
        a0_PR = np.diag(1 / u_NR.std(axis=0))[: self.n_components]
        a0_PR *= np.sqrt(len(a0_PR)) / np.linalg.norm(a0_PR)
        folds = list(self._folds(u_NR, class_N))
        self.betas_, self.errors_ = self._choose(folds, a0_PR)
        a_PR, everything, self.n_iter_ = a0_PR, _rows(u_NR, class_N), 1
        for beta in self.betas_:
            a_PR, iterations = self._step(everything, beta, a_PR)
            self.n_iter_ = max(self.n_iter_, iterations)
        return a_PR

    def _choose(self, folds: list[Fold], a0_PR: Floats) -> tuple[list[float], list[float]]:
        """The β of each round, and the error before the first round and after each."""
        here = [a0_PR] * len(folds)
        chosen, errors = [], [_error(folds, here)]
        for _ in range(self.rounds):
            pairs = list(zip(folds, here, strict=True))
            tried = {
                beta: [self._step(fold.learned, beta, a_PR)[0] for fold, a_PR in pairs]
                for beta in self.betas
            }
            found = {beta: _error(folds, maps) for beta, maps in tried.items()}
            best = min(found, key=lambda beta: (found[beta], -beta))
            if not found[best] < errors[-1] - self.gain:
                break
            here = tried[best]
            chosen.append(best)
            errors.append(found[best])
        return chosen, errors

    def _step(self, rows: Rows, beta: float, a0_PR: Floats) -> tuple[Floats, int]:
        """A* = argmax of the gap − β‖A − A₀‖², begun at A₀, and its iterations."""

        def slope(a_PR: Floats) -> tuple[float, Floats]:
            return csml_slope(a_PR, rows, beta, a0_PR)

        return minimise(slope, a0_PR, max_iter=self.max_iter, tol=self.tol, name="CSML")

    def _folds(self, u_NR: Floats, class_N: Whole) -> Iterator[Fold]:
        """The folds in which both sides have pairs of both kinds."""
        for sides in self._sides(class_N):
            yield Fold(*(_rows(u_NR[rows], class_N[rows]) for rows in sides))

    def _sides(self, class_N: Whole) -> Iterator[tuple[Whole, Whole, Whole]]:
        """The rows of each of them, as `Fold` names them."""
        random = check_random_state(self.random_state)
        fold_N = deal(class_N, self.folds, random, self.folds_of)
        for k in range(self.folds):
            learned, verified = np.flatnonzero(fold_N != k), np.flatnonzero(fold_N == k)
            known, verified = (
                rows[random.permutation(len(rows))[:VERIFIED]] for rows in (learned, verified)
            )
            sides = (learned, known, verified)
            if all(_both_kinds(class_N[rows]) for rows in sides):
                yield sides


def _rows(x_ND: Floats, class_N: Whole) -> Rows:
    onehot_NC = np.eye(int(class_N.max(initial=0)) + 1)[class_N]
    return Rows(torch.from_numpy(x_ND), torch.from_numpy(onehot_NC))


def _both_kinds(class_N: Whole) -> bool:
    """Whether there are pairs of one class, and of two."""
    size_C = np.bincount(class_N)
    return bool((size_C > 1).any() and (size_C > 0).sum() > 1)


def _error(folds: list[Fold], maps: list[Floats]) -> float:
    """The mean verification error of the folds, each after its own map."""
    errors = [
        verification_error(similarities(a_PR, fold.known), similarities(a_PR, fold.verified))
        for fold, a_PR in zip(folds, maps, strict=True)
    ]
    return float(np.mean(errors))
