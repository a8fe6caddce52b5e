"""Mahalanobis methods on frozen features, with scikit-learn's face; one file an estimator,
ESTIMATORS lists them.

Each learns a linear map L (`components_`), so that d²(x, y) = ‖L(x − y)‖² = (x − y)ᵀM(x − y) with M
= LᵀL.
"""

from lookalike.metric.estimators.csml import CSML
from lookalike.metric.estimators.itml import ITML
from lookalike.metric.estimators.lda import LDA
from lookalike.metric.estimators.linear_map import LinearMap
from lookalike.metric.estimators.lmnn import LMNN
from lookalike.metric.estimators.mmc import MMC
from lookalike.metric.estimators.nca import NCA
from lookalike.metric.estimators.rca import RCA

__all__ = ["CSML", "ESTIMATORS", "ITML", "LDA", "LMNN", "MMC", "NCA", "RCA", "LinearMap"]

ESTIMATORS: dict[str, type[LinearMap]] = {
    "csml": CSML,
    "itml": ITML,
    "lda": LDA,
    "lmnn": LMNN,
    "mmc": MMC,
    "nca": NCA,
    "rca": RCA,
}
