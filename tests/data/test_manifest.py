"""Manifests: a table's rows are the images, whatever the table tries; every refusal has file, line
and remedy.
"""

import csv
import re
import sys
import time
import warnings

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lookalike.data import Manifest
from lookalike.data.decode import BadImage
from lookalike.data.folders.index import unit
from lookalike.data.images import subset
from lookalike.data.tables import repeats
from lookalike.errors import DataError

ROWS = [
    {"path": "a/1.png", "label": "10", "camera": "c2", "split": "train"},
    {"path": "a/2.png", "label": "9", "camera": "c1", "split": "train"},
    {"path": "b/3, 4.png", "label": "10", "camera": "c1", "split": "test"},
    {"path": "grün.png", "label": "100", "camera": "c3", "split": "train"},
]


@pytest.fixture
def home(tmp_path):
    for i, row in enumerate(ROWS):
        (tmp_path / row["path"]).parent.mkdir(exist_ok=True)
        Image.new("RGB", (9, 9), (50 * i, 0, 0)).save(tmp_path / row["path"])
    return tmp_path


def write(path, rows=ROWS, columns=("path", "label", "camera", "split")):
    if path.suffix == ".parquet":
        pq.write_table(pa.table({name: [row[name] for row in rows] for name in columns}), path)
        return path
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


def below(home, images) -> list[str]:
    return [images.name(i).removeprefix(f"{home}/") for i in range(len(images))]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_rows_are_images(home, suffix):
    path = write(home / f"all.{suffix}")
    train, test = (Manifest(str(path), canvas=4).split(split) for split in ("train", "test"))
    assert below(home, train) == ["a/1.png", "a/2.png", "grün.png"]
    assert below(home, test) == ["b/3, 4.png"]
    assert train.classes == test.classes == ("9", "10", "100")
    assert train.labels.tolist() == [1, 0, 2]
    assert test.labels.tolist() == [1]
    assert train.cameras.tolist() == [1, 0, 2]
    assert test.cameras.tolist() == [0]
    assert train.read(2)[0, 0, 0] == 150
    assert subset(train, [2, 0]).cameras.tolist() == [2, 1]
    assert train.fingerprint != test.fingerprint


def test_only_the_path_is_needed_and_other_columns_are_not_read(home, tmp_path):
    rows = [{**row, "note": "=cmd|' /C calc'!A0"} for row in ROWS]
    path = write(home / "some.csv", rows, ("note", "path"))
    train = Manifest(str(path), test_fraction=0).split("train")
    assert (train.labels, train.cameras, train.classes) == (None, None, ())
    assert below(home, train) == [row["path"] for row in ROWS]


def test_without_a_split_the_paths_hash_decides_as_in_a_folder(home):
    path = write(home / "some.csv", columns=("path", "label"))
    for fraction in (0.3, 0.6):
        wanted = [row["path"] for row in ROWS if unit(row["path"].encode()) < fraction]
        assert below(home, Manifest(str(path), test_fraction=fraction).split("test")) == wanted
    with pytest.raises(DataError, match="none of its 4 rows is in the test set; add rows"):
        Manifest(str(path), test_fraction=0).split("test")


def test_val_stands_in_for_test_and_root_may_be_elsewhere(home, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    rows = [{**row, "split": row["split"].replace("test", "val")} for row in ROWS]
    source = Manifest(str(write(elsewhere / "all.csv", rows)), root=str(home))
    assert below(home, source.split("test")) == ["b/3, 4.png"]
    source.split("test").read(0)


def test_words_are_sorted_as_words(home):
    rows = [{**row, "label": label} for row, label in zip(ROWS, ("b", "a", "10", "9"), strict=True)]
    assert Manifest(str(write(home / "w.csv", rows))).split("train").classes == (
        "10",
        "9",
        "a",
        "b",
    )


BAD = {
    "absolute": (
        "path\na.png\n/etc/passwd\n",
        r":3: the path '/etc/passwd' is outside of .*: set root to a folder above it, as root: ",
    ),
    "up": ("path\na/../../x.png\n", r":2: the path .* is one that leaves root"),
    "nul": ("path\na\0b.png\n", r":2: "),
    "empty path": ('path,label\n"",1\n', r":2: the path '' is empty"),
    "no path": (
        "photo,label\nx,1\n",
        r":1: no column path, the header has photo, label: name it so, or say which with columns: ",
    ),
    "nothing": ("", r":1: no column path, the header has nothing"),
    "nearly": ("path,lable\nx,1\n", r":1: column 'lable': did you mean 'label'\? rename it"),
    "twice": ("path,label,label\nx,1,2\n", r":1: two columns label: rename one"),
    "ragged": ("path,label\na,1\nb\n", r":3: 1 fields where the header has 2: fix the line"),
    "wide": ("path,label\na,1,2\n", r":2: 3 fields where the header has 2"),
    "quote": ('path\n"a\nb\n', r":3: unexpected end of data: fix the line"),
    "bytes": (b"path\na\nb\xff.png\n", r":3: not UTF-8 \(invalid start byte\): save it as UTF-8"),
    "half of utf16": ("path\na\n".encode("utf-16")[:-1], r": no whole UTF-16: save it as UTF-8"),
    "huge": ("path\n" + "x" * 200_000 + "\n", r":2: field larger than field limit"),
    "split": ("path,split\na,tset\n", r":2: split 'tset' is none of train, test, val: fix it"),
    "label": (
        "path,label\na,1\nb,\n",
        r":3: label is empty: fill it, or leave the whole column out",
    ),
    "escape": ("path,split\n\x1b[2Ja,\x1b[2J\n", r":2: split '\\x1b\[2J' is none"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_table_that_is_wrong_is_one_line_with_file_and_line(tmp_path, case):
    text, wanted = BAD[case]
    path = tmp_path / "m.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=rf"^{path}{wanted}") as caught:
        Manifest(str(path), test_fraction=0).split("train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "wanted"),
    [
        ({"path": ["a", None]}, r":2: path is empty: give a string or an integer"),
        (
            {"path": ["a"], "label": [1.5]},
            r"m\.parquet:1: label is 1\.5, which is no whole number: give strings or integers",
        ),
        ({"path": ["a", "../b"]}, r":2: the path '\.\./b' is one that leaves root"),
        ({"photo": ["a"]}, r":1: no column path"),
    ],
)
def test_a_parquet_that_is_wrong_is_one_line_too(tmp_path, columns, wanted):
    pq.write_table(pa.table(columns), tmp_path / "m.parquet")
    with pytest.raises(DataError, match=wanted):
        Manifest(str(tmp_path / "m.parquet"), test_fraction=0).split("train")


def test_no_parquet_and_no_pyarrow_say_what_to_do(tmp_path, monkeypatch):
    path = tmp_path / "m.parquet"
    path.write_bytes(b"PAR1 no such thing PAR1")
    with pytest.raises(DataError, match=r"no Parquet file that can be read \(.*\): write it again"):
        Manifest(str(path)).split("train")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install 'lookalike\[parquet\]', or give a \.csv"):
        Manifest(str(path)).split("train")
    with pytest.raises(DataError, match="no such file"):
        Manifest(str(tmp_path / "none.csv")).split("train")


def test_a_link_out_of_root_is_a_bad_image(home, tmp_path_factory):
    secret = tmp_path_factory.mktemp("secret")
    Image.new("RGB", (9, 9)).save(secret / "x.png")
    (home / "door").symlink_to(secret)
    (home / "in.png").symlink_to("a/1.png")
    path = home / "m.csv"
    path.write_text("path\ndoor/x.png\nin.png\n")
    images = Manifest(str(path), test_fraction=0, canvas=4).split("train")
    with pytest.raises(BadImage, match=r"door/x\.png: a link out of"):
        images.read(0)
    images.read(1)


def test_a_hundred_thousand_rows_take_a_moment(tmp_path):
    path = tmp_path / "m.csv"
    lines = (f"folder{i % 100}/image{i}.jpg,{i % 1000},{i % 6}\n" for i in range(100_000))
    path.write_text("path,label,camera\n" + "".join(lines))
    (tmp_path / "folder0").mkdir()
    (tmp_path / "folder0/image0.jpg").touch()
    began = time.process_time()
    with pytest.warns(UserWarning, match="63 of 64 rows that were looked at have none"):
        train = Manifest(str(path)).split("train")
    assert time.process_time() - began < 3
    assert len(train.classes) == 1000
    assert all(
        int(train.name(i).split("image")[1][:-4]) % 1000 == train.labels[i]
        for i in range(0, len(train), 997)
    )


def manifest(root, *lines: str) -> Manifest:
    """The table, and an image for each row."""
    for line in lines[1:]:
        name = root / line.split(",")[0]
        name.exists() or Image.new("RGB", (4, 4)).save(name, "PNG")
    (root / "m.csv").write_text("".join(f"{line}\n" for line in lines))
    return Manifest(str(root / "m.csv"))


def test_a_manifest_says_which_rows_ask_and_which_are_searched(tmp_path):
    rows = (
        "a.png,train,,",
        "b.png,test,true,0",
        "c.png,test,1,TRUE",
        "d.png,test,False,1",
        "e.png,test,0,false",
    )
    source = manifest(tmp_path, "path,split,is_query,is_gallery", *rows)
    assert source.split("train").roles is None
    roles = source.split("test").roles
    assert roles.query_N.tolist() == [True, True, False, False]
    assert roles.gallery_N.tolist() == [False, True, True, False]
    assert subset(source.split("test"), [3, 1]).roles.gallery_N.tolist() == [False, True]
    for column, asks in (("is_query", [True, False]), ("is_gallery", [False, True])):
        roles = (
            manifest(tmp_path, f"path,split,{column}", "a.png,test,1", "b.png,test,0")
            .split("test")
            .roles
        )
        assert roles.query_N.tolist() == asks
        assert roles.gallery_N.tolist() == [not each for each in asks]


def test_a_parquets_roles_may_be_booleans(tmp_path):
    columns = {
        "path": ["a", "b", "c"],
        "split": ["test", "train", "test"],
        "is_query": [True, False, False],
    }
    pq.write_table(pa.table(columns), tmp_path / "m.parquet")
    for name in "abc":
        (tmp_path / name).touch()
    assert Manifest(str(tmp_path / "m.parquet")).split("test").roles.query_N.tolist() == [
        True,
        False,
    ]


def test_a_manifests_roles_that_are_wrong_are_one_line(tmp_path):
    with pytest.raises(
        DataError, match=r"m.csv:3: is_query 'yes' is none of true, false, 1, 0: fix it"
    ):
        manifest(tmp_path, "path,split,is_query", "a,train,", "b,test,yes").split("test")
    with pytest.raises(
        DataError, match=r"m.csv: no row of the test set is a query: say so in is_query"
    ):
        manifest(tmp_path, "path,split,is_query", "a,train,1", "b,test,0").split("test")
    with pytest.raises(
        DataError, match=r"m.csv: no row of the test set is searched: say so in is_gallery"
    ):
        manifest(tmp_path, "path,split,is_query", "b,test,1").split("test")


def told(source) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for split in ("train", "test"):
            source.split(split)
    return [str(one.message)[str(one.message).index("m.csv") :] for one in caught]


LEAK = (
    "path,label,split",
    "a.png,1,train",
    "b.png,1,test",
    "c.png,2,train",
    "./a.png,1,test",
    "c.png,2,test",
)
LABELS = ("path,label,split", "a.png,1,train", "b.png,1,test", "a.png,2,train")
AGAIN = ("path,label,split", "a.png,1,train", "b.png,1,test", ".//a.png,1,train", "a.png,1,train")
REPEATS = {
    "set": (
        LEAK,
        r"m.csv:5: ./a.png is in the test set, and in the train set on line 2 \(2 such images\): "
        r".*delete",
    ),
    "label": (
        LABELS,
        r"m.csv:4: a.png has another label than on line 2 \(the only such image\): delete the "
        r"wrong rows",
    ),
    "again": (
        AGAIN,
        r"m.csv:4: .//a.png is listed again, as on line 2 \(the only such image\): delete all",
    ),
}


@pytest.mark.parametrize("kind", REPEATS)
def test_an_image_listed_twice_is_said_once_with_count_and_place(tmp_path, kind):
    lines, wanted = REPEATS[kind]
    (said,) = told(manifest(tmp_path, *lines))
    assert re.fullmatch(wanted + ".*", said)
    with pytest.raises(DataError, match=wanted.replace("m.csv", "^.*m.csv", 1)):
        Manifest(str(tmp_path / "m.csv"), strict=True).split("train")


def test_kinds_of_repeats_are_a_line_each(tmp_path):
    lines = ("path,label,split", "a,1,train", "a,2,test", "b,1,train", "b,1,train", "c,1,test")
    assert len(told(manifest(tmp_path, *lines))) == 3
    with pytest.raises(DataError) as caught:
        Manifest(str(tmp_path / "m.csv"), strict=True).split("test")
    assert len(str(caught.value).splitlines()) == 3


def test_an_image_may_be_a_query_and_in_the_gallery_in_two_rows(tmp_path):
    head = "path,label,split,is_query,is_gallery"
    rows = ("t,1,train,,", "a,1,test,1,0", "a,1,test,0,1", "b,1,test,0,1")
    assert told(manifest(tmp_path, head, *rows)) == []
    (said,) = told(manifest(tmp_path, head, *rows, "a,1,test,0,1"))
    assert said.startswith("m.csv:6: a is listed again, as on line 4")
    (said,) = told(
        manifest(tmp_path, "path,split,is_query", "t,train,", "a,test,1", "a,test,0", "a,test,1")
    )
    assert said.startswith("m.csv:5: a is listed again, as on line 3")


def test_rows_in_no_set_repeat_nothing(tmp_path):
    assert (
        told(manifest(tmp_path, "path,label,split", "a,1,val", "a,2,train", "b,1,test", "b,1,val"))
        == []
    )


def test_without_a_split_a_second_spelling_may_leak(tmp_path):
    names = [f"{k}.png" for k in range(40)]
    lines = told(manifest(tmp_path, "path", *names, *(f"./{name}" for name in names)))
    leaks = sum(
        (unit(name.encode()) < 0.2) != (unit(b"./" + name.encode()) < 0.2) for name in names
    )
    assert leaks > 1
    assert f"({leaks} such images)" in lines[0]
    assert f"({40 - leaks} such images)" in lines[1]
    assert told(manifest(tmp_path, "path", *names)) == []


def test_paths_and_fingerprints_are_as_they_are_written(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "1.png")
    source = manifest(tmp_path, "path,split", "./1.png,train", "2.png,test")
    train = source.split("train")
    assert below(tmp_path, train) == ["./1.png"]
    assert (
        train.fingerprint
        != manifest(tmp_path, "path,split", "1.png,train", "2.png,test").split("train").fingerprint
    )


def test_repeats_among_many_rows_are_found():
    paths = [b"folder%d/image%d.jpg" % (i % 1000, i) for i in range(200_000)]
    assert repeats.grouped(paths) == []
    assert len(repeats.grouped(paths + [b"./" + path for path in paths[:1000]])) == 1000
