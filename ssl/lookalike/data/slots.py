"""Batches in shared memory: loader processes write them where the training process, and its GPU,
read them.
"""

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lookalike.errors import RunError

_SHARED = Path("/dev/shm")


class Slots:
    """`count` slots of shared memory, each for up to `rows` samples of parts of these shapes (C, H,
    W), of `dtype`.

    Raises RunError when the machine has not so much shared memory.
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
        _check_room(count * size)
        # Shared from the start: share_memory_() would write all of it once, and hold it twice
        # meanwhile.
        storage = torch.UntypedStorage._new_shared(count * size)  # type: ignore[no-untyped-call]
        self._bytes_SN = torch.empty(0, dtype=torch.uint8).set_(storage).view(count, size)
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


def _check_room(size: int) -> None:
    """The kernel would kill the process that touches the first page beyond."""
    if not _SHARED.is_dir():  # not Linux
        return
    free = shutil.disk_usage(_SHARED).free
    if size > free:
        raise RunError(
            f"data: the loader processes share {size / 1e6:.0f} MB, but {_SHARED} has "
            f"{free / 1e6:.0f} MB free: "
            "enlarge it (docker run --shm-size), lower the batch or workers, or set workers to 0"
        )
