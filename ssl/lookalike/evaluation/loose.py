"""Features that have no folder: in memory, or in a temporary file without a name."""

import contextlib
import mmap
import os
import tempfile

import numpy as np
import torch
from torch import Tensor

from lookalike import comm
from lookalike.evaluation.blocks import BLOCK, DTYPES, Block, Form, Rows, bytes_of

_IN_MEMORY = 2**28


class Loose:
    """Rows that have no folder, in memory or, many of them, in a temporary file without a name."""

    def __init__(self, form: Form) -> None:
        self.form, self.there = form, set[int]()
        self._x_ND = _room(form)

    def put(self, number: int, x_KD: Rows) -> None:
        """Takes a block."""
        self._x_ND[number * BLOCK : number * BLOCK + len(x_KD)] = x_KD
        self.there.add(number)

    def get(self, number: int, count: int) -> Rows:
        """So many rows of it."""
        return self._x_ND[number * BLOCK : number * BLOCK + count]

    def close_up(self, blocks: dict[int, Block]) -> Tensor:
        """All rows, without gaps."""
        *starts, rows = self.form.starts(blocks)
        if rows < self.form.images:
            for n, start in enumerate(starts):
                count = self.form.rows_of(blocks[n], n)
                self._x_ND[start : start + count] = self.get(n, count)
        return torch.from_numpy(self._x_ND[:rows])


def _room(form: Form) -> Rows:
    """(N, D) in memory, or in a file of the folder for temporary ones, if that has so much room."""
    shape, dtype = (form.images, form.width), DTYPES[form.dtype]
    size = form.images * form.row_bytes
    if size > _IN_MEMORY and hasattr(os, "posix_fallocate"):
        with contextlib.suppress(OSError), tempfile.TemporaryFile() as file:
            os.posix_fallocate(file.fileno(), 0, size)
            return np.ndarray(shape, dtype, mmap.mmap(file.fileno(), size))
    return np.empty(shape, dtype)


def exchange(whole: Loose, form: Form, counts: dict[int, int], mine: int | None) -> None:
    """A block of each rank, of so many rows each, to all; `mine` is there already."""
    if not sum(counts.values()):
        return
    rows = whole.get(mine, counts[mine]) if mine is not None else whole.get(0, 0)
    together = comm.cat(torch.from_numpy(bytes_of(rows).copy())).numpy()
    for n, count in counts.items():
        content, together = np.split(together, [count * form.row_bytes])
        if n != mine:
            whole.put(n, content.view(DTYPES[form.dtype]).reshape(count, form.width))
