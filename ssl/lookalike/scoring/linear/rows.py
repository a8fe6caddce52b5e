"""Rows of features that may lie mapped on disk, in fixed blocks that ranks share, and sums over
them that do not depend on who has which.

A block is a matter of the rows, the width and the classes alone, so that its products have the same
shapes on any number of ranks. What is added over blocks is first rounded to whole multiples of one
unit: such float64 sums are exact, in any order (Demmel and Nguyen, "Fast Reproducible
Floating-Point Summation", ARITH 2013, with a bound known beforehand).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lookalike import comm
from lookalike.errors import Error
from lookalike.scoring.knn import check

SHARES, FEWEST, MOST, NUMBERS = 16, 2048, 4096, 2**23
"""Rows of a block: a sixteenth of all, not under or above these, with at most so many numbers."""

CHUNK = 2**20
"""Numbers that a processor takes at a time, so that they stay in its cache."""


@dataclass(frozen=True)
class Rows:
    """The rows `at_N`, ascending, of features `(M, D)`, which are never copied whole; None: all.

    Computed with in `dtype` on `device`: float64 features in float64, all others in float32; on
    their own device, or where that is the CPU on this rank's.
    """

    source_MD: Tensor
    at_N: Tensor | None = None

    def __len__(self) -> int:
        return len(self.source_MD if self.at_N is None else self.at_N)

    @property
    def width(self) -> int:
        """D."""
        return self.source_MD.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Of products."""
        return torch.float64 if self.source_MD.dtype == torch.float64 else torch.float32

    @property
    def device(self) -> torch.device:
        """Of products."""
        own = self.source_MD.device
        return comm.exact_device() if own.type == "cpu" else own

    def part(self, block: range, out: Tensor | None = None) -> Tensor:
        """Rows of a block, `(B, D)`, as they lie; into `out` where they have to be gathered."""
        if self.at_N is None:
            return self.source_MD[block.start : block.stop]
        at_B = self.at_N[block.start : block.stop]
        return torch.index_select(self.source_MD, 0, at_B, out=out)

    def blocks(self, columns: int = 0) -> list[range]:
        """All blocks, for products with `columns` columns."""
        return comm.cut(len(self), rows_of_a_block(len(self), max(self.width, columns)))


def rows_of_a_block(rows: int, numbers: int) -> int:
    """How many rows a block has of `rows` with so many numbers each."""
    return max(1, min(max(rows // SHARES, FEWEST), MOST, NUMBERS // numbers))


def from_first(make: Callable[[], Tensor], like: Tensor) -> Tensor:
    """What rank 0 makes, of the shape, dtype and device of `like`, on every rank: eigenvectors of
    two kinds of processor may differ in more than rounding.
    """
    return comm.all_sum(make() if comm.rank() == 0 else torch.zeros_like(like))


class Exact:
    """A float64 sum that is the same in any order and over any ranks: all that is added, and any
    sum of it, lies within `bound`, of which 2^-50 is the unit.
    """

    def __init__(self, total: Tensor, bound: Tensor | float) -> None:
        self.total = total
        bound = torch.as_tensor(bound, dtype=torch.float64).to(total.device)
        self._magic = 3 * torch.exp2(bound.clamp_min(1e-200).log2().ceil() + 1)
        self._part = torch.empty_like(total)

    def add(self, x: Tensor) -> None:
        """Adds x, rounded to whole units."""
        self._part.copy_(x)
        self.total.add_(self._part.add_(self._magic).sub_(self._magic))


class Scratch:
    """Memory that is used again: fresh memory of this size costs as much as the work done in it."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def get(
        self, name: str, rows: int, width: int, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """`(rows, width)` of anything."""
        held = self._held.get(name)
        if held is None or held.numel() < rows * width or held.dtype != dtype:
            held = self._held[name] = torch.empty(rows * width, dtype=dtype, device=device)
        return held[: rows * width].view(rows, width)


def refuse(features_ND: Tensor, name: str, labels_N: Tensor | None = None) -> None:
    """As `knn.check`, by blocks that ranks share. Raises Error on all ranks alike."""
    if features_ND.ndim != 2 or 0 in features_ND.shape:
        check(features_ND, name)
    rows = Rows(features_ND)
    bad = torch.zeros((), dtype=torch.int64, device=rows.device)
    for block in comm.consecutive(rows.blocks()):
        finite_B = rows.part(block).isfinite().all(1)
        bad += (~finite_B).sum().to(bad.device)
    if count := int(comm.all_sum(bad)):
        raise Error(
            f"{name} features: NaN or Inf in {count} rows; check the weights and the precision"
        )
    check(features_ND[:, :1], name, labels_N)


@dataclass(frozen=True)
class Moments:
    """float64: mean and population standard deviation of each dimension (1 where it is constant),
    what standardises (0 where constant), and the length that no standardised row exceeds.
    """

    mean_D: Tensor
    std_D: Tensor
    inverse_D: Tensor
    longest: float


def moments(rows: Rows) -> Moments:
    """Of all rows, in three passes: the range, the mean, the spread."""
    low_D, high_D = _range(rows)
    count, blocks = len(rows), comm.consecutive(rows.blocks())
    mean = Exact(torch.zeros_like(low_D), count * torch.maximum(low_D.abs(), high_D.abs()))
    for x_BD in _doubles(rows, blocks):
        mean.add(x_BD.sum(0))
    mean_D = comm.all_sum(mean.total) / count
    reach_D = torch.maximum(high_D - mean_D, mean_D - low_D)
    squares = Exact(torch.zeros_like(low_D), count * reach_D.square())
    for x_BD in _doubles(rows, blocks):
        squares.add((x_BD - mean_D).square_().sum(0))
    std_D = (comm.all_sum(squares.total) / count).sqrt()
    constant_D = (low_D == high_D) | (std_D == 0)
    std_D = std_D.masked_fill(constant_D, 1)
    inverse_D = std_D.reciprocal().masked_fill(constant_D, 0)
    return Moments(mean_D, std_D, inverse_D, float((reach_D * inverse_D).norm()))


def _range(rows: Rows) -> tuple[Tensor, Tensor]:
    """Least and greatest of each dimension."""
    ends_2D = torch.full((2, rows.width), -math.inf, dtype=torch.float64, device=rows.device)
    for block in comm.consecutive(rows.blocks()):
        x_BD = rows.part(block)
        found_2D = torch.stack([-x_BD.amin(0), x_BD.amax(0)])
        ends_2D = torch.maximum(ends_2D, found_2D.to(ends_2D))
    low_D, high_D = comm.all_max(ends_2D)
    return -low_D, high_D


def _doubles(rows: Rows, blocks: Sequence[range]) -> Iterator[Tensor]:
    """Rows of each block in float64."""
    for block in blocks:
        yield rows.part(block).to(rows.device).double()
