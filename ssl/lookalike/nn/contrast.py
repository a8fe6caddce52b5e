"""Contrastive sums without their matrices: log Σ exp(q · k / T) in tiles, with a running maximum.

A contrastive loss over N rows and M keys needs N × M logits, but never all at once: each tile adds
to a running log-sum-exp, and the gradient forms the tiles once more (the scheme of Milakov &
Gimelshein, arXiv 1805.02867). Memory grows with N + M, not with N · M.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lookalike import comm
from lookalike.nn.numerics import exact

# A tile of this many logits stays in a CPU's cache, and is a large enough product for a GPU.
ROWS, COLUMNS = 1024, 2048


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_BD: Tensor, k_MD: Tensor, scale: float, without_BE: Tensor) -> Tensor:
        top_B = q_BD.new_full((len(q_BD),), -torch.inf)
        sum_B = q_BD.new_zeros(len(q_BD))
        for rows, _, tile in _tiles(q_BD, k_MD, scale, without_BE):
            old = top_B[rows]
            new = torch.maximum(old, tile.amax(dim=1))
            base = torch.where(new == -torch.inf, 0.0, new)  # a tile whose keys are all left out
            sum_B[rows] *= torch.exp(old - base)
            sum_B[rows] += tile.sub_(base[:, None]).exp_().sum(dim=1)
            top_B[rows] = new
        lse_B = torch.where(top_B == -torch.inf, top_B, top_B + sum_B.log())
        ctx.save_for_backward(q_BD, k_MD, without_BE, lse_B)
        ctx.scale = scale
        return lse_B

    @staticmethod
    def backward(ctx: Any, grad_B: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        q_BD, k_MD, without_BE, lse_B = ctx.saved_tensors
        base_B = torch.where(lse_B == -torch.inf, 0.0, lse_B)
        dq = torch.zeros_like(q_BD) if ctx.needs_input_grad[0] else None
        dk = torch.zeros_like(k_MD) if ctx.needs_input_grad[1] else None
        weight_B = grad_B * ctx.scale
        for rows, columns, tile in _tiles(q_BD, k_MD, ctx.scale, without_BE):
            share = tile.sub_(base_B[rows, None]).exp_().mul_(weight_B[rows, None])
            if dq is not None:
                dq[rows].addmm_(share, k_MD[columns])
            if dk is not None:
                dk[columns].addmm_(share.T, q_BD[rows])
        return dq, dk, None, None


def _tiles(
    q_BD: Tensor, k_MD: Tensor, scale: float, without_BE: Tensor
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Every tile of scale · q kᵀ with -inf where a row leaves a key out; the tile may be
    overwritten.
    """
    for top in range(0, len(q_BD), ROWS):
        rows = slice(top, min(top + ROWS, len(q_BD)))
        q = q_BD[rows] * scale
        for left in range(0, len(k_MD), COLUMNS):
            columns = slice(left, min(left + COLUMNS, len(k_MD)))
            tile = q @ k_MD[columns].T
            yield rows, columns, _leave_out(tile, without_BE[rows] - left)


def _leave_out(tile: Tensor, without_BE: Tensor) -> Tensor:
    """-inf at the columns `without_BE` of each row, as far as they lie in this tile."""
    width = tile.shape[1]
    inside_BE = (without_BE >= 0) & (without_BE < width)
    for e in range(without_BE.shape[1]):
        column_B1 = without_BE[:, e, None].clamp(0, width - 1)
        kept_B1 = tile.gather(1, column_B1)
        tile.scatter_(1, column_B1, torch.where(inside_BE[:, e, None], -torch.inf, kept_B1))
    return tile


@exact
def log_sum_exp(
    q_BD: Tensor, k_MD: Tensor, temperature: float, without_BE: Tensor | None = None
) -> Tensor:
    """log Σ_m exp(q_i · k_m / temperature) of each row, (B,); differentiable in q and k.

    `without_BE` (int64): columns that row i leaves out of its sum; any that is no column leaves
    nothing out. A row without any key is -inf.
    """
    if without_BE is None:
        without_BE = torch.empty(len(q_BD), 0, dtype=torch.int64, device=q_BD.device)
    found: Tensor = _LogSumExp.apply(q_BD, k_MD, 1.0 / temperature, without_BE)
    return found


def two_views(za_BD: Tensor, zb_BD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """This rank's rows of both views (2B, D), those of all ranks (2N, D), and where each row stands
    in them (2B, 1).
    """
    keys_MD = torch.cat([comm.cat(za_BD), comm.cat(zb_BD)])
    own_B = comm.offset(za_BD) + torch.arange(len(za_BD), device=za_BD.device)
    return (
        torch.cat([za_BD, zb_BD]),
        keys_MD,
        torch.cat([own_B, own_B + len(keys_MD) // 2])[:, None],
    )


@exact
@torch.no_grad()
def nearest(q_BD: Tensor, k_MD: Tensor) -> Tensor:
    """(B,): the column of the largest q_i · k_m, found tile by tile."""
    best_B = q_BD.new_full((len(q_BD),), -torch.inf)
    at_B = torch.zeros(len(q_BD), dtype=torch.int64, device=q_BD.device)
    nobody = torch.empty(len(q_BD), 0, dtype=torch.int64, device=q_BD.device)
    for rows, columns, tile in _tiles(q_BD, k_MD, 1.0, nobody):
        value, place = tile.max(dim=1)
        better = value > best_B[rows]
        best_B[rows] = torch.where(better, value, best_B[rows])
        at_B[rows] = torch.where(better, place + columns.start, at_B[rows])
    return at_B
