"""What can be scored: rows of finite numbers with a whole number each; and what counts as equal."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lookalike import comm
from lookalike.errors import Error

STEP = 1e-6
"""Similarities are compared in steps of this size: a smaller difference is noise, so a tie."""

BLOCK = 2**20
"""Numbers looked at at once."""


def blocks(x_ND: Tensor, budget: int = BLOCK) -> Iterator[tuple[int, Tensor]]:
    """First row and rows of each block of at most `budget` numbers, or of one row; views."""
    size = max(1, budget // max(1, x_ND.shape[1]))
    for start in range(0, len(x_ND), size):
        yield start, x_ND[start : start + size]


def split(row_N: Tensor, size: int) -> tuple[Tensor, ...]:
    """Parts of at most `size`; of nothing none."""
    return torch.split(row_N, size) if len(row_N) else ()


def check(features_ND: Tensor, name: str, labels_N: Tensor | None = None) -> None:
    """Raises Error, with `name`, for features `(N, D)` or labels `(N,)` that cannot be scored.

    Raises RuntimeError under autocast, which would score in half precision. Features may be mapped
    from a file: they are looked at block by block.
    """
    check_shape(features_ND, name)
    # A sum is a number only if all are: a quarter of the time of asking each.
    wide = {torch.float16: torch.float32, torch.bfloat16: torch.float32}.get(features_ND.dtype)
    if not all(bool(x_BD.sum(dtype=wide).isfinite()) for _, x_BD in blocks(features_ND)):
        bad = sum(int((~x_BD.isfinite().all(1)).sum()) for _, x_BD in blocks(features_ND))
        if bad:
            raise Error(
                f"{name} features: NaN or Inf in {bad} rows; check the weights and the precision"
            )
    if labels_N is None:
        return
    if labels_N.shape != features_ND.shape[:1]:
        rows = len(features_ND)
        raise Error(
            f"{name} labels: shape {tuple(labels_N.shape)} for {rows} rows; pass one per row"
        )
    if labels_N.is_floating_point() or labels_N.is_complex() or labels_N.dtype == torch.bool:
        raise Error(f"{name} labels: dtype {labels_N.dtype}; pass whole numbers, best int64")


def check_shape(features_ND: Tensor, name: str) -> None:
    """Raises Error for what is no full matrix, RuntimeError under autocast."""
    for kind in {features_ND.device.type, comm.device().type}:
        if torch.is_autocast_enabled(kind):
            raise RuntimeError(
                "scoring under torch.autocast; leave it first, half precision changes the ranking"
            )
    if features_ND.ndim != 2 or 0 in features_ND.shape:
        raise Error(
            f"{name} features: shape {tuple(features_ND.shape)}; pass a full (rows, width) tensor"
        )


def same_width(train_ND: Tensor, test_MD: Tensor) -> None:
    """Raises Error when train `(N, D)` and test `(M, D)` differ in D."""
    if train_ND.shape[1] != test_MD.shape[1]:
        widths = f"{train_ND.shape[1]} in train, {test_MD.shape[1]} in test"
        raise Error(f"features: width {widths}; use one backbone for both")


def shared(count: int, size: int) -> Tensor:
    """The rows of 0 … `count` - 1 that this rank works on, in its place among all ranks'.

    Whole blocks of `size`, as many each: which rows stand in one block does not depend on the
    number of ranks, and what `comm.cat` lays together is in order.
    """
    first = comm.consecutive(range(0, count, size))
    return torch.arange(first[0], min(first[-1] + size, count)) if first else torch.arange(0)
