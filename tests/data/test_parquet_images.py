"""Images inside Parquet files: the bytes that were put in come out, in any order, in any process,
whatever the file packs them by; and a file that claims too much is refused.
"""

import io
import itertools
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from lookalike.data import Manifest, cache
from lookalike.data.decode import BadImage
from lookalike.data.images import Reading
from lookalike.data.images.parquet import ParquetImages
from lookalike.data.loader import batches
from lookalike.data.order import order_of
from lookalike.data.tables import rowgroups, spool
from lookalike.data.tables.spool import Spool
from lookalike.errors import DataError
from lookalike.geometry import PixelFormat

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
READING = Reading(8, PixelFormat(3))
N = 60


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def png(seed: int, side: int = 12) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


FILES = [png(i, 12 + i % 5) for i in range(N)]


def written(path: Path, files=FILES, labels=None, kind="struct", **how) -> Path:
    """A Parquet file with these images, in row groups of seven."""
    if kind == "struct":
        rows = [
            None if data is None else {"bytes": data, "path": f"{i}.png"}
            for i, data in enumerate(files)
        ]
        column = pa.array(rows, STRUCT)
    else:
        column = pa.array(files, kind)
    labels = [str(i % 3) for i in range(len(files))] if labels is None else labels
    table = pa.table({"image": column, "label": labels})
    pq.write_table(table, path, **({"row_group_size": 7} | how))
    return path


PLAIN = {"compression": "none", "use_dictionary": False}
PACKED = {
    "as pandas does": {},
    "as datasets does": PLAIN | {"use_content_defined_chunking": True, "write_page_index": True},
    "plain": PLAIN,
    "plain, second version": PLAIN | {"data_page_version": "2.0"},
    "zstd": {"compression": "zstd"},
    "gzip": {"compression": "gzip", "use_dictionary": False},
    "deltas": {"use_dictionary": False, "column_encoding": "DELTA_LENGTH_BYTE_ARRAY"},
    "deltas, not compressed": PLAIN | {"column_encoding": "DELTA_LENGTH_BYTE_ARRAY"},
    "dictionary, not compressed": {"compression": "none"},
    "many pages": PLAIN | {"data_page_size": 1000, "write_batch_size": 2},
    "one row group": {"row_group_size": N},
    "bytes alone": {"kind": pa.binary()},
    "large": {"kind": pa.large_binary()},
}


@pytest.mark.parametrize("how", PACKED)
def test_every_image_is_the_bytes_that_were_put_in(tmp_path, how):
    leaf = "image" if "kind" in PACKED[how] else "image.bytes"
    images = ParquetImages([written(tmp_path / "a.parquet", **PACKED[how])], leaf, READING)
    order = np.random.default_rng(0).permutation(N).tolist()
    assert [images.contents(i) for i in order] == [FILES[i] for i in order]
    assert images.contents(-1) == FILES[-1]
    assert images.name(17) == f"{tmp_path}/a.parquet/17"
    with pytest.raises(IndexError):
        images.contents(N)


@pytest.mark.parametrize("how", ["plain", "as datasets does", "many pages"])
def test_what_is_not_compressed_is_read_where_it_lies(tmp_path, how):
    file = written(tmp_path / "a.parquet", **PACKED[how])
    images = ParquetImages([file], "image.bytes", READING)
    assert images.unpacked == 0
    assert [images.contents(i) for i in range(N)] == FILES
    held = sum(path.stat().st_size for path in spool.folder().iterdir())
    assert held < sum(map(len, FILES)) / 4


def test_equal_and_empty_images_and_rows_without_one(tmp_path):
    files = [FILES[0], FILES[0], b"", None, FILES[1], FILES[0]]
    for how in (PLAIN, {}):
        file = written(tmp_path / "a.parquet", files, **how)
        images = ParquetImages([file], "image.bytes", READING)
        for i, data in enumerate(files):
            if data:
                assert images.contents(i) == data
            else:
                reason = "empty" if data == b"" else "a row without an image"
                with pytest.raises(BadImage, match=rf"a\.parquet/{i}: {reason}"):
                    images.contents(i)
    written(tmp_path / "a.parquet", [None, None])
    with pytest.raises(DataError, match=r"a\.parquet: no row of image\.bytes holds an image"):
        ParquetImages([tmp_path / "a.parquet"], "image.bytes", READING)


def two(tmp_path, **how) -> ParquetImages:
    """The images in two files."""
    files = [tmp_path / f"{k}.parquet" for k in range(2)]
    for k, file in enumerate(files):
        written(file, FILES[30 * k : 30 * k + 30])
    return ParquetImages(files, "image.bytes", READING, **how)


@pytest.mark.parametrize("window", [False, True])
def test_two_workers_read_what_one_process_does(tmp_path, window):
    images = two(tmp_path)
    assert [images.contents(i) for i in range(N)] == FILES
    images.shuffle_by("window" if window else "auto", window=20)
    assert bool(images.windows) is window
    order = order_of(images, 6, 1, seed=3)
    read = {}
    for workers in (0, 2):
        how = {"first_step": 0, "last_step": 20, "rank": 0, "world": 1, "workers": workers}
        stream = batches(pickle.loads(pickle.dumps(images)), order, pin=False, **how)
        read[workers] = [(b.ids_B.tolist(), b.pixels.clone(), b.bad) for b in stream]
    for (one, pixels, bad), (other, its, none) in zip(*read.values(), strict=True):
        assert (one, bad, none) == (other, [], [])
        assert torch.equal(pixels, its)
    ids = list(itertools.chain.from_iterable(ids for ids, *_ in read[0]))
    assert sorted(ids[:N]) == sorted(ids[N:]) == list(range(N))
    assert ids[:N] != ids[N:]


def test_windows_are_used_where_more_is_unpacked_than_is_kept(tmp_path):
    file = written(tmp_path / "a.parquet")
    for gigabytes, exact in ((1.0, True), (1e-5, False)):
        images = ParquetImages([file], "image.bytes", READING, spool=Spool(gigabytes))
        images.shuffle_by("auto")
        assert (images.windows is None) is exact
    written(tmp_path / "a.parquet", **PLAIN)
    images = ParquetImages([file], "image.bytes", READING, spool=Spool(1e-5))
    images.shuffle_by("auto")
    assert images.windows is None


def test_the_cache_is_bounded_and_read_again(tmp_path):
    largest = max(group.unpacked for _, group in two(tmp_path)._groups)
    images = two(tmp_path, spool=Spool(3 * largest / 1e9))
    order = np.random.default_rng(0).permutation(N).tolist() * 3
    for i in order:
        images._open.clear()
        assert images.contents(i) == FILES[i]
        assert sum(path.stat().st_size for path in spool.folder().iterdir()) < 5 * largest
    with pytest.raises(DataError, match=r"data\.cache_gb: .* is less than one row group"):
        two(tmp_path, spool=Spool(largest / 2e9)).contents(0)


def test_a_torn_file_of_the_cache_is_made_again(tmp_path):
    images = two(tmp_path)
    assert images.contents(5) == FILES[5]
    (kept,) = spool.folder().iterdir()
    for damage in (kept.read_bytes()[:-9], b"", kept.read_bytes()[:-200] + bytes(200)):
        kept.write_bytes(damage)
        images._open.clear()
        assert images.contents(5) == FILES[5]
    data = bytearray(kept.read_bytes())
    data[images._handle(0)[1].offsets_N[5] + 20] ^= 1
    kept.write_bytes(data)
    images._open.clear()
    with pytest.raises(BadImage, match=r"0\.parquet/5: damaged: wrong crc32"):
        images.contents(5)


def test_a_cache_that_cannot_be_written_says_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(cache, "home", lambda: tmp_path / "file")
    with pytest.raises(DataError, match=r"not a directory; images of row groups .*XDG_CACHE_HOME"):
        two(tmp_path).contents(0)


def test_the_fingerprint_knows_the_images_and_the_rows(tmp_path):
    first = two(tmp_path).fingerprint
    assert two(tmp_path).fingerprint == first
    (tmp_path / "copy").mkdir()
    assert two(tmp_path / "copy").fingerprint == first
    some = two(tmp_path)
    some.keep(np.arange(N) % 2 > 0, some.annotations)
    assert some.fingerprint != first
    assert [some.contents(i) for i in range(len(some))] == FILES[1::2]
    other = [*FILES[:7], png(999), *FILES[8:30]]
    written(tmp_path / "0.parquet", other)
    images = two(tmp_path / "copy")
    written(tmp_path / "copy/0.parquet", other)
    changed = ParquetImages(
        [tmp_path / "copy/0.parquet", tmp_path / "copy/1.parquet"], "image.bytes", READING
    )
    assert changed.fingerprint != first
    assert changed.contents(7) == png(999)
    with pytest.raises(DataError, match=r"0\.parquet: was changed while it was read: start again"):
        images.contents(7)


def test_a_manifest_may_hold_its_images(tmp_path):
    labels = ["train", "test", "validation"] * 20
    table = pq.read_table(written(tmp_path / "a.parquet"))
    pq.write_table(table.append_column("split", [labels]), tmp_path / "a.parquet")
    source = Manifest(str(tmp_path / "a.parquet"), canvas=8)
    train, test = source.split("train"), source.split("test")
    assert [train.contents(i) for i in range(20)] == FILES[::3]
    assert [test.contents(i) for i in range(20)] == FILES[1::3]
    assert train.labels.tolist() == [0] * 20
    assert test.labels.tolist() == [1] * 20
    assert {one.why: one.number for one in source.inventory} == {"split validation": 20}
    read = train.read(3)
    with Image.open(io.BytesIO(FILES[9])) as image:
        whole = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert read.shape == (3, 8, 8)
    assert abs(read.float().mean() - whole.float().mean()) < 20


def test_paths_come_before_images_where_a_table_has_both(tmp_path):
    (tmp_path / "x.png").write_bytes(FILES[3])
    table = pa.table({"path": ["x.png"], "image": pa.array([{"bytes": FILES[0]}])})
    pq.write_table(table, tmp_path / "a.parquet")
    images = Manifest(str(tmp_path / "a.parquet"), test_fraction=0).split("train")
    assert images.contents(0) == FILES[3]


@pytest.mark.parametrize("how", [{"use_dictionary": False}, {}])
def test_a_row_group_that_unpacks_to_far_too_much_is_refused(tmp_path, how, monkeypatch):
    column = pa.array([bytes(2 << 20), *([bytes(1 << 20)] * 4)])
    pq.write_table(pa.table({"image": column}), tmp_path / "a.parquet", compression="zstd", **how)
    images = ParquetImages([tmp_path / "a.parquet"], "image", READING)
    monkeypatch.setattr(rowgroups, "_ROOM", 1 << 20)
    monkeypatch.setattr(rowgroups, "_values", None)  # nothing is unpacked
    with pytest.raises(DataError, match=r"a\.parquet: row group 0 unpacks .*100 times its bytes"):
        images.contents(0)
    monkeypatch.setattr(rowgroups, "_PAGE", 1000)
    with pytest.raises(DataError, match=r"a page of it to more than .*smaller row groups"):
        images.contents(0)


def test_a_dictionary_that_many_rows_name_is_kept_once_and_bounded(tmp_path, monkeypatch):
    words = pa.array([np.random.default_rng(0).bytes(50_000)])
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 200, pa.int32()), words)
    table = pa.table({"image": column.cast(pa.binary())})
    pq.write_table(table, tmp_path / "a.parquet")
    images = ParquetImages([tmp_path / "a.parquet"], "image", READING)
    assert images.contents(7) == images.contents(199) == words[0].as_py()
    (kept,) = spool.folder().iterdir()
    assert kept.stat().st_size < 60_000
    kept.unlink()
    images._open.clear()
    monkeypatch.setattr(rowgroups, "_GROUP", 1 << 20)
    with pytest.raises(DataError, match="the images of a row group are more than"):
        images.contents(0)


def test_a_damaged_file_is_refused_or_read(tmp_path):
    whole = written(tmp_path / "a.parquet", FILES[:14]).read_bytes()
    rng, refusals = np.random.default_rng(0), []
    for _ in range(60):
        data = bytearray(whole)
        for at in rng.integers(0, len(data), 3):
            data[at] = int(rng.integers(256))
        (tmp_path / "a.parquet").write_bytes(data)
        try:
            images = ParquetImages([tmp_path / "a.parquet"], "image.bytes", READING)
            for i in range(0, len(images), 7):
                images.contents(i)
        except (BadImage, DataError) as error:
            refusals.append(str(error))
    assert len(refusals) > 3
    assert "\n" not in "".join(refusals)
