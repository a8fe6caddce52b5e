"""What all estimators share: scikit-learn's fit, transform and score around a learned linear
map.
"""

from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from lookalike.geometry import Distance
from lookalike.metric.estimators.scatter import Floats, Whole, principal
from lookalike.scoring import retrieval


class LinearMap(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc] # untyped
    """Rows x_D to L(x − mean): an estimator gives `learn` alone.

    It learns in the R principal coordinates of its rows, those in which they vary: M is the same in
    any rotation of the features, constant features are mapped to 0, and more features than rows
    cost no more than as many. Learned: `components_` (P, D), the map L; `mean_` (D,), zero where
    the method does not centre; `classes_` (C,).
    """

    # Whether the origin of the map is the mean of the rows; distances do not ask.
    centres: ClassVar[bool] = False
    # How the images of rows are compared.
    distance: ClassVar[Distance] = "euclidean"
    components_: Floats
    mean_: Floats

    def learn(self, u_NR: Floats, class_N: Whole) -> Floats:
        """L (P, R) from rows in principal coordinates, mean 0, and their classes: at least two, one
        with two rows.
        """
        raise NotImplementedError

    def widest(self, width: int, classes: int) -> int:
        """The most components that the method can learn of `width` features and so many classes."""
        return width

    def refuse(self, width: int, classes: int) -> None:
        """Raises ValueError when more components are asked for than there can be."""
        asked, most = getattr(self, "n_components", None), self.widest(width, classes)
        if asked is not None and not 1 <= asked <= most:
            raise ValueError(
                f"n_components: {asked}, but {width} features of {classes} classes allow 1 to "
                f"{most}: change it"
            )

    def refuse_labels(self, y_N: Whole) -> None:
        """Raises ValueError when there is no metric to learn of rows of these classes (N,)."""
        size_C = np.unique(y_N, return_counts=True)[1]
        if len(size_C) < 2:
            raise ValueError(
                f"{type(self).__name__}: y holds one class only: give rows of two or more"
            )
        if size_C.max() < 2:
            raise ValueError(
                f"{type(self).__name__}: every class has one row: give two or more of some class"
            )

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Learns from rows X (N, D) and their classes y (N,).

        Raises ValueError for NaN or infinity, one class only, only classes of one row, rows that
        are all equal, n_components beyond what there is, and what the method itself cannot do.
        """
        x_ND, y_N = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
        check_classification_targets(y_N)
        self.classes_, class_N = np.unique(y_N, return_inverse=True)
        self.refuse_labels(class_N)
        if (x_ND == x_ND[0]).all():
            raise ValueError(
                f"{type(self).__name__}: all rows of X are equal: there is no metric to learn"
            )
        self.refuse(x_ND.shape[1], len(self.classes_))
        mean_D, axes_RD = principal(x_ND)
        self.components_ = (
            self.learn((x_ND - mean_D) @ axes_RD.T, class_N.astype(np.int64)) @ axes_RD
        )
        self.mean_ = mean_D if self.centres else np.zeros_like(mean_D)
        return self

    def transform(self, X: ArrayLike) -> Floats:
        """X (N, D) -> (N, P), where Euclidean distance (for CSML the cosine) is the learned
        metric.
        """
        check_is_fitted(self)
        x_ND = validate_data(self, X, dtype=np.float64, reset=False)
        z_NP: Floats = (x_ND - self.mean_) @ self.components_.T
        return z_NP

    def score(self, X: ArrayLike, y: ArrayLike) -> float:
        """Recall@1 of the rows among themselves: whose nearest other row is of its class. Classes
        may be new ones.

        Ties are pessimistic; a row alone in its class is no query. Raises lookalike.Error when
        every row is.
        """
        z_NP = torch.from_numpy(self.transform(X))
        _, class_N = np.unique(np.asarray(y), return_inverse=True)
        found = retrieval.scores(z_NP, torch.from_numpy(class_N), ks=(1,), distance=self.distance)
        return found["recall@1"]

    def get_mahalanobis_matrix(self) -> Floats:
        """M = LᵀL, (D, D), symmetric and positive semi-definite."""
        check_is_fitted(self)
        return self.components_.T @ self.components_

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags
