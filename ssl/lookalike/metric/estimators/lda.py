"""LDA: the directions in which classes lie farthest apart, measured by the scatter within them.

Fisher, "The Use of Multiple Measurements in Taxonomic Problems", Annals of Eugenics 7, 1936; Rao,
JRSS B 10, 1948. Scikit-learn's, with the face of the others.
"""

import numpy as np
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from lookalike.metric.estimators.linear_map import LinearMap
from lookalike.metric.estimators.scatter import Floats, Whole
from lookalike.recipe import Fraction, Width


class LDA(LinearMap):
    """At most C − 1 components; after them the classes' common covariance is the identity.

    `shrinkage` moves that covariance towards a multiple of the identity; without it directions that
    do not vary within classes are left out.
    """

    centres = True

    def __init__(self, *, n_components: Width | None = None, shrinkage: Fraction = 0.0) -> None:
        self.n_components = n_components
        self.shrinkage = shrinkage

    def widest(self, width: int, classes: int) -> int:
        return min(width, classes - 1)

    def learn(self, u_NR: Floats, class_N: Whole) -> Floats:
        most = min(
            self.n_components or len(self.classes_), self.widest(u_NR.shape[1], len(self.classes_))
        )
        solver = (
            {"solver": "eigen", "shrinkage": self.shrinkage}
            if self.shrinkage
            else {"solver": "svd"}
        )
        try:
            found = LinearDiscriminantAnalysis(n_components=most, **solver).fit(u_NR, class_N)
        except (IndexError, np.linalg.LinAlgError) as error:
            raise ValueError(
                "LDA: rows do not vary within classes: raise shrinkage, or give other rows"
            ) from error
        l_PR: Floats = np.ascontiguousarray(found.scalings_[:, :most].T)
        if not len(l_PR) or not np.isfinite(l_PR).all():
            raise ValueError(
                "LDA: the means of the classes are equal, or no row varies within its class"
            )
        return l_PR
