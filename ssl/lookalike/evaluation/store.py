"""Features on disk, written as they come by all ranks, so that a killed extraction goes on.

A store is a folder. `rows.npy` is the matrix as numpy writes one, `ids.npy` says which image each
row is of, `blocks.jsonl` what the bytes of each block of `BLOCK` images hash to. While they are
made the rows lie in `rows.part`, each block where its first image's number says, and each rank
tells in `blocks-RANK.jsonl` which blocks it has written. No such line is trusted: whoever opens a
store compares each block with its sha256, and what differs is made again.
"""

import contextlib
import mmap
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lookalike import comm
from lookalike.errors import RunError, printable
from lookalike.evaluation.blocks import (
    BLOCK,
    BLOCKS,
    DTYPES,
    HEADER,
    IDS,
    LIVE,
    PART,
    ROWS,
    Block,
    Form,
    Rows,
    bytes_of,
    has_ids,
    ids_of,
    is_framed,
    line_of,
    read_lines,
    read_rows,
    whole_ones,
    write_all,
    write_at,
    write_blocks,
    write_ids,
)
from lookalike.evaluation.loose import Loose, exchange
from lookalike.folder import atomic_write, await_visible, sweep, try_lock, wait_for_lock
from lookalike.log import note

LOCK = ".lock"
_SYNC = 10.0
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


class Made(NamedTuple):
    """The rows of a block, `x_KD` in the type of the store, without those of its images `bad`,
    which could not be read.
    """

    number: int
    bad: tuple[int, ...]
    x_KD: Tensor


Make = Callable[[Sequence[int]], Iterable[Made]]
"""The blocks of these numbers, ascending, in their order."""


class Stored(NamedTuple):
    """All rows, x_ND mapped or in memory, and of which images they are, ids_N int64 ascending."""

    x_ND: Tensor
    ids_N: Tensor


def stored(folder: Path | None, form: Form, make: Make, title: str = "features") -> Stored:
    """The rows of all blocks: those that are in the folder, and those that `make` makes. All ranks
    call it together, each makes its share, and all get the same.

    Where they cannot be kept, as on a full disk, that is said, and nothing is lost: they come in
    memory or in a temporary file. So they do without a folder.
    """
    if folder is None:
        return _made(None, _nothing_yet(form), make)
    there = comm.broadcast_object((folder / ROWS).exists())
    if there and (found := _look(folder, form)).whole:
        return _mapped(folder, found.form, found.good)
    problem = ""
    with contextlib.ExitStack() as stack:
        if comm.rank() == 0:
            try:
                stack.enter_context(_alone(folder, title))
            except OSError as error:
                problem = error.strerror or str(error)
        comm.barrier(patient=True)
        if problem := comm.broadcast_object(problem):
            _not_kept(folder, problem)
            return _made(None, _nothing_yet(form), make)
        found = _look(folder, form, title)
        if found.whole:
            return _mapped(folder, found.form, found.good)
        _prepare(folder, found)
        return _made(folder, found, make)


# ---- what is there


class _Found(NamedTuple):
    """Blocks that are as they were written, and at which row each block begins."""

    form: Form
    good: dict[int, Block]
    starts: list[int]
    compact: bool
    whole: bool


def _nothing_yet(form: Form) -> _Found:
    starts = [n * BLOCK for n in range(form.blocks)]
    return _Found(form._replace(width=0), {}, starts, compact=False, whole=False)


def _look(folder: Path, form: Form, title: str = "") -> _Found:
    """Which blocks are there as they were written; each rank looks at its share of them. With a
    `title` what was found is said.
    """
    width, lines, compact = comm.broadcast_object(
        read_lines(folder, form) if comm.rank() == 0 else None
    )
    form = form._replace(width=width)
    numbers = comm.in_turn(sorted(lines))
    whole = list(whole_ones(folder / (ROWS if compact else PART), form, lines, numbers, compact))
    good = {n: lines[n] for n in sorted(n for part in comm.gather_objects(whole) for n in part)}
    if not good:
        form = form._replace(width=0)
    said = comm.broadcast_object(_said(folder, form, lines, good, compact, title))
    compact = compact and bool(good)
    starts = form.starts(lines) if compact else [n * BLOCK for n in range(form.blocks)]
    return _Found(form, good, starts, compact, compact and not said)


def _said(
    folder: Path,
    form: Form,
    lines: dict[int, Block],
    good: dict[int, Block],
    compact: bool,
    title: str,
) -> str:
    """Why what is there is not all, which is said; empty where it is. On the first rank."""
    if comm.rank() != 0:
        return ""
    reason, size = "", len(lines) - len(good)
    if compact and not lines:
        reason = "written without a checksum"
    elif size or (compact and len(good) < form.blocks):
        bad = size or form.blocks - len(good)
        reason = f"{bad} of {form.blocks} blocks changed since they were written"
    elif compact and not is_framed(folder / ROWS, form, form.starts(good)[-1]):
        reason = "its header or its size changed since it was written"
    if reason and title:
        note(f"{printable(folder)}: kept features are damaged ({reason}): made again")
    elif good and title:
        there = sum(len(form.images_of(n)) for n in good)
        note(f"{title}: goes on, {there:,} of {form.images:,} images were done")
    return reason or ("" if compact else "not all of it is there")


# ---- what is made


@contextlib.contextmanager
def _alone(folder: Path, title: str) -> Iterator[None]:
    """No other job writes into the store meanwhile: it is waited for. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT)
    try:
        with contextlib.suppress(OSError):  # where the file system has no locks
            if not try_lock(handle, folder):
                note(f"{title}: another process makes them in {printable(folder)}: waits for it")
                wait_for_lock(handle, folder)
        yield
    finally:
        os.close(handle)


def _prepare(folder: Path, found: _Found) -> None:
    """The first rank leaves there what is good, and nothing else; the others wait."""
    if comm.rank() == 0:
        with contextlib.suppress(OSError, RunError):
            sweep(folder)
            if found.good:
                write_blocks(folder / BLOCKS, found.form, found.good)
                if found.compact:
                    (folder / PART).unlink(missing_ok=True)
            else:
                _clear(folder)
            for path in folder.glob(LIVE):
                path.unlink()
    comm.barrier(patient=True)


def _clear(folder: Path) -> None:
    """Nothing is left but the lock."""
    for name in (PART, ROWS, IDS, BLOCKS, *(path.name for path in folder.glob(LIVE))):
        with contextlib.suppress(OSError):
            (folder / name).unlink(missing_ok=True)


def _made(folder: Path | None, found: _Found, make: Make) -> Stored:
    """Makes what is not there, each rank its share, and puts all together."""
    form, good, starts, compact, _ = found
    missing = [n for n in range(form.blocks) if n not in good]
    with contextlib.closing(_Writer(folder, form, starts)) as writer:
        for made in make(comm.in_turn(missing)):
            writer.write(made)
        writer.rest()
        comm.barrier(patient=True)  # a rank may have had more to do
        told = comm.gather_objects((writer.problem, writer.form.width, list(writer.new.values())))
        blocks = good | {block.number: block for _, _, new in told for block in new}
        form = form._replace(width=max(form.width, *(width for _, width, _ in told)))
        problem = next((problem for problem, _, _ in told if problem), None)
        if form.starts(blocks)[-1] == 0 and folder is not None:
            return _nothing(folder, form)
        if folder is None:
            return _together(writer, form, good, blocks)
        if compact and form.starts(blocks) != starts:  # another image can be read now, or no longer
            return _anew(folder, form, make)
        if not problem:
            problem = _finish(folder, form, blocks, compact)
        if not problem:
            return _mapped(folder, form, blocks)
        _not_kept(folder, problem)
        loose = _together(writer, form, good, blocks)
    comm.barrier(patient=True)
    if comm.rank() == 0:
        _clear(folder)
    return loose


def _nothing(folder: Path, form: Form) -> Stored:
    """Not one image could be read, which may be another day."""
    if comm.rank() == 0:
        _clear(folder)
    return Stored(torch.empty(0, form.width), torch.empty(0, dtype=torch.int64))


def _anew(folder: Path, form: Form, make: Make) -> Stored:
    comm.barrier()
    if comm.rank() == 0:
        _clear(folder)
    comm.barrier()
    return _made(folder, _nothing_yet(form), make)


def _not_kept(folder: Path, problem: str) -> None:
    if comm.rank() == 0:
        note(f"{printable(folder)}: cannot be written: {problem}: these features are not kept")


class _Writer:
    """One rank's blocks on their way into the store; without a folder, or once that takes no more,
    beside it.
    """

    def __init__(self, folder: Path | None, form: Form, starts: Sequence[int]) -> None:
        self.folder, self.form, self.starts = folder, form, starts
        self.new: dict[int, Block] = {}
        self.problem = ""
        self.beside: Loose | None = None
        self._file = self._journal = -1
        self._synced = time.monotonic()

    def write(self, made: Made) -> None:
        """Takes a block. Raises ValueError for rows of another width than those before."""
        x_KD = made.x_KD.contiguous().numpy()
        width = x_KD.shape[1]
        if self.form.width not in (0, width):
            raise ValueError(f"features of width {width} after some of {self.form.width}")
        self.form = self.form._replace(width=width)
        number, bad = made.number, made.bad
        self.new[number] = Block(number, bad, self.form.digest(number, bad, x_KD))
        if self.folder is not None and not self.problem:
            try:
                self._keep(self.folder, number, x_KD)
            except OSError as error:
                self.problem = error.strerror or str(error)
        if self.folder is None or self.problem:
            self._loose().put(number, x_KD)

    def _loose(self) -> "Loose":
        self.beside = self.beside or Loose(self.form)
        return self.beside

    def _keep(self, folder: Path, number: int, x_KD: Rows) -> None:
        """Rows first, then the line that tells of them; to the disk itself every ten seconds: what
        a machine without power lost of them is found by its checksum.
        """
        if self._file < 0:
            flags = os.O_RDWR | os.O_CREAT
            there = folder / (ROWS if (folder / ROWS).exists() else PART)
            self._file = os.open(there, flags, 0o644)
            name = folder / f"blocks-{comm.rank()}.jsonl"
            self._journal = os.open(name, flags | os.O_APPEND, 0o644)
            write_all(self._journal, self.form.opening())
        write_at(self._file, bytes_of(x_KD).data, self._place(number))
        write_all(self._journal, line_of(self.new[number]))
        if time.monotonic() - self._synced > _SYNC:
            self._sync()

    def _place(self, number: int) -> int:
        return HEADER + self.starts[number] * self.form.row_bytes

    def _sync(self) -> None:
        if self._file >= 0:
            os.fsync(self._file)
            os.fsync(self._journal)
        self._synced = time.monotonic()

    def rest(self) -> None:
        """All of it to the disk."""
        try:
            self._sync()
        except OSError as error:
            self.problem = self.problem or error.strerror or str(error)

    def read(self, number: int, block: Block, form: Form) -> Rows:
        """A block that this rank has written, or that was in the store before. Raises RunError."""
        if self.beside is not None and number in self.beside.there:
            return self.beside.get(number, form.rows_of(block, number))
        assert self.folder is not None
        path = self.folder / (ROWS if (self.folder / ROWS).exists() else PART)
        file = os.open(path, os.O_RDONLY)
        try:
            found = read_rows(file, form, self.starts[number], form.rows_of(block, number))
        finally:
            os.close(file)
        if found is None:
            raise RunError(f"{printable(path)}: was cut short while it was read: start again")
        return found

    def close(self) -> None:
        """Files only; what was written stays."""
        for handle in (self._file, self._journal):
            if handle >= 0:
                os.close(handle)
        self._file = self._journal = -1


def _finish(folder: Path, form: Form, blocks: dict[int, Block], compact: bool) -> str:
    """The store as it is to be found; by the first rank, for all of them. Returns why it could not
    be, empty where it is.
    """
    problem = ""
    if comm.rank() == 0:
        try:
            _close_up(folder, form, blocks, compact)
        except (OSError, RunError) as error:
            problem = getattr(error, "strerror", None) or str(error)
    comm.barrier(patient=True)
    return str(comm.broadcast_object(problem))


def _close_up(folder: Path, form: Form, blocks: dict[int, Block], compact: bool) -> None:
    """Rows without gaps under a header, and what is known of them beside; `rows.npy` comes last."""
    rows = form.starts(blocks)[-1]
    write_blocks(folder / BLOCKS, form, blocks)
    for live in folder.glob(LIVE):
        live.unlink()
    write_ids(folder / IDS, ids_of(form, blocks))
    path = folder / (ROWS if compact else PART)
    if not compact and rows < form.images:
        _without_gaps(folder, form, blocks, rows)
        path.unlink()
        return
    file = os.open(path, os.O_RDWR)
    try:
        write_at(file, form.header(rows), 0)
        os.ftruncate(file, HEADER + rows * form.row_bytes)
        os.fsync(file)
    finally:
        os.close(file)
    path.replace(folder / ROWS)


def _without_gaps(folder: Path, form: Form, blocks: dict[int, Block], rows: int) -> None:
    """Copies the rows, where images could not be read: a kill leaves what was there."""
    source = os.open(folder / PART, os.O_RDONLY)
    try:
        with atomic_write(folder / ROWS) as file:
            file.write(form.header(rows))
            for n in range(form.blocks):
                x_KD = read_rows(source, form, n * BLOCK, form.rows_of(blocks[n], n))
                if x_KD is None:
                    raise RunError(f"{printable(folder / PART)}: was cut short")
                file.write(bytes_of(x_KD).data)
    finally:
        os.close(source)


def _mapped(folder: Path, form: Form, blocks: dict[int, Block]) -> Stored:
    """The finished store: only what is looked at is read, and changing it changes no file."""
    path = folder / ROWS
    await_visible(path)
    rows = form.starts(blocks)[-1]
    ids_N = ids_of(form, blocks)
    if comm.rank() == 0 and not has_ids(folder / IDS, ids_N):
        with contextlib.suppress(OSError):
            write_ids(folder / IDS, ids_N)
    with path.open("rb") as file:
        if sys.platform == "win32":
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        else:  # without a reserve: a matrix may be larger than the machine's memory
            how = {"flags": mmap.MAP_PRIVATE | _NO_RESERVE}
            memory = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ | mmap.PROT_WRITE, **how)
    x_ND: Rows = np.ndarray((rows, form.width), DTYPES[form.dtype], memory, HEADER)
    return Stored(torch.from_numpy(x_ND), torch.from_numpy(ids_N))


def _together(
    writer: _Writer, form: Form, good: dict[int, Block], blocks: dict[int, Block]
) -> Stored:
    """Every rank's blocks on every rank, a block of each at a time."""
    missing, world = [n for n in range(form.blocks) if n not in good], comm.world_size()
    whole = writer.beside or Loose(form)
    for n in good:
        whole.put(n, writer.read(n, good[n], form))
    for first in range(0, len(missing), world):
        numbers = missing[first : first + world]
        mine = next(iter(comm.in_turn(numbers)), None)
        if mine is not None and mine not in whole.there:
            whole.put(mine, writer.read(mine, blocks[mine], form))
        if world > 1:
            exchange(whole, form, {n: form.rows_of(blocks[n], n) for n in numbers}, mine)
    return Stored(whole.close_up(blocks), torch.from_numpy(ids_of(form, blocks)))
