"""Shards: the index is what tarfile says, reads are its bytes, and nothing that a tar may hold does
any harm.
"""

import gc
import io
import json
import os
import pickle
import shutil
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lookalike.data import Shards, cache
from lookalike.data.decode import BadImage, decode
from lookalike.data.order import order_of
from lookalike.data.webdataset import members, samples
from lookalike.data.webdataset.listing import braces
from lookalike.data.webdataset.samples import NO_LABEL, read_samples, samples_of
from lookalike.data.webdataset.tar import Damaged, entries
from lookalike.errors import DataError
from lookalike.geometry import PixelFormat
from toy import read_many


def image(i: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (12, 10), (i * 5 % 256, 60, 200 - i)).save(buffer, kind)
    return buffer.getvalue()


def member(name: str, **about) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in about.items():
        setattr(info, key, value)
    return info


def make(path: Path, members, form: int = tarfile.USTAR_FORMAT) -> Path:
    """A tar of (name or TarInfo, bytes)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members:
            info = member(name) if isinstance(name, str) else name
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def labelled(first: int, count: int, classes: int = 3):
    for i in range(first, first + count):
        yield f"{i:06d}.png", image(i)
        yield f"{i:06d}.cls", b"%d" % (i % classes)


def read(path: Path):
    with path.open("rb") as file:
        return read_samples(file, str(path))


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


LONG = "folder/" * 30 + "x" * 120
FORMS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


@pytest.mark.parametrize("form", FORMS)
def test_entries_are_those_of_tarfile(tmp_path, form):
    names = ["a.png", "d/e.f.png", "x" * 90 + "/" + "y" * 90 + ".png", "grün 猫.png"]
    names += [] if form == "ustar" else [LONG + ".png"]
    members = [(name, os.urandom(100 * i)) for i, name in enumerate(names)]
    members.insert(2, (member("sub", type=tarfile.DIRTYPE), b""))
    path = make(tmp_path / "t.tar", members, FORMS[form])
    with tarfile.open(path) as tar, path.open("rb") as file:
        wanted = [(m.name, m.offset_data, m.size) for m in tar.getmembers()]
        found = [(os.fsdecode(e.name).rstrip("/"), e.offset, e.size) for e in entries(file)]
    assert found == wanted


def test_a_size_in_base_256_and_signed_checksums_are_read(tmp_path):
    path = make(tmp_path / "t.tar", [("ä.png", b"12345"), ("b.png", b"x")])
    data = bytearray(path.read_bytes())
    data[124:136] = b"\x80" + (5).to_bytes(11, "big")
    data[148:156] = b"        "
    signed = sum(byte - 256 if byte > 127 else byte for byte in data[:512])
    data[148:156] = b"%06o\0 " % signed
    path.write_bytes(data)
    with path.open("rb") as file:
        assert [e.size for e in entries(file)] == [5, 1]


def test_samples_are_groups_by_key_whatever_their_order(tmp_path):
    path = make(
        tmp_path / "t.tar",
        [
            ("a/1.cls", b" 7\n"),
            ("b/1.json", b'{"label": 4, "text": "x"}'),
            ("a/1.JPG", b"jpg"),
            ("b/1.seg.png", b"mask"),
            ("b/1.webp", b"webp"),
            ("./c.png", b"png"),
            ("a/1.txt", b"ignored"),
            ("a/.hidden.png", b"ignored"),
            ("noname", b"ignored"),
        ],
    )
    found = read(path)
    assert found.names == [b"a/1.JPG", b"b/1.webp", b"./c.png"]
    assert found.labels_N.tolist() == [7, 4, NO_LABEL]
    data = path.read_bytes()
    wanted = [b"jpg", b"webp", b"png"]
    assert [data[o : o + s] for o, s in zip(found.offsets_N, found.sizes_N, strict=True)] == wanted
    assert found.ignored == {
        ".seg.png": 1,
        ".txt": 1,
        "name without a key": 1,
        "no suffix": 1,
        "sample without an image": 1,
    }
    assert found.examples["no suffix"] == "noname"


def test_what_is_dangerous_is_passed_over_and_counted_and_nothing_is_written(tmp_path):
    kinds = {
        "l": tarfile.SYMTYPE,
        "h": tarfile.LNKTYPE,
        "c": tarfile.CHRTYPE,
        "b": tarfile.BLKTYPE,
        "f": tarfile.FIFOTYPE,
    }
    members = [(member(f"{k}.png", type=t, linkname="/etc/passwd"), b"") for k, t in kinds.items()]
    members += [(name, image(1)) for name in ("../up.png", "/abs.png", "a/../../b.png", "ok.png")]
    bomb = b"cos\nsystem\n(S'touch owned'\ntR."
    members += [(f"ok.{suffix}", bomb) for suffix in ("pkl", "pyd", "pth", "npy")]
    make(tmp_path / "in/t.tar", members)
    before = sorted(tmp_path.rglob("*"))
    source = Shards(str(tmp_path / "in"), test_fraction=0)
    images = source.split("train")
    assert [images.name(i) for i in range(len(images))] == [f"{tmp_path}/in/t.tar/ok.png"]
    left = {each.why: (each.number, each.example) for each in source.inventory}
    assert left == {
        "link": (2, f"{tmp_path}/in/t.tar/l.png"),
        "device": (3, f"{tmp_path}/in/t.tar/c.png"),
        "name out of the shard": (3, f"{tmp_path}/in/t.tar/../up.png"),
        **{f".{s}": (1, f"{tmp_path}/in/t.tar/ok.{s}") for s in ("pkl", "pyd", "pth", "npy")},
    }
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("owned").exists()


def test_of_two_members_of_one_name_the_first_counts(tmp_path):
    path = make(
        tmp_path / "t.tar",
        [
            ("a.png", b"first"),
            ("a.png", b"second"),
            ("a.jpg", b"x"),
            ("a.cls", b"1"),
            ("a.cls", b"2"),
        ],
    )
    found = read(path)
    assert (found.names, found.sizes_N.tolist(), found.labels_N.tolist()) == ([b"a.png"], [5], [1])
    assert found.ignored == {"names again": 2, "more images": 1}


@pytest.mark.parametrize(
    "text",
    [
        b"-1",
        b"x\ny",
        b"",
        b"1.5",
        b"9" * 30,
        b"1000000",
        b"\xff",
        b"[" * 50_000,
        b'{"label": true}',
        b'{"label": -1}',
        b"x" * 300,
    ],
)
def test_a_label_that_is_none_is_counted(tmp_path, text):
    path = make(
        tmp_path / "t.tar", [("a.png", b"x"), ("a.cls", text), ("b.png", b"x"), ("b.json", text)]
    )
    assert read(path).labels_N.tolist() == [NO_LABEL] * 2
    assert read(path).ignored == {".cls without a label": 1, ".json without a label": 1}


def test_a_torn_shard_is_refused_wherever_it_is_torn(tmp_path):
    whole = make(tmp_path / "w.tar", labelled(0, 3), tarfile.PAX_FORMAT).read_bytes()
    with tarfile.open(tmp_path / "w.tar") as tar:
        end = tar.getmembers()[-1].offset_data + 512
    torn = tmp_path / "torn.tar"
    for length in [*range(0, end, 97), end]:
        torn.write_bytes(whole[:length])
        with pytest.raises(
            DataError, match=r"torn\.tar: byte \d+: .*: fetch or pack the shard again"
        ):
            read(torn)
    torn.write_bytes(whole[: end + 512])
    assert len(read(torn).names) == 3


def test_damage_in_a_header_names_the_byte(tmp_path):
    path = make(tmp_path / "t.tar", labelled(0, 3))
    with tarfile.open(path) as tar:
        at = tar.getmembers()[2].offset
    data = bytearray(path.read_bytes())
    data[at + 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"t\.tar: byte {at}: no tar header"):
        read(path)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"99 path=x\n", "damaged extended header"),
        (b"x path=x\n", "damaged extended header"),
        (b"0 path=x\n", "damaged extended header"),
        (b"10 path=x.", "damaged extended header"),
        (b"12 size=-12\n", "its size is not a number"),
        (b"28 size=99999999999999999999\n"[:28] + b"\n", "header"),
        (bytes(1 << 20) + b"x", "more than the 1048576 allowed"),
    ],
)
def test_corrupt_and_huge_extended_headers_are_refused(tmp_path, body, reason):
    path = make(tmp_path / "t.tar", [(member("pax", type=tarfile.XHDTYPE), body), ("a.png", b"x")])
    with path.open("rb") as file, pytest.raises(Damaged, match=reason):
        list(entries(file))


def test_a_declared_size_beyond_the_file_is_refused_before_it_is_read(tmp_path):
    path = make(tmp_path / "t.tar", [("a.png", b"x")])
    data = bytearray(path.read_bytes())
    data[124:136] = b"\x80" + (1 << 60).to_bytes(11, "big")
    data[148:156] = b"        "
    data[148:156] = b"%06o\0 " % sum(data[:512])
    path.write_bytes(data)
    with pytest.raises(
        DataError, match=r"byte 0: .*1152921504606846976 bytes: the file is cut short"
    ):
        read(path)


def test_compressed_shards_and_too_many_members_say_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "z.tar").write_bytes(b"\x1f\x8b" + bytes(2000))
    with pytest.raises(DataError, match=r"byte 0: compressed: unpack it first"):
        read(tmp_path / "z.tar")
    monkeypatch.setattr(members, "MOST", 5)
    with pytest.raises(DataError, match=r"more than 5 members: make smaller shards"):
        read(make(tmp_path / "t.tar", labelled(0, 3)))


# ---- images


@pytest.fixture
def two(tmp_path) -> Path:
    make(tmp_path / "s/part-000.tar", labelled(0, 10))
    make(tmp_path / "s/part-001.tar", labelled(10, 7))
    return tmp_path / "s"


def test_reads_are_the_bytes_that_tarfile_gives_in_any_order(two):
    images = Shards(str(two), canvas=8, test_fraction=0).split("train")
    wanted = {}
    for path in sorted(two.glob("*.tar")):
        with tarfile.open(path) as tar:
            wanted |= {f"{path}/{m.name}": tar.extractfile(m).read() for m in tar.getmembers()}
    assert len(images) == 17
    for i in reversed(range(17)):
        assert images.contents(i) == wanted[images.name(i)]
        assert torch.equal(
            images.read(i), decode(wanted[images.name(i)], "", size=8, form=PixelFormat(3))
        )
        assert images.labels[i] == i % 3
    assert images.classes == ("0", "1", "2")
    again = pickle.loads(pickle.dumps(images))
    assert again.contents(16) == images.contents(16)
    assert again.fingerprint == images.fingerprint
    with pytest.raises(IndexError):
        images.contents(17)


def test_a_flipped_byte_is_a_bad_image_that_names_shard_and_byte_and_is_replaced(two):
    source = Shards(str(two), canvas=8, test_fraction=0)
    images = source.split("train")
    healthy, none = read_many(images, range(17), seed=1)
    assert none == []
    at = int(images._offsets_N[12])
    data = bytearray((two / "part-001.tar").read_bytes())
    data[at + 40] ^= 1
    (two / "part-001.tar").write_bytes(data)
    found, (bad,) = read_many(images, range(17), seed=1)
    assert bad.sample == 12
    assert bad.path == f"{two}/part-001.tar/000012.png"
    assert f"wrong crc32 of {len(image(12))} bytes at byte {at}" in bad.reason
    assert torch.equal(found[12], healthy[bad.replacement])
    assert torch.equal(found[torch.arange(17) != 12], healthy[torch.arange(17) != 12])
    assert read_many(images, [12], seed=1)[1] == [bad]


def test_an_empty_member_and_a_shard_cut_after_indexing_are_bad_images(tmp_path):
    path = make(tmp_path / "s/t.tar", [("a.png", b""), ("b.png", image(1)), ("c.png", image(2))])
    images = Shards(str(tmp_path / "s"), test_fraction=0).split("train")
    with pytest.raises(BadImage, match=r"t\.tar/a\.png: empty file"):
        images.read(0)
    os.truncate(path, int(images._offsets_N[2]) + 5)
    with pytest.raises(BadImage, match=r"5 of \d+ bytes at byte \d+ of its shard: cut short"):
        images.read(2)
    path.unlink()
    fresh = pickle.loads(pickle.dumps(images))
    with pytest.raises(BadImage, match="No such file"):
        fresh.read(1)


def test_descriptors_are_bounded_and_do_not_leak(tmp_path, monkeypatch):
    for i in range(12):
        make(tmp_path / f"s/{i:02d}.tar", labelled(i, 1))
    monkeypatch.setattr("lookalike.data.images.shards._OPEN", 4)
    gc.collect()  # what earlier tests left open would close meanwhile
    before = descriptors()
    images = Shards(str(tmp_path / "s"), test_fraction=0).split("train")  # looks into headers
    for i in (*range(12), *range(12)):
        images.contents(i)
        assert descriptors() <= before + 4
    del images
    assert descriptors() == before


def test_reads_go_on_in_a_forked_process_and_do_not_disturb_each_other(two):
    images = Shards(str(two), test_fraction=0).split("train")
    wanted = [images.contents(i) for i in range(17)]
    child = os.fork()
    if not child:
        os._exit(0 if [images.contents(i) for i in range(17)] == wanted else 1)
    assert [images.contents(i) for i in reversed(range(17))] == wanted[::-1]
    assert os.waitpid(child, 0)[1] == 0


# ---- splits, labels, order


def test_splits(tmp_path):
    for i, name in enumerate(("train/a", "train/b", "val/c", "more/d")):
        make(tmp_path / f"{name}.tar", labelled(5 * i, 5, classes=5 - (i > 1)))
    train, test = (Shards(str(tmp_path)).split(split) for split in ("train", "test"))
    assert (len(train), len(test)) == (10, 5)
    assert train.classes == test.classes == tuple("01234")
    named = Shards(str(tmp_path / "train/{a,b}.tar"), test=str(tmp_path / "more/*.tar"))
    assert named.split("train").fingerprint == train.fingerprint
    assert len(named.split("test")) == 5
    assert len(Shards(str(tmp_path / "*/[ab].tar"), test_fraction=0).split("train")) == 10


def test_a_hash_splits_what_is_one_set(tmp_path):
    for i in range(3):
        make(tmp_path / f"s/{i}.tar", labelled(100 * i, 60))
    train, test = (Shards(str(tmp_path / "s")).split(split) for split in ("train", "test"))
    assert len(train) + len(test) == 180
    assert 15 < len(test) < 60
    assert not {train.name(i) for i in range(len(train))} & {test.name(i) for i in range(len(test))}
    for images in (train, test):
        for i in range(len(images)):
            assert int(images.name(i)[-10:-4]) % 3 == images.labels[i]
            images.contents(i)
    kept = Shards(str(tmp_path / "s/{0,1}.tar")).split("test")
    assert {kept.name(i) for i in range(len(kept))} <= {test.name(i) for i in range(len(test))}


def test_labels_are_all_or_none(tmp_path):
    make(tmp_path / "s/0.tar", [*labelled(0, 3), ("9.png", image(9))])
    with pytest.warns(
        UserWarning, match=r"1 samples have no label, first .*0\.tar/9\.png: all go without"
    ):
        assert Shards(str(tmp_path / "s"), test_fraction=0).split("train").labels is None
    make(tmp_path / "t/0.tar", labelled(0, 3))
    assert Shards(str(tmp_path / "t"), test_fraction=0, labels="none").split("train").labels is None


def test_windows_are_asked_for_or_for_far_shards(two):
    assert Shards(str(two), test_fraction=0).split("train").windows is None
    images = Shards(str(two), test_fraction=0, shuffle="window", window=4).split("train")
    assert images.windows.sizes_S.tolist() == [10, 7]
    order = order_of(images, 17, 1, 0)
    assert sorted(order.ids(0, 0).tolist()) == list(range(17))
    assert order.windows is images.windows


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("none", "none: no such file"),
        ("none/*.tar", "no .tar files there"),
        ("a.tar", "no such file"),
    ],
)
def test_shards_that_are_not_there(tmp_path, path, part):
    with pytest.raises(DataError, match=part):
        Shards(str(tmp_path / path)).split("train")


def test_braces_are_a_shells():
    assert braces("a{000..002}.tar") == ["a000.tar", "a001.tar", "a002.tar"]
    assert braces("a{8..11}") == ["a8", "a9", "a10", "a11"]
    assert braces("{3..1}") == ["3", "2", "1"]
    assert braces("{a,b}/{08..09}") == ["a/08", "a/09", "b/08", "b/09"]
    assert braces("plain{1}.tar") == ["plain{1}.tar"]
    with pytest.raises(DataError, match="more than 1,000,000 shards"):
        braces("{0..999999999}{0..9}")


def test_the_fingerprint_changes_with_the_images_and_not_with_the_place(two, tmp_path):
    def seen(folder: Path) -> str:
        return Shards(str(folder), test_fraction=0).split("train").fingerprint

    prints = [seen(two)]
    shutil.copytree(two, tmp_path / "copy")
    assert seen(tmp_path / "copy") == prints[0]
    for other in (
        [*labelled(10, 6), ("000016.png", image(17)), ("000016.cls", b"1")],  # replaced
        list(labelled(10, 6)),
        list(labelled(10, 8)),
        [*labelled(10, 6), ("000016.png", image(16)), ("000016.cls", b"2")],
        [*labelled(10, 6), ("000017.png", image(16)), ("000017.cls", b"1")],
    ):
        make(two / "part-001.tar", other)
        prints.append(seen(two))
    assert len(set(prints)) == 6


# ---- the kept index


@pytest.fixture
def settled(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(samples, "_SETTLED", -(2**62))


def same(one, two) -> bool:
    arrays = all(np.array_equal(one[k], two[k]) for k in range(1, 5))
    return one.names == two.names and arrays and one.ignored == two.ignored


def test_a_shard_is_read_once_until_it_changes(tmp_path, settled, monkeypatch):
    path = make(tmp_path / "t.tar", [*labelled(0, 5), ("x.pkl", b"")])
    first, calls = samples_of(str(path)), []
    monkeypatch.setattr(samples, "read_samples", lambda *a: calls.append(a) or read_samples(*a))
    assert same(samples_of(str(path)), first)
    assert calls == []
    time.sleep(0.02)
    stamp = path.stat().st_mtime_ns
    make(path, [*labelled(1, 5), ("x.pkl", b"")])
    os.utime(path, ns=(stamp, stamp))
    assert samples_of(str(path)).names[0] == b"000001.png"
    assert len(calls) == 1
    for kept in (p for p in cache.home().iterdir() if p.suffix != ".lock"):
        kept.write_bytes(kept.read_bytes()[:-3])
    assert samples_of(str(path)).names[0] == b"000001.png"
    assert len(calls) == 2


def test_an_index_beside_the_shard_is_taken_if_it_is_whole_and_possible(tmp_path, monkeypatch):
    path = make(tmp_path / "t.tar", labelled(0, 5))
    found = samples_of(str(path))
    size = path.stat().st_size
    beside = Path(f"{path}.idx")
    beside.write_bytes(
        cache.seal(samples.parts(found._replace(labels_N=found.labels_N + 1), {"bytes": size}))
    )
    assert samples_of(str(path)).labels_N.tolist() == [1, 2, 3, 1, 2]
    impossible = [
        samples.parts(found, {"bytes": size + 1}),
        samples.parts(found._replace(offsets_N=found.offsets_N + size), {"bytes": size}),
        samples.parts(found._replace(sizes_N=-found.sizes_N), {"bytes": size}),
        samples.parts(found._replace(names=found.names[1:]), {"bytes": size}),
        samples.parts(found._replace(labels_N=found.labels_N + 10**9), {"bytes": size}),
        [b"[" * 10**5, *samples.parts(found, {})[1:]],
        [json.dumps({"bytes": size}).encode()],
    ]
    for data in (b"", b"torn", *map(cache.seal, impossible)):
        beside.write_bytes(data)
        with pytest.warns(UserWarning, match=r"t\.tar\.idx: not of this shard"):
            assert same(samples_of(str(path)), found)
