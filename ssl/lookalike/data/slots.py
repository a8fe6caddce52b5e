"""Batches in shared memory: loader processes write them where the training process, and its GPU,
read them.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lookalike.data.shared import shared_bytes
from lookalike.errors import RunError


class Slots:
    """`count` slots of shared memory, each for up to `rows` samples of parts of these shapes (C, H,
    W), of `dtype`.

    Raises RunError when the machine has not so much memory.
    """

    def __init__(
        self,
        count: int,
        rows: int,
        shapes: Sequence[tuple[int, int, int]],
        dtype: torch.dtype = torch.uint8,
    ) -> None:
        self.count, self.rows, self.shapes, self.dtype = count, rows, shapes, dtype
        self._per_row = [dtype.itemsize * math.prod(shape) for shape in shapes]
        size = rows * sum(self._per_row)
        self._bytes_SN = shared_bytes(count * size).view(count, size)
        self._pinned = False

    def parts(self, slot: int, rows: int) -> list[Tensor]:
        """The slot's first `rows` samples: (rows, C, H, W) of each part."""
        if rows > self.rows:
            raise ValueError(
                f"{rows} samples for a slot of {self.rows}: a plan's first micro-batch is its "
                "largest"
            )
        regions = torch.split(self._bytes_SN[slot], [self.rows * n for n in self._per_row])
        pairs = zip(regions, self.shapes, strict=True)
        return [region.view(self.dtype).view(self.rows, *shape)[:rows] for region, shape in pairs]

    def pin(self) -> None:
        """Locks the pages, so that copies to the GPU need not wait; after the workers were
        started.
        """
        _cuda("cudaHostRegister", self._bytes_SN.data_ptr(), self._bytes_SN.numel(), 0)
        self._pinned = True

    def close(self) -> None:
        """Unlocks the pages; no copy may be under way."""
        if self._pinned:
            self._pinned = False
            _cuda("cudaHostUnregister", self._bytes_SN.data_ptr())


def _cuda(function: str, *arguments: int) -> None:
    code = int(getattr(torch.cuda.cudart(), function)(*arguments))  # type: ignore[no-untyped-call]
    if code:
        raise RunError(f"data: {function} failed with CUDA error {code}: set workers to 0")
