"""Files from outside: pipes, devices, lines without end and bombs are one clear line, soon and in
little memory.
"""

import gzip
import io
import os
import signal
import struct
import subprocess
import sys
import tarfile
import threading
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lookalike.data import Manifest, Shards
from lookalike.data.idx import Idx, read_idx
from lookalike.data.published import matlab, read
from lookalike.data.tables.pages import pages
from lookalike.data.tables.rooted import spread
from lookalike.data.webdataset.listing import read_listing
from lookalike.data.webdataset.samples import samples_of
from lookalike.errors import DataError, Error, RecipeError, RunError
from lookalike.process.hostfile import read_hosts
from lookalike.recipe import Recipe, load, recipes

READERS = {
    "manifest.csv": lambda path: Manifest(str(path)).split("train"),
    "manifest.parquet": lambda path: Manifest(str(path)).split("train"),
    "images.txt": lambda path: list(read(path)),
    "annos.mat": lambda path: matlab.variable(path, "annotations"),
    "train-images-idx3-ubyte": lambda path: read_idx(path, 3, 10**9),
    "train-images-idx3-ubyte.gz": lambda path: read_idx(path, 3, 10**9),
    "shard.tar": lambda path: samples_of(str(path)),
    "index.json": lambda path: read_listing(str(path.parent)),
    "hosts": read_hosts,
    "recipe.yaml": lambda path: load(path, [], Recipe),
}


@pytest.fixture(autouse=True)
def _bounded(monkeypatch):
    """Whoever hangs is ended; whoever allocates, in Python, is found out."""

    def stop(*_):
        raise TimeoutError("hangs")

    monkeypatch.setattr(recipes, "_PATIENCE", 0.2)
    signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    signal.alarm(0)
    assert peak < 60e6


def refused(name, path):
    began = time.process_time()  # one that waits is ended by the alarm
    with pytest.raises(Error) as caught:
        READERS[name](path)
    assert time.process_time() - began < 5
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", READERS)
def test_a_pipe_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    refused(name, tmp_path / name)


@pytest.mark.parametrize("name", READERS)
def test_a_device_is_not_read_to_its_end(tmp_path, name):
    (tmp_path / name).symlink_to("/dev/zero")
    refused(name, tmp_path / name)


@pytest.mark.parametrize("name", READERS)
def test_a_line_without_end_is_bounded(tmp_path, name):
    with (tmp_path / name).open("wb") as file:
        file.write(b"path\n" if name.endswith("csv") else b"x")
        file.truncate(20 * 10**9)
    refused(name, tmp_path / name)


@pytest.mark.parametrize("name", ["manifest.csv", "images.txt"])
def test_a_link_to_a_file_is_the_file(tmp_path, name):
    (tmp_path / "real").write_text("path\na.png\n")
    (tmp_path / "a.png").touch()
    (tmp_path / name).symlink_to("real")
    if name == "images.txt":
        assert [line.words for line in read(tmp_path / name)] == [["path"], ["a.png"]]
    else:
        assert len(Manifest(str(tmp_path / name), test_fraction=0).split("train")) == 1


def test_a_quoted_row_of_many_lines_is_bounded(tmp_path):
    (tmp_path / "m.csv").write_bytes(b"path,note\n" + b'"\n",' * 5_000_000)
    with pytest.raises(DataError, match=r"m\.csv:\d+: a row of more than 1,048,576 characters"):
        Manifest(str(tmp_path / "m.csv")).split("train")


def test_a_header_of_many_columns_is_refused(tmp_path):
    (tmp_path / "m.csv").write_bytes(b"path" + b",lab" * 200_000 + b"\n")
    with pytest.raises(DataError, match=r"m\.csv:1: more than the 10,000 columns allowed"):
        Manifest(str(tmp_path / "m.csv")).split("train")


def test_bytes_that_are_no_text_far_down_a_long_line(tmp_path):
    with (tmp_path / "m.csv").open("wb") as file:
        file.write(b"path\n\xff")
        file.truncate(20 * 10**9)
    with pytest.raises(DataError, match=r"m\.csv:2: not UTF-8"):
        Manifest(str(tmp_path / "m.csv")).split("train")


def coded(rows: int, *words: str) -> pa.Table:
    return pa.table(
        {
            "path": pa.DictionaryArray.from_arrays(
                pa.array(np.zeros(rows, np.int32)), pa.array(words)
            )
        }
    )


PLAIN = {"compression": "zstd", "use_dictionary": False}
DELTA = PLAIN | {"column_encoding": "DELTA_BYTE_ARRAY"}
BOMBS = {
    "dictionary": (lambda: coded(3_000_000, "x" * 1000), {}),
    "wide dictionary": (lambda: coded(100_000, "x" * 1_000_000), {}),
    "constant": (lambda: coded(20_000_000, "a"), {"row_group_size": 10**9}),
    "plain": (lambda: pa.table({"path": ["x" * 1000] * 600_000}), PLAIN),
    "delta": (lambda: pa.table({"path": ["x" * 1000] * 600_000}), DELTA),
    "one text": (lambda: pa.table({"path": ["x" * 100_000_000]}), PLAIN),
    "one long text": (lambda: pa.table({"path": ["a", "x" * 30_000_000]}), PLAIN),
    "nothing": (
        lambda: pa.table({"path": pa.array([None] * 20_000_000, pa.string())}),
        {"row_group_size": 10**9},
    ),
    "struct": (lambda: pa.table({"path": ["a"], "label": [{"x": 1}]}), {}),
    "float": (lambda: pa.table({"path": ["a"], "label": [1.5]}), {}),
    "bytes": (lambda: pa.table({"path": [b"a"]}), {}),
}
SCRIPT = """
import resource, sys, time
from lookalike.data import Manifest
from lookalike.errors import DataError
import pyarrow.parquet
def most():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
for path in sys.argv[1:]:
    before, began = most(), time.process_time()
    try:
        Manifest(path).split("train")
    except DataError as error:
        print(path.split("/")[-1], most() - before, time.process_time() - began, error, sep="\\t")
"""


def test_parquet_bombs_are_refused_in_little_memory(tmp_path):
    tracemalloc.stop()  # of the bombs' making
    signal.alarm(120)
    for name, (table, how) in BOMBS.items():
        pq.write_table(table(), tmp_path / f"{name}.parquet", store_schema=False, **how)
    files = [str(tmp_path / f"{name}.parquet") for name in BOMBS]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *files], capture_output=True, text=True, check=True
    )
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == [f"{name}.parquet" for name in BOMBS]
    for name, growth, seconds, message in rows:
        assert int(growth) < 200, name
        assert float(seconds) < 10, name
        assert f"{name}:" in message


@pytest.mark.parametrize(
    "how", [{}, PLAIN, DELTA, {"data_page_version": "2.0"}, {"row_group_size": 1000}]
)
def test_an_honest_parquet_is_read_as_the_csv_is(tmp_path, how):
    rows = [
        (f"data/train/class_{i // 50:05d}/img_{i:09d}.jpg", i // 50, ("test", "train")[i % 7 > 0])
        for i in range(2999)
    ]
    table = pa.table(
        dict(zip(("path", "label", "split"), map(list, zip(*rows, strict=True)), strict=True))
    )
    how = how | (
        {"column_encoding": {"path": "DELTA_BYTE_ARRAY"}, "use_dictionary": ["split"]}
        if how is DELTA
        else {}
    )
    pq.write_table(table, tmp_path / "m.parquet", **how)
    (tmp_path / "m.csv").write_text(
        "path,label,split\n" + "".join(f"{a},{b},{c}\n" for a, b, c in rows)
    )
    for name in (rows[row][0] for row in spread(len(rows))):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for split in ("train", "test"):
        one, other = (
            Manifest(str(tmp_path / name)).split(split) for name in ("m.parquet", "m.csv")
        )
        assert [one.name(i) for i in range(len(one))] == [other.name(i) for i in range(len(other))]
        assert one.labels.equal(other.labels)
        assert one.classes == other.classes


def test_a_page_that_claims_to_be_huge_is_refused_before_room_is_made(tmp_path):
    path = tmp_path / "m.parquet"
    table = pa.table({"path": [f"{i:0120d}" for i in range(50_000)]})
    pq.write_table(table, path, compression="zstd", use_dictionary=False, data_page_size=4 << 20)
    about = pq.read_metadata(path).row_group(0).column(0)
    with path.open("rb") as file:
        first = next(pages(file, about.data_page_offset, about.data_page_offset + 1))
    assert first.unpacked > 2 << 20
    assert 0 < first.packed < first.unpacked
    data = bytearray(path.read_bytes())
    at = about.data_page_offset + 3  # behind the page's kind and the tag of its size
    assert int.from_bytes(data[at : at + 4], "little") & 0x80808080 == 0x00808080
    data[at : at + 4] = b"\xfe\xff\xff\x7f"
    path.write_bytes(data)
    with pytest.raises(
        DataError,
        match=r"m\.parquet: more than 200,000 pages, or one of more than 67,108,864 bytes",
    ):
        Manifest(str(path)).split("train")


@pytest.mark.parametrize(
    "data", [b"", b"\x15", b"\x15\x00\x15", b"\xff" * 99, b"\x1c" * 99, b"\x15\x01\x15\x01\x00"]
)
def test_what_is_no_page_header_is_a_value_error(tmp_path, data):
    (tmp_path / "x").write_bytes(data)
    with (tmp_path / "x").open("rb") as file, pytest.raises(ValueError, match="header"):
        list(pages(file, 0, 1))


def element(kind: int, body: bytes) -> bytes:
    return struct.pack("<II", kind, len(body)) + body + bytes(-len(body) % 8)


MAT_HEAD = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"


def matrix(number: int, dims: tuple[int, int], name: bytes, *rest: bytes) -> bytes:
    head = (
        element(6, struct.pack("<II", number, 0))
        + element(5, struct.pack("<ii", *dims))
        + element(1, name)
    )
    return element(14, head + b"".join(rest))


@pytest.mark.parametrize(
    "inner",
    [
        lambda: matrix(9, (1, 12_000_000), b"annotations", element(1, bytes(12_000_000))),
        lambda: matrix(1, (1, 1_500_000), b"annotations", element(14, b"") * 1_500_000),
        lambda: matrix(
            2,
            (1, 1),
            b"annotations",
            element(5, struct.pack("<i", 1)),
            element(1, b"a" * 12_000_000),
        ),
    ],
    ids=["numbers", "cells", "fields"],
)
def test_a_matlab_bomb_is_refused(tmp_path, inner):
    packed = zlib.compress(inner())
    (tmp_path / "x.mat").write_bytes(MAT_HEAD + struct.pack("<II", 15, len(packed)) + packed)
    tracemalloc.reset_peak()
    with pytest.raises(
        DataError, match=r"x\.mat: no MATLAB file that can be read \(.*(more than|bytes).*\): fetch"
    ):
        matlab.variable(tmp_path / "x.mat", "annotations")


def test_a_matlab_function_is_refused(tmp_path):
    number = matrix(6, (1, 1), b"", element(9, bytes(8)))
    inner = matrix(16, (1, 1), b"annotations", number)
    (tmp_path / "x.mat").write_bytes(MAT_HEAD + inner)
    with pytest.raises(DataError, match=r"x\.mat: .*\(it holds an object or a function\): fetch"):
        matlab.variable(tmp_path / "x.mat", "annotations")


def test_a_gzip_bomb_unpacks_no_more_than_it_declares(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(struct.pack(">IIII", 0x803, 10, 28, 28) + bytes(50_000_000)))
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    with pytest.raises(DataError, match="more bytes than the 7840 that it declares"):
        read_idx(path, 3, 10**9)
    assert tracemalloc.get_traced_memory()[1] - before < 4e6


def shard(path: Path) -> str:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as file:
        image = io.BytesIO()
        Image.new("RGB", (4, 4)).save(image, "PNG")
        info = tarfile.TarInfo("0.png")
        info.size = image.tell()
        image.seek(0)
        file.addfile(info, image)
    return str(path)


def test_an_index_beside_a_shard_that_is_none_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = shard(tmp_path / "a.tar")
    os.mkfifo(f"{path}.idx")
    with pytest.warns(UserWarning, match="a.tar.idx: not of this shard"):
        assert samples_of(path).names == [b"0.png"]
    Path(f"{path}.idx").unlink()
    Path(f"{path}.idx").symlink_to("/dev/zero")
    with pytest.warns(UserWarning, match="a.tar.idx: not of this shard"):
        assert samples_of(path).names == [b"0.png"]


@pytest.mark.parametrize("text", ["[" * 300_000, "[" + "[]," * 300_000 + "[]]", '{"a":' * 300_000])
def test_a_listing_of_brackets_is_refused_before_it_is_parsed(tmp_path, text):
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(DataError, match=r"index\.json: not a listing that `lookalike pack` wrote"):
        Shards(str(tmp_path)).split("train")


def test_a_hostfile_is_bounded_and_may_be_a_pipe(tmp_path):
    (tmp_path / "big").write_bytes(b"#" * (2 << 20))
    with pytest.raises(RunError, match="more than 1048576 bytes"):
        read_hosts(tmp_path / "big")
    handle, writer = os.pipe()
    os.write(writer, b"node1 slots=2\r\nnode2 slots=4\n")
    os.close(writer)
    assert [host.slots for host in read_hosts(f"/dev/fd/{handle}")] == [2, 4]
    os.close(handle)


def test_a_recipe_may_be_a_pipe_whose_writer_is_late(tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "_PATIENCE", 10)
    for late in (0.0, 0.3):
        handle, writer = os.pipe()
        threading.Timer(
            late,
            lambda w=writer: (os.write(w, b"{"), time.sleep(0.1), os.write(w, b"}"), os.close(w)),
        ).start()
        assert load(f"/dev/fd/{handle}", [], Recipe).plain() == {}
        os.close(handle)
    os.mkfifo(tmp_path / "named")
    threading.Timer(0.3, lambda: (tmp_path / "named").write_text("{}")).start()
    assert load(tmp_path / "named", [], Recipe).plain() == {}


def test_a_recipe_from_a_pipe_is_bounded_and_a_silent_one_is_given_up(tmp_path):
    handle, writer = os.pipe()
    with pytest.raises(RecipeError, match=r"nothing came out of for 0\.2 seconds"):
        load(f"/dev/fd/{handle}", [], Recipe)
    os.close(handle)
    os.close(writer)
    endless = subprocess.Popen(["yes"], stdout=subprocess.PIPE)
    with pytest.raises(RecipeError, match="over 64 KiB, shorten it"):
        load(f"/dev/fd/{endless.stdout.fileno()}", [], Recipe)
    endless.kill()
    endless.stdout.close()
    endless.wait()


def test_one_idx_file_for_both_sets_is_said(tmp_path):
    image = struct.pack(">IIII", 0x803, 2, 2, 2) + bytes(8)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(image)
    (tmp_path / "t10k-images-idx3-ubyte").symlink_to("train-images-idx3-ubyte")
    with pytest.warns(UserWarning, match="train-images and t10k-images are one file"):
        Idx(str(tmp_path)).split("train")


def test_a_packed_listing_with_a_shard_in_both_sets_is_said(tmp_path):
    entry = '[{"name": "a.tar", "bytes": 1, "crc32": 1}]'
    text = (
        f'{{"format": 1, "splits": {{"train": {entry}, "test": {entry}}}, '
        '"classes": {"train": [], "test": []}}'
    )
    (tmp_path / "index.json").write_text(text)
    with pytest.warns(
        UserWarning, match=r"1 of its shards are in both the train and the test set, first .*a\.tar"
    ):
        read_listing(str(tmp_path))
