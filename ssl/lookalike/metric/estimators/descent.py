"""Minimisation of a smooth function of a matrix by L-BFGS (Liu & Nocedal, Mathematical Programming
45, 1989).
"""

import warnings
from collections.abc import Callable

import numpy as np
from scipy import optimize
from sklearn.exceptions import ConvergenceWarning

from lookalike.metric.estimators.scatter import Floats

Slope = Callable[[Floats], tuple[float, Floats]]


def minimise(
    slope: Slope, start_PD: Floats, *, max_iter: int, tol: float, name: str
) -> tuple[Floats, int]:
    """(the minimum, iterations) of `slope`, which gives value and gradient at a matrix.

    It ends when an iteration gains less than `tol` of the value, or when no step along the slope
    gains at all. Warns with ConvergenceWarning when `max_iter` ends it.
    """

    def flat(w: Floats) -> tuple[float, Floats]:
        value, gradient_PD = slope(w.reshape(start_PD.shape))
        return value, gradient_PD.ravel()

    options = {
        "maxiter": max_iter,
        "maxfun": 20 * max_iter,
        "ftol": tol,
        "gtol": 1e-10,
        "maxcor": 20,
    }
    found = optimize.minimize(flat, start_PD.ravel(), jac=True, method="L-BFGS-B", options=options)
    if found.status == 1:
        warnings.warn(
            f"{name}: not yet at its minimum after {found.nit} iterations: raise max_iter",
            ConvergenceWarning,
            stacklevel=2,
        )
    return np.asarray(found.x, dtype=np.float64).reshape(start_PD.shape), max(1, int(found.nit))
