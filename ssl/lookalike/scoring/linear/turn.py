"""The coordinates in which a linear probe is solved, and the way between them and features'."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lookalike import comm
from lookalike.scoring.linear.rows import Exact, Moments, Rows, from_first
from lookalike.scoring.linear.table import KEPT, Table

WIDEST = 4096
"""Dimensions, or where there are fewer rows than dimensions rows, of the widest matrix whose
eigenvectors are found. Beyond it features are standardised and no more."""

PART = 2**23
"""Numbers of a part of the features that is held in float64."""


class Turn(Protocol):
    """From weights `(C, D)` on standardised features to weights `(C, R)`, and back, by an isometry
    onto what the rows span.
    """

    def into(self, weight_CD: Tensor) -> Tensor:
        """To float64 `(C, R)`."""

    def back(self, weight_CR: Tensor) -> Tensor:
        """To `(C, D)`."""


class Straight:
    """No turn."""

    def into(self, weight_CD: Tensor) -> Tensor:
        """As they are."""
        return weight_CD.double()

    def back(self, weight_CR: Tensor) -> Tensor:
        """As they are."""
        return weight_CR


class Axes(NamedTuple):
    """By float64 eigenvectors of XᵀX."""

    axes_DR: Tensor

    def into(self, weight_CD: Tensor) -> Tensor:
        """W · axes."""
        return weight_CD.double() @ self.axes_DR

    def back(self, weight_CR: Tensor) -> Tensor:
        """W · axesᵀ."""
        return weight_CR @ self.axes_DR.T


class Span(NamedTuple):
    """By eigenvectors of XXᵀ over their lengths: axes = Xᵀ · `basis_NR`, which is never formed."""

    rows: Rows
    moments: Moments
    basis_NR: Tensor

    def into(self, weight_CD: Tensor) -> Tensor:
        """W · Xᵀ · basis."""
        shape = len(weight_CD), len(self.rows)
        inner_CN = torch.zeros(shape, dtype=torch.float64, device=self.basis_NR.device)
        for part in parts(self.rows):
            weight_CK = weight_CD[:, part.start : part.stop].to(inner_CN)
            inner_CN.addmm_(weight_CK, columns(self.rows, self.moments, part).T)
        return inner_CN @ self.basis_NR

    def back(self, weight_CR: Tensor) -> Tensor:
        """W · basisᵀ · X."""
        inner_CN = weight_CR @ self.basis_NR.T
        shape = len(weight_CR), self.rows.width
        weight_CD = torch.zeros(shape, dtype=self.rows.dtype, device=inner_CN.device)
        for part in comm.consecutive(parts(self.rows)):
            weight_CD[:, part.start : part.stop] = inner_CN @ columns(self.rows, self.moments, part)
        return comm.all_sum(weight_CD)


def parts(rows: Rows) -> list[range]:
    """The dimensions in parts of which all rows are held at once."""
    return comm.cut(rows.width, max(1, PART // len(rows)))


def columns(rows: Rows, moments: Moments, part: range) -> Tensor:
    """Standardised features of some dimensions, float64 `(N, K)`."""
    x_NK = rows.source_MD[:, part.start : part.stop]
    x_NK = x_NK if rows.at_N is None else x_NK.index_select(0, rows.at_N)
    x_NK = x_NK.to(rows.device).double() - moments.mean_D[part.start : part.stop]
    return x_NK.mul_(moments.inverse_D[part.start : part.stop])


class Found(NamedTuple):
    """A table whose rows are products' other side; its eigenvalues (1 for the ones); the turn; and
    whether weights are turned back before each product, the table being as it was.
    """

    table: Table
    spectrum_E: Tensor
    turn: Turn
    folded: bool


def turned(rows: Rows, moments: Moments, classes: int) -> Found:
    """Along the eigenvectors of XᵀX/N, or of XXᵀ/N where N < D, in double precision: single gives
    up on the nearly equal eigenvalues of features that almost collapsed.

    Rows that fit `KEPT` are turned once and kept; of more, the weights are turned in each product.
    """
    if len(rows) < rows.width and len(rows) <= WIDEST:
        return _spanned(rows, moments, classes)
    plain = Table(rows, moments.mean_D, moments.inverse_D, columns=classes)
    if rows.width > WIDEST:
        return Found(plain, moments.mean_D.new_ones(rows.width + 1), Straight(), folded=False)
    spectrum_D, axes_DD = _eigen(_gram(rows, moments), len(rows))
    spectrum_E, turn = _with_one(spectrum_D), Axes(axes_DD)
    if len(rows) * (rows.width + 1) * rows.dtype.itemsize > KEPT:
        return Found(plain, spectrum_E, turn, folded=True)
    turned = Table(rows, moments.mean_D, moments.inverse_D, axes_DR=axes_DD, columns=classes)
    return Found(turned, spectrum_E, turn, folded=False)


def _spanned(rows: Rows, moments: Moments, classes: int) -> Found:
    """Few rows: with u an eigenvector of XXᵀ, Xᵀu is one of XᵀX; beyond the rows' span every weight
    is 0.
    """
    gram = Exact(moments.mean_D.new_zeros(len(rows), len(rows)), moments.longest**2)
    for part in comm.consecutive(parts(rows)):
        x_NK = columns(rows, moments, part)
        gram.add(x_NK @ x_NK.T)
    spectrum_N, u_NN = _eigen(comm.all_sum(gram.total), len(rows))
    kept_N = spectrum_N > spectrum_N[-1] * len(rows) * torch.finfo(torch.float64).eps
    spectrum_R, u_NR = spectrum_N[kept_N], u_NN[:, kept_N]
    length_R = (spectrum_R * len(rows)).sqrt()
    within = Rows((u_NR * length_R).to(rows.dtype))
    zero_R, one_R = torch.zeros_like(length_R), torch.ones_like(length_R)
    table = Table(within, zero_R, one_R, columns=classes)
    turn = Span(rows, moments, u_NR / length_R)
    return Found(table, _with_one(spectrum_R), turn, folded=False)


def _gram(rows: Rows, moments: Moments) -> Tensor:
    """XᵀX of standardised rows, float64 sums of products in the rows' own precision."""
    shape = rows.width, rows.width
    gram = Exact(moments.mean_D.new_zeros(shape), len(rows) * moments.longest**2)
    for block in Table(rows, moments.mean_D, moments.inverse_D, keep=False):
        for _ in block.chunks:
            pass
        x_BD = block.x_BE[:, :-1]
        gram.add(x_BD.T @ x_BD)
    return comm.all_sum(gram.total)


def _eigen(gram_DD: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues of the matrix / count, ascending, not below 0, and eigenvectors; rank 0's."""

    def make() -> Tensor:
        spectrum_D, axes_DD = torch.linalg.eigh(gram_DD.cpu() / count)
        return torch.cat([spectrum_D[None], axes_DD]).to(gram_DD.device)

    both = from_first(make, gram_DD.new_empty(len(gram_DD) + 1, len(gram_DD)))
    return both[0].clamp_min(0), both[1:]


def _with_one(spectrum_R: Tensor) -> Tensor:
    return torch.cat([spectrum_R, spectrum_R.new_ones(1)])
