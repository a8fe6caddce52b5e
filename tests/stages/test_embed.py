"""Features as a table: every image once, in order, under the name that it has."""

import csv
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lookalike
import toy
from lookalike.data.tables import written
from lookalike.data.tables.written import Rows, write_rows
from lookalike.errors import DataError, Error, RunError
from lookalike.models import load_backbone
from lookalike.stages import embed as stage

parquet = pytest.importorskip("pyarrow.parquet")

NAMES = (b"a/x,1.png", b'a/q"u.png', b"b/new\nline.png", b"b/cr\rx.png", b"b/\xff.png", b"b/=1.png")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a tiny backbone."""
    from lookalike.folder import write_folder

    torch.manual_seed(0)
    target = tmp_path_factory.mktemp("model") / "backbone"
    write_folder(target, toy.architecture().build().files())
    return target


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two class folders with names that break tables."""
    root = tmp_path_factory.mktemp("photos")
    for n, name in enumerate(NAMES):
        place = os.fsencode(root) + b"/" + name
        os.makedirs(os.path.dirname(place), exist_ok=True)  # noqa: PTH103, PTH120 (bytes)
        pixels = np.random.default_rng(n).integers(0, 255, (20, 24), dtype=np.uint8)
        with open(place, "wb") as file:  # noqa: PTH123 (bytes)
            Image.fromarray(pixels).save(file, "PNG")
    return root


def read(path: Path):
    """Names, labels and features of a table, whatever it is."""
    if path.suffix == ".csv":
        with path.open(newline="", errors="surrogateescape") as file:
            head, *rows = csv.reader(file)
        texts = {name: [row[n] for row in rows] for n, name in enumerate(head) if name[0] != "f"}
        x = np.array([row[len(texts) :] for row in rows], np.float32)
        return texts, x
    if path.suffix == ".npz":
        with np.load(path) as found:
            texts = {name: found[name].tolist() for name in found.files if name != "features"}
            return texts, found["features"]
    table = parquet.read_table(path)
    texts = {
        name: [os.fsdecode(v) if isinstance(v, bytes) else v for v in table[name].to_pylist()]
        for name in table.column_names
        if name != "features"
    }
    flat = table["features"].combine_chunks().flatten().to_numpy()
    return texts, flat.reshape(len(table), -1)


@pytest.mark.parametrize("ending", [".csv", ".npz", ".parquet"])
def test_a_table_gives_back_what_the_model_gave(ending, model, photos, tmp_path):
    out = lookalike.embed(model, photos, tmp_path / f"t{ending}", batch=4, workers=0)
    texts, x = read(out)
    assert [os.fsencode(n) for n in texts["path"]] == [
        os.fsencode(photos) + b"/" + name for name in sorted(NAMES)
    ]
    assert texts["label"] == ["a", "a", "b", "b", "b", "b"]
    assert list(texts) == ["path", "label"]
    assert x.dtype == np.float32
    backbone = load_backbone(model).eval()
    from lookalike.data.sources import Folder
    from lookalike.evaluation.features import embedder

    images = Folder(str(photos), test_fraction=0, channels=1).split("train", 16)
    canvas = torch.stack([images.read(i) for i in range(6)])
    with torch.inference_mode():
        expected = embedder(backbone, backbone.architecture)(canvas)
    assert np.allclose(x, expected.numpy(), rtol=1e-5, atol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == [out.name]


def test_csv_has_the_shortest_digits_that_give_the_number_back(tmp_path):
    x = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32) * 1e-7
    rows = Rows(50, 3, "float32", {"path": lambda a, b: ["p"] * (b - a)}, lambda a, b: x[a:b])
    with (tmp_path / "t.csv").open("wb") as file:
        write_rows(file, ".csv", rows)
    assert (read(tmp_path / "t.csv")[1] == x).all()


@pytest.mark.parametrize("ending", [".csv", ".npz", ".parquet"])
def test_blocks_do_not_show(ending, tmp_path, monkeypatch):
    """Nor do labels that only some have."""
    x = np.random.default_rng(0).standard_normal((200, 4)).astype(np.float16)
    labels = [None if n % 3 else f"c{n}" for n in range(200)]
    texts = {
        "path": lambda a, b: [f"{n}" * n for n in range(a, b)],
        "label": lambda a, b: labels[a:b],
    }
    found = []
    for room in (1, 1 << 25):
        monkeypatch.setattr(written, "ROOM", room)
        target = tmp_path / f"{room}{ending}"
        with target.open("wb") as file:
            write_rows(file, ending, Rows(200, 4, "float16", texts, lambda a, b: x[a:b]))
        found.append(read(target))
    assert found[0][0] == found[1][0]
    assert (found[0][1] == found[1][1]).all()
    assert (found[0][1].astype(np.float16) == x).all()
    assert [label or None for label in found[0][0]["label"]] == labels


def embedded(model, photos, out):
    torch.set_num_threads(1)
    return lookalike.embed(model, photos, out, batch=2, workers=0).read_bytes()


def test_an_archive_tells_no_time(model, photos, tmp_path):
    out = lookalike.embed(model, photos, tmp_path / "t.npz", workers=0)
    with zipfile.ZipFile(out) as whole:
        assert {entry.date_time for entry in whole.infolist()} == {(1980, 1, 1, 0, 0, 0)}


@pytest.mark.parametrize("ending", [".csv", ".npz", ".parquet"])
def test_two_ranks_write_the_same_bytes(ending, model, photos, tmp_path, ranks):
    alone = embedded(model, photos, tmp_path / f"one{ending}")
    assert ranks.run(embedded, model, photos, tmp_path / f"two{ending}") == [alone, alone]


def test_a_recipe_gives_both_its_sets(model, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(toy.recipe().text())
    texts, x = read(lookalike.embed(model, path, tmp_path / "t.npz", store="float16"))
    assert x.dtype == np.float16
    assert len(x) == 1797
    assert texts["split"].count("test") > 300
    assert set(texts["label"]) == {str(digit) for digit in range(10)}


def test_a_killed_one_leaves_no_table_and_goes_on(model, photos, tmp_path, monkeypatch):
    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage, "write_rows", killed)
        with pytest.raises(KeyboardInterrupt):
            lookalike.embed(model, photos, tmp_path / "t.npz", workers=0)
    assert [path.name for path in tmp_path.iterdir()] == [".t.npz.features"]
    lookalike.embed(model, photos, tmp_path / "t.npz", workers=0)
    assert [path.name for path in tmp_path.iterdir()] == ["t.npz"]


def test_bad_images_are_said_and_left_out(model, tmp_path, capsys):
    toy_root = tmp_path / "in"
    toy_root.mkdir()
    for n in range(3):
        Image.new("L", (20, 20), 40 * n).save(toy_root / f"{n}.png")
    (toy_root / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (toy_root / "note.txt").write_text("")
    texts, _ = read(lookalike.embed(model, toy_root, tmp_path / "t.csv", workers=0))
    assert texts == {"path": [f"{toy_root}/0.png", f"{toy_root}/2.png"]}
    said = capsys.readouterr()
    assert "2 images, 16 features each; 1 cannot be read" in said.out
    assert "1.png: damaged header" in said.err
    assert "note.txt" in said.err


def test_what_cannot_be_done_is_refused_before(model, photos, tmp_path):
    with pytest.raises(Error, match=r"ends in one of \.parquet, \.npz, \.csv"):
        lookalike.embed(model, photos, tmp_path / "t.tsv")
    (tmp_path / "t.csv").write_text("mine")
    with pytest.raises(RunError, match="is there already"):
        lookalike.embed(model, photos, tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text() == "mine"
    with pytest.raises(DataError, match="no such folder"):
        lookalike.embed(model, tmp_path / "nowhere", tmp_path / "u.csv")
    with pytest.raises(Error, match="--precision fp8: one of"):
        lookalike.embed(model, photos, tmp_path / "u.csv", precision="fp8")
    with pytest.raises(Error, match="a folder has no keys"):
        lookalike.embed(model, photos, tmp_path / "u.csv", ["seed=1"])
    with pytest.raises(Error, match="--dtype int8: one of"):
        lookalike.embed(model, photos, tmp_path / "u.csv", store="int8")


def test_numberless_features_are_refused_by_the_images_name(model, photos, tmp_path, monkeypatch):
    real = stage.extracted

    def spoiled(*args, **known):
        found = real(*args, **known)
        found.x_ND[4] = torch.nan
        return found

    monkeypatch.setattr(stage, "extracted", spoiled)
    with pytest.raises(Error, match=r"new.nline\.png: its features are NaN or Inf"):
        lookalike.embed(model, photos, tmp_path / "t.npz", workers=0)
    assert not (tmp_path / "t.npz").exists()
