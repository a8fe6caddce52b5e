"""RCA whitens the scatter that is left within classes, so that what varies without meaning weighs
little.

Bar-Hillel, Hertz, Shental & Weinshall, "Learning a Mahalanobis Metric from Equivalence
Constraints", JMLR 6, 2005: C = 1/n Σ_c Σ_{i∈c} (x_i − m_c)(x_i − m_c)ᵀ over chunklets, here the
classes of two rows or more; M = C⁻¹ (eq. 1).
"""

import numpy as np

from lookalike.metric.estimators.linear_map import LinearMap
from lookalike.metric.estimators.scatter import Floats, Whole, inverse_root, principal, within
from lookalike.recipe import Fraction, Width


class RCA(LinearMap):
    """L = C^(-1/2); with fewer components its projection on the directions of most variance after
    whitening (cFLD).

    `shrinkage` moves C towards a multiple of the identity.
    """

    def __init__(self, *, n_components: Width | None = None, shrinkage: Fraction = 0.0) -> None:
        self.n_components = n_components
        self.shrinkage = shrinkage

    def learn(self, u_NR: Floats, class_N: Whole) -> Floats:
        paired = np.bincount(class_N) > 1
        c_RR = within(u_NR, class_N, paired / paired[class_N].sum())
        root_RR = inverse_root(c_RR, self.shrinkage, "RCA")
        if self.n_components is None:
            return root_RR
        _, top_RR = principal(u_NR @ root_RR)
        return top_RR[: self.n_components] @ root_RR
