"""Standardised rows with a last column of ones, block by block: made anew in each pass over them,
or kept while a fixed budget lasts.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lookalike import comm
from lookalike.scoring.linear.rows import CHUNK, Rows, Scratch

KEPT = 2**28
"""Bytes of prepared blocks that a process keeps in the memory of its machine."""

SHARE = 0.5
"""Of the free memory of a GPU, what is kept there."""


class Block(NamedTuple):
    """`number` among all blocks; `rows` of the table; `x_BE`, complete once `chunks` are through:
    each says which part is ready.
    """

    number: int
    rows: range
    x_BE: Tensor
    chunks: Iterator[slice]


class Table:
    """Rows less `mean_D`, times `inverse_D`, perhaps turned by `axes_DR`, then a one: `(N, E)`.

    A rank has consecutive blocks. With `keep` they stay in memory as far as the budget goes, on a
    GPU that of its free memory; beyond it they are read anew, to a GPU from pinned memory, one
    block ahead.
    """

    def __init__(
        self,
        rows: Rows,
        mean_D: Tensor,
        inverse_D: Tensor,
        *,
        axes_DR: Tensor | None = None,
        columns: int = 0,
        keep: bool = True,
    ) -> None:
        self.rows = rows
        self.dtype, self.device = rows.dtype, rows.device
        self.blocks = rows.blocks(columns)
        self.width = (rows.width if axes_DR is None else axes_DR.shape[1]) + 1
        self.columns = columns
        self._mean_D, self._inverse_D = self._own(mean_D), self._own(inverse_D)
        self._axes_DR = None if axes_DR is None else self._own(axes_DR)
        self._kept: dict[int, Tensor] = {}
        self._budget = self._allowed() if keep else 0
        self._scratch = Scratch()

    def _own(self, x: Tensor) -> Tensor:
        return x.to(self.device, self.dtype)

    def _allowed(self) -> int:
        """Bytes of blocks that may be kept."""
        if self.device.type != "cuda":
            return KEPT
        return int(torch.cuda.mem_get_info(self.device)[0] * SHARE)

    def scratch(self, name: str, rows: int, width: int) -> Tensor:
        """Memory for products, used again in each block."""
        return self._scratch.get(name, rows, width, self.dtype, self.device)

    def __iter__(self) -> Iterator[Block]:
        """This rank's blocks, in order."""
        numbers = comm.consecutive(range(len(self.blocks)))
        absent = [i for i in numbers if i not in self._kept]
        parts = _ahead(self.rows, [self.blocks[i] for i in absent], self.device)
        for number in numbers:
            rows = self.blocks[number]
            if number in self._kept:
                yield Block(number, rows, self._kept[number], iter(self._cut(len(rows))))
                continue
            x_BE = self._room(number, len(rows))
            yield Block(number, rows, x_BE, self._filled(x_BE, rows, next(parts)))

    def _cut(self, rows: int) -> list[slice]:
        """A block's chunks: on a GPU one."""
        size = max(64, CHUNK // max(self.width, self.columns))
        parts = comm.cut(rows, size if self.device.type == "cpu" else rows)
        return [slice(part.start, part.stop) for part in parts]

    def _room(self, number: int, rows: int) -> Tensor:
        """Where a block is prepared: its own place where it is to stay."""
        size = rows * self.width * self.dtype.itemsize
        if size > self._budget:
            return self.scratch("x", rows, self.width)
        self._budget -= size
        self._kept[number] = torch.empty(rows, self.width, dtype=self.dtype, device=self.device)
        return self._kept[number]

    def _filled(self, x_BE: Tensor, rows: range, part_BD: Tensor | None) -> Iterator[slice]:
        """Prepares chunk after chunk of the rows, or of what was read of them ahead."""
        for at in self._cut(len(rows)):
            x_QE = x_BE[at]
            raw_QD = self._raw(rows[at]) if part_BD is None else part_BD[at]
            x_QE[:, -1] = 1
            if self._axes_DR is None:
                torch.sub(raw_QD, self._mean_D, out=x_QE[:, :-1]).mul_(self._inverse_D)
            else:
                z_QD = self.scratch("z", *raw_QD.shape)
                torch.sub(raw_QD, self._mean_D, out=z_QD).mul_(self._inverse_D)
                x_QE[:, :-1] = z_QD @ self._axes_DR
            yield at

    def _raw(self, rows: range) -> Tensor:
        """Of the source, as they lie."""
        source_MD = self.rows.source_MD
        if self.rows.at_N is None:
            return self.rows.part(rows)
        width, kind = self.rows.width, source_MD.dtype
        out = self._scratch.get("raw", len(rows), width, kind, source_MD.device)
        return self.rows.part(rows, out)


def _ahead(rows: Rows, blocks: list[range], device: torch.device) -> Iterator[Tensor | None]:
    """Each block on the GPU, copied while the one before is computed with; None where nothing need
    be copied.

    Two pinned buffers take turns: one is filled again once its copy to the GPU has ended.
    """
    if device.type != "cuda" or rows.source_MD.device.type == "cuda":
        for _ in blocks:
            yield None
        return
    most = max(map(len, blocks), default=0)
    shape, kind = (most, rows.width), rows.source_MD.dtype
    pinned = [torch.empty(shape, dtype=kind, pin_memory=True) for _ in range(2)]
    there = [torch.empty(shape, dtype=kind, device=device) for _ in range(2)]
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    copied = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]

    def send(number: int) -> None:
        block, slot = blocks[number], number % 2
        copied[slot].synchronize()
        host_BD = pinned[slot][: len(block)]
        if rows.at_N is None:
            host_BD.copy_(rows.part(block))
        else:
            rows.part(block, host_BD)
        side.wait_stream(torch.cuda.current_stream(device))  # what read this slot last
        with torch.cuda.stream(side):
            there[slot][: len(block)].copy_(host_BD, non_blocking=True)
            copied[slot].record(side)

    if blocks:
        send(0)
    for number, block in enumerate(blocks):
        if number + 1 < len(blocks):
            send(number + 1)
        torch.cuda.current_stream(device).wait_event(copied[number % 2])
        yield there[number % 2][: len(block)]
