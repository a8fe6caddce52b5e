"""Data sets of Hugging Face: as `datasets` saves them, as they lie on the Hub and in the local
caches; all with the images that were put in, and no network but where a run fetches.
"""

import http.server
import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants
from PIL import Image

from lookalike.data import Folder
from lookalike.data.decode import BadImage
from lookalike.data.hf import Hf, hub
from lookalike.data.images import subset
from lookalike.data.loader import in_order
from lookalike.errors import DataError

NAMES = ["cat", "dog", "owl"]
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
FEATURES = {
    "image": {"_type": "Image"},
    "label": {"names": NAMES, "_type": "ClassLabel"},
}
COMMIT = "0123456789" * 4


@pytest.fixture(autouse=True)
def _homes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf_home"))
    for name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


def png(seed: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


FILES = [png(i) for i in range(30)]
PARTS = {"train": range(16), "validation": range(16, 24), "extra": range(24, 30)}


def table(rows, names=NAMES, image="image", label="label") -> pa.Table:
    """Rows of the images of these numbers, as `datasets` describes them."""
    features = {image: FEATURES["image"], label: {"names": names, "_type": "ClassLabel"}}
    info = json.dumps({"info": {"features": features}})
    images = pa.array([{"bytes": FILES[i], "path": f"{i}.png"} for i in rows], STRUCT)
    found = pa.table({image: images, label: [i % len(names) for i in rows]})
    return found.replace_schema_metadata({"huggingface": info})


def on_the_hub(home: Path, parts=PARTS, name="data/{}-{:05}-of-{:05}.parquet", shards=2) -> Path:
    """A folder as repositories have it."""
    for part, rows in parts.items():
        for s, some in enumerate(np.array_split(list(rows), shards)):
            file = home / name.format(part, s, shards)
            file.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table(some.tolist()), file)
    (home / "README.md").write_text("---\n---\n")
    (home / ".gitattributes").write_text("")
    return home


def arrow(file: Path, found: pa.Table, **how) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with pa.ipc.new_stream(str(file), found.schema, **how) as out:
        out.write_table(found, max_chunksize=5)


def saved(home: Path, parts=PARTS) -> Path:
    """A folder as `save_to_disk` leaves it."""
    for part, rows in parts.items():
        arrow(home / part / "data-00000-of-00001.arrow", table(rows))
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": part}
        (home / part / "state.json").write_text(json.dumps(state))
        (home / part / "dataset_info.json").write_text(json.dumps({"features": FEATURES}))
    (home / "dataset_dict.json").write_text(json.dumps({"splits": list(parts)}))
    return home


def holds(source, train=PARTS["train"], test=PARTS["validation"]) -> None:
    """The sets have the images and classes of these rows."""
    for split, rows in (("train", train), ("test", test)):
        images = source.split(split)
        assert [images.contents(i) for i in range(len(images))] == [FILES[i] for i in rows]
        assert images.classes == tuple(NAMES)
        assert images.labels.tolist() == [i % 3 for i in rows]


LAYOUTS = {
    "shards": {},
    "no folder": {"name": "{}-{:05}-of-{:05}.parquet"},
    "folders": {"name": "{0}/{1:04}.parquet"},
    "converted": {"name": "default/{0}/{1:04}.parquet"},
    "plain names": {"name": "{}.parquet", "shards": 1},
    "with a hash": {"name": "data/{}-{:05}-of-{:05}-90b3b5ab0c4ea0cb.parquet"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_of_the_hubs_layout(tmp_path, layout):
    source = Hf(str(on_the_hub(tmp_path / "d", **LAYOUTS[layout])), canvas=8)
    holds(source)
    files = LAYOUTS[layout].get("shards", 2)
    assert {one.why: one.number for one in source.inventory} == {"part extra": files}


def test_a_folder_that_save_to_disk_made(tmp_path):
    source = Hf(str(saved(tmp_path / "d")), canvas=8)
    holds(source)
    assert source.split("train").name(6) == f"{tmp_path}/d/train/data-00000-of-00001.arrow/6"
    assert source.split("train").fingerprint != source.split("test").fingerprint


def test_one_saved_set_one_file_and_a_glob_are_split_by_a_hash(tmp_path):
    saved(tmp_path / "d")
    on_the_hub(tmp_path / "h")
    places = ("d/train", "h/data/train-00000-of-00002.parquet", "h/data/train-*.parquet")
    for place, n in zip(places, (16, 8, 16), strict=True):
        source = Hf(str(tmp_path / place), test_fraction=0.4)
        sets = [source.split(split) for split in ("train", "test")]
        found = [images.contents(i) for images in sets for i in range(len(images))]
        assert sorted(found) == sorted(FILES[:n])
        assert all(len(images) > 1 for images in sets)


def test_as_datasets_itself_writes_and_reads_them(tmp_path):
    """With the library, in a process of its own: its import changes much, and it warns. What lies
    here is read without it.
    """
    on_the_hub(tmp_path / "first")
    script = """
import sys
from lookalike.data.hf import Hf
Hf(sys.argv[1] + "/first").split("train").contents(0)
assert "datasets" not in sys.modules
import datasets
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
home, files = sys.argv[1], [open(f, "rb").read() for f in sys.argv[2:]]
features = Features({"image": Image(), "label": ClassLabel(names=["cat", "dog", "owl"])})
rows = [{"image": {"bytes": b, "path": None}, "label": i % 3} for i, b in enumerate(files)]
whole = Dataset.from_list(rows, features=features)
parts = DatasetDict({"train": whole.select(range(6)), "validation": whole.select(range(6, 9))})
parts.save_to_disk(f"{home}/saved")
for name, part in parts.items():
    part.to_parquet(f"{home}/hub/data/{name}-00000-of-00001.parquet")
datasets.load_dataset("parquet", data_dir=f"{home}/hub", cache_dir=f"{home}/cache")
import glob
(made,) = glob.glob(f"{home}/cache/parquet/*/*/*/")
for place in ("saved", "hub", made):
    for split, wanted in (("train", files[:6]), ("test", files[6:])):
        images = Hf(place if place == made else f"{home}/{place}").split(split)
        assert [images.contents(i) for i in range(len(images))] == wanted, place
        assert images.labels.tolist() == [files.index(b) % 3 for b in wanted]
        assert images.classes == ("cat", "dog", "owl")
hub = Hf(f"{home}/hub").split("train")
assert hub.unpacked == 0, "datasets does not compress images"
print("done")
"""
    for i in range(9):
        (tmp_path / f"{i}.png").write_bytes(FILES[i])
    words = [str(tmp_path), *(str(tmp_path / f"{i}.png") for i in range(9))]
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.stdout.endswith("done\n"), done.stderr


def test_canvases_are_those_of_the_same_files_in_a_folder(tmp_path):
    on_the_hub(tmp_path / "d")
    for i in PARTS["train"]:
        (tmp_path / f"files/train/x/{i:02}.png").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"files/train/x/{i:02}.png").write_bytes(FILES[i])
    ours = Hf(str(tmp_path / "d"), canvas=8).split("train")
    theirs = Folder(str(tmp_path / "files"), canvas=8).split("train")
    for workers in (0, 2):
        both = [in_order(images, 4, workers) for images in (ours, theirs)]
        for (ids, one), (other, its) in zip(*both, strict=True):
            assert ids == other
            assert one.equal(its)
    assert subset(ours, [3, 1]).contents(0) == FILES[3]


def test_which_parts_and_columns_is_a_matter_of_keys(tmp_path):
    home = on_the_hub(tmp_path / "d")
    extra = {"train": PARTS["train"], "test": PARTS["extra"]}
    holds(Hf(str(home), test="extra"), **extra)
    holds(Hf(str(home), train="training", test="dev"))
    for words, wanted in (
        ({"test": "tset"}, "no part tset, it has extra, train, val: change test"),
        ({"train": "other"}, "no part other, it has extra, train, val: change train"),
        ({"test": "train"}, "train and test are one part: change one of them"),
        ({"label": "name"}, "no column name, the header has image, label: change label"),
        ({"image": "picture"}, "no column picture, the header has image, label: change image"),
        ({"image": "label"}, "no column of images: name one with image"),
    ):
        with pytest.raises(DataError, match=wanted):
            Hf(str(home), **words).split("train")
    for part in ("train", "test"):
        found = table(range(6), image="img", label="fine_label")
        pq.write_table(found.append_column("coarse_label", [[0] * 6]), tmp_path / f"{part}.parquet")
    source = Hf(f"{tmp_path}/t*.parquet", label="fine_label")
    holds(source, range(6), range(6))


def test_words_are_numbered_alike_in_both_sets(tmp_path):
    for part, words in (("train", ["b", "c"]), ("test", ["a", "c"])):
        images = pa.array([{"bytes": FILES[0], "path": None}] * 2, STRUCT)
        pq.write_table(pa.table({"image": images, "label": words}), tmp_path / f"{part}.parquet")
    train, test = (Hf(str(tmp_path)).split(split) for split in ("train", "test"))
    assert train.classes == test.classes == ("a", "b", "c")
    assert (train.labels.tolist(), test.labels.tolist()) == ([1, 2], [0, 2])


def test_labels_that_are_kept_secret_are_none(tmp_path):
    on_the_hub(tmp_path, {"train": range(4)}, shards=1)
    secret = table(range(4)).set_column(1, "label", [[-1] * 4])
    pq.write_table(secret, tmp_path / "data/test-00000-of-00001.parquet")
    source = Hf(str(tmp_path))
    assert source.split("train").labels.tolist() == [0, 1, 2, 0]
    with pytest.warns(UserWarning, match="every label is -1: the set has none"):
        assert source.split("test").labels is None
    some = table(range(4)).set_column(1, "label", [[0, 1, -1, 2]])
    pq.write_table(some, tmp_path / "data/test-00000-of-00001.parquet")
    with pytest.raises(DataError, match=r"test-00000-of-00001\.parquet:3: label '-1' is none of"):
        Hf(str(tmp_path)).split("test")


def test_what_is_missing_or_of_several_kinds_is_refused(tmp_path):
    home = on_the_hub(tmp_path / "d", shards=3)
    (home / "data/train-00001-of-00003.parquet").unlink()
    with pytest.raises(DataError, match=r"1 of 3 files are missing, first train-00001-of-00003"):
        Hf(str(home)).split("train")
    both = tmp_path / "both"
    on_the_hub(both / "small"), on_the_hub(both / "large")
    with pytest.raises(DataError, match=r"data of several kinds, large, small: say which with co"):
        Hf(str(both)).split("train")
    holds(Hf(str(both), config="small"))
    script = tmp_path / "script"
    script.mkdir()
    (script / "script.py").write_text("raise SystemExit('it was run')")
    with pytest.raises(DataError, match=r"no \.parquet or \.arrow files in it; its script is nev"):
        Hf(str(script)).split("train")
    with pytest.raises(DataError, match="no such folder or file, nor the name of a repository"):
        Hf(str(tmp_path / "none")).split("train")
    other = table(range(3), names=["a", "b"])
    pq.write_table(other, tmp_path / "d/data/train-00001-of-00003.parquet")
    with pytest.raises(DataError, match="other columns or classes than the files before it"):
        Hf(str(home)).split("train")


def test_streaming_is_refused_with_the_reason(tmp_path):
    with pytest.raises(DataError, match=r"data\.streaming: images in the order of the network can"):
        Hf(str(tmp_path), streaming=True).split("train")


def test_a_selection_of_rows_and_paths_out_of_the_folder_are_refused(tmp_path):
    for name, state, wanted in (
        ("a", {"_data_files": [{"filename": "../b.arrow"}]}, r"'\.\./b\.arrow' is no name of a"),
        ("b", {"_data_files": []}, r"state\.json lists no files: save it again"),
        ("c", {"_indices_data_files": [{}]}, "save it after flatten_indices"),
        ("d", [], r"state\.json lists no files"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text(json.dumps(state))
        with pytest.raises(DataError, match=wanted):
            Hf(str(tmp_path / name)).split("train")
    (tmp_path / "e").mkdir()
    (tmp_path / "e/dataset_dict.json").write_text('{"splits": ["../../etc"]}')
    with pytest.raises(DataError, match="is no name of a file in it"):
        Hf(str(tmp_path / "e")).split("train")


def test_files_that_rows_name_are_read_below_the_data_set_only(tmp_path):
    (tmp_path / "d/img").mkdir(parents=True)
    (tmp_path / "d/img/0.png").write_bytes(FILES[0])
    (tmp_path / "out.png").write_bytes(FILES[1])
    (tmp_path / "d/link.png").symlink_to(tmp_path / "out.png")
    paths = [tmp_path / "d/img/0.png", tmp_path / "out.png", tmp_path / "d/link.png", "img/0.png"]
    rows = [{"bytes": None, "path": str(path)} for path in paths]
    rows += [{"bytes": FILES[2], "path": "x"}, {"bytes": None, "path": None}, None]
    arrow(tmp_path / "d/train.arrow", pa.table({"image": pa.array(rows, STRUCT)}))
    images = Hf(str(tmp_path / "d"), test_fraction=0).split("train")
    assert (images.contents(0), images.contents(4)) == (FILES[0], FILES[2])
    for i in (1, 2, 3):
        with pytest.raises(BadImage, match="a file outside of the data set and Hugging Face's"):
            images.contents(i)
    for i in (5, 6):
        with pytest.raises(BadImage, match=rf"train\.arrow/{i}: a row without an image"):
            images.contents(i)


def test_arrow_files_that_are_compressed_or_damaged_are_refused(tmp_path):
    path = tmp_path / "a.arrow"
    for codec in ("zstd", "lz4"):
        arrow(path, table(range(9)), options=pa.ipc.IpcWriteOptions(compression=codec))
        with pytest.raises(DataError, match=r"a\.arrow: no Arrow file .* \(compressed\)"):
            Hf(str(path)).split("train")
    with pa.ipc.new_file(str(path), table([1]).schema) as out:
        out.write_table(table([1]))
    with pytest.raises(DataError, match=r"\(Arrow's file format, not the stream"):
        Hf(str(path)).split("train")
    arrow(path, table(range(9)))
    whole, rng, refusals = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(200):
        data = bytearray(whole)
        for at in rng.integers(0, 4000, 3):
            data[at] = int(rng.integers(256))
        path.write_bytes(data[: int(rng.integers(100, len(data)))] if rng.random() < 0.2 else data)
        try:
            images = Hf(str(path), test_fraction=0).split("train")
            for i in range(len(images)):
                images.contents(i)
        except (DataError, BadImage) as error:
            refusals += 1
            assert "\n" not in str(error)  # noqa: PT017
    assert refusals > 20


def in_hub_cache(name="user/birds", revision="main") -> Path:
    home = Path(os.environ["HF_HOME"]) / "hub" / f"datasets--{name.replace('/', '--')}"
    (home / "refs" / revision).parent.mkdir(parents=True, exist_ok=True)
    (home / "refs" / revision).write_text(COMMIT)
    return home / "snapshots" / COMMIT


@pytest.mark.parametrize("revision", ["main", "refs/convert/parquet"])
def test_a_repository_in_the_local_cache_is_read(tmp_path, revision):
    on_the_hub(in_hub_cache(revision=revision))
    holds(Hf("user/birds"))
    holds(Hf("user/birds", revision=COMMIT))
    source = Hf("user/birds")
    source.fetch()  # which asks nobody
    holds(source)


def test_a_repository_that_datasets_made_is_read(tmp_path):
    made = Path(os.environ["HF_HOME"]) / "datasets/user___birds/default/0.0.0" / COMMIT
    for part, rows in PARTS.items():
        arrow(made / f"birds-{part}.arrow", table(rows))
    (made / "dataset_info.json").write_text("{}")
    holds(Hf("user/Birds"))
    arrow(made.parents[1].parent / "small/0.0.0" / COMMIT / "birds-train.arrow", table([1]))
    with pytest.raises(DataError, match="several configurations are cached, default, small: say"):
        Hf("user/birds").split("train")
    holds(Hf("user/birds", config="default"))


def test_what_is_not_cached_is_one_line_and_asks_nobody(monkeypatch):
    monkeypatch.setattr("socket.socket.connect", None)
    with pytest.raises(
        DataError,
        match=r"user/birds: no such folder, and .* not in the local cache .* `lookalike run",
    ):
        Hf("user/birds").split("train")
    with pytest.raises(DataError, match=r"data\.revision: no branch, tag or commit"):
        Hf("user/birds", revision="../../x").split("train")


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://no.such.host.invalid"])
def test_no_network_is_one_line_within_seconds(monkeypatch, endpoint):
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(hub, "_PATIENCE", 0.3)
    with pytest.raises(DataError) as caught:
        Hf("user/birds").fetch()
    assert str(caught.value) == (
        f"user/birds: not in the local cache, and {endpoint} does not answer: "
        "fetch it where there is a network"
    )


def test_offline_is_honoured(monkeypatch):
    monkeypatch.setattr("socket.socket.connect", None)
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    with pytest.raises(DataError, match="HF_HUB_OFFLINE is set: unset it, or fetch it elsewhere"):
        Hf("user/birds").fetch()
    monkeypatch.delenv("HF_DATASETS_OFFLINE")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="HF_HUB_OFFLINE is set: unset it, or fetch it elsewhere"):
        Hf("user/birds").fetch()


class Hub(http.server.BaseHTTPRequestHandler):
    """The few answers of the Hub that getting a repository of Parquet files needs."""

    home: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.asked.append(path)
        files = [p for p in self.home.rglob("*") if p.is_file()]
        name = path.partition(f"/resolve/{COMMIT}/")[2]
        if path.startswith("/api/datasets/user/birds/tree"):
            entries = [
                {
                    "type": "file",
                    "path": str(p.relative_to(self.home)),
                    "size": p.stat().st_size,
                    "oid": "0" * 40,
                }
                for p in files
            ]
            self.answer(json.dumps(entries).encode())
        elif path.startswith("/api/datasets/user/birds"):
            siblings = [{"rfilename": str(p.relative_to(self.home))} for p in files]
            about = {"id": "user/birds", "sha": COMMIT, "siblings": siblings}
            self.answer(json.dumps(about).encode())
        elif name and (self.home / name).is_file():
            self.answer((self.home / name).read_bytes(), etag=name.replace("/", "-"))
        else:
            self.answer(b"", 200 if path == "/" else 404)

    def answer(self, data: bytes, status: int = 200, etag: str = "x") -> None:
        self.send_response(status)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Content-Length": str(len(data))}
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A repository on a Hub of this machine; what it is asked for."""
    on_the_hub(tmp_path / "hub")
    (tmp_path / "hub/birds.py").write_text("raise SystemExit('it was run')")
    asked: list[str] = []
    kind = type("Of", (Hub,), {"home": tmp_path / "hub", "asked": asked})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    yield asked
    server.shutdown()
    server.server_close()


def test_a_repository_is_fetched_once_and_only_its_tables(served, capsys):
    source = Hf("user/birds")
    source.fetch()
    assert "fetching user/birds from the Hub into " in capsys.readouterr().out
    holds(source)
    assert len([path for path in served if path.endswith(".parquet")]) >= 6
    assert not [path for path in served if path.endswith((".py", ".md"))]
    count = len(served)
    source.fetch()
    Hf("user/birds").fetch()
    assert len(served) == count
    with pytest.raises(
        DataError, match=r"user/wrens: cannot be fetched \(.*\): check the name, the"
    ):
        Hf("user/wrens").fetch()
