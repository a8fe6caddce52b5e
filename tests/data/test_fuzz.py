"""Damaged files of every kind that is read: a valid result or the documented refusal, in bounded
time and memory.

`make fuzz` goes on with new seeds for LOOKALIKE_FUZZ_SECONDS, an hour by default; a failure names
kind and seed, and `python tests/test_fuzz.py KIND SEED` repeats it.
"""

import io
import itertools
import json
import mmap
import os
import signal
import struct
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save

import deep
import mutants
from forked import forked, peak
from lookalike.data import cache
from lookalike.data.decode import BadImage, decode, look
from lookalike.data.idx import read_idx
from lookalike.data.manifest import Manifest
from lookalike.data.webdataset import samples
from lookalike.errors import BackboneError, DataError, RecipeError
from lookalike.experiment import load_recipe
from lookalike.geometry import PixelFormat
from lookalike.models.stored import mapped
from lookalike.search import index as search_index

SECONDS = 2  # of the processor, a case
GROWTH = 200_000_000  # bytes, a case
COUNT = 50  # damaged copies of each file in the suite
DEEP = 12  # of each that all bits are kept of, whose decoders are others' work and slower

Reader = Callable[[bytes, Path], Any]


def image(data: bytes, _: Path) -> None:
    for channels, size in ((3, 16), (1, None)):
        found = decode(data, "a", size=size, form=PixelFormat(channels))
        assert found.dtype == torch.uint8
        assert found.shape[0] == channels
        assert size is None or found.shape[1:] == (16, 16)


def all_bits(data: bytes, _: Path) -> None:
    """As raw floats, with all the channels that its header claims, then as bytes."""
    channels = look(data).channels
    refusals = []
    for form in (PixelFormat(min(channels, 512), "float32", (0, 1), "keep"), PixelFormat(3)):
        try:
            found = decode(data, "a", size=None, form=form)
        except BadImage as refusal:
            refusals.append(refusal)
            continue
        assert found.dtype == form.dtype
        assert found.shape[0] == form.channels
        assert found.isfinite().all()
    if refusals:
        raise refusals[0]


def in_file(name: str, read: Callable[[Path], Any]) -> Reader:
    def reader(data: bytes, folder: Path) -> None:
        (folder / name).write_bytes(data)
        read(folder / name)

    return reader


def shard(path: Path) -> None:
    with path.open("rb") as file:
        found = samples.read_samples(file, "a.tar")
    ends = found.offsets_N + found.sizes_N
    assert (found.offsets_N >= 0).all()
    assert (found.sizes_N >= 0).all()
    assert (ends <= path.stat().st_size).all()
    assert len(found.names) == len(found.labels_N)


def sealed(data: bytes, _: Path) -> None:
    assert cache.unseal(data) == cache.unseal(mutants.sealed())  # its digest lets nothing else pass


def matrix(path: Path) -> None:
    assert search_index._mapped(path).sum() is not None


def saved() -> bytes:
    file = io.BytesIO()
    np.save(file, np.ones((5, 3), np.float32))
    return file.getvalue()


def parquet() -> bytes:
    file = io.BytesIO()
    pq.write_table(
        pa.table({"path": ["a.png", "b.png"], "label": ["x", "y"], "split": ["train", "test"]}),
        file,
    )
    return file.getvalue()


def tensors() -> bytes:
    return save({"a": torch.ones(3, 4), "b": torch.zeros(5, dtype=torch.int64)})


def kinds() -> dict[str, tuple[bytes, Reader, type[Exception] | tuple[type[Exception], ...]]]:
    """Kind -> a whole file, what reads it, and how that may refuse it."""
    found: dict[str, Any] = {
        name: (data, image, BadImage) for name, data in mutants.images().items()
    }
    further = deep.images() | {"float.tif": found["float.tif"][0]}
    found |= {name: (data, all_bits, BadImage) for name, data in further.items()}

    def table(path: Path) -> None:
        (path.parent / "a.png").touch()  # a table none of whose rows has a file is refused for that
        Manifest(str(path)).split("test")

    return found | {
        "tar": (mutants.tar(), in_file("a.tar", shard), DataError),
        "idx": (mutants.idx(), in_file("a", partial(read_idx, ndim=3, max_bytes=10**9)), DataError),
        "sealed": (mutants.sealed(), sealed, ValueError),
        "npy": (
            saved(),
            in_file("a.npy", matrix),
            (OSError, ValueError, KeyError, TypeError, RecursionError),
        ),
        "recipe": (
            mutants.RECIPE,
            in_file("a.yaml", lambda path: load_recipe(str(path), [])),
            RecipeError,
        ),
        "csv": (mutants.CSV, in_file("a.csv", table), DataError),
        "parquet": (parquet(), in_file("a.parquet", table), DataError),
        "safetensors": (tensors(), in_file("a.safetensors", mapped), BackboneError),
    }


def wrong(kind: str, data: bytes, folder: Path) -> str:
    """What is wrong with how the bytes are read; empty if nothing is."""
    _, read, refusals = kinds_once()[kind]
    before, start = peak(reset=True), time.process_time()
    try:
        with warnings.catch_warnings(action="ignore"):
            read(data, folder)
    except refusals as refusal:
        if not str(refusal).strip():
            return "a refusal without a reason"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    seconds, growth = time.process_time() - start, peak() - before
    return f"{seconds:.1f} s, {growth / 1e6:.0f} MB" if seconds > SECONDS or growth > GROWTH else ""


_KINDS: dict[str, Any] = {}


def kinds_once() -> dict[str, Any]:
    if not _KINDS:
        _KINDS.update(kinds())
    return _KINDS


def failures(kind: str, count: int, first: int = 0) -> list[str]:
    """Reads damaged copies in a child; what failed, with the seed that makes it again."""
    whole = kinds_once()[kind][0]
    place = mmap.mmap(-1, 8)  # where the child is, for when it dies

    def work() -> list[str]:
        found = []
        with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as null:  # noqa: PTH123
            os.dup2(null.fileno(), 2)  # libtiff tells its troubles
            wrong(
                kind, whole, Path(folder)
            )  # what is loaded for the first time is no growth of a case
            for seed, data in cases(kind, whole, count, first):
                place[:] = struct.pack("<q", seed)
                signal.setitimer(signal.ITIMER_REAL, 30)
                if what := wrong(kind, data, Path(folder)):
                    found.append(f"{kind!r} {seed}: {what}")
        return found

    done = forked(work, limit=30)
    if done.ended:
        return [f"{kind!r} {struct.unpack('<q', place)[0]}: {done.ended}"]
    return done.value


def cases(kind: str, whole: bytes, count: int, first: int) -> Iterator[tuple[int, bytes]]:
    """Of PNG every second with right checksums, for what is damaged to be looked at."""
    for seed in range(first, first + count):
        yield seed, case(kind, whole, seed)


def case(kind: str, whole: bytes, seed: int) -> bytes:
    data = mutants.mutant(kind, whole, seed)
    return mutants.mended(data) if kind.endswith(".png") and seed % 2 else data


@pytest.mark.parametrize("kind", kinds())
def test_a_damaged_file_is_read_or_refused(kind):
    whole, read, _ = kinds_once()[kind]
    # A kind of its own channels, or of floats, becomes no bytes of three.
    ours = suppress(BadImage) if read is all_bits else nullcontext()
    quiet = warnings.catch_warnings(action="ignore")
    with tempfile.TemporaryDirectory() as folder, quiet, ours:
        read(whole, Path(folder))
    assert failures(kind, DEEP if read is all_bits else COUNT) == []


def test_the_same_seed_makes_the_same_damage_and_another_other_damage():
    whole = mutants.tar()
    made = [mutants.mutant("tar", whole, seed) for seed in range(50)]
    assert made == [mutants.mutant("tar", whole, seed) for seed in range(50)]
    assert len(set(made)) > 45


def test_a_reader_that_fails_hangs_or_dies_is_named_with_the_seed(monkeypatch):
    def bad(data: bytes, _: Path) -> None:
        if data != mutants.idx():
            raise KeyError("no refusal")

    def dies(data: bytes, _: Path) -> None:
        if data != mutants.idx():
            os.kill(os.getpid(), signal.SIGSEGV)

    def grows(data: bytes, _: Path) -> None:
        if data != mutants.idx():
            np.ones(GROWTH // 7)

    for read, what in ((bad, "KeyError"), (dies, "SIGSEGV"), (grows, " MB")):
        monkeypatch.setitem(kinds_once(), "idx", (mutants.idx(), read, DataError))
        found = failures("idx", 3, 7)
        assert found[0].startswith("'idx' 7: ")
        assert what in found[0]


def run(seconds: float) -> None:
    """New seeds for so long; every failure is printed. Exits with 1 when there was one."""
    end, seen, first = time.monotonic() + seconds, 0, int(time.time())
    for turn in itertools.count():
        for kind in kinds_once():
            for failure in failures(kind, 500, first + 500 * turn):
                seen += 1
                print(failure, flush=True)
            if time.monotonic() > end:
                print(json.dumps({"rounds": turn + 1, "failures": seen}))
                sys.exit(min(seen, 1))


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) == 3:
        name, number = sys.argv[1], int(sys.argv[2])
        print(failures(name, 1, number) or "nothing wrong")
    else:
        run(float(os.environ.get("LOOKALIKE_FUZZ_SECONDS", "3600")))
