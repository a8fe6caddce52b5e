"""Folders as people have them: links, capitals, other suffixes, published layouts, several roots,
lists. Everything below a folder is an image of the set or is counted, with its name.
"""

import hashlib
import io
import itertools
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lookalike.data import Folder, cache
from lookalike.data.account import Account
from lookalike.data.decode import BadImage
from lookalike.data.folders import index, walk
from lookalike.data.folders.index import scan
from lookalike.data.inventory import MOST_NAMES, Inventory
from lookalike.errors import DataError


def encoded(form: str = "PNG", seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


PNG = encoded()


def fill(root: Path, *paths: str, data: bytes = PNG) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


def link(root: Path, name: str, target: Path | str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).symlink_to(target)


def names(images) -> list[str]:
    return [images.name(i) for i in range(len(images))]


def found(root: Path, **options) -> list[str]:
    """All images of a folder, by their paths in it."""
    images = Folder(str(root), test_fraction=0, **options).split("train")
    return [os.path.relpath(name, root) for name in names(images)]


def left(source) -> dict[str, list[str]]:
    """What a source left out."""
    return source.inventory.names()


def everything(root: Path, within: Path | None = None) -> dict[str, list[str]]:
    """What a scan gives, images and all else, by the reason."""
    paths, left_out = scan(root, within)
    told = {why: list(map(os.fsdecode, names)) for why, names in left_out.items()}
    return {"images": list(map(os.fsdecode, paths)), **told}


def by_class(images) -> dict[str, int]:
    """How many images each class has."""
    labels = [images.classes[label] for label in images.labels]
    return {name: labels.count(name) for name in images.classes if name in labels}


# ---- links


def test_links_to_files_and_folders_are_followed_and_a_loop_is_cut_once(tmp_path):
    root, store = fill(tmp_path / "in", "a/0.png", "b/0.png"), tmp_path / "store"
    fill(store, "c/0.png", "c/deep/1.png", "one.png", "blob")
    link(root, "c", store / "c")
    link(root, "b/linked.png", store / "one.png")
    link(root, "b/blob.png", store / "blob")
    link(root, "a/loop", "..")
    assert everything(root) == {
        "images": ["a/0.png", "b/0.png", "b/blob.png", "b/linked.png", "c/0.png", "c/deep/1.png"],
        walk.SEEN: ["a/loop"],
    }
    assert by_class(Folder(str(root), test_fraction=0).split("train")) == {"a": 1, "b": 3, "c": 2}


def test_links_out_of_the_folder_can_be_forbidden_and_are_counted(tmp_path):
    root, store = (
        fill(tmp_path / "in", "a/0.png", "b/0.png"),
        fill(tmp_path / "out", "c/0.png", "1.png"),
    )
    link(root, "c", store / "c")
    link(root, "b/1.png", store / "1.png")
    link(root, "b/same.png", "0.png")
    source = Folder(str(root), test_fraction=0, links="inside")
    images = source.split("train")
    assert [os.path.relpath(n, root) for n in names(images)] == ["a/0.png", "b/0.png", "b/same.png"]
    assert left(source) == {walk.OUTSIDE: ["b/1.png", "c"]}
    (root / "b/same.png").unlink()  # what is exchanged after the listing is no way out either
    link(root, "b/same.png", store / "1.png")
    with pytest.raises(BadImage, match="a link out of"):
        images.read(2)


def test_of_two_names_of_one_folder_its_own_wins_and_else_the_first(tmp_path):
    root = fill(tmp_path / "in", "m/0.png", "z/0.png")
    store = fill(tmp_path / "out", "0.png", "inner/1.png")
    link(root, "a", "m")  # before m in every order, and yet not its name
    link(root, "k", store)
    link(root, "j", store)
    link(root, "z/deep", store / "inner")  # named itself, where j only leads to what holds it
    assert everything(root) == {
        "images": ["j/0.png", "m/0.png", "z/0.png", "z/deep/1.png"],
        walk.SEEN: ["a", "j/inner", "k"],
    }


def test_a_link_to_a_folder_inside_another_links_target(tmp_path):
    root, store = tmp_path / "in", fill(tmp_path / "out", "c/0.png", "d/0.png")
    link(root, "all", store)
    link(root, "c", store / "c")
    assert everything(root) == {
        "images": ["all/d/0.png", "c/0.png"],
        walk.SEEN: ["all/c"],
    }


CIRCLES = {
    "itself": lambda root: link(root, "a/x", "../a"),
    "the folder above": lambda root: link(root, "a/x", "../.."),
    "everything": lambda root: link(root, "a/x", "/"),
    "each other": lambda root: (link(root, "a/x", "../b"), link(root, "b/y", "../a")),
    "a chain": lambda root: (link(root, "a/x", "../y"), link(root, "y", "z"), link(root, "z", "a")),
    "by way of outside": lambda root: (
        fill(root.parent / "out", "0.png"),
        link(root.parent / "out", "back", root),
        link(root.parent / "out", "up", ".."),
        link(root, "c", root.parent / "out"),
    ),
}


@pytest.mark.parametrize("circle", CIRCLES)
def test_circles_are_cut(tmp_path, circle):
    root = fill(tmp_path / "in", "a/0.png", "b/0.png")
    CIRCLES[circle](root)
    seen = everything(root)
    assert set(seen) == {"images", walk.SEEN}
    assert [path for path in seen["images"] if path != "c/0.png"] == ["a/0.png", "b/0.png"]
    links = [path for path in root.rglob("*") if path.is_symlink()]
    followed = [path for path in seen["images"] if path == "c/0.png"]
    inner = 2 * len(followed)
    assert len(seen[walk.SEEN]) == len(links) - len(followed) + inner


def test_links_that_lead_nowhere_or_to_no_file_are_counted(tmp_path):
    root = fill(tmp_path, "a.png")
    link(root, "gone.png", "nowhere")
    link(root, "self.png", "self.png")
    link(root, "null.png", "/dev/null")
    os.mkfifo(root / "pipe.png")
    assert everything(root) == {
        "images": ["a.png"],
        walk.BROKEN: ["gone.png", "self.png"],
        walk.NO_FILE: ["null.png", "pipe.png"],
    }


def test_a_chain_of_links_is_followed_to_its_end(tmp_path):
    fill(tmp_path / "out", "0.png", "plain")
    link(tmp_path, "two", "out")
    link(tmp_path / "in", "class", tmp_path / "two")
    link(tmp_path, "far", "out/plain")
    link(tmp_path / "in", "named_so", tmp_path / "far")
    assert everything(tmp_path / "in") == {
        "images": ["class/0.png", "class/plain", "named_so"],
    }


def test_every_order_of_listing_gives_the_same(tmp_path, monkeypatch):
    root, store = (
        fill(tmp_path / "in", "b/0.png", "c/0.png"),
        fill(tmp_path / "out", "x/0.png", "y.txt"),
    )
    for name, target in (("a", store), ("d", store), ("b/in", store / "x"), ("c/up", "..")):
        link(root, name, target)
    wanted, listed = everything(root), os.scandir

    class Backwards:
        def __init__(self, path):
            with listed(path) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self):
            return self.entries

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(os, "scandir", Backwards)
    assert everything(root) == wanted
    assert wanted[walk.SEEN] == ["a/x", "c/up", "d"]


# ---- suffixes and content


def test_images_are_listed_by_suffix_in_any_case_and_others_by_content(tmp_path):
    listed = [f"{n}{s.decode()}" for n, s in enumerate(index.SUFFIXES)]
    listed += [f"u{n}{s.decode().upper()}" for n, s in enumerate(index.SUFFIXES)]
    fill(tmp_path, *listed, "array.npy", data=b"never opened")
    fill(tmp_path, "no_suffix", "with.a_suffix", "dot.", "name.2024")
    for form in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "ICO"):
        fill(tmp_path, f"content/{form}", data=encoded(form))
    fill(tmp_path, "README", "a.weights", "b.WEIGHTS", "empty", data=b"words, not pixels")
    (tmp_path / "empty").write_bytes(b"")
    fill(tmp_path, "notes.txt", "x/notes.TXT", "clip.mp4", "half.jpg.part", "x.jpg.crdownload")
    seen = everything(tmp_path)
    inner = [f"content/{f}" for f in ("BMP", "GIF", "ICO", "JPEG", "PNG", "PPM", "TIFF", "WEBP")]
    named = ["no_suffix", "with.a_suffix", "dot.", "name.2024"]
    assert seen.pop("images") == sorted([*listed, *named, *inner, "array.npy"])
    assert seen == {
        "no suffix": ["README", "empty"],
        ".weights": ["a.weights", "b.WEIGHTS"],
        ".txt": ["notes.txt", "x/notes.TXT"],
        ".mp4": ["clip.mp4"],
        ".part": ["half.jpg.part"],
        ".crdownload": ["x.jpg.crdownload"],
    }


def test_only_files_whose_names_say_nothing_are_opened(tmp_path, monkeypatch):
    fill(tmp_path, "a/1.png", "a/2.JFIF", "notes.txt", "plain", "b/odd.xyz")
    opened, original = [], open

    def noted(path, *words, **how):
        opened.append(os.path.relpath(os.fsdecode(path), tmp_path))
        return original(path, *words, **how)

    monkeypatch.setattr("builtins.open", noted)
    everything(tmp_path)
    assert sorted(name for name in opened if not name.startswith("..")) == ["b/odd.xyz", "plain"]


HIDDEN = (".DS_Store", "a/._0.png", "a/.ipynb_checkpoints/0-checkpoint.png", "b/Thumbs.db")
HIDDEN += ("b/@eaDir/0.png/thumb.jpg", "__MACOSX/a/._0.png", ".git/x.png", "desktop.ini")


def test_what_systems_leave_is_counted_as_hidden(tmp_path):
    fill(tmp_path, "a/0.png", "b/0.png", *HIDDEN)
    assert everything(tmp_path) == {
        "images": ["a/0.png", "b/0.png"],
        "hidden": [
            *(".DS_Store", ".git", "__MACOSX", "a/._0.png", "a/.ipynb_checkpoints"),
            *("b/@eaDir", "b/Thumbs.db", "desktop.ini"),
        ],
    }


def test_a_file_that_may_not_be_read_is_counted(tmp_path):
    (fill(tmp_path, "a.png", "locked") / "locked").chmod(0)
    if os.access(tmp_path / "locked", os.R_OK):
        pytest.skip("this user reads everything")
    assert everything(tmp_path) == {"images": ["a.png"], walk.LOCKED: ["locked"]}


def test_more_kinds_than_anybody_reads_are_told_together(tmp_path):
    fill(tmp_path, "a.png")
    for n in range(100):
        fill(tmp_path, f"x.k{n}x", data=b"words")
    fill(tmp_path, "y.k7x", "z.0001", "z.a_very_long_suffix", data=b"words")
    seen = everything(tmp_path)
    assert len(seen) <= 65
    assert sum(map(len, seen.values())) == 104
    assert seen[".k7x"] == ["x.k7x", "y.k7x"]
    assert seen["other suffix"] == ["z.0001", "z.a_very_long_suffix"]


# ---- what is kept of a listing


@pytest.fixture
def kept(tmp_path, monkeypatch) -> Path:
    """A folder with everything in it, whose listing is kept however small and new it is."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index, "WORTH_KEEPING", 0)
    monkeypatch.setattr(walk, "SETTLED", -(2**62))
    root = fill(tmp_path / "in", "a/0.png", "b/0.JPG", "b/plain", "b/notes.txt", ".hidden")
    fill(root, "b/none", "c.weights", data=b"words")
    fill(tmp_path / "out", "c/0.png", "1.png")
    link(root, "c", tmp_path / "out/c")
    link(root, "a/1.png", tmp_path / "out/1.png")
    link(root, "a/loop", "..")
    link(root, "gone", "nowhere")
    return root


def walks(monkeypatch) -> list[bytes]:
    """Grows by one with every walk from now on."""
    seen, walked = [], index.walk
    monkeypatch.setattr(index, "walk", lambda top, home: seen.append(top) or walked(top, home))
    return seen


@pytest.mark.parametrize("inside", [False, True])
def test_found_again_with_all_that_was_left_out(kept, monkeypatch, inside):
    within = kept if inside else None
    first = everything(kept, within)
    assert len(first) == (8 if inside else 7)
    seen = walks(monkeypatch)
    assert everything(kept, within) == first
    assert seen == []


CHANGES = {
    "what a link leads to": lambda root: (
        (root.parent / "out/c").rename(root.parent / "out/d"),
        fill(root.parent / "out", "c/9.png"),
    ),
    "a file behind a link": lambda root: (root.parent / "out/1.png").unlink(),
    "a new file behind a link": lambda root: fill(root.parent / "out", "c/5.png"),
    "a broken link's target": lambda root: fill(root, "nowhere/2.png"),
    "words that are an image now": lambda root: (root / "b/none").write_bytes(PNG),
    "a text more": lambda root: fill(root, "b/more.txt"),
    "a hidden file less": lambda root: (root / ".hidden").unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_seen(kept, monkeypatch, change):
    before = everything(kept)
    CHANGES[change](kept)
    again = everything(kept)
    monkeypatch.setenv("XDG_CACHE_HOME", str(kept.parent / "empty"))
    assert again == everything(kept) != before


def test_a_listing_of_the_old_format_is_not_taken_for_one(kept):
    wanted = everything(kept)
    (mine,) = cache.home().iterdir()
    real, status = os.path.realpath(os.fsencode(kept)), kept.stat()
    state = np.array([status.st_ino, status.st_mtime_ns, status.st_ctime_ns], np.int64).tobytes()
    old = [state, b"", b"a/old.png", b"", b""]
    cache.store(b"\0".join((b"folder", real, real)), old)
    assert everything(kept, kept)["images"] == ["a/0.png", "b/0.JPG", "b/plain"]
    for parts in (old, [b""], [b"1234567"] * 9, [b""] * 7):
        mine.write_bytes(cache.seal(parts))
        assert everything(kept) == wanted


# ---- which folders are the sets


def split(root: Path | str | list[str], **options) -> tuple[dict[str, int], dict[str, int], Folder]:
    """Images of each class in train and test, and the source."""
    source = Folder(root if isinstance(root, list) else str(root), **options)
    return by_class(source.split("train")), by_class(source.split("test")), source


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"),
        ("Train", "Test"),
        ("TRAINING", "testing"),
        ("training", "Validation"),
        ("train", "valid"),
        ("Train", "VAL"),
    ],
)
def test_the_sets_by_their_usual_names(tmp_path, train, test):
    for c in ("cat", "dog"):
        fill(tmp_path, *(f"{train}/{c}/{i}.png" for i in range(4)), f"{test}/{c}/0.png")
    fill(tmp_path, "extra/0.png", "readme.txt", "cover.png", ".hid/x.png")
    one, other, source = split(tmp_path)
    assert (one, other) == ({"cat": 4, "dog": 4}, {"cat": 1, "dog": 1})
    assert left(source) == {
        "beside the sets": ["extra", "cover.png"],
        ".txt": ["readme.txt"],
        "hidden": [".hid"],
    }


def test_the_spelling_of_old_wins_and_keys_win_over_names(tmp_path):
    for split_ in ("train", "Train", "training", "test", "val", "mine", "own/test"):
        fill(tmp_path, f"{split_}/a/{split_.replace('/', '_')}.png", f"{split_}/b/0.png")
    source = Folder(str(tmp_path))
    assert "train/a/train.png" in names(source.split("train"))[0]
    assert "test/a/test.png" in names(source.split("test"))[0]
    assert left(source)["beside the sets"] == ["Train", "mine", "own", "training", "val"]
    source = Folder(str(tmp_path), train="mine", test="own/test")
    assert "mine/a/mine.png" in names(source.split("train"))[0]
    assert "own/test/a/own_test.png" in names(source.split("test"))[0]
    assert "own" not in left(source)["beside the sets"]
    with pytest.raises(DataError, match=r"gone: no such folder; name the folder of the train set"):
        Folder(str(tmp_path), train="gone").split("train")


def test_a_class_called_train_is_no_set_where_others_stand_beside_it(tmp_path):
    fill(tmp_path, *(f"{c}/{i}.png" for c in ("Bus", "Train", "Car") for i in range(2)))
    assert by_class(Folder(str(tmp_path), test_fraction=0).split("train")) == {
        "Bus": 2,
        "Car": 2,
        "Train": 2,
    }


def test_val_is_the_test_set_where_test_has_no_classes(tmp_path):
    fill(tmp_path, "train/a/0.png", "train/b/0.png", "val/a/1.png", "val/b/1.png", "test/2.png")
    one, other, source = split(tmp_path)
    assert one == other == {"a": 1, "b": 1}
    assert left(source) == {"beside the sets": ["test"]}
    assert "val" in names(Folder(str(tmp_path), labels="folders").split("test"))[0]
    assert "test/2.png" in names(Folder(str(tmp_path), labels="none").split("test"))[0]


def tiny_imagenet(root: Path) -> Path:
    """Two classes as Tiny-ImageNet has its two hundred."""
    for c in ("n01443537", "n01629819"):
        fill(root, *(f"train/{c}/images/{c}_{i}.JPEG" for i in range(3)))
        fill(root, f"train/{c}/{c}_boxes.txt")
    fill(
        root,
        *(f"val/images/val_{i}.JPEG" for i in range(4)),
        *(f"test/images/test_{i}.JPEG" for i in range(2)),
    )
    words = ("n01443537", "n01629819", "n01629819")
    rows = "".join(f"val_{i}.JPEG\t{word}\t0\t32\t44\t62\r\n" for i, word in enumerate(words))
    fill(root, "val/val_annotations.txt", data=rows.encode())
    fill(root, "wnids.txt", "words.txt")
    return root


def test_tiny_imagenet_as_published(tmp_path):
    one, other, source = split(tiny_imagenet(tmp_path))
    assert one == {"n01443537": 3, "n01629819": 3}
    assert other == {"n01443537": 1, "n01629819": 2}
    assert left(source) == {
        ".txt": [
            *("wnids.txt", "words.txt", "train/n01443537/n01443537_boxes.txt"),
            *("train/n01629819/n01629819_boxes.txt", "val/val_annotations.txt"),
        ],
        "beside the sets": ["test"],
        "no label": ["val/images/val_3.JPEG"],
    }
    (tmp_path / "val/val_annotations.txt").write_bytes(b"val_0.JPEG n01443537\n")
    with pytest.raises(DataError, match=r"val_annotations.txt:1: names no image and class"):
        Folder(str(tmp_path)).split("test")


def test_imagenet_as_kaggle_gives_it_and_as_published(tmp_path):
    inner = tmp_path / "ILSVRC/Data/CLS-LOC"
    words = ("n01440764", "n01443537")
    fill(inner, *(f"train/{word}/{word}_{i}.JPEG" for word in words for i in range(2)))
    fill(inner, *(f"val/ILSVRC2012_val_0000000{i}.JPEG" for i in range(3)), "test/x.JPEG")
    for root in (tmp_path, inner):
        source = Folder(str(root))
        assert source.split("test").labels is None
        assert source.inventory.remarks == [
            f"{inner}/test: no labels, for its images do not lie in class folders: sort them into "
            "a folder a class"
        ]
    rows = "ImageId,PredictionString\n" + "".join(
        f"ILSVRC2012_val_0000000{i},{words[i % 2]} 85 1 499 272 \n" for i in range(3)
    )
    fill(tmp_path, "LOC_val_solution.csv", data=rows.encode())
    for root in (tmp_path, inner):
        assert split(root)[:2] == (dict.fromkeys(words, 2), {words[0]: 2, words[1]: 1})


# ---- classes


@pytest.mark.parametrize(
    ("classes", "each", "loose", "labelled"),
    [
        *((2, 5, 1, True), (2, 5, 2, False), (2, 1, 1, False), (4, 50, 10, True)),
        *((4, 50, 11, False), (2, 600, 12, True), (2, 600, 13, False), (1, 50, 1, False)),
    ],
)
def test_a_few_images_beside_the_class_folders_are_left_out_and_many_are_told(
    tmp_path, classes, each, loose, labelled
):
    fill(tmp_path, *(f"c{c}/{i}.png" for c in range(classes) for i in range(each)), data=b"x")
    fill(tmp_path, *(f"loose{i}.png" for i in range(loose)), data=b"x")
    source = Folder(str(tmp_path), test_fraction=0)
    images = source.split("train")
    assert (images.labels is not None) == labelled
    assert len(images) == classes * each + (0 if labelled else loose)
    assert len(left(source).get("in no class folder", ())) == (loose if labelled else 0)
    assert bool(source.inventory.remarks) == (not labelled and classes > 1)
    for remark in source.inventory.remarks:
        assert f"no labels, for {loose} of {classes * each + loose:,} images lie in no" in remark
    with pytest.raises(DataError, match=r"loose0.png: in no class folder; move it"):
        Folder(str(tmp_path), labels="folders").split("train")


PATHS = ("animalia/aves/robin/0.png", "animalia/aves/wren/0.png", "plantae/oak/0.png")
PATHS += ("plantae/old/oak/1.png",)


@pytest.mark.parametrize(
    ("key", "classes"),
    [
        ("first", {"animalia": 2, "plantae": 2}),
        ("last", {"robin": 1, "wren": 1, "oak": 2}),
        (
            "path",
            {
                "animalia/aves/robin": 1,
                "animalia/aves/wren": 1,
                "plantae/oak": 1,
                "plantae/old/oak": 1,
            },
        ),
    ],
)
def test_which_folder_is_the_class(tmp_path, key, classes):
    images = Folder(str(fill(tmp_path, *PATHS)), test_fraction=0, class_folder=key).split("train")
    assert by_class(images) == classes
    assert list(images.classes) == sorted(classes)


# ---- several roots


def test_several_folders_are_one_set_with_classes_by_name(tmp_path):
    fill(tmp_path / "one", "cat/0.png", "dog/0.png")
    fill(tmp_path / "two", "Train/dog/0.png", "Train/emu/0.png", "Test/emu/1.png", "Test/yak/0.png")
    fill(tmp_path / "three", "ape/0.png", "cat/0.png", "notes.txt")
    roots = [str(tmp_path / name) for name in ("one", "two", "three")]
    source = Folder(roots, test_fraction=0)
    train, test = source.split("train"), source.split("test")
    paths = (
        "one/cat/0",
        "one/dog/0",
        "two/Train/dog/0",
        "two/Train/emu/0",
        "three/ape/0",
        "three/cat/0",
    )
    assert names(train) == [f"{tmp_path}/{path}.png" for path in paths]
    assert train.classes == ("ape", "cat", "dog", "emu")
    assert train.labels.tolist() == [1, 2, 2, 3, 0, 1]
    assert names(test) == [f"{tmp_path}/two/Test/{path}.png" for path in ("emu/1", "yak/0")]
    assert test.classes == ("ape", "cat", "dog", "emu", "yak")
    assert test.labels.tolist() == [3, 4]
    assert left(source) == {".txt": [f"{tmp_path}/three/notes.txt"]}
    for images in (train, pickle.loads(pickle.dumps(train))):
        assert images.read(5).shape == images.shape


def test_an_image_keeps_its_set_whatever_roots_are_named_with_its_own(tmp_path):
    for name in ("one", "two"):
        fill(tmp_path / name, *(f"{c}/{name}{i}.png" for c in "ab" for i in range(40)))
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    for part in ("train", "test"):
        alone = [name for root in (one, two) for name in names(Folder(root).split(part))]
        assert names(Folder([one, two]).split(part)) == alone


def test_a_copy_elsewhere_has_the_same_fingerprint(tmp_path):
    prints = []
    for place in ("here", "there"):
        for n in range(11):
            fill(tmp_path / place / f"r{n}", "a/0.png", f"b/{n}.png", data=b"x" * (n + 1))
        roots = [str(tmp_path / place / f"r{n}") for n in range(11)]
        prints.append(Folder(roots, test_fraction=0).split("train").fingerprint)
    sizes = {f"{n}/{name}": n + 1 for n in range(11) for name in ("a/0.png", f"b/{n}.png")}
    lines = "".join(f"{path}\0{sizes[path]}\n" for path in sorted(sizes))
    assert prints == [hashlib.sha256(lines.encode()).hexdigest()] * 2
    (tmp_path / "there/r3/a/0.png").write_bytes(b"xx")
    assert Folder(roots, test_fraction=0).split("train").fingerprint != prints[0]


def test_roots_that_are_one_or_lie_in_another_are_refused(tmp_path):
    fill(tmp_path / "in", "a/0.png", "b/0.png")
    link(tmp_path, "door", "in")
    for roots, what in (
        (["in", "in"], "the same as"),
        (["in", "door"], "the same as"),
        (["in/a", "in"], "within"),
    ):
        with pytest.raises(DataError, match=rf"{what} .* which is named too: name one of them"):
            Folder([str(tmp_path / root) for root in roots]).split("train")


def test_a_root_without_classes_takes_the_others_labels_and_is_named(tmp_path):
    fill(tmp_path / "one", "a/0.png", "b/0.png")
    fill(tmp_path / "two", "0.png", "1.png")
    source = Folder([str(tmp_path / "one"), str(tmp_path / "two")], test_fraction=0)
    assert source.split("train").labels is None
    assert len(source.split("train")) == 4
    (remark,) = source.inventory.remarks
    assert remark.startswith(f"{tmp_path}/two: no labels, so all go without")


# ---- a list


def test_a_list_with_a_bom_carriage_returns_comments_and_classes(tmp_path):
    fill(tmp_path, "img/ü 1.png", "img/2.png", "lists/3", "far/4.png")
    lines = ("# mine", "../img/ü 1.png\tcat", "", f"{tmp_path}/far/4.png\tcat", "3\tdog")
    text = "\r\n".join((*lines, "../img/2.png\tape"))
    file = tmp_path / "lists/all.txt"
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    images = Folder(str(file), test_fraction=0).split("train")
    wanted = [
        tmp_path / "img/ü 1.png",
        tmp_path / "lists/3",
        tmp_path / "img/2.png",
        tmp_path / "far/4.png",
    ]
    assert [Path(os.path.realpath(name)) for name in names(images)] == wanted
    assert [images.classes[label] for label in images.labels] == ["cat", "dog", "ape", "cat"]
    assert all(images.read(i).shape == images.shape for i in range(4))
    assert Folder(str(file), labels="none").split("all").labels is None
    assert len(Folder(str(file), test_fraction=0.5).split("all")) == 4


BAD_LISTS = {
    "half labelled": ("a.png\tx\nb.png\n", "l.txt:2: no class after a tab, as the lines before"),
    "half unlabelled": (
        "a.png\nb.png\tx\n",
        "l.txt:2: a class after a tab, unlike the lines before",
    ),
    "nothing": ("# nothing\n\n", "l.txt: lists no image: write a path a line"),
    "elsewhere": ("x/a.png\nx/b.png\n", "l.txt: none of its first 2 images is there"),
    "windows": ("img\\a.png\n", r"none of its first 1 images is there .*: use / in place of"),
    "a class by a space": ("a.png 1\n", "a class stands after a tab"),
    "zero bytes": ("a.png\0\n", "l.txt:1: not `path` nor"),
    "three words": ("a.png\tx\ty\n", "l.txt:1: not `path` nor"),
    "no end": ("a" * (1 << 20) + "\n", "a line of more than"),
}


@pytest.mark.parametrize("case", BAD_LISTS)
def test_a_list_that_cannot_be_is_refused_with_the_line(tmp_path, case):
    text, pattern = BAD_LISTS[case]
    fill(tmp_path, "a.png", "b.png")
    (tmp_path / "l.txt").write_text(text)
    with pytest.raises(DataError, match=pattern) as caught:
        Folder(str(tmp_path / "l.txt")).split("train")
    assert "\n" not in str(caught.value)


# ---- nothing is held out for nobody, and what is said


@pytest.mark.parametrize(
    "paths", [[f"{i:02}.png" for i in range(20)], [f"{c}/{i}.png" for c in "ab" for i in range(10)]]
)
def test_all_is_what_train_and_test_are(tmp_path, paths):
    source = Folder(str(fill(tmp_path, *paths)))
    sets = [set(names(source.split(name))) for name in ("train", "test", "all")]
    assert sets[0] | sets[1] == sets[2]
    assert len(sets[2]) == 20 > len(sets[0]) > 0
    fill(tmp_path / "x", "train/a/0.png", "test/a/1.png")
    assert len(Folder(str(tmp_path / "x")).split("all")) == 1


def account(source, *splits: str) -> Account:
    return Account("data", {split: source.split(split) for split in splits}, source.inventory)


def test_the_line_says_images_classes_sets_and_what_was_left_out(tmp_path):
    fill(tmp_path, *(f"train/{c}/{i}.png" for c in "abc" for i in range(2)), "train/a/notes.txt")
    fill(tmp_path, "test/b/0.png", "test/d/1.png", "test/e/1.png")
    link(tmp_path, "train/b/again", "../a")
    told = account(Folder(str(tmp_path)), "train", "test")
    assert told.lines("runs/x/data.json") == [
        "data: 9 images in 5 classes (train 6, test 3); 2 classes of test are not in train (d); "
        "2 classes of train are not in test (a); left out 2: 1 × .txt (train/a/notes.txt), "
        "1 × folder seen before (train/b/again): see runs/x/data.json"
    ]
    assert told.plain() == {
        "sets": {
            "train": {"images": 6, "classes": 3, "images_of": {"a": 2, "b": 2, "c": 2}},
            "test": {"images": 3, "classes": 3, "images_of": {"b": 1, "d": 1, "e": 1}},
        },
        "left_out": {
            ".txt": {"number": 1, "names": ["train/a/notes.txt"]},
            walk.SEEN: {"number": 1, "names": ["train/b/again"]},
        },
        "remarks": [],
    }


def test_the_line_of_sets_without_labels_and_of_sets_that_share_no_class(tmp_path):
    fill(tmp_path / "1", "0.png", "1.png")
    assert account(Folder(str(tmp_path / "1")), "all").lines() == [
        "data: 2 images without labels (all 2)"
    ]
    fill(tmp_path / "2", "train/a/0.png", "train/b/0.png", "test/c/0.png", "test/d/0.png")
    (line,) = account(Folder(str(tmp_path / "2")), "train", "test").lines()
    assert line == "data: 4 images in 4 classes (train 2, test 2); train and test share no class"


def test_names_that_write_on_the_terminal_or_hide_a_password_do_not(tmp_path):
    source = Folder(str(fill(tmp_path, "a.png", "x\x1b[31m.txt")))
    source.split("all")
    source.inventory.leave_out("s3://me:secret@bucket/x", "https://me:secret@host/x?key=1")
    line, plain = account(source, "all").lines()[0], str(account(source, "all").plain())
    assert "x\\x1b[31m.txt" in line
    for text in (line, plain):
        assert "secret" not in text
        assert "key=1" not in text
        assert "\x1b" not in text


def test_an_inventory_counts_each_name_once_and_keeps_a_bounded_list():
    inventory = Inventory()
    for start in (0, MOST_NAMES // 2, 0):
        inventory.leave_out_all("kind", (f"{n}" for n in range(start, start + MOST_NAMES)))
    inventory.leave_out("other", "x")
    inventory.leave_out_all("none", ())
    found = [(one.why, one.number, one.example) for one in inventory]
    assert found == [("kind", MOST_NAMES * 3 // 2, "0"), ("other", 1, "x")]
    assert len(inventory.names()["kind"]) == MOST_NAMES
    more = Inventory()
    for n, letter in enumerate(itertools.islice("abcdefgh", 8)):
        more.leave_out_all(letter, (f"{letter}{i}" for i in range(9 - n)))
    assert more.said().startswith("left out 44: 9 × a (a0), ")
    assert more.said().endswith("4 × f (f0), 2 kinds more")
