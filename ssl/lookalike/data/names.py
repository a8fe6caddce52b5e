"""Many names as one mapped buffer and one array of offsets: ten million cost a process no memory of
its own.
"""

import hashlib
import heapq
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from lookalike.data.mapped import Spill

BLOCK = 1 << 14
"""So many names are Python's at a time."""
_RUN = 1 << 18


class Names(Sequence[bytes]):
    """Byte strings by number, made in one pass over `names`.

    `mark`: where they came from and what the file system then said of it, in a word; empty where
    nothing tells. `known`: what was found out about files of these names, by where they lie.
    """

    def __init__(self, names: Iterable[bytes], mark: str = "") -> None:
        self._pack(blocks(names), mark)

    @classmethod
    def packed(cls, lists: Iterable[list[bytes]], mark: str = "") -> "Names":
        """The names of all lists, which is faster."""
        made = cls.__new__(cls)
        made._pack(lists, mark)
        return made

    def _pack(self, lists: Iterable[list[bytes]], mark: str) -> None:
        joined, offsets, end = Spill(), Spill(), 0
        offsets.write(np.zeros(1, np.int64))
        for block in filter(None, lists):
            joined.write(b"".join(block))
            ends = end + np.cumsum(np.fromiter(map(len, block), np.int64, len(block)))
            offsets.write(ends)
            end = int(ends[-1])
        self._set(joined.done(), offsets.done().view(np.int64), mark)

    @classmethod
    def of(cls, joined: np.ndarray, offsets: np.ndarray, mark: str = "") -> "Names":
        """From the parts that `parts` gave, uint8 each. Raises ValueError for others."""
        made, ends = cls.__new__(cls), offsets.view("<i8")
        if not len(ends) or ends[0] != 0 or ends[-1] != len(joined):
            raise ValueError("offsets of other names")
        made._set(joined, ends, mark)
        return made

    def _set(self, joined: np.ndarray, offsets: np.ndarray, mark: str) -> None:
        self._joined, self._offsets, self.mark = joined, offsets, mark
        self.known: dict[str, tuple[str, str]] = {}

    @property
    def parts(self) -> tuple[np.ndarray, np.ndarray]:
        """All names in one, uint8, and where each begins, with the end of the last, int64."""
        return self._joined, self._offsets

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str | bytes):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    @property
    def digest(self) -> str:
        """sha256 of all names in their order."""
        digest = hashlib.sha256(self._joined.data)
        digest.update(self._offsets.data)
        return digest.hexdigest()

    def __iter__(self) -> Iterator[bytes]:
        return itertools.chain.from_iterable(self.blocks())

    def blocks(self) -> Iterator[list[bytes]]:
        """All, so many at a time."""
        for start in range(0, len(self), BLOCK):
            yield self._block(start, min(start + BLOCK, len(self)))

    def _block(self, start: int, stop: int) -> list[bytes]:
        ends = self._offsets[start : stop + 1]
        text, ends = self._joined[ends[0] : ends[-1]].tobytes(), ends - ends[0]
        return [text[a:b] for a, b in itertools.pairwise(ends.tolist())]

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[k] for k in range(len(self))[i]]
        i = range(len(self))[i]
        return self._joined[self._offsets[i] : self._offsets[i + 1]].tobytes()

    def where(self, mask_N: np.ndarray) -> "Names":
        """Those where the mask is True."""
        found = (
            list(itertools.compress(block, mask_N[k * BLOCK : (k + 1) * BLOCK].tolist()))
            for k, block in enumerate(self.blocks())
        )
        mark = ""
        if self.mark:
            mark = hashlib.sha256(self.mark.encode() + np.packbits(mask_N).tobytes()).hexdigest()
        return Names.packed(found, mark)

    def ordered(self) -> Iterator[bytes]:
        """All, sorted: parts of them are sorted, then merged, so that few are Python's at once."""
        if all(a <= b for a, b in itertools.pairwise(self)):
            return iter(self)
        return heapq.merge(*(self._sorted(start) for start in range(0, len(self), _RUN)))

    def _sorted(self, start: int) -> Iterator[bytes]:
        run = sorted(self._block(start, min(start + _RUN, len(self))))
        return iter(Names(run))


def blocks(names: Iterable[bytes], size: int = BLOCK) -> Iterator[list[bytes]]:
    """The names, so many at a time."""
    if isinstance(names, Names) and size == BLOCK:
        yield from names.blocks()
        return
    left = iter(names)
    while block := list(itertools.islice(left, size)):
        yield block
