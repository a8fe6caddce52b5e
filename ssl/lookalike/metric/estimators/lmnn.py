"""LMNN: each row's nearest rows of its class come near, and rows of other classes leave by a
margin.

Weinberger & Saul, "Distance Metric Learning for Large Margin Nearest Neighbor Classification", JMLR
10, 2009, eq. 11 to 13: minimises (1 − μ) Σ_{i, j→i} d²_ij + μ Σ_{i, j→i} Σ_{l: y_l≠y_i} [1 + d²_ij
− d²_il]₊, where j→i are the k nearest rows of i's class in the given features, and d_ij = ‖L(x_i −
x_j)‖.
"""

import numpy as np

from lookalike.metric.estimators.descent import minimise
from lookalike.metric.estimators.linear_map import LinearMap
from lookalike.metric.estimators.scatter import (
    Floats,
    Whole,
    add_gradient,
    chunks,
    squared_distances,
)
from lookalike.recipe import Count, Fraction, Positive, Width


def target_neighbours(x_ND: Floats, class_N: Whole, k: int) -> Whole:
    """The k nearest other rows of each row's class, (N, k); −1 where the class has fewer. Ties: the
    earlier row.
    """
    target_NK = np.full((len(x_ND), k), -1)
    for c in np.unique(class_N):
        of_c = np.flatnonzero(class_N == c)
        there = min(k, len(of_c) - 1)
        for rows in chunks(len(of_c)):
            d_BN = squared_distances(x_ND[of_c], rows)
            d_BN[np.arange(len(d_BN)), np.arange(len(of_c))[rows]] = np.inf
            target_NK[of_c[rows], :there] = of_c[np.argsort(d_BN, axis=1, kind="stable")[:, :there]]
    return target_NK


def lmnn_loss(
    l_PD: Floats, x_ND: Floats, class_N: Whole, target_NK: Whole, push: float, margin: float = 1.0
) -> tuple[float, Floats]:
    """The loss at L (P, D) over all triplets, and its gradient (P, D); `push` is μ. O(N²(P + k)).

    target_NK: (N, k) target neighbours, −1 for none.
    """
    z_NP = x_ND @ l_PD.T
    gradient_NP, loss = np.zeros_like(z_NP), 0.0
    for rows in chunks(len(x_ND)):
        d_BN = squared_distances(z_NP, rows)
        target_BK, here_B = target_NK[rows], np.arange(len(d_BN))
        pull_BK = np.where(target_BK >= 0, d_BN[here_B[:, None], target_BK], -np.inf)
        close_BN = (d_BN < margin + pull_BK.max(axis=1, keepdims=True)) & (
            class_N[rows][:, None] != class_N
        )
        i_M, l_M = np.nonzero(close_BN)
        w_BN = np.zeros_like(d_BN)
        for target_B, pull_B in zip(target_BK.T, pull_BK.T, strict=True):
            slack_M = margin + pull_B[i_M] - d_BN[i_M, l_M]
            active_M, has_B = slack_M > 0, target_B >= 0
            loss += (1 - push) * pull_B[has_B].sum() + push * slack_M[active_M].sum()
            w_BN[i_M[active_M], l_M[active_M]] -= push
            pushed_B = np.bincount(i_M[active_M], minlength=len(d_BN))
            w_BN[here_B[has_B], target_B[has_B]] += 1 - push + push * pushed_B[has_B]
        add_gradient(gradient_NP, z_NP, rows, w_BN)
    return float(loss), gradient_NP.T @ x_ND


class LMNN(LinearMap):
    """`push` is μ; L begins as the identity, or the first `n_components` principal axes.

    A class of fewer than `n_neighbors` + 1 rows pulls with those it has; a row alone in its class
    only pushes. The loss is convex in M, and over square L without local minima; with fewer
    components it has some. O(N²(D + k)) an iteration.
    """

    def __init__(
        self,
        *,
        n_neighbors: Count = 3,
        n_components: Width | None = None,
        push: Fraction = 0.5,
        max_iter: Count = 200,
        tol: Positive = 1e-6,
    ) -> None:
        self.n_neighbors = n_neighbors
        self.n_components = n_components
        self.push = push
        self.max_iter = max_iter
        self.tol = tol

    def learn(self, u_NR: Floats, class_N: Whole) -> Floats:
        target_NK = target_neighbours(u_NR, class_N, self.n_neighbors)

        def slope(l_PR: Floats) -> tuple[float, Floats]:
            loss, gradient_PR = lmnn_loss(l_PR, u_NR, class_N, target_NK, self.push)
            return loss / len(u_NR), gradient_PR / len(u_NR)

        start_PR = np.eye(u_NR.shape[1])[: self.n_components]
        found_PR, self.n_iter_ = minimise(
            slope, start_PR, max_iter=self.max_iter, tol=self.tol, name="LMNN"
        )
        return found_PR
