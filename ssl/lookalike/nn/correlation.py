"""Energies of correlation matrices over the batch of all ranks, in the cheaper of two exact
forms.
"""

from typing import Any

import torch
from torch import Tensor

from lookalike import comm
from lookalike.nn.numerics import exact


class _CrossEnergy(torch.autograd.Function):
    """‖aᵀb‖²_F over all ranks by Gram matrices, each rank forming the rows of its own samples
    only.
    """

    @staticmethod
    def forward(ctx: Any, a_BD: Tensor, b_BD: Tensor) -> Tensor:
        a_ND, b_ND = comm.cat(a_BD), comm.cat(b_BD)
        ga_BN, gb_BN = a_BD @ a_ND.T, b_BD @ b_ND.T
        ctx.save_for_backward(a_ND, b_ND, ga_BN, gb_BN)
        return comm.sum((ga_BN * gb_BN).sum())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        # Every rank holds the same loss, so the others' copies send back the same gradient: W times
        # one.
        a_ND, b_ND, ga_BN, gb_BN = ctx.saved_tensors
        scale = 2.0 * comm.world_size() * grad
        return scale * (gb_BN @ a_ND), scale * (ga_BN @ b_ND)


class _Energy(torch.autograd.Function):
    """‖aᵀa‖²_F over all ranks: one Gram matrix serves as both of _CrossEnergy's."""

    @staticmethod
    def forward(ctx: Any, a_BD: Tensor) -> Tensor:
        a_ND = comm.cat(a_BD)
        g_BN = a_BD @ a_ND.T
        ctx.save_for_backward(a_ND, g_BN)
        return comm.sum(g_BN.square().sum())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        a_ND, g_BN = ctx.saved_tensors
        backward: Tensor = (4.0 * comm.world_size() * grad) * (g_BN @ a_ND)
        return backward


@exact
def cross_energy(a_BD: Tensor, b_BD: Tensor) -> Tensor:
    """‖aᵀb‖²_F over the rows of all ranks, in the form that costs less: 2 N² D (Gram) or N D²
    products.

    ‖aᵀb‖²_F = Σ (a aᵀ) ∘ (b bᵀ): for N well below D two N × N Gram matrices replace the D × D one,
    exactly.
    """
    if 2 * comm.count(a_BD) <= a_BD.shape[1]:
        gram_energy: Tensor = _CrossEnergy.apply(a_BD, b_BD)
        return gram_energy
    return comm.sum(a_BD.T @ b_BD).square().sum()


@exact
def gram_energy(a_BD: Tensor) -> Tensor:
    """‖aᵀa‖²_F over the rows of all ranks, in the cheaper form: N² D or N D² products."""
    if comm.count(a_BD) <= a_BD.shape[1]:
        found: Tensor = _Energy.apply(a_BD)
        return found
    return comm.sum(a_BD.T @ a_BD).square().sum()


def identity_gaps(diagonal_D: Tensor, gram_energy: Tensor) -> tuple[Tensor, Tensor]:
    """Σ (1 - C_ii)² and Σ C_ij², i ≠ j, from a matrix's diagonal and ‖C‖²_F (Barlow Twins, arXiv
    2103.03230, eq. 1).
    """
    return (1 - diagonal_D).square().sum(), gram_energy - diagonal_D.square().sum()
