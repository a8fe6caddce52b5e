"""The format of a store of features: blocks of rows in a file, and what is known of each."""

import contextlib
import hashlib
import itertools
import json
import os
import struct
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lookalike.folder import atomic_write, read_regular, write_file

BLOCK = 256
"""So many images are one block, whatever the batch, the workers and the ranks."""

FORMAT = 1
ROWS, PART, IDS, BLOCKS = "rows.npy", "rows.part", "ids.npy", "blocks.jsonl"
LIVE = "blocks-*.jsonl"
HEADER = 128
_LARGEST = 2**32
DTYPES: dict[str, Any] = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2")}

Rows = np.ndarray[Any, Any]


class Block(NamedTuple):
    """What is known of a block: its images `bad` could not be read and have no rows."""

    number: int
    bad: tuple[int, ...]
    sha256: str


class Form(NamedTuple):
    """So many images; `dtype` is float32 or float16; rows are `width` long, 0 where unknown."""

    images: int
    dtype: str
    width: int = 0

    @property
    def blocks(self) -> int:
        """How many there are."""
        return -(-self.images // BLOCK)

    @property
    def row_bytes(self) -> int:
        """Of one row."""
        return int(self.width * DTYPES[self.dtype].itemsize)

    def images_of(self, number: int) -> range:
        """The numbers of a block's images."""
        return range(number * BLOCK, min(self.images, (number + 1) * BLOCK))

    def rows_of(self, block: Block | None, number: int) -> int:
        """The rows of a block; of one that is not known, as if all its images could be read."""
        return len(self.images_of(number)) - (len(block.bad) if block else 0)

    def starts(self, blocks: Mapping[int, Block]) -> list[int]:
        """At which row each block begins once there are no gaps, and how many rows there are."""
        counts = [0] + [self.rows_of(blocks.get(n), n) for n in range(self.blocks)]
        return list(itertools.accumulate(counts))

    def header(self, rows: int) -> bytes:
        """What stands before the rows in `rows.npy`, always as long."""
        shape = f"({rows}, {self.width})"
        text = f"{{'descr': '{DTYPES[self.dtype].str}', 'fortran_order': False, 'shape': {shape}}}"
        size = struct.pack("<H", HEADER - 10)
        return b"\x93NUMPY\x01\x00" + size + text.ljust(HEADER - 11).encode() + b"\n"

    def digest(self, number: int, bad: Sequence[int], x_KD: Rows) -> str:
        """sha256 of a block: where it belongs, which images it lacks, its bytes."""
        digest = hashlib.sha256(
            f"{self.dtype} {self.width} {number} {list(bad)} {len(x_KD)}\0".encode()
        )
        digest.update(bytes_of(x_KD).data)
        return digest.hexdigest()

    def opening(self) -> bytes:
        """The first line of a file of blocks."""
        return json.dumps({"format": FORMAT, "block": BLOCK, **self._asdict()}).encode() + b"\n"


def read_lines(folder: Path, form: Form) -> tuple[int, dict[int, Block], bool]:
    """What the files of blocks say: width, blocks, and whether the rows lie without gaps."""
    width = 0
    found: dict[int, Block] = {}
    for path in (folder / BLOCKS, *sorted(folder.glob(LIVE))):
        try:
            first, *lines = read_regular(path, _LARGEST).splitlines()
            about = json.loads(first)
            if Form(*(about[key] for key in Form._fields))[:2] != form[:2]:
                continue
            if (about["format"], about["block"]) != (FORMAT, BLOCK) or about["width"] < 1:
                continue
            width = int(about["width"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
        blocks = (block_of(line, form) for line in lines)
        found |= {block.number: block for block in blocks if block is not None}
    return width, found if width else {}, (folder / ROWS).exists()


def block_of(line: bytes, form: Form) -> Block | None:
    """A line of such a file; None where it was torn or damaged."""
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        number, bad, sha256 = json.loads(line)
        ids = form.images_of(number) if 0 <= number < form.blocks else ()
        if ids and len(set(bad)) == len(bad) and all(i in ids for i in bad) and len(sha256) == 64:
            return Block(number, tuple(bad), sha256)
    return None


def whole_ones(
    path: Path, form: Form, lines: dict[int, Block], numbers: Sequence[int], compact: bool
) -> Iterator[int]:
    """Those of these blocks whose bytes are as they were written."""
    starts = form.starts(lines) if compact else []
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        size = os.fstat(file).st_size
        for n in numbers:
            start = starts[n] if compact else n * BLOCK
            if HEADER + (start + form.rows_of(lines[n], n)) * form.row_bytes > size:
                continue
            x_KD = read_rows(file, form, start, form.rows_of(lines[n], n))
            if x_KD is not None and form.digest(n, lines[n].bad, x_KD) == lines[n].sha256:
                yield n
    finally:
        os.close(file)


def is_framed(path: Path, form: Form, rows: int) -> bool:
    """Whether the file is exactly the header and so many rows."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            header = file.read(HEADER)
    except OSError:
        return False
    return header == form.header(rows) and size == HEADER + rows * form.row_bytes


def write_blocks(path: Path, form: Form, blocks: dict[int, Block]) -> None:
    """A file of blocks, whole. Raises RunError."""
    lines = (line_of(blocks[n]) for n in sorted(blocks))
    write_file(path, form.opening() + b"".join(lines))


def line_of(block: Block) -> bytes:
    """As `block_of` reads it."""
    return json.dumps(block).encode() + b"\n"


def write_ids(path: Path, ids_N: Rows) -> None:
    """For others; we know them from the blocks. Raises OSError."""
    with atomic_write(path) as file:
        np.save(file, ids_N, allow_pickle=False)


def has_ids(path: Path, ids_N: Rows) -> bool:
    """Whether the file holds these."""
    with contextlib.suppress(OSError, ValueError, EOFError, SyntaxError, tokenize.TokenError):
        return np.array_equal(np.load(path, mmap_mode="r", allow_pickle=False), ids_N)
    return False


def ids_of(form: Form, blocks: dict[int, Block]) -> Rows:
    """The images that could be read, int64 ascending."""
    bad = [i for block in blocks.values() for i in block.bad]
    return np.delete(np.arange(form.images), bad) if bad else np.arange(form.images)


def bytes_of(x_KD: Rows) -> Rows:
    """The same memory as bytes."""
    return np.ascontiguousarray(x_KD).reshape(-1).view(np.uint8)


def read_rows(file: int, form: Form, start: int, count: int) -> Rows | None:
    """(count, D) from row `start` on; None where the file ends before."""
    found: Rows = np.empty((count, form.width), DTYPES[form.dtype])
    left, offset = bytes_of(found).data, HEADER + start * form.row_bytes
    while left:
        try:
            got = os.preadv(file, [left], offset)
        except OSError:
            return None
        if not got:
            return None
        left, offset = left[got:], offset + got
    return found


def write_at(file: int, content: Any, offset: int) -> None:
    """All of it there. Raises OSError."""
    left = memoryview(content)
    while left:
        written = os.pwrite(file, left, offset)
        left, offset = left[written:], offset + written


def write_all(file: int, content: bytes) -> None:
    """All of it at the end of what was opened for that. Raises OSError."""
    left = memoryview(content)
    while left:
        left = left[os.write(file, left) :]
