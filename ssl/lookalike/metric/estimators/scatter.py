"""Second moments of rows and of their pairs, in closed form or chunk by chunk, and the roots of
their inverses.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]

# Features are born in float32: what is below its rounding is noise.
NOISE = float(np.finfo(np.float32).eps)
# Rows of the N x N distances that are in memory at a time, times N.
CHUNK = 2**24


def principal(x_ND: Floats) -> tuple[Floats, Floats]:
    """mean (D,) and orthonormal axes (R, D), most variance first, of the directions in which x (N,
    D) varies.

    Each axis points so that its largest entry is positive. Constant features, and what N rows
    cannot span, are left out.
    """
    mean_D = x_ND.mean(axis=0)
    _, length_R, axes_RD = linalg.svd(x_ND - mean_D, full_matrices=False)
    rank = int((length_R > length_R[0] * max(x_ND.shape) * NOISE).sum())
    axes_RD = axes_RD[:rank]
    largest_R = np.abs(axes_RD).argmax(axis=1)
    axes_RD = axes_RD * np.sign(axes_RD[np.arange(rank), largest_R])[:, None]
    return mean_D, axes_RD


def within(x_ND: Floats, class_N: Whole, weight_C: Floats) -> Floats:
    """Σ_c weight_c Σ_{i∈c} (x_i − m_c)(x_i − m_c)ᵀ, (D, D)."""
    size_C = np.bincount(class_N)
    onehot_NC = np.eye(len(size_C))[class_N]
    centred_ND = x_ND - ((onehot_NC.T @ x_ND) / size_C[:, None])[class_N]
    moment_DD: Floats = (centred_ND * weight_C[class_N][:, None]).T @ centred_ND
    return moment_DD


def inverse_root(moment_RR: Floats, shrinkage: float, name: str) -> Floats:
    """C^(-1/2), symmetric, of C = (1 − shrinkage) · moment + shrinkage · (its mean eigenvalue) · I.

    Raises ValueError when C is singular: some direction sets rows apart but never two rows of one
    class.
    """
    size = len(moment_RR)
    mixed_RR = (1 - shrinkage) * moment_RR + shrinkage * np.trace(moment_RR) / size * np.eye(size)
    value_R, vector_RR = linalg.eigh(mixed_RR)
    if not value_R[0] > value_R[-1] * size * NOISE**2:
        raise ValueError(
            f"{name}: rows of one class do not vary in every direction in which the rows vary "
            "(fewer rows than "
            "features, or copies): raise shrinkage, for example to 0.1, or reduce the features "
            "before"
        )
    root_RR: Floats = (vector_RR / np.sqrt(value_R)) @ vector_RR.T
    return root_RR


def chunks(rows: int) -> Iterator[slice]:
    """Slices of 0 … rows − 1, so small that a chunk of the distances to all rows has CHUNK
    numbers.
    """
    step = max(1, CHUNK // rows)
    return (slice(first, min(first + step, rows)) for first in range(0, rows, step))


def squared_distances(z_NP: Floats, rows: slice) -> Floats:
    """‖z_i − z_j‖² of the rows `rows` to all, (B, N), never below 0."""
    square_N = (z_NP * z_NP).sum(axis=1)
    d_BN = z_NP[rows] @ z_NP.T
    d_BN *= -2
    d_BN += square_N[rows][:, None]
    d_BN += square_N
    return np.maximum(d_BN, 0, out=d_BN)


def add_gradient(g_NP: Floats, z_NP: Floats, rows: slice, w_BN: Floats) -> None:
    """Adds to g the gradient in z of Σ_{i∈rows, j} w_ij ‖z_i − z_j‖², with w held fixed."""
    g_NP[rows] += 2 * (w_BN.sum(axis=1)[:, None] * z_NP[rows] - w_BN @ z_NP)
    g_NP += 2 * (w_BN.sum(axis=0)[:, None] * z_NP - w_BN.T @ z_NP[rows])
