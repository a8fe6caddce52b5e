"""NCA: the map after which a random neighbour, near ones likelier, is most often of the same class.

Goldberger, Roweis, Hinton & Salakhutdinov, "Neighbourhood Components Analysis", NIPS 2004:
maximises Σ_i Σ_{j∈c(i)} p_ij, p_ij ∝ exp(−‖Lx_i − Lx_j‖²). Scikit-learn's, with the face of the
others.
"""

import warnings
from typing import Literal

from sklearn.exceptions import ConvergenceWarning
from sklearn.neighbors import NeighborhoodComponentsAnalysis

from lookalike.metric.estimators.linear_map import LinearMap
from lookalike.metric.estimators.scatter import Floats, Whole
from lookalike.recipe import Count, Positive, Width


class NCA(LinearMap):
    """`init` is scikit-learn's; "auto" is LDA where the components allow it, else PCA. O(N²(D + P))
    an iteration.
    """

    def __init__(
        self,
        *,
        n_components: Width | None = None,
        init: Literal["auto", "pca", "lda", "identity", "random"] = "auto",
        max_iter: Count = 200,
        tol: Positive = 1e-5,
        random_state: int | None = None,
    ) -> None:
        self.n_components = n_components
        self.init = init
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state

    def learn(self, u_NR: Floats, class_N: Whole) -> Floats:
        asked = {
            **self.get_params(),
            "n_components": min(self.n_components or u_NR.shape[1], u_NR.shape[1]),
        }
        found = NeighborhoodComponentsAnalysis(**asked).fit(u_NR, class_N)
        self.n_iter_ = max(1, int(found.n_iter_))
        if self.n_iter_ >= self.max_iter:
            message = f"NCA: not yet at its summit after {self.n_iter_} iterations: raise max_iter"
            warnings.warn(message, ConvergenceWarning, stacklevel=2)
        l_PR: Floats = found.components_
        return l_PR
