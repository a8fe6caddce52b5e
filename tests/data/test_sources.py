"""The laws of sources and images: exact contents, stable splits and order, one helpful line a
fault.
"""

import gzip
import hashlib
import inspect
import os
import pickle
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from lookalike.data import SOURCES, Digits, Folder, Idx
from lookalike.data.decode import BadImage, contents, decode
from lookalike.data.images import Annotations, ArrayImages, FileImages, Reading, subset
from lookalike.errors import DataError
from lookalike.geometry import PixelFormat

IMAGE_BYTES = b"no image, and never opened"


def fill(root: Path, *paths: str, data: bytes = IMAGE_BYTES) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


def names(images) -> list[str]:
    return [images.name(i) for i in range(len(images))]


def below(root: Path, images) -> list[str]:
    return [Path(name).relative_to(root).as_posix() for name in names(images)]


def whole(root: Path, **options):
    """All of a folder as one train set."""
    return Folder(str(root), test_fraction=0, **options).split("train")


def complaint(source, split: str = "train") -> str:
    with pytest.raises(DataError) as caught:
        source.split(split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- every source


def test_sources_are_their_recipe_schema():
    published = ["cub", "cars196", "sop", "in_shop", "market1501", "duke_mtmc", "msmt17", "lfw"]
    wanted = ["digits", "idx", "folder", "shards", "video", "manifest", "hf", "masks", *published]
    assert list(SOURCES) == wanted
    for source in SOURCES.values():
        assert source.__doc__
        parameters = list(inspect.signature(source).parameters.values())
        assert parameters
        assert all(parameter.annotation is not inspect.Parameter.empty for parameter in parameters)


def test_a_constructor_touches_no_file(tmp_path):
    Folder(str(tmp_path / "none"))
    Idx(str(tmp_path / "none"))


@pytest.mark.parametrize("name", ["val", "", "Train"])
def test_a_split_is_train_or_test(tmp_path, name):
    write_idx(tmp_path)
    fill(tmp_path, "a/1.png", "b/1.png")
    for source in (Digits(), Idx(str(tmp_path)), Folder(str(tmp_path))):
        with pytest.raises(ValueError, match="train or test"):
            source.split(name)


# ---- digits


def test_digits_are_sklearns():
    reference = load_digits()
    seen = set()
    for split in ("train", "test"):
        digits = Digits().split(split)
        assert digits.classes == tuple("0123456789")
        assert digits.shape == (1, 8, 8)
        for i, name in enumerate(names(digits)):
            row = int(name.removeprefix("digits/"))
            seen.add(row)
            assert digits.labels[i] == reference.target[row]
            expected = [
                [round(value * 255 / 16) for value in line] for line in reference.images[row]
            ]
            assert digits.read(i).tolist() == [expected]
    assert seen == set(range(1797))


def test_digits_split_is_disjoint_stratified_and_always_the_same():
    train, test = (Digits().split(split) for split in ("train", "test"))
    assert not set(names(train)) & set(names(test))
    counts = np.bincount(load_digits().target)
    assert test.labels.bincount().tolist() == [round(0.2 * count) for count in counts]
    assert hashlib.sha256(" ".join(names(test)).encode()).hexdigest()[:16] == "b4b660cece24a150"
    assert Digits().split("test").fingerprint == test.fingerprint != train.fingerprint
    assert len(Digits(test_fraction=0.5).split("test")) == pytest.approx(1797 / 2, abs=5)


# ---- idx


def idx_bytes(array: np.ndarray) -> bytes:
    return (
        bytes((0, 0, 8, array.ndim))
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


def some_arrays(count: int = 7) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(count)
    return draw.integers(0, 256, (count, 5, 4)).astype(np.uint8), (np.arange(count) % 4).astype(
        np.uint8
    )


def write_idx(
    folder: Path, prefix: str = "train", count: int = 7, dot: str = "-", zipped: bool = True
) -> None:
    for kind, array in zip(("images", "labels"), some_arrays(count), strict=True):
        data, name = idx_bytes(array), f"{prefix}-{kind}{dot}idx{array.ndim}-ubyte"
        (folder / (name + ".gz" * zipped)).write_bytes(gzip.compress(data) if zipped else data)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dot", ["-", "."])
def test_idx_is_numpys_array(tmp_path, dot, zipped):
    write_idx(tmp_path, "train", 7, dot, zipped)
    write_idx(tmp_path, "t10k", 3, dot, zipped)
    for split, count in (("train", 7), ("test", 3)):
        images = Idx(str(tmp_path)).split(split)
        array, labels = some_arrays(count)
        assert torch.equal(images.read_many(range(count)), torch.from_numpy(array)[:, None])
        assert images.labels.tolist() == labels.tolist()
        assert images.labels.dtype == torch.int64
        assert images.classes == (
            "0",
            "1",
            "2",
            "3",
        )  # the same in both, though the test set has three
        assert images.shape == (1, 5, 4)
        assert images.name(2) == f"{tmp_path.name}/{split}/2"


def test_idx_without_labels(tmp_path):
    write_idx(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    images = Idx(str(tmp_path)).split("train")
    assert images.labels is None
    assert images.classes == ()


GOOD = idx_bytes(some_arrays()[0])
MALFORMED = {
    "magic": (b"\1" + GOOD[1:], "not an idx file of 3-dimensional bytes"),
    "floats": (GOOD[:2] + b"\x0d" + GOOD[3:], "not an idx file"),
    "dimensions": (GOOD[:3] + b"\1" + GOOD[4:], "not an idx file"),
    "empty": (b"", "not an idx file"),
    "header": (GOOD[:10], "cut short in its header"),
    "short": (GOOD[:-1], "cut short: fewer bytes than the 140 that it declares"),
    "long": (GOOD + b"\0", "more bytes than the 140 that it declares"),
    "none": (idx_bytes(np.zeros((0, 5, 4), np.uint8)), "declares (0, 5, 4), 0 bytes"),
    "huge": (GOOD[:4] + struct.pack(">3I", *[2**32 - 1] * 3), "allowed"),
    "capped": (idx_bytes(np.zeros((11, 10, 10), np.uint8)), "1 to 1000 (max_bytes) are allowed"),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("case", list(MALFORMED))
def test_malformed_idx_names_the_file(tmp_path, case, zipped):
    data, part = MALFORMED[case]
    path = tmp_path / ("train-images-idx3-ubyte" + ".gz" * zipped)
    path.write_bytes(gzip.compress(data) if zipped else data)
    message = complaint(Idx(str(tmp_path), max_bytes=1000))
    assert message.startswith(f"{path}: ")
    assert part in message
    assert message.endswith("fetch the file again")


@pytest.mark.parametrize(
    "damage", [lambda z: z[:-9], lambda z: b"<html>" + z, lambda z: z[:-8] + bytes(8)]
)
def test_damaged_gzip_names_the_file(tmp_path, damage):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(gzip.compress(GOOD)))
    assert complaint(Idx(str(tmp_path))).startswith(f"{path}: ")


def test_idx_counts_must_agree(tmp_path):
    write_idx(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(
        gzip.compress(idx_bytes(np.zeros(6, np.uint8)))
    )
    assert "6 labels for the 7 images of train-images-idx3-ubyte.gz" in complaint(
        Idx(str(tmp_path))
    )


@pytest.mark.parametrize("declared", [(1, 2, 2), (1_900, 1_000, 1_000)])
def test_idx_bomb_is_not_unpacked(tmp_path, declared):
    """Both ways: 300 MB packed behind a small declaration, and 1.9 GB declared with 1 MB behind
    it.
    """
    with gzip.open(tmp_path / "train-images-idx3-ubyte.gz", "wb", compresslevel=1) as file:
        file.write(GOOD[:4] + struct.pack(">3I", *declared))
        for _ in range(300 if declared[0] == 1 else 1):
            file.write(bytes(1 << 20))
    tracemalloc.start()
    message = complaint(Idx(str(tmp_path)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "bytes than the" in message
    assert peak < 8 << 20


def test_idx_absent_says_how_to_get_it(tmp_path):
    write_idx(tmp_path)
    for source, split, part in (
        (Idx(str(tmp_path / "none")), "train", "none: no such folder"),
        (Idx(str(fill(tmp_path, "file") / "file")), "train", "file: a file, not a folder"),
        (Idx(str(tmp_path)), "test", "no t10k-images-idx3-ubyte or .gz in it"),
    ):
        message = complaint(source, split)
        assert part in message
        assert "apt-get install dataset-fashion-mnist" in message


# ---- folder


TREE = (
    "cat/10.png",
    "cat/9.JPG",
    "cat/deep/er/x.webp",
    "dog/a.TIFF",
    "dog/b.jpeg",
    "emu/z.gif",
    "emu/y.bmp",
)


def test_class_folders(tmp_path):
    images = whole(
        fill(tmp_path, *TREE, "dog/notes.txt", "dog/.hidden.png", ".cache/a.png", "dog/jpg")
    )
    assert below(tmp_path, images) == sorted(TREE)
    assert images.classes == ("cat", "dog", "emu")
    assert [images.classes[label] for label in images.labels] == [name[:3] for name in sorted(TREE)]
    assert images.shape == (3, 256, 256)


def test_order_is_of_names_and_not_of_creation(tmp_path):
    first, second = fill(tmp_path / "1", *TREE), fill(tmp_path / "2", *reversed(TREE))
    assert below(first, whole(first)) == below(second, whole(second))
    assert whole(first).fingerprint == whole(second).fingerprint


def test_order_does_not_follow_the_file_system(tmp_path, monkeypatch):
    expected = names(whole(fill(tmp_path, *TREE)))
    listed = os.scandir

    class Backwards:
        def __init__(self, path):
            self.entries = sorted(listed(path), key=lambda entry: entry.name, reverse=True)

        def __enter__(self):
            return self.entries

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(os, "scandir", Backwards)
    assert names(whole(tmp_path)) == expected


def test_no_image_is_opened_when_indexing_to_a_depth_that_is_said(tmp_path, monkeypatch):
    fill(tmp_path, *TREE)

    def forbidden(*_, **__):
        raise AssertionError("opened")

    def guarded(path, *arguments, **how):
        return forbidden() if str(tmp_path) in str(path) else original(path, *arguments, **how)

    original = open
    monkeypatch.setattr("lookalike.data.images.encoded.Opened", forbidden)
    monkeypatch.setattr("builtins.open", guarded)
    assert len(whole(tmp_path, depth="uint8")) == len(TREE)


@pytest.mark.parametrize(
    ("paths", "auto", "folders"),
    [
        (("a/1.png", "b/1.png"), ("a", "b"), ("a", "b")),
        (("a/1.png", "a/2.png"), (), ("a",)),
        (("1.png", "2.png"), (), None),
        (("1.png", "a/1.png", "b/1.png"), (), None),
        (("a/1.png", "b/1.txt"), (), ("a",)),
    ],
)
def test_when_a_folder_is_labelled(tmp_path, paths, auto, folders):
    fill(tmp_path, *paths)
    assert whole(tmp_path).classes == auto
    assert (whole(tmp_path).labels is None) == (auto == ())
    assert whole(tmp_path, labels="none").labels is None
    if folders is None:
        message = complaint(Folder(str(tmp_path), labels="folders"))
        assert "1.png: in no class folder; move it" in message
    else:
        assert whole(tmp_path, labels="folders").classes == folders


def test_train_and_test_folders(tmp_path):
    fill(
        tmp_path, "train/b/1.png", "train/d/1.png", "test/a/1.png", "test/d/1.png", "other/c/1.png"
    )
    train, test = (Folder(str(tmp_path)).split(split) for split in ("train", "test"))
    assert train.classes == ("b", "d")
    assert test.classes == ("b", "d", "a")
    assert test.labels.tolist() == [2, 1]
    assert below(tmp_path, test) == ["test/a/1.png", "test/d/1.png"]
    other = Folder(str(tmp_path), train="other", test="train", labels="folders")
    assert other.split("test").classes == ("c", "b", "d")


def test_a_test_folder_without_classes_is_unlabelled(tmp_path):
    fill(tmp_path, "train/a/1.png", "train/b/1.png", "test/1.png")
    assert Folder(str(tmp_path)).split("test").labels is None


def test_val_stands_in_for_test(tmp_path):
    fill(tmp_path, "train/1.png", "val/2.png")
    assert below(tmp_path, Folder(str(tmp_path)).split("test")) == ["val/2.png"]
    assert "holdout: no such folder; add" in complaint(
        Folder(str(tmp_path), test="holdout"), "test"
    )
    fill(tmp_path, "test/3.png")
    assert below(tmp_path, Folder(str(tmp_path)).split("test")) == ["test/3.png"]


def test_one_folder_splits_by_name_alone(tmp_path):
    paths = [f"{'ab'[i % 2]}/{i}.png" for i in range(300)]
    fill(tmp_path / "1", *paths)
    fill(tmp_path / "2", *paths, *(f"0/{i}.png" for i in range(30)))  # sorted before the rest
    train, test = (
        below(tmp_path / "1", Folder(str(tmp_path / "1")).split(s)) for s in ("train", "test")
    )
    assert sorted(train + test) == sorted(paths)
    assert not set(train) & set(test)
    assert 35 < len(test) < 85
    grown = below(tmp_path / "2", Folder(str(tmp_path / "2")).split("test"))
    assert [name for name in grown if name[0] != "0"] == test
    for split in ("train", "test"):
        assert Folder(str(tmp_path / "2")).split(split).classes == ("0", "a", "b")


def test_an_empty_split_is_refused(tmp_path):
    message = complaint(Folder(str(fill(tmp_path, *TREE)), test_fraction=0), "test")
    assert "none of its 7 images is in the test set; add images, or change test_fraction" in message


def test_links(tmp_path):
    fill(tmp_path, "out/secret.png", "in/a/1.png", "in/b/2.png", "in/store/blob")
    root = tmp_path / "in"
    (root / "a/same.png").symlink_to(root / "b/2.png")
    (root / "a/blob.png").symlink_to("../store/blob")
    (root / "a/outside.png").symlink_to(tmp_path / "out/secret.png")
    (root / "a/up.png").symlink_to("../../out/secret.png")
    (root / "a/dangling.png").symlink_to("nowhere.png")
    (root / "a/loop.png").symlink_to("loop.png")
    (root / "a/folder.png").symlink_to(root / "b")
    (root / "again").symlink_to(root)
    inside = ["a/1.png", "a/blob.png", "a/same.png", "b/2.png"]
    assert below(root, whole(root, links="inside")) == inside
    assert below(root, whole(root)) == sorted([*inside, "a/outside.png", "a/up.png"])
    (tmp_path / "in-sibling").mkdir()
    fill(tmp_path, "in-sibling/x.png")
    (root / "a/prefix.png").symlink_to(tmp_path / "in-sibling/x.png")
    (tmp_path / "door").symlink_to(root)
    for door in (root, tmp_path / "door"):
        assert len(whole(door, links="inside")) == 4
        assert len(whole(door)) == 7


def test_pipes_and_folders_named_like_images_are_skipped(tmp_path):
    fill(tmp_path, "a/1.png", "b.png/2.png")
    os.mkfifo(tmp_path / "a/pipe.png")
    assert below(tmp_path, whole(tmp_path)) == ["a/1.png", "b.png/2.png"]


def test_names_of_any_bytes(tmp_path):
    odd = [b"a/\xff\xfe.png", "b/grün 猫.png".encode(), b"b/line\nbreak.png", b"b/\x80.JPG"]
    fill(tmp_path, "a/x.png", "b/x.png")
    for path in odd:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + path)).write_bytes(IMAGE_BYTES)
    images = pickle.loads(pickle.dumps(whole(tmp_path)))
    found = [os.fsencode(name).removeprefix(os.fsencode(tmp_path) + b"/") for name in names(images)]
    assert found == sorted([*odd, b"a/x.png", b"b/x.png"])
    assert len(images.fingerprint) == 64
    with pytest.raises(BadImage, match="not a JPEG") as caught:
        images.read(1)
    assert os.fsencode(caught.value.path).endswith(b"/a/\xff\xfe.png")
    str(caught.value).encode()


def test_the_fingerprint_is_of_names_and_sizes(tmp_path):
    fill(tmp_path, *TREE)
    seen = [whole(tmp_path).fingerprint]
    os.utime(tmp_path / TREE[0], (1, 1))
    assert whole(tmp_path).fingerprint == seen[0]
    for change in (
        lambda: fill(tmp_path, "cat/new.png"),
        lambda: (tmp_path / "cat/new.png").write_bytes(IMAGE_BYTES + b"!"),
        lambda: (tmp_path / "cat/new.png").rename(tmp_path / "cat/newer.png"),
        lambda: (tmp_path / TREE[0]).unlink(),
    ):
        change()
        seen.append(whole(tmp_path).fingerprint)
    assert len(set(seen)) == 5
    (tmp_path / "cat/newer.png").unlink()
    fill(tmp_path, TREE[0])
    assert whole(tmp_path).fingerprint == seen[0]


def test_folders_that_cannot_be_used(tmp_path):
    fill(tmp_path, "file.png", "text/a.txt")
    assert "none: no such folder; give the folder" in complaint(Folder(str(tmp_path / "none")))
    assert "file.png: a file, not a folder; give" in complaint(Folder(str(tmp_path / "file.png")))
    message = complaint(Folder(str(tmp_path / "text")))
    assert "no images in it or below (left out 1: 1 × .txt (a.txt)); looked for .jpg" in message


def test_a_locked_folder_is_named(tmp_path):
    (fill(tmp_path, "a/1.png", "b/1.png") / "a").chmod(0)
    locked = not os.access(tmp_path / "a", os.R_OK)
    message = complaint(Folder(str(tmp_path))) if locked else None
    (tmp_path / "a").chmod(0o700)
    if message is None:
        pytest.skip("this user reads everything")
    assert "/a/: permission denied; check that it exists and that you may read it" in message


def test_a_refusal_to_list_is_a_data_error(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert "permission denied; check that it exists" in complaint(Folder(str(tmp_path)))


# ---- images


def test_file_images_read_what_decode_gives(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype(np.uint8)
    for name in ("a/1.png", "b/2.png"):
        Image.fromarray(image[:: 1 if name[0] == "a" else -1]).save(fill(tmp_path, name) / name)
    for channels in (1, 3):
        images = whole(tmp_path, canvas=16, channels=channels)
        for i, name in enumerate(("a/1.png", "b/2.png")):
            expected = decode(contents(tmp_path / name), name, size=16, form=PixelFormat(channels))
            assert torch.equal(images.read(i), expected)
            assert images.read(i).shape == images.shape == (channels, 16, 16)
    with pytest.raises(IndexError):
        images.read(2)
    (tmp_path / "a/1.png").unlink()
    with pytest.raises(BadImage, match="No such file"):
        images.read(0)
    assert len(images.fingerprint) == 64


def test_a_hundred_thousand_paths_are_compact():
    paths = [b"class%03d/image%08d.jpg" % (i % 100, i) for i in range(100_000)]
    labels = torch.zeros(len(paths), dtype=torch.int64)
    images = FileImages("/data", paths, Reading(32, PixelFormat(3)), Annotations(labels, ("c",)))
    assert len(pickle.dumps(images)) < sum(map(len, paths)) + 2 * 8 * len(paths) + 10_000
    assert images.name(0) == "/data/class000/image00000000.jpg"
    assert images.name(99_999) == "/data/class099/image00099999.jpg"


def an_array(count: int = 9) -> ArrayImages:
    images = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (count, 3, 4, 5)).astype(np.uint8)
    )
    return ArrayImages(images, Annotations(torch.arange(count) % 3, ("x", "y", "z")), "toy")


def test_array_images_read_one_or_many():
    images = an_array()
    many = images.read_many([4, 0, 4])
    assert many.shape == (3, *images.shape)
    assert all(torch.equal(image, images.read(i)) for image, i in zip(many, (4, 0, 4), strict=True))
    images.read(4).zero_()
    assert torch.equal(images.read_many(torch.tensor([4]))[0], many[0])  # reading lends nothing out
    with pytest.raises(ValueError, match="8 labels for 9 images"):
        ArrayImages(images.read_many(range(9)), Annotations(torch.zeros(8)))
    with pytest.raises(ValueError, match="uint8"):
        ArrayImages(torch.zeros(2, 3, 4, 5, dtype=torch.int32))


def test_array_fingerprint_is_of_bytes_and_labels():
    images = an_array().read_many(range(9))
    changed = images.clone()
    changed[8, 2, 3, 4] ^= 1
    labels = Annotations(torch.arange(9) % 3)
    flipped = labels.of(torch.arange(8, -1, -1))
    prints = [
        ArrayImages(images, labels).fingerprint,
        ArrayImages(changed, labels).fingerprint,
        ArrayImages(images, flipped).fingerprint,
        ArrayImages(images).fingerprint,
        ArrayImages(images.reshape(9, 3, 5, 4), labels).fingerprint,
        subset(ArrayImages(images, labels), range(8)).fingerprint,
    ]
    assert len(set(prints)) == len(prints)
    assert an_array().fingerprint == prints[0]


@pytest.mark.parametrize("kind", ["array", "files"])
def test_a_subset_is_rows_of_the_whole(tmp_path, kind):
    everything = an_array(7) if kind == "array" else whole(fill(tmp_path, *TREE))
    part = subset(subset(everything, [6, 5, 4, 1]), torch.tensor([3, 0]))
    part = pickle.loads(pickle.dumps(part))
    assert len(part) == 2
    assert names(part) == [everything.name(1), everything.name(6)]
    assert part.labels.tolist() == everything.labels[[1, 6]].tolist()
    assert (part.classes, part.shape) == (everything.classes, everything.shape)
    assert part.fingerprint != subset(everything, [1, 5]).fingerprint
    if kind == "array":
        assert torch.equal(part.read_many([1, 0]), everything.read_many([6, 1]))
    else:
        with pytest.raises(BadImage) as caught:
            part.read(1)
        assert caught.value.path == everything.name(6)
