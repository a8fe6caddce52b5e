"""Shards that other people made: their own suffixes, dots, labels and folders, read as far as they
can be, and refused in one line where a choice is needed.
"""

import io
import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_shards import image, make, read

from lookalike.data import Shards, cache
from lookalike.data.decode import decode
from lookalike.data.pack import member
from lookalike.data.webdataset import members, samples
from lookalike.data.webdataset.keys import Keys
from lookalike.data.webdataset.samples import NO_LABEL, samples_of
from lookalike.errors import DataError
from lookalike.geometry import PixelFormat

FIXTURE = Path(__file__).parent.parent / "fixtures" / "shards-0.1.0"


def source(path: Path, **keys) -> Shards:
    return Shards(str(path), canvas=8, **{"test_fraction": 0, **keys})


def seen(path: Path, **keys) -> dict[str, str | None]:
    """Member -> its class, of all images, each of which must be that member's bytes."""
    images = source(path, **keys).split("train")
    for i in range(len(images)):
        assert torch.equal(
            images.read(i), decode(images.contents(i), "", size=8, form=PixelFormat(3))
        )
    names = [images.name(i).split(".tar/", 1)[1] for i in range(len(images))]
    if images.labels is None:
        return dict.fromkeys(names)
    return dict(zip(names, (images.classes[k] for k in images.labels.tolist()), strict=True))


def left(path: Path, **keys) -> dict[str, int]:
    made = source(path, **keys)
    made.split("train")
    return {each.why: each.number for each in made.inventory}


def text(value: object) -> bytes:
    return json.dumps(value).encode()


def pairs(count: int, *suffixes: str, stem: str = "{i:04}"):
    """`count` samples of a member each suffix: images by PNG, else the number modulo 2."""
    for i in range(count):
        for suffix in suffixes:
            name = f"{stem.format(i=i)}.{suffix}"
            if suffix.endswith("json"):
                yield name, text({"label": i % 2})
            else:
                yield name, image(i) if suffix.lower().endswith(("png", "jpg")) else b"%d" % (i % 2)


# Of each: the members, keys, and what is read.
PARITY = {f"{i:04}": str(i % 2) for i in range(4)}
READ = {
    "input and target": (("input.png", "target.cls"), "{i:04}", {}, "input.png"),
    "the same by keys": (
        ("input.png", "seg.png", "target.cls", "fine.cls"),
        "{i:04}",
        {"image_key": "input.png", "label_key": "target.cls"},
        "input.png",
    ),
    "capitals": (("PNG", "CLS"), "{i:04}", {}, "PNG"),
    "dots": (("png", "cls"), "img.v1.{i}", {}, "png"),
    "dots, more than a sample has views": (("png", "json"), "img.v1.{i}", {}, "png"),
    "dots and input and target": (
        ("input.png", "target.cls"),
        "img.v1.{i}",
        {},
        "input.png",
    ),
    "dots and input and target by keys": (
        ("input.png", "seg.png", "target.cls", "fine.cls"),
        "img.v1.{i}",
        {"image_key": "input.png", "label_key": "target.cls"},
        "input.png",
    ),
    "dots in names and folders": (("png", "cls"), "a.b/c.d/img.v1.{i}", {}, "png"),
    "dots and a mask": (("png", "cls"), "img.v1.{i}", {"image_key": "png"}, "png"),
    "json": (("png", "json"), "{i:04}", {}, "png"),
    "meta.json": (("png", "meta.json"), "{i:04}", {}, "png"),
    "one key of two": (("png", "cls"), "{i:04}", {"label_key": "cls"}, "png"),
    "with the dot": (("jpg", "cls"), "{i:04}", {"image_key": ".JPG;png"}, "jpg"),
    "a mask beside it": (("png", "seg.png", "cls"), "{i:04}", {}, "png"),
}


@pytest.mark.parametrize("case", READ)
def test_other_peoples_samples_are_read_with_their_labels(tmp_path, case):
    suffixes, stem, keys, suffix = READ[case]
    members = list(pairs(20, *suffixes, stem=stem))
    wanted = {f"{stem.format(i=i)}.{suffix}": str(i % 2) for i in range(20)}
    for number, order in enumerate((members, members[::-1], members[1::2] + members[::2])):
        make(tmp_path / f"{number}/0.tar", order)
        with warnings.catch_warnings(action="ignore"):
            assert seen(tmp_path / str(number), **keys) == wanted


def test_that_names_end_at_the_last_dot_is_said_once_and_decided_for_all_shards(tmp_path):
    make(tmp_path / "s/0.tar", [("img.v1.9.png", image(0)), ("img.v1.9.cls", b"0")])
    make(tmp_path / "s/1.tar", pairs(3, "png", "cls", stem="img.v1.{i}"))
    with pytest.warns(
        UserWarning, match=r"s: names of samples .*: they end at the last dot;"
    ) as said:
        assert len(seen(tmp_path / "s")) == 4
    assert len(said) == 1
    alone = Shards(str(tmp_path / "s/0.tar"), test_fraction=0).split("train")
    assert (len(alone), alone.labels.tolist()) == (1, [0])


def test_shards_of_several_makes_are_read_each_in_its_way(tmp_path):
    kinds = {"a": ("input.png", "target.cls"), "b": ("png", "cls"), "c": ("png", "json")}
    for name, suffixes in kinds.items():
        stem = f"{name}.v1.{{i}}" if name == "b" else f"{name}{{i}}"
        make(tmp_path / f"s/{name}.tar", pairs(4, *suffixes, stem=stem))
    with pytest.warns(UserWarning, match="the last dot"):
        found = seen(tmp_path / "s")
    assert len(found) == 12
    assert list(found.values()) == ["0", "1"] * 6


def test_unlabelled_names_with_dots_are_samples_of_their_own(tmp_path):
    make(tmp_path / "s/0.tar", [(f"img.v1.{i}.png", image(i)) for i in range(5)])
    with pytest.warns(UserWarning, match="the last dot"):
        assert seen(tmp_path / "s") == {f"img.v1.{i}.png": None for i in range(5)}


def test_more_images_than_a_sample_has_views_are_samples(tmp_path):
    """Though each suffix comes twice, as views of samples would."""
    stems = [f"{name}.v1.{i}.png" for name in ("img", "vid") for i in range(17)]
    stems += ["img.png", "vid.png"]
    make(tmp_path / "s/0.tar", [(name, image(i)) for i, name in enumerate(stems)])
    with pytest.warns(UserWarning, match="the last dot"):
        assert list(seen(tmp_path / "s")) == stems


@pytest.mark.parametrize("suffixes", [("input.png", "mask.png"), ("a.png", "b.png", "target.cls")])
def test_several_images_a_sample_are_refused_with_the_key_that_chooses(tmp_path, suffixes):
    make(tmp_path / "s/0.tar", pairs(4, *suffixes))
    with pytest.raises(DataError) as refused:
        source(tmp_path / "s").split("train")
    line = str(refused.value)
    assert f"samples have several images, as {suffixes[0]} and {suffixes[1]}" in line
    assert f"data.image_key={suffixes[0]}" in line
    assert "\n" not in line
    assert len(seen(tmp_path / "s", image_key=suffixes[0])) == 4
    with warnings.catch_warnings(action="ignore"):
        assert len(seen(tmp_path / "s", image_key="png")) == 4 * sum("png" in s for s in suffixes)


def test_several_labels_a_sample_are_taken_by_a_key_only(tmp_path):
    make(tmp_path / "s/0.tar", pairs(4, "png", "coarse.cls", "fine.cls"))
    with pytest.warns(
        UserWarning, match=r"4 samples have several labels, first 0000\.png.*label_key"
    ):
        assert seen(tmp_path / "s") == {f"{i:04}.png": None for i in range(4)}
    assert seen(tmp_path / "s", label_key="fine.cls") == {f"{k}.png": v for k, v in PARITY.items()}
    assert set(seen(tmp_path / "s", labels="none").values()) == {None}


# ---- labels


def test_text_labels_are_the_sorted_set_over_all_shards_train_first(tmp_path):
    words = {"train": ["dog", "cat", "emu"], "VALIDATION": ["cat", "ant", "dog"]}
    for split, names in words.items():
        for i, word in enumerate(names):
            members = [(f"{i}.png", image(i)), (f"{i}.cls", f" {word}\n".encode())]
            make(tmp_path / f"s/{split}/{i}.tar", members)
    sets = {split: source(tmp_path / "s").split(split) for split in ("train", "test")}
    assert sets["train"].classes == ("cat", "dog", "emu")
    assert sets["test"].classes == ("cat", "dog", "emu", "ant")
    for split, names in zip(("train", "test"), words.values(), strict=True):
        images = sets[split]
        assert [images.classes[k] for k in images.labels.tolist()] == names
    assert sets["train"].labels.dtype == torch.int64


def test_text_beside_numbers_makes_all_of_them_names(tmp_path):
    for i, word in enumerate((b"3", b"zebra", b"10")):
        make(tmp_path / f"s/{i}.tar", [("a.png", image(i)), ("a.cls", word)])
    images = source(tmp_path / "s").split("train")
    assert images.classes == ("10", "3", "zebra")
    assert images.labels.tolist() == [1, 2, 0]


def test_whole_numbers_as_text_are_sorted_as_numbers(tmp_path):
    members = []
    for i, label in enumerate(("10", "9", "2")):
        members += [(f"{i}.png", image(i)), (f"{i}.json", text({"label": label}))]
    make(tmp_path / "s/0.tar", members)
    images = source(tmp_path / "s").split("train")
    assert (images.classes, images.labels.tolist()) == (("2", "9", "10"), [2, 1, 0])


@pytest.mark.parametrize(
    ("key", "about"),
    [
        ("json:category", {"category": "cat"}),
        ("json:annotations.category", {"annotations": {"category": "cat"}}),
        ("json:annotations.category", {"annotations.category": "cat"}),
        ("json:objects.1.id", {"objects": [{"id": 4}, {"id": "cat"}]}),
        ("json", {"label": "cat"}),
        ("JSON:Klasse", {"Klasse": " cat "}),
    ],
)
def test_a_path_leads_into_the_json_of_a_sample(tmp_path, key, about):
    members = [("a.png", image(0)), ("a.json", text(about)), ("a.cls", b"7")]
    make(tmp_path / "s/0.tar", members)
    assert seen(tmp_path / "s", label_key=key) == {"a.png": "cat"}


def test_the_folder_of_a_member_is_its_class(tmp_path):
    members = [(f"./data/{('cat', 'dog')[i % 2]}/{i}.png", image(i)) for i in range(4)]
    make(tmp_path / "s/0.tar", [*members, ("data/cat/0.cls", b"7")])
    found = seen(tmp_path / "s", label_key="folder")
    assert found == {name: name.split("/")[2] for name, _ in members}
    make(tmp_path / "t/0.tar", [*members, ("top.png", image(9))])
    with pytest.warns(UserWarning, match=r"1 samples have no label, first .*top\.png"):
        assert set(seen(tmp_path / "t", label_key="folder").values()) == {None}


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (3.0, "3"),
        (True, None),
        (None, None),
        ([1], None),
        (1.5, None),
        (-1, None),
        (10**6, None),
        (10**400, None),
        (float("inf"), None),
        ("", None),
        ("a\nb", None),
        ("\u202eabc", None),
        ("a" * 257, None),
        ("grün 猫", "grün 猫"),
    ],
)
def test_what_json_may_hold_as_a_label(tmp_path, value, label):
    path = make(tmp_path / "0.tar", [("a.png", image(0)), ("a.json", text({"label": value}))])
    found = read(path)
    names = found.texts or range(10)
    assert [None if n == NO_LABEL else str(names[n]) for n in found.labels_N.tolist()] == [label]


def test_labels_that_some_samples_lack_are_said_and_counted_once(tmp_path):
    make(tmp_path / "s/0.tar", [*pairs(3, "png", "cls"), ("x.png", image(8)), ("y.png", image(9))])
    made = source(tmp_path / "s")
    for size in (None, 64):
        with pytest.warns(UserWarning, match="2 samples have no label") as said:
            assert made.split("train", size).labels is None
        assert len(said) == 1
    (entry,) = made.inventory
    assert entry == ("no label", 2, f"{tmp_path}/s/0.tar/x.png")


@pytest.mark.parametrize(
    ("keys", "part"),
    [
        ({"image_key": "rgb.png"}, r"data\.image_key: no sample has such a member; other members"),
        ({"label_key": "klass"}, r"data\.label_key: no sample has such a member; .*\.cls"),
        ({"label_key": "json:a.b"}, r"data\.label_key: no sample has such a member"),
        ({"label_key": "cls:a"}, "a path leads into .json only"),
        ({"label_key": "json:"}, "a path leads into .json only"),
        ({"image_key": ""}, "is no member's suffix"),
        ({"image_key": "a/b"}, "is no member's suffix"),
    ],
)
def test_keys_that_find_nothing_are_refused_in_one_line(tmp_path, keys, part):
    make(tmp_path / "s/0.tar", pairs(4, "png", "cls"))
    with pytest.raises(DataError, match=part) as refused:
        source(tmp_path / "s", **keys).split("train")
    assert "\n" not in str(refused.value)


# ---- what members are


def test_images_are_known_by_content_where_the_suffix_says_nothing(tmp_path):
    jpeg, tiff, webp = (image(i, kind) for i, kind in enumerate(("JPEG", "TIFF", "WEBP")))
    make(
        tmp_path / "s/0.tar",
        [("a/1", jpeg), ("a/2.img", tiff), ("a/3.x.bin", webp), ("a/4.bin", b"\0" * 40)],
    )
    assert list(seen(tmp_path / "s")) == ["a/1", "a/2.img", "a/3.x.bin"]
    assert left(tmp_path / "s") == {".bin": 1, "sample without an image": 1}


def test_an_array_beside_an_image_is_not_taken_for_it(tmp_path):
    file = io.BytesIO()
    np.save(file, np.ones((3, 3)))
    make(tmp_path / "s/0.tar", [("a.npy", file.getvalue()), ("a.png", image(1))])
    assert list(seen(tmp_path / "s")) == ["a.png"]
    assert left(tmp_path / "s") == {".npy": 1}


def test_pickles_are_never_opened(tmp_path, monkeypatch):
    """Not even looked into, whatever they begin with."""
    hidden = [(f"a.{s}", image(1)) for s in ("pyd", "pkl", "pth", "pt")]
    make(tmp_path / "s/0.tar", [*hidden, ("a.png", image(2))])
    monkeypatch.setattr(members, "is_image", lambda head: pytest.fail("opened"))
    assert list(seen(tmp_path / "s")) == ["a.png"]
    assert left(tmp_path / "s") == {f".{s}": 1 for s in ("pyd", "pkl", "pth", "pt")}


def test_the_layout_of_img2dataset_is_read_without_a_word(tmp_path):
    for shard in range(2):
        about = {"status": "success", "sha256": "0" * 64, "caption": "x", "url": "http://x"}
        found = []
        for i in range(3):
            key = f"{shard:05d}{i:04d}"
            found += [(f"{key}.jpg", image(i, "JPEG")), (f"{key}.txt", b"a caption")]
            found += [(f"{key}.json", text({"key": key, **about}))]
        make(tmp_path / f"s/{shard:05d}.tar", found)
        (tmp_path / f"s/{shard:05d}.parquet").write_bytes(b"PAR1")
        (tmp_path / f"s/{shard:05d}_stats.json").write_bytes(b"{}")
    assert set(seen(tmp_path / "s").values()) == {None}
    assert len(seen(tmp_path / "s")) == 6
    assert left(tmp_path / "s") == {".txt": 6, ".json without a label": 6}
    assert left(tmp_path / "s", image_key="jpg")[".txt"] == 6


def test_samples_without_an_image_are_counted(tmp_path):
    make(tmp_path / "s/0.tar", [*pairs(3, "png", "cls"), ("x.cls", b"0"), ("y.txt", b"a")])
    assert left(tmp_path / "s") == {"sample without an image": 2, ".txt": 1}


def test_a_million_images_under_one_key_take_linear_time(tmp_path):
    """Held by the number of comparisons: each member is judged once."""
    count = 4_000
    packed = b"".join(member(f"img.v1.{i}.png", b"x") for i in range(count))
    (tmp_path / "0.tar").write_bytes(packed + bytes(1024))
    found = samples_of(str(tmp_path / "0.tar"))
    assert (found.doubt, found.names) == ("dots", [])
    assert len(samples_of(str(tmp_path / "0.tar"), keys=Keys(dots=1)).names) == count


# ---- what lies beside shards


def test_folders_of_shards_are_read_and_other_files_counted(tmp_path):
    make(tmp_path / "s/b/1.tar", pairs(2, "png"))
    make(tmp_path / "s/a/c/0.TAR", pairs(3, "png"))
    make(tmp_path / "s/2.tar", pairs(4, "png"))
    make(tmp_path / "elsewhere/3.tar", pairs(5, "png"))
    (tmp_path / "s/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "s/a/loop").symlink_to("..")
    (tmp_path / "s/none").symlink_to("nowhere")
    (tmp_path / "s/notes.md").write_text("x")
    (tmp_path / "s/LICENSE").write_text("x")
    (tmp_path / "s/.hidden.tar").write_text("x")
    images = source(tmp_path / "s").split("train")
    assert len(images) == 14
    assert left(tmp_path / "s") == {
        ".md": 1,
        "no suffix": 1,
        "hidden": 1,
        "link to nothing": 1,
        "link to a folder that is here": 1,
    }


@pytest.mark.parametrize("name", ["1.tar.gz", "1.tgz", "1.TAR.XZ", "in/1.tar.zst"])
def test_compressed_shards_are_refused_by_name_with_the_remedy(tmp_path, name):
    make(tmp_path / "s/0.tar", pairs(2, "png"))
    (tmp_path / "s/in").mkdir()
    (tmp_path / "s" / name).write_bytes(b"\x1f\x8b")
    for path in (tmp_path / "s", tmp_path / "s" / name, Path(f"{tmp_path}/s/{{0.tar,{name}}}")):
        with pytest.raises(DataError, match=rf"{name}: compressed, .*: unpack it to plain .tar"):
            source(path).split("train")
    with pytest.raises(DataError, match="compressed"):
        source("s3://bucket/0.tar.gz").split("train")


@pytest.mark.parametrize(
    ("train", "test"),
    [("train", "val"), ("Train", "Test"), ("TRAINING", "testing"), ("training", "Validation")],
)
def test_folders_named_by_a_split_in_any_case(tmp_path, train, test):
    make(tmp_path / f"s/{train}/0.tar", pairs(4, "png", "cls"))
    make(tmp_path / f"s/{test}/in/0.tar", pairs(2, "png", "cls"))
    make(tmp_path / "s/stray.tar", pairs(1, "png"))
    made = source(tmp_path / "s")
    assert [len(made.split(split)) for split in ("train", "test")] == [4, 2]
    (entry,) = made.inventory
    assert entry == ("beside the train and test folders", 1, f"{tmp_path}/s/stray.tar")
    make(tmp_path / "s/tRain/0.tar", pairs(1, "png"))
    with pytest.raises(DataError, match="both hold the train set"):
        made.split("train")


# ---- the kept index


def test_what_0_1_0_packed_is_read_as_it_was(tmp_path):
    """From its index alone: the shards are cut to nothing but their length."""
    wanted = [source(FIXTURE).split(split) for split in ("train", "test")]
    shutil.copytree(FIXTURE, tmp_path / "s")
    for path in (tmp_path / "s").glob("*.tar"):
        size = path.stat().st_size
        path.write_bytes(b"")
        os.truncate(path, size)
    for split, images in zip(("train", "test"), wanted, strict=True):
        found = source(tmp_path / "s").split(split)
        assert found.fingerprint == images.fingerprint
        assert found.classes == ("cat", "dog")
        assert torch.equal(found.labels, images.labels)
    train, _ = wanted
    assert [train.name(i)[-13:] for i in range(6)] == [f"00000000{i}.png" for i in range(6)]
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    for i in range(6):
        assert Image.open(io.BytesIO(train.contents(i))).size == (6, 6)


def test_an_index_of_0_1_0_says_what_reading_the_shard_says(tmp_path):
    for path in FIXTURE.glob("*.tar"):
        one, two = samples_of(str(path)), read(path)
        assert one.names == two.names
        assert all(np.array_equal(one[k], two[k]) for k in range(1, 5))
        assert (one.ignored, one.texts, one.doubt) == (two.ignored, two.texts, two.doubt)


@pytest.mark.parametrize("keys", [Keys(), Keys(label=b"json", path="a"), Keys(dots=1)])
def test_texts_examples_and_doubts_are_kept(tmp_path, monkeypatch, keys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(samples, "_SETTLED", -(2**62))
    found = [("b.png", image(0)), ("b.json", text({"label": "cat", "a": "dog"})), ("c.txt", b"")]
    for i in range(2):
        path = make(tmp_path / f"{i}.tar", found if i else [("x.a.png", b""), ("x.b.png", b"")])
        first = samples_of(str(path), keys=keys)
        with monkeypatch.context() as blind:
            blind.setattr(samples, "read_samples", lambda *a: pytest.fail("read again"))
            again = samples_of(str(path), keys=keys)
        assert (again.names, list(again.texts), again.doubt) == (
            first.names,
            list(first.texts),
            first.doubt,
        )
        assert (again.ignored, again.examples) == (first.ignored, first.examples)
        assert again.labels_N.tolist() == first.labels_N.tolist()


@pytest.mark.parametrize(
    "head", [{"texts": ["a"]}, {"texts": 3}, {"examples": [1]}, {"ignored": 1}]
)
def test_a_head_that_cannot_be_is_no_index(tmp_path, head):
    path = make(tmp_path / "0.tar", pairs(3, "png", "cls"))
    found, size = samples_of(str(path)), path.stat().st_size
    data = samples.parts(found, {"bytes": size})
    data[0] = text({**json.loads(data[0]), **head})
    assert samples.parse(data, {"bytes": size}) is None
    assert cache.seal(data)
