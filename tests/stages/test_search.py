"""Laws of search: the exact nearest, an index that is whole or not there, and only what changed
embedded anew.
"""

import io
import json
import os
import re
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save as safetensors
from sklearn.neighbors import NearestNeighbors

import lookalike.folder.whole as folder_room
import lookalike.models.backbone as backbone_module
import toy
from lookalike import cli
from lookalike.data.images import Annotations, FileImages, Reading
from lookalike.errors import BackboneError, DataError, Error, NewerError, RunError
from lookalike.evaluation import features
from lookalike.folder import MANIFEST, write_folder
from lookalike.geometry import DISTANCES, Distance, PixelFormat
from lookalike.models import Architecture
from lookalike.models.card import weights_digest
from lookalike.models.embedding import Embedding, embedding_files, load_model
from lookalike.scoring import topk
from lookalike.scoring.ivf import SHARE, InvertedLists, nearest_in_lists, train_ivf
from lookalike.scoring.search import nearest
from lookalike.scoring.similarity import frame, nearness, points
from lookalike.search import opened, results
from lookalike.search.index import CELLS, LENGTHS, NAMES, ROWS, SEEN, open_index, read_seen
from lookalike.stages import search as stage

ARCHITECTURE = Architecture(
    "resnet18", 32, args={"channels": (8, 8, 16, 16), "layers": (1, 1, 1, 1)}, pool="avg"
)
COUNT = 12


def rows(count: int, width: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def open_search(folder, source, model, **how):
    """As the verb does."""
    opened = (
        partial(stage.search_index, find=None)
        if source is None
        else partial(stage.open_search, source=source)
    )
    return opened(folder, model=model, **how)


# The search itself.


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize(("count", "queries", "k"), [(1, 1, 3), (513, 3, 5), (513, 2, 2000)])
def test_blocks_give_what_the_whole_matrix_gives_and_the_earlier_of_equals_is_first(
    distance, count, queries, k
):
    x_ND = rows(count).mul_(3).add_(1)
    x_ND[count // 2 :: 7] = x_ND[0].clone()
    x_ND[count // 3 :: 5] *= 1 + 1e-7
    query_QD = torch.cat((x_ND[:1], rows(queries, seed=1)))
    row_Qk, near_Qk = nearest(query_QD, x_ND, k, distance=distance)
    near_QN = nearness(*points(query_QD, x_ND, distance), distance).numpy()
    order_Qk = np.argsort(-near_QN.astype(np.int64), axis=1, kind="stable")[:, :k]
    assert np.array_equal(row_Qk.numpy(), order_Qk)
    direct_QN = F.normalize(query_QD.double()) @ F.normalize(x_ND.double()).T
    if distance == "euclidean":
        direct_QN = (query_QD.double()[:, None] - x_ND.double()).norm(dim=2)
    assert np.allclose(near_Qk, direct_QN.gather(1, row_Qk), atol=1e-5)


@pytest.mark.parametrize("distance", DISTANCES)
def test_scikit_learn_finds_the_same(distance, monkeypatch):
    monkeypatch.setattr(topk, "PRODUCT", 2000)
    monkeypatch.setattr(topk, "QUERIES", 7)
    x_ND, query_QD = rows(730, 16).add_(0.5).double(), rows(20, 16, seed=1).double()
    before = query_QD.clone(), x_ND.clone()
    row_Qk, near_Qk = nearest(query_QD, x_ND, 9, distance=distance)
    peer = NearestNeighbors(n_neighbors=9, algorithm="brute", metric=distance)
    distance_Qk, found_Qk = peer.fit(x_ND).kneighbors(query_QD)
    assert np.array_equal(row_Qk, found_Qk)
    assert np.allclose(1 - near_Qk if distance == "cosine" else near_Qk, distance_Qk, atol=1e-5)
    assert torch.equal(before[0], query_QD)
    assert torch.equal(before[1], x_ND)


def test_a_collapsed_matrix_is_a_tie_and_a_zero_row_is_near_to_nothing():
    x_ND = torch.ones(512 + 5, 3)
    x_ND[2] = 0
    row_1k, near_1k = nearest(x_ND[:1], x_ND, 4)
    assert row_1k.tolist() == [[0, 1, 3, 4]]
    assert near_1k.tolist() == [[1.0] * 4]
    assert nearest(x_ND[:1], x_ND[:3], 3)[1].tolist() == [[1.0, 1.0, 0.0]]
    assert nearest(x_ND[:1], x_ND[3:], 3, distance="euclidean")[1].tolist() == [[0.0] * 3]


def test_what_cannot_be_searched_is_refused():
    x_ND = rows(512 + 9)
    for k, query, pattern in (
        (0, x_ND[:1], "at least 1"),
        (3, rows(2, 5), "width 5 of the queries, 6"),
    ):
        with pytest.raises(Error, match=pattern):
            nearest(query, x_ND, k)
    with pytest.raises(Error, match="query features: NaN or Inf in 1 rows"):
        nearest(torch.full((1, 6), torch.nan), x_ND, 1)
    for value in (torch.nan, torch.inf):
        x_ND[512 + 3, 2] = value
        for distance in DISTANCES:
            with pytest.raises(Error, match=f"NaN or Inf in row {512 + 3}"):
                nearest(rows(1), x_ND, 1, distance=distance)


def by_hand(x_ND: torch.Tensor, count: int) -> InvertedLists:
    """Cells of the nearest of some rows, one of them empty."""
    centre_CD = torch.cat((x_ND[:count], 100 * x_ND.mean(0, keepdim=True)))
    cell_N = torch.cdist(x_ND, centre_CD).argmin(1)
    lists = [(cell_N == c).nonzero()[:, 0] for c in range(count + 1)]
    start_C1 = torch.tensor([0, *np.cumsum([len(part) for part in lists]).tolist()])
    return InvertedLists(centre_CD, torch.cat(lists), start_C1)


@pytest.mark.parametrize("distance", DISTANCES)
def test_cells_give_the_nearest_of_the_rows_looked_at(distance):
    x_ND, query_QD = rows(400), rows(3, seed=1)
    x_ND = F.normalize(x_ND)
    cells = by_hand(x_ND, 9)
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            nearest_in_lists(query_QD, x_ND, 400, cells), nearest(query_QD, x_ND, 400), strict=True
        )
    )
    row_Qk, near_Qk = nearest_in_lists(query_QD, x_ND, 5, cells, distance=distance)
    for query_D, row_k, near_k in zip(query_QD, row_Qk, near_Qk, strict=True):
        order = nearest(query_D[None], cells.centre_CD, 10, distance=distance)[0][0].tolist()
        looked: list[int] = []
        while len(looked) < 400 / SHARE:
            c = order.pop(0)
            looked += cells.row_N[cells.start_C1[c] : cells.start_C1[c + 1]].tolist()
        assert len(looked) < 400
        among = torch.tensor(sorted(looked))
        place_1k, wanted_1k = nearest(query_D[None], x_ND[among], 5, distance=distance)
        assert row_k.tolist() == among[place_1k[0]].tolist()
        assert torch.equal(near_k, wanted_1k[0])


def test_without_faiss_approximate_search_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(Error, match=r"pip install lookalike\[faiss\]"):
        train_ivf(rows(10), True)


@pytest.mark.parametrize("distance", DISTANCES)
def test_faiss_finds_cells_of_which_a_few_hold_nearly_all_neighbours(distance):
    pytest.importorskip("faiss")
    x_ND = (rows(30, 16, seed=2)[torch.arange(1500) % 30] * 4 + rows(1500, 16)).contiguous()
    cells = train_ivf(x_ND, distance)
    assert torch.equal(cells.row_N.sort().values, torch.arange(1500))
    assert all(torch.equal(a, b) for a, b in zip(cells, train_ivf(x_ND, distance), strict=True))
    asked = x_ND[::50]
    found, wanted = (
        nearest_in_lists(asked, x_ND, 10, cells, distance=distance),
        nearest(asked, x_ND, 10, distance=distance),
    )
    shares = [
        len(set(a) & set(b)) / 10
        for a, b in zip(found[0].tolist(), wanted[0].tolist(), strict=True)
    ]
    assert sum(shares) / len(shares) > 0.9


# The index.


def save(path, seed: int) -> None:
    """A smooth image of its own; at one seed always the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 255, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(small).resize((48, 40), Image.Resampling.BICUBIC).save(path)


def written(folder, seed: int = 0, distance: Distance = "cosine"):
    torch.manual_seed(seed)
    model = Embedding(ARCHITECTURE.build(), 8, distance=distance).eval()
    write_folder(folder, embedding_files(model))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return written(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def photos(tmp_path):
    for i in range(COUNT):
        save(tmp_path / "photos" / "ab"[i % 2] / f"{i:02}.png", i)
    return tmp_path / "photos"


@pytest.fixture
def index(tmp_path, photos, model):
    open_search(tmp_path / "index", str(photos), str(model))
    return tmp_path / "index"


@pytest.fixture
def asked(monkeypatch):
    """How many images each embedding was asked for."""
    counts: list[int] = []
    real = stage.embedded

    def counting(opened, found, ids, *how):
        counts.append(len(ids))
        return real(opened, found, ids, *how)

    monkeypatch.setattr(stage, "embedded", counting)
    return counts


def names(folder) -> list[str]:
    return json.loads((folder / NAMES).read_bytes())


def test_rows_are_the_test_time_embeddings_of_the_files_and_each_image_finds_itself(
    index, photos, model
):
    found = open_index(index)
    paths = sorted(str(p.relative_to(photos)) for p in photos.rglob("*.png"))
    assert found.names == paths
    reading = Reading(37, PixelFormat(3))  # 8/7 of 32
    images = FileImages(photos, paths, reading, Annotations(torch.zeros(COUNT)))
    wanted = features.extract(features.embedder(load_model(model), ARCHITECTURE), images, batch=5)
    assert torch.allclose(found.x_ND, wanted.x_ND, atol=1e-6)
    assert np.array_equal(np.load(index / ROWS), found.x_ND.numpy())
    for row in range(COUNT):
        row_1k, near_1k = found.nearest(found.embed([found.path(row)]), 3)
        assert (row_1k[0, 0], near_1k[0, 0]) == (row, 1.0)
        assert near_1k[0, 1] < 1
    assert found.path(0) == f"{photos}/{paths[0]}"
    assert weights_digest(load_model(index)) == weights_digest(load_model(model))


def test_an_open_index_is_mapped_and_changing_it_changes_no_file(index):
    before = (index / ROWS).read_bytes()
    found = open_index(index)
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(index / ROWS) in maps.read_text()
    found.x_ND[0] = 7
    assert (index / ROWS).read_bytes() == before
    open_index(index)


def test_only_what_changed_is_embedded_and_the_end_is_that_of_a_fresh_index(
    tmp_path, photos, index, model, asked, capsys
):
    open_search(index, str(photos), None)
    assert (asked, capsys.readouterr().err.splitlines()[-1]) == (
        [],
        f"{index}: {COUNT} images, as before",
    )
    stamp = (index / MANIFEST).stat().st_ino
    open_search(index, str(photos), str(model))
    assert (asked, (index / MANIFEST).stat().st_ino) == ([], stamp)
    save(photos / "c" / "new.png", 50)
    (photos / "a" / "00.png").unlink()
    save(photos / "b" / "01.png", 51)
    # Other pixels in as many bytes: only the time tells.
    same = photos / "a" / "02.png"
    data = bytearray(same.read_bytes())
    same.with_suffix(".bmp").write_bytes(b"")
    same.with_suffix(".bmp").unlink()
    Image.fromarray(np.zeros((40, 48, 3), np.uint8)).save(same)
    same.write_bytes(same.read_bytes() + bytes(len(data) - same.stat().st_size))
    assert same.stat().st_size == len(data)
    os.utime(same, ns=(0, 12345))
    open_search(index, str(photos), None)
    assert asked == [3]
    assert (
        f"{index}: {COUNT} images, 3 embedded, 9 kept, 3 changed or gone" in capsys.readouterr().err
    )
    fresh = open_search(tmp_path / "fresh", str(photos), str(model))
    now = open_index(index)
    assert now.names == fresh.names
    assert torch.allclose(now.x_ND, fresh.x_ND, atol=1e-6)
    assert now.digest == fresh.digest
    assert read_seen(index, COUNT) == read_seen(tmp_path / "fresh", COUNT)


def test_a_moved_folder_keeps_its_rows_under_its_new_name(tmp_path, photos, index, asked):
    shutil.move(photos, tmp_path / "moved")
    found = open_search(index, str(tmp_path / "moved"), None)
    assert asked == [0]
    assert found.path(0) == f"{tmp_path}/moved/a/00.png"
    assert open_index(index).root == str(tmp_path / "moved")


def test_another_model_is_noticed(tmp_path, photos, index, asked, capsys):
    other = written(tmp_path / "other", seed=1)
    with pytest.raises(RunError, match=r"made by another model than .*other: add --from"):
        open_search(index, None, str(other))
    found = open_search(index, str(photos), str(other))
    assert asked == [COUNT]
    assert "embedded anew" in capsys.readouterr().err
    assert torch.equal(found.x_ND, open_search(tmp_path / "fresh", str(photos), str(other)).x_ND)
    off = written(tmp_path / "off", seed=1, distance="euclidean")
    with pytest.raises(RunError, match="another model"):
        open_search(index, None, str(off))


def test_the_index_needs_its_model_folder_no_more(tmp_path, photos):
    model = written(tmp_path / "model")
    open_search(tmp_path / "index", str(photos), str(model))
    shutil.rmtree(model)
    assert len(open_search(tmp_path / "index", None, None)) == COUNT
    save(photos / "new.png", 99)
    assert len(open_search(tmp_path / "index", str(photos), None)) == COUNT + 1


def test_what_cannot_be_read_is_listed_not_tried_again_and_comes_in_when_mended(
    photos, model, tmp_path, asked, capsys
):
    bad = photos / "a" / os.fsdecode(b"caf\xe9\n\x1b[31m.jpg")
    bad.write_bytes(b"<html>")
    folder = tmp_path / "index"
    assert len(open_search(folder, str(photos), str(model))) == COUNT
    said = capsys.readouterr().err
    assert r"cannot be read: a/caf\udce9\n\x1b[31m.jpg: not a JPEG" in said
    assert "\x1b" not in said
    assert list(json.loads((folder / SEEN).read_bytes())["bad"]) == [f"a/{bad.name}"]
    open_search(folder, str(photos), None)
    assert asked == [COUNT + 1]
    save(tmp_path / "good.png", 40)
    shutil.copy(tmp_path / "good.png", bad)
    found = open_search(folder, str(photos), None)
    assert asked == [COUNT + 1, 1]
    row = found.names.index(f"a/{bad.name}")
    assert found.nearest(found.embed([str(bad)]), 1)[0].tolist() == [[row]]
    assert read_seen(folder, COUNT + 1).bad == {}


def test_a_kill_leaves_the_old_index_or_the_new(tmp_path, photos, index, monkeypatch):
    before = {p.name: p.read_bytes() for p in index.iterdir()}
    save(photos / "new.png", 99)
    for name in ("_write", "sync_folder", "_swap"):
        with monkeypatch.context() as patch:
            patch.setattr(folder_room, name, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                open_search(index, str(photos), None)
        assert {p.name: p.read_bytes() for p in index.iterdir()} == before
        assert sorted(p.name for p in tmp_path.iterdir()) == ["index", "photos"]
    index.rename(tmp_path / ".old-index-1")  # between the two renames of a replacement
    assert len(open_index(index)) == COUNT


def test_a_recipes_images_are_searched_too(tmp_path, asked):
    torch.manual_seed(0)
    folder = tmp_path / "grey"
    write_folder(folder, embedding_files(Embedding(toy.architecture().build(), 4).eval()))
    recipe = toy.write(tmp_path / "r.yaml")
    found = open_search(tmp_path / "index", str(recipe), str(folder))
    assert (len(found), found.path(0), found.canvas, asked) == (1797, "digits/0", (8, 8), [1797])
    assert sorted(int(name.split("/")[1]) for name in found.names) == list(range(1797))
    open_search(tmp_path / "index", str(recipe), None)
    assert asked == [1797]


def test_colour_for_a_grey_model_is_refused(tmp_path, model):
    with pytest.raises(Error, match="images of 1 channels, the model takes 3"):
        open_search(tmp_path / "index", str(toy.write(tmp_path / "r.yaml")), str(model))


def test_a_timm_name_has_its_publishers_size_and_normalisation(tmp_path, photos, monkeypatch):
    real = backbone_module.timm.create_model
    monkeypatch.setattr(
        backbone_module.timm,
        "create_model",
        lambda *a, **kw: real(*a, **{**kw, "pretrained": False}),
    )
    monkeypatch.setattr("lookalike.models.hub.published", lambda name: {})
    found = open_search(tmp_path / "index", str(photos), "test_resnet")
    published = backbone_module.timm.get_pretrained_cfg("test_resnet")
    a = found.model.architecture
    assert (a.size, a.crop, tuple(a.mean), tuple(a.std)) == (
        160,
        published.crop_pct,
        published.mean,
        published.std,
    )
    assert found.canvas == (183, 183)


def test_off_the_unit_sphere_nearness_is_the_distance(tmp_path, photos):
    folder = tmp_path / "index"
    found = open_search(folder, str(photos), str(written(tmp_path / "off", distance="euclidean")))
    x_1D = found.embed([found.path(3)])
    row_1k, near_1k = found.nearest(x_1D, 4)
    distance_N = (found.x_ND - x_1D).norm(dim=1)
    assert row_1k[0].tolist() == distance_N.argsort()[:4].tolist()
    assert torch.allclose(near_1k[0].float(), distance_N.sort().values[:4], atol=1e-4)
    (answer,) = results.query(found, [found.path(3)], 2)
    assert list(json.loads(results.line_of_json(found, answer))["nearest"][0]) == [
        "path",
        "distance",
    ]


def test_embeddings_that_are_no_numbers_end_the_building(tmp_path, photos):
    torch.manual_seed(0)
    broken = Embedding(ARCHITECTURE.build(), 8).eval()
    broken.head.weight.data.fill_(3e38)
    write_folder(tmp_path / "nan", embedding_files(broken))
    with pytest.raises(Error, match=r"a/00\.png: its embedding is NaN or Inf"):
        open_search(tmp_path / "index", str(photos), str(tmp_path / "nan"))
    assert not (tmp_path / "index").exists()


def test_cells_are_kept_and_go_with_the_images(index, photos, monkeypatch):
    for room in (stage, opened):
        monkeypatch.setattr(room, "train_ivf", lambda x_ND, distance: by_hand(x_ND, 3))
    found = open_search(index, None, None, approximate=True)
    assert (index / CELLS).exists()
    again = open_index(index)
    assert all(torch.equal(a, b) for a, b in zip(found.cells, again.cells, strict=True))
    x_1D = again.embed([again.path(5)])
    assert again.nearest(x_1D, 1, approximate=True)[0].tolist() == [[5]]
    save(photos / "new.png", 99)
    assert open_search(index, str(photos), None).cells is None
    assert open_search(index, str(photos), None, approximate=True).cells is not None


@pytest.mark.parametrize("distance", DISTANCES)
def test_an_index_without_lengths_is_measured_once_and_answers_the_same(
    tmp_path, photos, distance, monkeypatch
):
    folder = tmp_path / "index"
    open_search(folder, str(photos), str(written(tmp_path / "m", distance=distance)))
    new = open_index(folder)
    query_QD = new.x_ND[:3] + 0.1
    wanted = new.nearest(query_QD, 5)
    manifest = json.loads((folder / MANIFEST).read_bytes())
    files = {n: (folder / n).read_bytes() for n in manifest["files"] if n != LENGTHS}
    write_folder(folder, files, {"index": manifest["index"]})
    counts, real = [], frame
    monkeypatch.setattr(
        "lookalike.search.index.frame", lambda *how: (counts.append(1), real(*how))[1]
    )
    old = open_index(folder)
    for _ in range(2):
        assert all(map(torch.equal, old.nearest(query_QD, 5), wanted))
    assert counts == [1]
    assert all(map(torch.equal, old.frame, new.frame))
    save(photos / "new.png", 99)
    open_search(folder, str(photos), None)
    assert (folder / LENGTHS).exists()


def test_a_search_of_kept_lengths_looks_at_no_row_but_by_its_product(index, monkeypatch):
    found = open_index(index)
    monkeypatch.setattr("lookalike.scoring.similarity._lengths", lambda *_: pytest.fail("measured"))
    assert found.nearest(found.x_ND[:1], 1)[0].tolist() == [[0]]


@pytest.mark.parametrize(
    "name", [ROWS, NAMES, SEEN, LENGTHS, "model.safetensors", "head.safetensors", "config.json"]
)
def test_a_flipped_byte_is_found(index, name):
    data = bytearray((index / name).read_bytes())
    data[-3] ^= 1
    (index / name).write_bytes(data)
    with pytest.raises(
        BackboneError, match=rf"{re.escape(name)}: its content changed since it was written"
    ):
        open_index(index)


def npy(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


WHOLE = {
    "centre_CD": torch.zeros(2, 8),
    "row_N": torch.arange(COUNT),
    "start_C1": torch.tensor([0, 5, COUNT]),
}
BROKEN_CELLS = [
    {"row_N": torch.arange(COUNT) + 1},
    {"row_N": torch.zeros(COUNT, dtype=torch.int64)},
    {"row_N": torch.arange(COUNT).float()},
    {"start_C1": torch.tensor([0, 99, COUNT])},
    {"start_C1": torch.tensor([0, COUNT])},
    {"start_C1": torch.tensor([1, 5, COUNT])},
    {"centre_CD": torch.zeros(2, 7)},
    {"other": torch.zeros(1)},
]

LENGTHS_OF_ALL = frame(torch.ones(COUNT, 8), "cosine")._asdict()
BROKEN_LENGTHS = [
    {"length_N": torch.ones(COUNT + 1, dtype=torch.float64)},
    {"length_N": torch.ones(COUNT)},
    {"length_N": torch.full((COUNT,), torch.nan, dtype=torch.float64)},
    {"mean_D": torch.zeros(7, dtype=torch.float64)},
    {"unit": torch.zeros((), dtype=torch.float64)},
    {"other": torch.zeros(1)},
]


def tensors(part) -> bytes:
    return safetensors(WHOLE | part)


@pytest.mark.parametrize(
    "change",
    [
        {ROWS: npy(np.zeros((COUNT + 1, 8), np.float32))},
        {ROWS: npy(np.zeros((COUNT, 7), np.float32))},
        {ROWS: npy(np.zeros((COUNT, 8)))},
        {ROWS: npy(np.zeros((8, COUNT), np.float32).T)},
        {ROWS: npy(np.array([[print]], dtype=object))},
        {ROWS: npy(np.zeros((COUNT, 8), np.float32))[:-5]},
        {ROWS: b"not a matrix"},
        {NAMES: b"{}"},
        {NAMES: json.dumps([1] * COUNT).encode()},
        {NAMES: b"[" * 100_000},
        {NAMES: b"\xff"},
        {CELLS: b"nothing"},
        *({CELLS: tensors(part)} for part in BROKEN_CELLS),
        *({LENGTHS: safetensors(LENGTHS_OF_ALL | part)} for part in BROKEN_LENGTHS),
        {"canvas": "37"},
        {"canvas": [10, 10.0]},
        {"canvas": [37]},
        {"fit": "stretch"},
        {"canvas": [10**9, 10]},
        {"root": None},
    ],
    ids=str,
)
def test_parts_that_do_not_fit_are_one_line_though_their_sha256_do(index, change):
    manifest = json.loads((index / MANIFEST).read_bytes())
    files = {name: (index / name).read_bytes() for name in manifest["files"]}
    about = manifest["index"] | {
        key: value for key, value in change.items() if not isinstance(value, bytes)
    }
    write_folder(
        index, files | {k: v for k, v in change.items() if isinstance(v, bytes)}, {"index": about}
    )
    with pytest.raises(RunError, match=r"not a whole index .*: build it again") as caught:
        open_index(index)
    assert "\n" not in str(caught.value)


def test_what_is_no_index_is_left_alone(tmp_path, photos, index, model):
    held = sorted(tmp_path.rglob("*"))
    for folder, pattern in ((photos, "not a folder that lookalike wrote"), (model, "not an index")):
        with pytest.raises(RunError, match=pattern):
            open_search(folder, str(photos), str(model))
    assert sorted(tmp_path.rglob("*")) == held
    manifest = json.loads((index / MANIFEST).read_bytes())
    for later, pattern in (
        ({"format": 2}, "format 2"),
        ({"index": manifest["index"] | {"format": 2}}, "index format 2"),
    ):
        (index / MANIFEST).write_text(json.dumps(manifest | later))
        with pytest.raises(NewerError, match=f"{pattern}, this version reads 1: update lookalike"):
            open_search(index, str(photos), str(model))


# The verb.


def call(capsys, *words) -> tuple[int, str, str]:
    code = cli.guarded(lambda: cli.app(["search", *map(str, words)], standalone_mode=False))
    return (code, *capsys.readouterr())


def test_the_verb_makes_asks_and_shows(tmp_path, photos, model, capsys):
    odd = photos / "a" / "<script>\n\x1b[31m.png"
    save(odd, 70)
    shutil.copy(odd, photos / "z.png")
    code, out, err = call(capsys, tmp_path / "i", "--from", photos, "--model", model)
    assert (code, out, err) == (0, "", f"{tmp_path}/i: {COUNT + 2} images, embedded\n")
    page = tmp_path / "answer.html"
    code, out, err = call(
        capsys, tmp_path / "i", photos / "z.png", photos / "b" / "03.png", "-k", 3, "--show", page
    )
    lines = [line.split("\t") for line in out.splitlines()]
    name = rf"{photos}/a/<script>\n\x1b[31m.png"
    assert lines[:3] == [
        [f"{photos}/z.png"],
        ["1", "1.0000", name],
        ["2", "1.0000", f"{photos}/z.png"],
    ]
    assert lines[4:6] == [[f"{photos}/b/03.png"], ["1", "1.0000", f"{photos}/b/03.png"]]
    assert len(lines) == 8
    assert (code, err) == (0, f"written to {page}\n")
    html = page.read_text()
    assert "<script>" not in html
    assert html.count("data:image/png") == 8
    assert "&lt;script&gt;" in html
    (photos / "a" / "00.png").unlink()
    code, out, _ = call(
        capsys, tmp_path / "i", odd, "-k", 99, "--json", "--show", tmp_path / "answer.png"
    )
    found = json.loads(out)
    assert found["query"] == str(odd)
    assert [entry["similarity"] for entry in found["nearest"][:2]] == [1.0, 1.0]
    assert {entry["path"] for entry in found["nearest"]} >= {str(odd), f"{photos}/a/00.png"}
    assert len(found["nearest"]) == COUNT + 2
    with Image.open(tmp_path / "answer.png") as sheet:
        # The query and 14 tiles; images of 40 pixels are enlarged to 120, what is gone is grey.
        assert sheet.height == 128 + 8


def test_paths_on_stdin_are_answered_as_they_come(index, photos, capsys, monkeypatch):
    lines = [os.fsencode(photos / name) + b"\n" for name in ("a/00.png", "gone.png", "b/01.png")]
    code = cli.guarded(
        lambda: results.report(
            open_index(index), results.query_lines(open_index(index), lines, 1), True
        )
    )
    out, err = capsys.readouterr()
    assert [json.loads(line)["query"] for line in out.splitlines()] == [
        f"{photos}/a/00.png",
        f"{photos}/b/01.png",
    ]
    assert err.splitlines()[0].startswith(f"lookalike: {photos}/gone.png: No such file")
    assert err.splitlines()[1:] == ["lookalike: 1 of 3 queries could not be read"]
    assert code == 2
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines[0])))
    code, out, _ = call(capsys, index, "-", "-k", 1)
    assert (code, out.count("\n")) == (0, 2)


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        (["index", "gone.jpg"], r"gone\.jpg: No such file or directory: a query is an image file"),
        (["index", "photos"], r"photos: .*: a query is an image file"),
        (
            ["index", "photos/a/00.png", "page.jpg"],
            r"page\.jpg: not a JPEG, PNG, .*: a query is an image file",
        ),
        (["index", "photos/a/00.png", "-k", "0"], r"-k 0: ask for at least 1"),
        (["index", "photos/a/00.png", "--show", "x.pdf"], r"x\.pdf: .*\.png or \.html"),
        (
            ["none", "photos/a/00.png"],
            r"none: no such index: --from FOLDER --model FOLDER\|NAME would make it",
        ),
        (["none", "--from", "photos"], r"none: no such index yet: --model FOLDER\|NAME is missing"),
        (["none", "--model", "MODEL"], r"none: no such index: --from"),
        (["none", "--from", "empty", "--model", "MODEL"], r"empty: no images in it or below"),
        (
            ["none", "--from", "bad", "--model", "MODEL"],
            r"x\.png: .*; not one of 1 images could be read",
        ),
        (["none", "--from", "photos", "--model", "gone"], r"gone: no such folder"),
        (["none", "--from", "gone", "--model", "MODEL"], r"gone: "),
        (["photos", "photos/a/00.png"], r"photos is not a folder that lookalike wrote"),
        (["page.jpg", "photos/a/00.png"], r"page\.jpg: "),
        (["page.jpg/x", "--from", "photos", "--model", "MODEL"], r"page\.jpg"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_one_line_and_exit_2(
    tmp_path, index, photos, model, capsys, monkeypatch, words, pattern
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_bytes(b"nothing")
    (tmp_path / "page.jpg").write_bytes(b"<html>")
    held = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    code, out, err = call(capsys, *(str(model) if word == "MODEL" else word for word in words))
    assert (code, out) == (2, "")
    assert err.count("\n") == 1, err
    assert err.startswith("lookalike: ")
    assert re.search(pattern, err), err
    assert sorted(tmp_path.rglob("*")) == held


def test_a_folder_is_found_by_the_stage_too(tmp_path, photos, model):
    found = stage.search_index(tmp_path / "i", partial(stage.in_folder, photos), model)
    with pytest.raises(DataError):
        list(results.query(found, [str(tmp_path)]))
