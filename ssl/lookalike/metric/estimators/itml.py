"""ITML: the metric nearest to the Euclidean one, as Gaussians are near, that keeps pairs under or
over a bound.

Davis, Kulis, Jain, Sra & Dhillon, "Information-Theoretic Metric Learning", ICML 2007, eq. 4 and
algorithm 1: minimises D_ld(M, I) + γ D_ld(diag ξ, diag ξ₀) with d²_M ≤ ξ for pairs of one class (ξ₀
= u), d²_M ≥ ξ for others (ξ₀ = l), D_ld(A, B) = tr(AB⁻¹) − log det(AB⁻¹) − D, by cyclic Bregman
projections. The step of algorithm 1 as printed, δ/2 (1/p − γ/ξ), is one for γ = 1 only; here it is
δ γ/(γ + 1) (1/p − 1/ξ), as in the authors' code.
"""

import warnings

import numpy as np
from numpy.random import RandomState
from scipy import linalg
from scipy.linalg import blas
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state

from lookalike.metric.estimators.linear_map import LinearMap
from lookalike.metric.estimators.scatter import Floats, Whole
from lookalike.recipe import Count, Positive

BOUNDS = (5, 95)


def itml_matrix(
    pair_MD: Floats, sign_M: Floats, bound_M: Floats, gamma: float, *, max_iter: int, tol: float
) -> tuple[Floats, int, bool]:
    """M (D, D) of differences (M, D), sign +1 for pairs to bring within their bound, −1 to keep
    beyond it.

    Also the sweeps made, and whether the multipliers came to rest, within `tol` of their sum. A
    sweep passes over constraints that hold and have never pressed: their projection would change
    nothing.
    """
    m_DD, width = np.eye(pair_MD.shape[1], order="F"), pair_MD.shape[1]
    slack_M, dual_M = bound_M.astype(np.float64), np.zeros(len(pair_MD))
    for sweep in range(1, max_iter + 1):
        before_M = dual_M.copy()
        over_M = sign_M * (((pair_MD @ m_DD) * pair_MD).sum(axis=1) - slack_M)
        for i in np.flatnonzero((dual_M > 0) | (over_M > 0)).tolist():
            sign, slack = float(sign_M[i]), float(slack_M[i])
            mv_D = blas.dsymv(1.0, m_DD, pair_MD[i])
            p = blas.ddot(pair_MD[i], mv_D, width)
            alpha = (
                min(float(dual_M[i]), sign * gamma / (gamma + 1) * (1 / p - 1 / slack))
                if p > 0
                else 0.0
            )
            dual_M[i] -= alpha
            slack_M[i] = gamma * slack / (gamma + sign * alpha * slack)
            m_DD = blas.dsyr(sign * alpha / (1 - sign * alpha * p), mv_D, a=m_DD, overwrite_a=True)
        m_DD = np.asfortranarray(
            np.triu(m_DD) + np.triu(m_DD, 1).T
        )  # dsymv and dsyr know the upper half only
        if np.abs(dual_M - before_M).sum() <= tol * (np.abs(dual_M).sum() + np.abs(before_M).sum()):
            return m_DD, sweep, True
    return m_DD, max_iter, False


def draw_pairs(class_N: Whole, count: int, random: RandomState) -> tuple[Whole, Whole]:
    """(same, different): row numbers (≤ count, 2) of pairs of one class and of two, without
    repetition.
    """
    rows, n = np.arange(len(class_N)), len(class_N)
    if n * (n - 1) // 2 <= 4_000_000:
        first_M, second_M = np.triu_indices(n, 1)
        equal_M = class_N[first_M] == class_N[second_M]
        pairs = np.stack([first_M, second_M], axis=1)
        found = (pairs[equal_M], pairs[~equal_M])
    else:
        first_M, second_M = random.choice(rows, 400 * count), random.choice(rows, 400 * count)
        pairs = np.unique(
            np.sort(np.stack([first_M, second_M], axis=1)[first_M != second_M], axis=1), axis=0
        )
        equal_M = class_N[pairs[:, 0]] == class_N[pairs[:, 1]]
        found = (pairs[equal_M], pairs[~equal_M])
    same, different = (
        part[random.permutation(len(part))[:count]].astype(np.int64) for part in found
    )
    return same, different


class ITML(LinearMap):
    """L = M^(1/2), symmetric. `n_constraints` pairs of one class and as many of two (default 20 C²)
    are drawn.

    The bounds u and l are the 5th and 95th percentile of the squared distances of the drawn pairs.
    Copies give no constraint. A step costs O(D²), a sweep as many steps as pairs.
    """

    def __init__(
        self,
        *,
        gamma: Positive = 1.0,
        n_constraints: Count | None = None,
        max_iter: Count = 1000,
        tol: Positive = 1e-3,
        random_state: int | None = None,
    ) -> None:
        self.gamma = gamma
        self.n_constraints = n_constraints
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state

    def learn(self, u_NR: Floats, class_N: Whole) -> Floats:
        count = self.n_constraints or 20 * len(self.classes_) ** 2
        same, different = draw_pairs(class_N, count, check_random_state(self.random_state))
        pairs = np.concatenate([same, different])
        v_MR = u_NR[pairs[:, 0]] - u_NR[pairs[:, 1]]
        square_M = (v_MR * v_MR).sum(axis=1)
        sign_M = np.repeat([1.0, -1.0], [len(same), len(different)])
        kept_M = square_M > 1e-12 * square_M.max()
        near, far = np.percentile(square_M[kept_M], BOUNDS)
        bound_M = np.where(sign_M > 0, near, far)
        m_RR, self.n_iter_, rests = itml_matrix(
            v_MR[kept_M],
            sign_M[kept_M],
            bound_M[kept_M],
            self.gamma,
            max_iter=self.max_iter,
            tol=self.tol,
        )
        if not rests:
            message = f"ITML: not yet at rest after {self.n_iter_} sweeps: raise max_iter or tol"
            warnings.warn(message, ConvergenceWarning, stacklevel=2)
        value_R, vector_RR = linalg.eigh(m_RR)
        root_RR: Floats = (vector_RR * np.sqrt(value_R.clip(0))) @ vector_RR.T
        return root_RR
