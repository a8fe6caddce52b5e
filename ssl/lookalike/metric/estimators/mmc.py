"""MMC: rows of different classes as far apart as can be, while those of one class together keep
their distance.

Xing, Ng, Jordan & Russell, "Distance Metric Learning with Application to Clustering with
Side-Information", NIPS 2002, eq. 3 to 5: maximises Σ_{y_i≠y_j} ‖x_i − x_j‖_M with Σ_{y_i=y_j} ‖x_i
− x_j‖²_M ≤ 1 and M ⪰ 0.

All pairs are used. The constraint binds, so with L = G S^(-1/2), S = Σ_{y_i=y_j} (x_i − x_j)(x_i −
x_j)ᵀ, it is ‖G‖ = 1, and the maximum is that of Σ ‖G e_ij‖ / ‖G‖ with no constraint: smooth, in
place of iterated projections.
"""

import numpy as np

from lookalike.metric.estimators.descent import minimise
from lookalike.metric.estimators.linear_map import LinearMap
from lookalike.metric.estimators.scatter import (
    Floats,
    Whole,
    add_gradient,
    chunks,
    inverse_root,
    squared_distances,
    within,
)
from lookalike.recipe import Count, Fraction, Positive


def mmc_spread(z_NP: Floats, class_N: Whole) -> tuple[float, Floats]:
    """Σ over pairs of different classes of ‖z_i − z_j‖, each pair once, and its gradient (N, P).
    Copies add 0.
    """
    gradient_NP, spread = np.zeros_like(z_NP), 0.0
    nothing = 1e-14 * max(float((z_NP * z_NP).sum(axis=1).max()), 1e-300)
    for rows in chunks(len(z_NP)):
        d_BN = np.sqrt(squared_distances(z_NP, rows))
        apart_BN = (class_N[rows][:, None] != class_N) & (d_BN > np.sqrt(nothing))
        spread += d_BN[apart_BN].sum() / 2
        w_BN = np.zeros_like(d_BN)
        np.divide(0.25, d_BN, out=w_BN, where=apart_BN)
        add_gradient(gradient_NP, z_NP, rows, w_BN)
    return float(spread), gradient_NP


class MMC(LinearMap):
    """The full matrix over all pairs; O(N²D) an iteration.

    `shrinkage` moves S towards a multiple of the identity. 0 is the paper's problem, whose solution
    is nearly of rank one (wine: 3-NN .916 instead of .961) and which refuses rows with a direction
    in which no class varies, for it would be stretched without end.
    """

    def __init__(
        self, *, shrinkage: Fraction = 0.3, max_iter: Count = 200, tol: Positive = 1e-7
    ) -> None:
        self.shrinkage = shrinkage
        self.max_iter = max_iter
        self.tol = tol

    def learn(self, u_NR: Floats, class_N: Whole) -> Floats:
        s_RR = within(u_NR, class_N, np.bincount(class_N).astype(np.float64))
        root_RR = inverse_root(s_RR, self.shrinkage, "MMC")
        e_NR = u_NR @ root_RR

        def slope(g_RR: Floats) -> tuple[float, Floats]:
            spread, gradient_NR = mmc_spread(e_NR @ g_RR.T, class_N)
            square = float((g_RR * g_RR).sum())
            return 0.5 * np.log(square) - np.log(
                spread
            ), g_RR / square - gradient_NR.T @ e_NR / spread

        start_RR = np.eye(len(root_RR)) / np.sqrt(len(root_RR))
        g_RR, self.n_iter_ = minimise(
            slope, start_RR, max_iter=self.max_iter, tol=self.tol, name="MMC"
        )
        l_RR: Floats = g_RR / np.linalg.norm(g_RR) @ root_RR
        return l_RR
