"""Published data sets: miniatures in each layout are read as another reading of the same files
says.
"""

import contextlib
import json
import os
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import loadmat, savemat
from scipy.io.matlab import MatlabFunction
from scipy.sparse import csc_matrix

from lookalike.data import SOURCES
from lookalike.data.decode import BadImage
from lookalike.data.pack import Packing, pack
from lookalike.data.published import Published, matlab
from lookalike.data.published import loadmat as loadmat_child
from lookalike.errors import DataError
from lookalike.recipe import Choice
from lookalike.scoring import reidentification

# Every miniature differs from the published set, which is said; one test below holds that it is.
pytestmark = pytest.mark.filterwarnings("ignore:.*scores are not comparable:UserWarning")


def draw(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (value % 256, 0, 0)).save(path)


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


CUB = [
    (1, "001.Black_footed_Albatross/a_1.jpg", 1, 1),
    (2, "001.Black_footed_Albatross/a_2.jpg", 1, 0),
    (3, "100.Brown_Pelican/p_1.jpg", 100, 0),
    (4, "101.White_Pelican/w_1.jpg", 101, 1),
    (5, "200.Common_Yellowthroat/y_1.jpg", 200, 0),
    (7, "200.Common_Yellowthroat/y_2.jpg", 200, 1),
]


def cub(root: Path) -> None:
    for _, path, number, _ in CUB:
        draw(root / "images" / path, number)
    write(root / "images.txt", *(f"{i} {path}" for i, path, _, _ in CUB))
    write(root / "image_class_labels.txt", *(f"{i} {number}" for i, _, number, _ in reversed(CUB)))
    write(root / "train_test_split.txt", *(f"{i} {train}" for i, _, _, train in CUB))


# Class 98 is in both folders, and so is 99.
CARS = {
    "train": [("00001.jpg", 98), ("00002.jpg", 99), ("00003.jpg", 1)],
    "test": [("00001.jpg", 98), ("00002.jpg", 196), ("00003.jpg", 99)],
}


def annotations(
    rows: list[tuple[object, object]], fields: tuple[str, str] = ("fname", "class")
) -> dict[str, object]:
    """As the devkit has them: a 1 × N struct array, of which some fields are bounding boxes."""
    records = np.zeros(
        (1, len(rows)), [("bbox_x1", object), (fields[1], object), (fields[0], object)]
    )
    for k, (name, number) in enumerate(rows):
        records[0, k] = (np.uint16(3), number, name)
    return {"annotations": records}


def cars(root: Path) -> None:
    for part, rows in CARS.items():
        for name, number in rows:
            draw(root / f"cars_{part}" / name, number)
        ending = "" if part == "train" else "_withlabels"
        (root / "devkit").mkdir(exist_ok=True)
        numbers = [(name, np.uint8(number)) for name, number in rows]
        savemat(root / "devkit" / f"cars_{part}_annos{ending}.mat", annotations(numbers))
    names = np.array(
        [[f"Make {k} {'C/V ' if k == 99 else ''}2012" for k in range(1, 197)]], dtype=object
    )
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": names})


def sop(root: Path) -> None:
    header = "image_id class_id super_class_id path"
    train = [
        "1 10 1 bicycle_final/1_0.JPG",
        "2 10 1 bicycle_final/1_1.JPG",
        "3 9 2 chair_final/9_0.JPG",
    ]
    test = ["4 11319 1 bicycle_final/5_0.JPG", "5 11319 1 bicycle_final/5_1.JPG"]
    write(root / "Ebay_train.txt", header, *train)
    write(root / "Ebay_test.txt", header, *test)
    for line in (*train, *test):
        (root / line.split()[3]).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / line.split()[3], "JPEG")


IN_SHOP = [
    "img/WOMEN/Dresses/id_00000002/02_1_front.jpg              id_00000002 train",
    "img/WOMEN/Dresses/id_00000002/02_2_side.jpg               id_00000002 train",
    "img/MEN/Denim/id_00000080/01_1_front.jpg                  id_00000080 query",
    "img/MEN/Denim/id_00000080/01_2_side.jpg                   id_00000080 gallery",
    "img/MEN/Denim/id_00000001/01_1_front.jpg                  id_00000001 gallery",
]


def in_shop(root: Path) -> None:
    write(
        root / "Eval" / "list_eval_partition.txt",
        "5",
        "image_name item_id evaluation_status",
        *IN_SHOP,
    )
    for line in IN_SHOP:
        draw(root / "Img" / line.split()[0])


MARKET = [
    "bounding_box_train/0002_c1s1_000451_03.jpg",
    "bounding_box_train/0002_c3s1_000451_01.jpg",
    "bounding_box_train/0007_c6s3_077419_03.jpg",
    "query/0001_c1s1_001051_00.jpg",
    "query/0003_c4s6_015641_00.jpg",
    "bounding_box_test/-1_c1s1_000401_03.jpg",
    "bounding_box_test/0000_c2s1_000151_01.jpg",
    "bounding_box_test/0001_c1s1_001051_01.jpg",
    "bounding_box_test/0001_c2s1_001976_01.jpg",
    "bounding_box_test/0003_c6s1_000026_01.jpg",
]


def market(root: Path) -> None:
    for path in MARKET:
        draw(root / path)
    for folder in ("bounding_box_test", "query"):
        (root / folder / "Thumbs.db").write_bytes(b"no image")
        (root / folder / "._0001_c1s1_001051_00.jpg").write_bytes(b"no image")


def duke(root: Path) -> None:
    for folder, names in {
        "bounding_box_train": ["0001_c2_f0046182.jpg", "0005_c8_f0051341.jpg"],
        "query": ["0010_c1_f0047401.jpg"],
        "bounding_box_test": ["0010_c7_f0047401.jpg", "7139_c8_f0047401.jpg"],
    }.items():
        for name in names:
            draw(root / folder / name)


MSMT = {
    "train": [
        "0000/0000_000_01_0303morning_0015_0.jpg 0",
        "0001/0001_000_15_0303noon_0015_0.jpg 1",
    ],
    "val": ["0000/0000_001_02_0303morning_0015_0.jpg 0"],
    "query": ["0000/0000_000_03_0302noon_0015_0.jpg 0"],
    "gallery": ["0000/0000_001_14_0302noon_0016_1.jpg 0", "0002/0002_001_03_0302noon_0016_1.jpg 2"],
}


def msmt(root: Path, folders: tuple[str, str] = ("train", "test")) -> None:
    for part, lines in MSMT.items():
        write(root / f"list_{part}.txt", *lines)
        for line in lines:
            draw(root / folders[part in ("query", "gallery")] / line.split()[0])


PAIRS = [
    "2\t2",
    "Ann\t1\t2",
    "Ann\t1\t3",
    "Ann\t1\tBob_de_Lo\t1",
    "Cy\t2\tBob_de_Lo\t1",
    "Cy\t1\t2",
    "Eve\t1\t2",
    "Ann\t3\tEve\t2",
    "Cy\t1\tBob_de_Lo\t1",
]
FACES = {"Ann": 4, "Bob_de_Lo": 1, "Cy": 2, "Dan": 2, "Eve": 2, "Fay": 1}


def lfw(root: Path) -> None:
    for name, count in FACES.items():
        for k in range(1, count + 1):
            draw(root / name / f"{name}_{k:04d}.jpg")
    write(root / "pairs.txt", *PAIRS)


MINIATURES = {
    "cub": cub,
    "cars196": cars,
    "sop": sop,
    "in_shop": in_shop,
    "market1501": market,
    "duke_mtmc": duke,
    "msmt17": msmt,
    "lfw": lfw,
}
# train images, train classes, test images, test classes
COUNTS = {
    "cub": (3, 2, 3, 2),
    "cars196": (3, 2, 3, 2),
    "sop": (3, 2, 2, 1),
    "in_shop": (2, 1, 3, 2),
    "market1501": (3, 2, 6, 3),
    "duke_mtmc": (2, 2, 3, 2),
    "msmt17": (2, 2, 3, 2),
    "lfw": (3, 2, 8, 4),
}


@pytest.fixture
def sets(tmp_path):
    """A miniature's train and test set, by the source's name and keys."""

    def make(name, **keys):
        if not any(tmp_path.iterdir()):
            MINIATURES[name](tmp_path)
        return [
            SOURCES[name](str(tmp_path), canvas=4, **keys).split(split)
            for split in ("train", "test")
        ]

    return make


def listed(images) -> dict[str, str]:
    """Path -> class name."""
    root = f"{images._root}/"
    names = [images.classes[label] for label in images.labels.tolist()]
    return {images.name(i).removeprefix(root): name for i, name in enumerate(names)}


@pytest.mark.parametrize("name", MINIATURES)
def test_every_layout_is_read_and_no_class_is_in_both_sets(name, sets):
    train, test = sets(name)
    shared = set(train.labels.tolist()) & set(test.labels.tolist())
    counts = [(len(each), len(set(each.labels.tolist()))) for each in (train, test)]
    assert (*counts[0], *counts[1]) == COUNTS[name]
    assert not shared
    assert train.classes == test.classes
    assert len(set(train.classes)) == len(train.classes)
    assert train.labels.dtype == test.labels.dtype == torch.int64
    # Those of the train set come first.
    assert set(train.labels.tolist()) | set(test.labels.tolist()) == set(range(len(train.classes)))
    assert train.labels.max() < test.labels.min()
    for images in (train, test):
        assert images.read(len(images) - 1).shape == (3, 4, 4)
        assert len(images.fingerprint) == 64
        assert (images.roles is None) == (
            images is train or name in ("cub", "cars196", "sop", "lfw")
        )
        assert (images.cameras is None) == (name not in ("market1501", "duke_mtmc", "msmt17"))
        assert (images.pairs is None) == (images is train or name != "lfw")


@pytest.mark.parametrize("name", MINIATURES)
def test_a_set_that_is_not_the_published_one_is_said_to_be_another_in_one_line(name, tmp_path):
    MINIATURES[name](tmp_path)
    source = SOURCES[name](str(tmp_path))
    for split in ("train", "test"):
        with pytest.warns(UserWarning, match=r"scores are not comparable$") as caught:
            source.split(split)
        (text,) = {str(warning.message) for warning in caught}
        assert text.startswith(f"{tmp_path}: ")
        assert "\n" not in text
        for what, count in source.layout.counts.items():
            part = what.split()[0]
            other = {"train": ("query", "gallery", "test"), "test": ("train",)}[split]
            assert (f"{what} where the published set has {count:,}" in text) == (
                part not in other
            ), what


def test_a_set_of_the_published_counts_is_said_to_be_nothing(tmp_path, monkeypatch):
    market(tmp_path)
    counts = {
        "train images": 3,
        "train classes": 2,
        "query images": 2,
        "gallery images": 4,
        "gallery classes": 3,
    }
    source = SOURCES["market1501"](str(tmp_path))
    monkeypatch.setattr(source, "layout", source.layout._replace(counts=counts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda text, **_: pytest.fail(text))
        source.split("train")
        source.split("test")


def test_the_published_counts_agree_with_one_another():
    whole = {"cub": 11788, "cars196": 16185, "sop": 120053, "in_shop": 52712, "duke_mtmc": 36411}
    for name, total in whole.items():
        counts = SOURCES[name]("x").layout.counts
        assert sum(count for what, count in counts.items() if what.endswith("images")) == total
    for name in ("cub", "cars196"):
        closed = SOURCES[name]("x", protocol="closed_set").layout.counts
        assert closed["train images"] + closed["test images"] == whole[name]
    assert (
        sum(SOURCES["sop"]("x").layout.counts[f"{part} classes"] for part in ("train", "test"))
        == 22634
    )
    # Of 19,732 in bounding_box_test 3,819 are junk.
    assert SOURCES["market1501"]("x").layout.counts["gallery images"] == 19732 - 3819


def test_cub_is_split_by_class_and_by_its_list_only_when_asked(sets):
    train, test = sets("cub")
    assert listed(train) == {
        f"images/{path}": path.split("/")[0] for _, path, number, _ in CUB if number <= 100
    }
    assert listed(test) == {
        f"images/{path}": path.split("/")[0] for _, path, number, _ in CUB if number > 100
    }
    for images, wanted in zip(sets("cub", protocol="closed_set"), (1, 0), strict=True):
        assert listed(images) == {
            f"images/{path}": path.split("/")[0] for _, path, _, t in CUB if t == wanted
        }


def test_cars_are_split_by_class_over_both_folders(sets, tmp_path):
    train, test = sets("cars196")
    wanted = {f"cars_{part}/{name}": number for part, rows in CARS.items() for name, number in rows}
    names = {
        path: f"Make {number} {'C/V ' if number == 99 else ''}2012"
        for path, number in wanted.items()
    }
    assert listed(train) == {path: names[path] for path, number in wanted.items() if number <= 98}
    assert listed(test) == {path: names[path] for path, number in wanted.items() if number >= 99}
    closed = sets("cars196", protocol="closed_set")
    assert [set(listed(each)) for each in closed] == [
        {p for p in wanted if p.startswith(f"cars_{s}/")} for s in CARS
    ]
    # The labelled annotations of the test folder were published by themselves.
    (tmp_path / "devkit" / "cars_test_annos_withlabels.mat").rename(
        tmp_path / "cars_test_annos_withlabels.mat"
    )
    (tmp_path / "devkit" / "cars_meta.mat").unlink()
    assert listed(sets("cars196")[1]) == {
        path: str(number) for path, number in wanted.items() if number >= 99
    }


def test_sops_header_is_no_image_and_its_classes_are_numbers(sets):
    train, test = sets("sop")
    assert listed(train) == {
        "bicycle_final/1_0.JPG": "10",
        "bicycle_final/1_1.JPG": "10",
        "chair_final/9_0.JPG": "9",
    }
    assert train.classes == ("9", "10", "11319")
    assert set(listed(test).values()) == {"11319"}


@pytest.mark.parametrize("flat", [False, True])
def test_in_shops_test_set_is_query_and_gallery(sets, tmp_path, flat):
    in_shop(tmp_path)
    prefix = "Img/"
    if flat:
        (tmp_path / "Img" / "img").rename(tmp_path / "img")
        (tmp_path / "Img").rmdir()
        (tmp_path / "Eval" / "list_eval_partition.txt").rename(tmp_path / "list_eval_partition.txt")
        prefix = ""
    train, test = sets("in_shop")
    rows = [line.split() for line in IN_SHOP]
    assert listed(train) == {prefix + path: item for path, item, part in rows if part == "train"}
    assert listed(test) == {prefix + path: item for path, item, part in rows if part != "train"}
    part = {prefix + path: part for path, _, part in rows}
    parts = [part[path] for path in listed(test)]
    assert test.roles.query_N.tolist() == [each == "query" for each in parts]
    assert test.roles.gallery_N.tolist() == [each == "gallery" for each in parts]
    test.read(0)


def test_market_leaves_junk_out_and_keeps_distractors(sets):
    train, test = sets("market1501")
    known = {path: re.search(r"([-\d]+)_c(\d)", path).groups() for path in MARKET}
    for images, inside in ((train, [True]), (test, [False])):
        wanted = {
            p: v
            for p, v in known.items()
            if v[0] != "-1" and p.startswith("bounding_box_train") in inside
        }
        found = listed(images)
        assert found == {path: identity for path, (identity, _) in wanted.items()}
        assert images.cameras.tolist() == [int(known[path][1]) for path in found]
    assert train.classes == ("0002", "0007", "0000", "0001", "0003")
    paths = list(listed(test))
    assert test.roles.query_N.tolist() == [path.startswith("query/") for path in paths]
    assert test.roles.gallery_N.tolist() == [
        path.startswith("bounding_box_test/") for path in paths
    ]


def test_markets_roles_and_cameras_are_what_re_identification_asks_for(sets):
    _, test = sets("market1501")
    query, gallery = (torch.nonzero(role).flatten() for role in test.roles)
    # The distractor looks like 0001, whose image by the same camera is junk; 0003 is found at once.
    looks = {"0000": 0.1, "0001": 0.0, "0003": 1.5}
    angle_N = torch.tensor([looks[test.classes[label]] for label in test.labels.tolist()])
    angle_N[
        [i for i, path in enumerate(listed(test)) if path.endswith("0001_c2s1_001976_01.jpg")]
    ] = 0.2
    x_ND = torch.stack([angle_N.cos(), angle_N.sin()], dim=1)
    of = [(x_ND[rows], test.labels[rows], test.cameras[rows]) for rows in (query, gallery)]
    scores = reidentification.scores(*of[0], *of[1])
    assert scores["map"] == pytest.approx((1 / 2 + 1) / 2)


def test_dukes_names_have_cameras_too(sets):
    train, test = sets("duke_mtmc")
    assert train.cameras.tolist() == [2, 8]
    assert train.classes == ("0001", "0005", "0010", "7139")
    assert test.cameras.tolist() == [1, 7, 8]
    assert test.roles.query_N.tolist() == [True, False, False]


@pytest.mark.parametrize("folders", [("train", "test"), ("mask_train_v2", "mask_test_v2")])
def test_msmts_persons_of_both_folders_are_others_and_val_is_left_out(sets, tmp_path, folders):
    msmt(tmp_path, folders)
    train, test = sets("msmt17")
    wanted = [f"{folders[0]}/{line.split()[0]}" for line in MSMT["train"]]
    assert list(listed(train)) == wanted
    assert train.cameras.tolist() == [1, 15]
    assert train.classes == ("train/0000", "train/0001", "test/0000", "test/0002")
    assert test.cameras.tolist() == [3, 14, 3]
    assert test.labels.tolist() == [2, 2, 3]
    assert test.roles.query_N.tolist() == [True, False, False]
    test.read(2)


def naive_pairs(path: Path) -> list[tuple[str, str, bool, int]]:
    """Read by the words alone: three name one person, four name two; each fold has as many of
    both.
    """
    head, *rows = [line.split("\t") for line in path.read_text().splitlines()]
    found, each = [], int(head[-1])
    for k, row in enumerate(rows):
        first, second = (row[0], row[1]), (row[-2] if len(row) == 4 else row[0], row[-1])
        paths = [f"{name}/{name}_{int(number):04d}.jpg" for name, number in (first, second)]
        found.append((*paths, len(row) == 3, k // (2 * each)))
    return found


@pytest.mark.parametrize("where", ["inside", "beside", "named"])
def test_lfws_pairs_are_those_of_the_file_with_their_folds(tmp_path, where):
    home = tmp_path / "lfw_funneled"
    lfw(home)
    target = {"inside": home, "beside": tmp_path, "named": tmp_path / "elsewhere"}[
        where
    ] / "pairs.txt"
    target.parent.mkdir(exist_ok=True)
    (home / "pairs.txt").rename(target)
    source = SOURCES["lfw"](str(home), canvas=4, pairs=str(target) if where == "named" else None)
    train, test = source.split("train"), source.split("test")
    wanted, paths = naive_pairs(target), list(listed(test))
    assert set(paths) == {path for pair in wanted for path in pair[:2]}
    pairs = test.pairs
    found = [(paths[a], paths[b]) for a, b in pairs.rows_P2.tolist()]
    assert [
        (*f, s, k)
        for f, s, k in zip(found, pairs.same_P.tolist(), pairs.folds_P.tolist(), strict=True)
    ] == wanted
    assert pairs.folds_P.tolist() == [0] * 4 + [1] * 4
    assert pairs.same_P.dtype == torch.bool
    # Ann's fourth image is compared with none, and is not trained on either.
    assert listed(train) == {
        "Dan/Dan_0001.jpg": "Dan",
        "Dan/Dan_0002.jpg": "Dan",
        "Fay/Fay_0001.jpg": "Fay",
    }
    assert listed(test) == {path: path.split("/")[0] for path in paths}


def test_lfws_development_pairs_are_one_fold(tmp_path):
    lfw(tmp_path)
    write(tmp_path / "pairsDevTest.txt", "1", "Ann\t1\t2", "Cy\t2\tBob_de_Lo\t1")
    pairs = (
        SOURCES["lfw"](str(tmp_path), pairs=str(tmp_path / "pairsDevTest.txt")).split("test").pairs
    )
    assert pairs.folds_P.tolist() == [0, 0]
    assert pairs.same_P.tolist() == [True, False]


@pytest.mark.parametrize("name", ["cub", "sop", "msmt17", "in_shop"])
def test_the_order_of_a_list_is_of_no_matter(name, sets, tmp_path):
    before = sets(name)
    for path in tmp_path.rglob("*.txt"):
        lines = path.read_text().splitlines()
        first = {"sop": 1, "in_shop": 2}.get(name, 0)
        write(path, *lines[:first], *reversed(lines[first:]))
    for one, other in zip(before, sets(name), strict=True):
        assert list(listed(one).items()) == list(listed(other).items())
        assert one.fingerprint == other.fingerprint


def test_a_image_that_is_listed_and_not_there_is_a_bad_one_when_read(sets, tmp_path):
    sop(tmp_path)
    (tmp_path / "chair_final" / "9_0.JPG").unlink()
    outside = tmp_path.parent / "outside.JPG"
    Image.new("RGB", (8, 8)).save(outside, "JPEG")
    (tmp_path / "bicycle_final" / "1_0.JPG").unlink()
    (tmp_path / "bicycle_final" / "1_0.JPG").symlink_to(outside)
    train, _ = sets("sop")
    with pytest.raises(BadImage, match=r"chair_final/9_0\.JPG: No such file"):
        train.read(list(listed(train)).index("chair_final/9_0.JPG"))
    with pytest.raises(BadImage, match="a link out of"):
        train.read(0)


def edit(name: str, line: int, text: str | None):
    """Puts `text` in place of a line, 1 being the first; None deletes it."""

    def change(root: Path) -> None:
        lines = (root / name).read_text().splitlines()
        lines[line - 1 : line] = [] if text is None else [text]
        write(root / name, *lines)

    return change


def mat(rows, fields=("fname", "class"), variable="annotations"):
    def change(root: Path) -> None:
        savemat(
            root / "devkit" / "cars_train_annos.mat",
            {variable: annotations(rows, fields)["annotations"]},
        )

    return change


def put(name: str, data: bytes):
    return lambda root: (root / name).write_bytes(data)


def cut(name: str, share: float):
    return lambda root: (root / name).write_bytes(
        (root / name).read_bytes()[: int((root / name).stat().st_size * share)]
    )


TRAIN_MAT = "devkit/cars_train_annos.mat"
LIST = "Eval/list_eval_partition.txt"
LABELS = "image_class_labels.txt"
BAD = {
    "cub, no list": (
        "cub",
        lambda r: (r / LABELS).unlink(),
        f"{LABELS}: no such file; give the folder of CUB-200",
    ),
    "cub, ragged": (
        "cub",
        edit("images.txt", 3, "3"),
        r"images.txt:3: 1 fields where `image_id path` belongs: fix",
    ),
    "cub, high class": (
        "cub",
        edit(LABELS, 6, "1 201"),
        rf"{LABELS}:6: the class '201' is not a number from 1 to 200",
    ),
    "cub, no class": (
        "cub",
        edit(LABELS, 6, "1 x"),
        rf"{LABELS}:6: the class 'x' is not a number from 1 to 200: fix",
    ),
    "cub, twice": (
        "cub",
        edit("images.txt", 2, "1 001.Black_footed_Albatross/a_9.jpg"),
        r"images.txt:2: image 1 again",
    ),
    "cub, same file": (
        "cub",
        edit("images.txt", 2, "2 001.Black_footed_Albatross/a_1.jpg"),
        r"images.txt:2: 001.*a_1.jpg is listed before, at .*images.txt:1: delete one",
    ),
    "cub, unlabelled": (
        "cub",
        edit(LABELS, 6, None),
        rf"images.txt:1: image 1 is not in {LABELS}: fetch both",
    ),
    "cub, two folders": (
        "cub",
        edit(LABELS, 6, "1 100"),
        r"images.txt|labels.txt:4: class 100 lies in 001.Black",
    ),
    "cub, up": (
        "cub",
        edit("images.txt", 1, "1 ../../etc/x.jpg"),
        r"images.txt:1: the path .* is one that leaves root",
    ),
    "cub, absolute": (
        "cub",
        edit("images.txt", 1, "1 /etc/x.jpg"),
        r"images.txt:1: the path .* is absolute",
    ),
    "cub, bytes": ("cub", put("images.txt", b"1 a/b.jpg\n2 \xff\n"), r"images.txt:2: not UTF-8"),
    "cub, control": ("cub", edit(LABELS, 6, "1 \x1b[2J"), r"the class '\\x1b\[2J' is no"),
    "cub, empty": (
        "cub",
        put("images.txt", b""),
        r"no (train|test) images in it; give the folder of CUB",
    ),
    "cars, broken": (
        "cars196",
        put(TRAIN_MAT, b"no such thing" * 99),
        r"annos.mat: no MATLAB file that can be read",
    ),
    "cars, empty": (
        "cars196",
        put(TRAIN_MAT, b""),
        r"annos.mat: 0 bytes, 1 to 16000000 are allowed: fetch",
    ),
    "cars, cut": (
        "cars196",
        cut(TRAIN_MAT, 0.6),
        r"annos.mat: no MATLAB file that can be read \(.*\): fetch",
    ),
    "cars, hdf": (
        "cars196",
        put(TRAIN_MAT, b"MATLAB 7.3".ljust(124) + b"\0\2IM" + b"\x89HDF"),
        r"no MATLAB file that",
    ),
    "cars, variable": (
        "cars196",
        mat([("a.jpg", 1)], variable="other"),
        r"can be read \(no annotations in it\)",
    ),
    "cars, field": (
        "cars196",
        mat([("a.jpg", 1)], ("file", "class")),
        r"annotations has no fname and class: fetch",
    ),
    "cars, up": (
        "cars196",
        mat([("a.jpg", 1), ("../x.jpg", 1)]),
        r"annotations\(2\): the path .* leaves root",
    ),
    "cars, class": (
        "cars196",
        mat([("a.jpg", 197)]),
        r"annotations\(1\): a file name and a class from 1 to 196",
    ),
    "cars, class 1.5": (
        "cars196",
        mat([("a.jpg", 1.5)]),
        r"annotations\(1\): a file name and a class from 1 to 196",
    ),
    "cars, name": (
        "cars196",
        mat([(7, 3)]),
        r"annotations\(1\): a file name and a class from 1 to 196",
    ),
    "cars, twice": (
        "cars196",
        mat([("a.jpg", 1), ("a.jpg", 2)]),
        r"annotations\(2\): a.jpg is listed before, at .*\(1\)",
    ),
    "cars, no test": (
        "cars196",
        lambda root: (root / "devkit/cars_test_annos_withlabels.mat").unlink(),
        r"devkit/cars_test_annos_withlabels.mat: no such file, nor cars_test_annos_withlabels.mat; "
        r"give",
    ),
    "sop, no header": (
        "sop",
        edit("Ebay_train.txt", 1, None),
        r"Ebay_train.txt:1: the header is not `image_id class_id",
    ),
    "sop, class": (
        "sop",
        edit("Ebay_test.txt", 2, "4 -3 1 b/x.JPG"),
        r"Ebay_test.txt:2: class_id '-3' is not a number",
    ),
    "sop, wide": (
        "sop",
        edit("Ebay_test.txt", 2, "4 3 1 b/x y.JPG"),
        r"Ebay_test.txt:2: 5 fields where",
    ),
    "sop, both": (
        "sop",
        edit("Ebay_test.txt", 2, "4 3 1 chair_final/9_0.JPG"),
        r"Ebay_test.txt:2: chair_final/9_0.JPG is listed before, at .*Ebay_train.txt:4",
    ),
    "sop, no test": (
        "sop",
        lambda root: (root / "Ebay_test.txt").unlink(),
        r"Ebay_test.txt: no such file; give.*lifted",
    ),
    "in-shop, no count": (
        "in_shop",
        edit(LIST, 1, None),
        r"partition.txt:1: the header is not a number: fetch|fix",
    ),
    "in-shop, no header": (
        "in_shop",
        edit(LIST, 2, None),
        r"partition.txt:2: the header is not `image_name item_id",
    ),
    "in-shop, part": (
        "in_shop",
        edit(LIST, 3, "img/a.jpg id_1 val"),
        r":3: evaluation_status 'val' is none of train",
    ),
    "in-shop, no query": (
        "in_shop",
        edit(LIST, 5, None),
        r"no query images in it; give the folder of In-Shop",
    ),
    "market, no query": (
        "market1501",
        lambda root: (root / "query").rename(root / "queries"),
        r"query: no such folder; give the folder of Market-1501 as published",
    ),
    "market, stray": (
        "market1501",
        lambda root: draw(root / "query" / "me.jpg"),
        r"query/me.jpg: no identity and camera in its name, as in 0002_c1s1_000451_03.jpg: move it "
        r"away",
    ),
    "msmt, no folders": (
        "msmt17",
        lambda r: (r / "train").rename(r / "trains"),
        r"neither train and test nor mask_train",
    ),
    "msmt, camera": (
        "msmt17",
        edit("list_query.txt", 1, "0000/0000.jpg 0"),
        r"list_query.txt:1: the camera, third in",
    ),
    "msmt, pid": (
        "msmt17",
        edit("list_query.txt", 1, "0/0_0_1_2.jpg z"),
        r"list_query.txt:1: pid 'z' is not a number",
    ),
    "lfw, no pairs": (
        "lfw",
        lambda root: (root / "pairs.txt").unlink(),
        r"pairs.txt: no such file, nor ../pairs.txt; give",
    ),
    "lfw, header": (
        "lfw",
        edit("pairs.txt", 1, None),
        r"pairs.txt:1: the header is not `folds pairs`, as in `10 300`",
    ),
    "lfw, kind": (
        "lfw",
        edit("pairs.txt", 3, None),
        r"pairs.txt:3: 4 fields where `name i j` belongs",
    ),
    "lfw, short": (
        "lfw",
        edit("pairs.txt", 9, None),
        r"pairs.txt:8: ends after 7 of the 8 pairs of the header",
    ),
    "lfw, long": (
        "lfw",
        edit("pairs.txt", 9, "Cy\t1\tEve\t1\nCy\t1\t2"),
        r"pairs.txt:10: a pair beyond the 8 of the",
    ),
    "lfw, number": (
        "lfw",
        edit("pairs.txt", 2, "Ann\t1\t0"),
        r"pairs.txt:2: image '0' is not a number from 1 to 9999",
    ),
    "lfw, up": (
        "lfw",
        edit("pairs.txt", 2, "..\t1\t2"),
        r"pairs.txt:2: the path .* is one that leaves root",
    ),
    "lfw, empty": ("lfw", put("pairs.txt", b""), r"pairs.txt:1: the header is not `folds pairs`"),
    "lfw, too high": (
        "lfw",
        lambda root: draw(root / "x.jpg"),
        r"x.jpg: lies in no person's folder: give the folder",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_one_line_with_the_place_and_the_remedy(case, tmp_path):
    name, spoil, wanted = BAD[case]
    MINIATURES[name](tmp_path)
    spoil(tmp_path)
    with pytest.raises(DataError, match=wanted) as caught:
        SOURCES[name](str(tmp_path)).split("test")
    assert str(caught.value).startswith(str(tmp_path))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", MINIATURES)
def test_a_folder_that_is_not_there_says_what_belongs_there(name, tmp_path):
    with pytest.raises(
        DataError, match=r"none: no such folder; give the folder of .* as published \(.*\)"
    ):
        SOURCES[name](str(tmp_path / "none")).split("train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        DataError, match=r"(no such|neither).*; give the folder of .* as published \(.*\)"
    ):
        SOURCES[name](str(tmp_path / "empty")).split("train")


def test_matlabs_arrays_are_what_scipy_reads(tmp_path):
    rows = [("00001.jpg", np.uint8(7)), ("a b/ü.jpg", 196.0), ("c", np.int16(-3))]
    arrays = {
        "other": "a text",
        "class_names": np.array([["x", "AM 2000", "Ram C/V"]], dtype=object),
        **annotations(rows),
    }
    for compressed in (False, True):
        savemat(tmp_path / "a.mat", arrays, do_compression=compressed)
        known = loadmat(tmp_path / "a.mat", squeeze_me=True)
        assert matlab.variable(tmp_path / "a.mat", "class_names") == known["class_names"].tolist()
        found = matlab.variable(tmp_path / "a.mat", "annotations")
        assert [[each[name] for name in known["annotations"].dtype.names] for each in found] == [
            list(each) for each in known["annotations"].tolist()
        ]
        for name in ("other", "none"):
            with pytest.raises(DataError, match=f"(no {name} in it|{name} is no array)"):
                matlab.variable(tmp_path / "a.mat", name)


@pytest.mark.parametrize("compressed", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_mat_file_cut_or_spoiled_anywhere_is_one_line(compressed, tmp_path):
    path = tmp_path / "a.mat"
    savemat(path, annotations([("a.jpg", 1), ("b.jpg", 2)]), do_compression=compressed)
    data, spoiled = path.read_bytes(), 0
    for k in range(0, len(data), len(data) // 2):  # a process each
        path.write_bytes(data[:k])
        with pytest.raises(DataError, match=r"a\.mat: .*: fetch the file again$") as caught:
            matlab.variable(path, "annotations")
        assert str(caught.value).isprintable()
        for other in (bytes([data[k] ^ 0xFF]), bytes(8), b"\xff" * 4):
            path.write_bytes(data[:k] + other + data[k + len(other) :])
            with contextlib.suppress(DataError):
                matlab.variable(path, "annotations")
                spoiled -= 1
            spoiled += 1
    assert spoiled > 1


def test_a_mat_file_that_unpacks_to_more_than_allowed_is_refused(tmp_path, monkeypatch):
    rows = annotations([("a", 1)])
    savemat(tmp_path / "a.mat", {"one": np.zeros(10**6), **rows}, do_compression=True)
    assert matlab.variable(tmp_path / "a.mat", "annotations", "fname", "class") == [
        {"class": 1, "fname": "a"}
    ]
    savemat(tmp_path / "a.mat", {"annotations": np.zeros(10**7)}, do_compression=True)
    with monkeypatch.context() as patch:
        patch.setattr(matlab, "MAX_MEMORY", 2**28)
        with pytest.raises(DataError) as told:
            matlab.variable(tmp_path / "a.mat", "annotations")
    assert "(more than the 268435456 bytes of memory allowed): fetch" in str(told.value)
    savemat(tmp_path / "a.mat", {"annotations": np.zeros(10**6)}, do_compression=True)
    with pytest.raises(DataError, match=r"a\.mat: .*holds more than 2097152 bytes"):
        matlab.variable(tmp_path / "a.mat", "annotations")


ENDS = {
    "import os; os.abort()": r"its reader was ended by SIGABRT",
    "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)": r"its reader was ended by SIGSEGV",
    "import time; time.sleep(60)": r"not done after 0\.5 s",
    "raise SystemExit(3)": r"no reason given",
}


@pytest.mark.parametrize("code", ENDS)
def test_whatever_ends_the_reader_of_a_mat_file_is_one_line(code, tmp_path, monkeypatch):
    (tmp_path / "reader.py").write_text(code)
    savemat(tmp_path / "a.mat", annotations([("a", 1)]))
    monkeypatch.setattr(matlab, "_READER", tmp_path / "reader.py")
    if "sleep" in code:
        monkeypatch.setattr(matlab, "PATIENCE", 0.5)
    with pytest.raises(
        DataError, match=rf"a\.mat: no MATLAB file that can be read \({ENDS[code]}\): fetch the"
    ):
        matlab.variable(tmp_path / "a.mat", "annotations")


@pytest.mark.skipif(sys.platform != "linux", reason="no such bounds")
def test_the_reader_of_a_mat_file_ends_itself_when_it_spins(tmp_path, monkeypatch):
    reader = Path(matlab.__file__).with_name("loadmat.py").read_text()
    spinning = reader.replace("    data = sys.stdin.buffer.read()", "    while True:\n        pass")
    (tmp_path / "reader.py").write_text(spinning)
    savemat(tmp_path / "a.mat", annotations([("a", 1)]))
    monkeypatch.setattr(matlab, "_READER", tmp_path / "reader.py")
    monkeypatch.setattr(matlab, "MAX_SECONDS", 3)
    with pytest.raises(DataError, match=r"its reader was ended by SIG(XCPU|KILL)"):
        matlab.variable(tmp_path / "a.mat", "annotations")


def test_what_is_no_plain_data_in_a_mat_file_is_refused():
    rows = np.array([(MatlabFunction(np.zeros((1, 1), "O")), 1)], [("fname", "O"), ("class", "O")])
    with pytest.raises(ValueError, match="it holds an object or a function"):
        loadmat_child.plain(rows, [])
    with pytest.raises(ValueError, match="it holds a csc_matrix"):
        loadmat_child.plain(csc_matrix(np.eye(2)), [])


def test_packing_says_what_shards_do_not_keep(tmp_path):
    market(tmp_path / "m")
    with pytest.warns(
        UserWarning, match=r"shards keep no cameras, roles: score from the images themselves"
    ):
        pack(SOURCES["market1501"](str(tmp_path / "m")), tmp_path / "shards", Packing(), workers=0)
    lfw(tmp_path / "l")
    with pytest.warns(UserWarning, match=r"shards keep no pairs: score from"):
        pack(SOURCES["lfw"](str(tmp_path / "l")), tmp_path / "more", Packing(), workers=0)
    assert json.loads((tmp_path / "more" / "index.json").read_text())["splits"]["test"]


def test_a_recipe_names_them(tmp_path):
    market(tmp_path)
    choice = Choice(SOURCES)
    source = choice.spec("market1501", path=os.fspath(tmp_path)).build()
    assert len(source.split("train")) == 3


def test_persons_are_squashed_into_their_canvas_and_all_others_are_cropped():
    fits = {name: kind.layout.fit for name, kind in SOURCES.items() if issubclass(kind, Published)}
    assert {name for name, fit in fits.items() if fit == "squash"} == {
        "market1501",
        "duke_mtmc",
        "msmt17",
    }


def test_a_person_s_canvas_is_the_whole_image(tmp_path):
    for folder in ("bounding_box_train", "query", "bounding_box_test"):
        (tmp_path / folder).mkdir()
        rows = np.arange(128, dtype=np.uint8)[:, None, None].repeat(64, 1).repeat(3, 2)
        Image.fromarray(rows).save(tmp_path / folder / f"0001_c{len(folder) % 7}s1_000001_00.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for size, shape in ((28, (3, 32, 32)), ((56, 28), (3, 64, 32))):
            canvas = SOURCES["market1501"](str(tmp_path)).split("train", size).read(0)
            assert canvas.shape == shape
            assert canvas[0, 0].max() < 8
            assert canvas[0, -1].min() > 119
