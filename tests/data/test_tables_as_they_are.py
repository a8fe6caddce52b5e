"""Tables as people have them: whatever separates, encodes and names their columns, the images,
labels and splits are those that were meant; or one line says where and what to do.
"""

import re
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lookalike.data import Manifest
from lookalike.data.tables.columns import Columns
from lookalike.data.tables.rooted import spread
from lookalike.errors import DataError

LABELS = ["0", "1", "0", "1", "0", "1"]


@pytest.fixture
def home(tmp_path):
    """Six images, whose red is ten times their number."""
    (tmp_path / "img").mkdir()
    for i in range(6):
        Image.new("RGB", (9, 9), (10 * i, 0, 0)).save(tmp_path / f"img/{i}.png")
    return tmp_path


def table(separator=",", path="path", label="label", end="\n", name="img/{}.png") -> str:
    rows = [(path, label), *((name.format(i), LABELS[i]) for i in range(6))]
    return "".join(separator.join(row) + end for row in rows)


def seen(home, data, **how):
    """Number of each image, and the name of its class, in both sets."""
    file = home / "m.csv"
    file.write_bytes(data if isinstance(data, bytes) else data.encode())
    return found(Manifest(str(file), canvas=4, **how))


def found(source):
    both = {}
    for split in ("train", "test"):
        images = source.split(split)
        for i in range(len(images)):
            both[int(images.read(i)[0, 0, 0]) // 10] = images.classes[images.labels[i]]
    return dict(sorted(both.items()))


RIGHT = dict(enumerate(LABELS))
READ = {
    "commas": table(),
    "semicolons": table(";"),
    "tabs": table("\t"),
    "bars": table("|"),
    "a comma in another field": table(";")
    .replace("label", "label;a,b")
    .replace("0\n", "0;x,y\n")
    .replace("1\n", "1;\n"),
    "mark of UTF-8": b"\xef\xbb\xbf" + table().encode(),
    "mark and semicolons": b"\xef\xbb\xbf" + table(";", path="file_name").encode(),
    "CRLF": table(end="\r\n"),
    "old Mac": table(end="\r"),
    "Unicode text of Excel": table("\t").encode("utf-16"),
    "big-endian": b"\xfe\xff" + table().encode("utf-16-be"),
    "sep= of Excel": "sep=;\r\n" + table(";", end="\r\n"),
    "all quoted": re.sub(r"[^,\n]+", r'"\g<0>"', table()),
    "file_name": table(path="file_name"),
    "filename": table(path="filename"),
    "image": table(path="image"),
    "image_path": table(path="image_path"),
    "capitals": table(path="Image_Path", label="LABEL"),
    "spaces in the header": table(", ", path="path ", label="label "),
    "class": table(label="class"),
    "target": table(label="target"),
    "backslashes": table(name="img\\{}.png"),
    "dots": table(name="./img/{}.png"),
    "floats": table().replace(",0\n", ",0.0\n").replace(",1\n", ",1.0\n"),
    "empty lines": table().replace("\n", "\n\n"),
    "no end of line at the end": table().rstrip("\n"),
    "a path beside a filename": table()
    .replace("path,label", "path,filename")
    .replace("filename", "label,filename")
    .replace(",0\n", ",0,x\n")
    .replace(",1\n", ",1,x\n"),
}


@pytest.mark.parametrize("kind", READ)
def test_a_table_is_read_as_it_was_meant(home, kind):
    assert seen(home, READ[kind]) == RIGHT


def test_absolute_paths_below_the_root_are_read(home, tmp_path_factory):
    data = table(name=str(home / "img/{}.png"))
    assert seen(home, data) == RIGHT
    assert seen(home, data) == seen(home, table())
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    with pytest.raises(DataError, match=r"m\.csv:2: the path .* is outside of .*, as root: ") as no:
        seen(elsewhere, data)
    remedy = str(no.value).rpartition("root: ")[2]
    assert seen(elsewhere, data, root=remedy) == RIGHT
    link = elsewhere / "link"
    link.symlink_to(home)
    assert seen(elsewhere, table(name=str(link / "img/{}.png")), root=str(link)) == RIGHT
    assert seen(elsewhere, data, root=str(link)) == RIGHT


def test_an_absolute_path_is_the_same_image_as_a_relative_one(home):
    (home / "a.csv").write_text(table())
    (home / "b.csv").write_text(table(name=str(home / "img/{}.png")))
    one, other = (Manifest(str(home / name), test_fraction=0) for name in ("a.csv", "b.csv"))
    assert one.split("train").fingerprint == other.split("train").fingerprint


SEPARATED = "its fields may be separated by comma or semicolon: write it with commas"
REFUSED = {
    "two separators": ("file;image,path\na;b,c\n", rf":1: {SEPARATED}"),
    "two paths": (
        "file_name,image,label\na,b,1\n",
        r":1: columns 'file_name' and 'image' may both be the path: say which with columns: "
        r"\{path: file_name\}",
    ),
    "two labels": (
        "path,class,target\na,b,1\n",
        r":1: columns 'class' and 'target' may both be the label: say which with columns: ",
    ),
    "lost": (table(name="other/{}.png"), r":2: no file 'other/0\.png' in .*, nor of 5 other rows"),
    "a drive": (table(name="C:\\img\\{}.png"), r":2: the path .* is of a Windows drive: write it"),
    "a share": (table(name="\\\\host\\{}.png"), r":2: the path .* is of a Windows drive"),
    "lost backslashes": (
        table(name="other\\{}.png"),
        r":2: the path .* has backslashes, as on Windows: write it with / and relative to root",
    ),
    "Latin-1": ("path\nimg/gr\xfcn.png\n".encode("latin-1"), r":2: not UTF-8 .*: save it as UTF-8"),
    "NaN": (
        table(label="label").replace(",1\n", ",1.0\n", 1).replace(",0\n", ",nan\n", 1),
        r":2: label is nan: fill it",
    ),
    "no label in one row": (table().replace(",1\n", ",\n", 1), r":3: label is empty: fill it"),
    "nearly": ("path,labels\na,1\n", r":1: column 'labels': did you mean 'label'\?"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_understood_is_one_line(home, kind):
    data, wanted = REFUSED[kind]
    with pytest.raises(DataError, match=rf"m\.csv{wanted}") as caught:
        seen(home, data, test_fraction=0)
    assert "\n" not in str(caught.value)


def test_columns_are_chosen_by_a_key(home):
    data = table(path="photo", label="species").replace("photo,", "path,photo,")
    data = re.sub(r"^img", "x,img", data, flags=re.M)
    assert seen(home, data, columns=Columns(path="photo", label="species")) == RIGHT
    with pytest.raises(
        DataError, match=r":1: no column genus, the header has .*: change columns\."
    ):
        seen(home, data, columns=Columns(path="photo", label="genus"))


def test_some_lost_files_are_said_and_left_to_be_bad_images(home):
    data = table() + "img/6.png,0\nimg/7.png,0\n"
    with pytest.warns(UserWarning, match=r"m\.csv:8: no file 'img/6\.png' .*\(2 of 8 rows"):
        Manifest(str(_written(home, data)), test_fraction=0).split("train")


def _written(home, data):
    (home / "m.csv").write_text(data)
    return home / "m.csv"


@pytest.mark.parametrize(
    ("train", "test"),
    [("train", "test"), ("Training", "VALIDATION"), ("TRAIN", "valid"), ("training", "dev")],
)
def test_splits_are_named_by_many_words(home, train, test):
    rows = [f"img/{i}.png,{LABELS[i]},{train if i < 4 else test}\n" for i in range(6)]
    source = Manifest(str(_written(home, "path,label,split\n" + "".join(rows))))
    assert [len(source.split(name)) for name in ("train", "test")] == [4, 2]
    assert list(source.inventory) == []


def test_rows_in_neither_set_are_counted(home):
    splits = ["train", "train", "val", "test", "unlabeled", "Unlabelled"]
    labels = ["0", "1", "0", "1", "", ""]
    rows = [f"img/{i}.png,{labels[i]},{splits[i]}\n" for i in range(6)]
    source = Manifest(str(_written(home, "path,label,split\n" + "".join(rows))))
    train, test = source.split("train"), source.split("test")
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1], [1])
    assert train.classes == ("0", "1")
    left = {one.why: (one.number, one.example) for one in source.inventory}
    assert left == {
        "split val": (1, f"{home}/m.csv:4"),
        "split unlabeled": (1, f"{home}/m.csv:6"),
        "split Unlabelled": (1, f"{home}/m.csv:7"),
    }


PANDAS = {
    "whole floats": ([3.0, 10.0, 3.0, -1.0, 10.0, 2.0], ("-1", "2", "3", "10")),
    "float32": (np.float32([3, 10, 3, -1, 10, 2]), ("-1", "2", "3", "10")),
    "whole numbers": ([3, 10, 3, -1, 10, 2], ("-1", "2", "3", "10")),
    "words": (list("badacb"), ("a", "b", "c", "d")),
    "bools": ([True, False, True, True, False, True], ("False", "True")),
}


@pytest.mark.parametrize("kind", PANDAS)
def test_labels_of_a_parquet_that_pandas_wrote(home, kind):
    values, classes = PANDAS[kind]
    paths = [f"img/{i}.png" for i in range(6)]
    pq.write_table(pa.table({"file_name": paths, "label": values}), home / "m.parquet")
    images = Manifest(str(home / "m.parquet"), test_fraction=0).split("train")
    assert images.classes == classes
    words = [str(int(v)) if kind in ("whole floats", "float32") else str(v) for v in values]
    assert [classes[label] for label in images.labels] == words


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.5])
def test_a_float_that_is_no_whole_number_is_refused_with_its_row(home, value):
    columns = {"path": ["img/0.png", "img/1.png"], "label": [1.0, value]}
    pq.write_table(pa.table(columns), home / "m.parquet")
    with pytest.raises(DataError, match=rf"m\.parquet:2: label is {value}, which is no whole"):
        Manifest(str(home / "m.parquet")).split("train")


def test_words_that_look_like_floats_only_in_part_stay_words(home):
    data = table().replace(",0\n", ",1.0\n").replace(",1\n", ",1.5\n")
    assert set(seen(home, data).values()) == {"1.0", "1.5"}


def test_floats_are_sorted_as_numbers(home):
    data = table().replace(",0\n", ",10.0\n").replace(",1\n", ",9.0\n")
    images = Manifest(str(_written(home, data)), test_fraction=0).split("train")
    assert images.classes == ("9", "10")
    assert Counter(images.labels.tolist()) == {0: 3, 1: 3}


@pytest.mark.parametrize("n", [0, 1, 2, 63, 64, 65, 10**6])
def test_rows_looked_at_are_spread_over_all(n):
    rows = spread(n)
    assert len(rows) == len(set(rows)) == min(n, 64)
    assert not n or (rows[0], rows[-1]) == (0, n - 1)
