"""Laws of evaluation: the task that the images ask for, its protocol in loops, and a page that
agrees with both.
"""

import base64
import io
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch import nn

import toy
from lookalike.cli import app
from lookalike.data import SOURCES
from lookalike.data.images import Annotations, ArrayImages, FileImages, Pairs, QueryGallery, Reading
from lookalike.errors import Error
from lookalike.evaluation.features import cache_key, embedder, extract
from lookalike.experiment import Experiment, load_recipe
from lookalike.geometry import DISTANCES, PixelFormat
from lookalike.pipeline import plan
from lookalike.recipe import from_text
from lookalike.report import examples
from lookalike.report import tables as score_tables
from lookalike.runs import Run
from lookalike.scoring import bootstrap
from lookalike.scoring.nearest import ABSENT, JUNK, RIGHT, WRONG, Gallery, nearest
from lookalike.stages.evaluate import evaluate, table

TEXT = """
seed: 5
data: {data}
backbone: {{name: resnet18, size: 4, channels: 1, mean: [0.5], std: [0.5]}}
evaluate: {{{words}}}
"""


class Flat(nn.Module):
    """The image itself, in few levels so that many are equally near."""

    def __init__(self, distance="cosine", broken=False):
        super().__init__()
        self.architecture = toy.architecture().__class__(
            "resnet18", size=4, channels=1, mean=(0.5,), std=(0.5,)
        )
        self.distance, self.broken = distance, broken

    def forward(self, x_BCHW):
        x_BD = x_BCHW.flatten(1)[:, :6].round()
        if self.broken:
            x_BD[1::2] = math.nan
        return x_BD + 0.25


class Named(ArrayImages):
    """Images in memory with names of files."""

    def name(self, i):
        return f"<img src=x onerror=alert({i})>/'\"&{i}.jpg"


def crowd(rows=60, people=7, seed=0, *, cameras=False, roles=False, pairs=False):
    """Noise in which identities show a little; the last rows are copies of the first; half of the
    pairs are same.
    """
    generator = torch.Generator().manual_seed(seed)
    ids_N = torch.randint(people, (rows,), generator=generator)
    centre_PCHW = torch.randint(256, (people, 1, 4, 4), generator=generator)
    noise_NCHW = torch.randint(-110, 110, (rows, 1, 4, 4), generator=generator)
    images_NCHW = (centre_PCHW[ids_N] + noise_NCHW).clamp(0, 255).byte()
    images_NCHW[-5:] = images_NCHW[:5]
    known = Annotations(ids_N, tuple(f"<b>person</b> {p}" for p in range(people)))
    if cameras:
        known = known._replace(cameras=torch.randint(3, (rows,), generator=generator))
    if roles:
        part_N = torch.rand(rows, generator=generator)
        known = known._replace(roles=QueryGallery(part_N < 0.5, part_N > 0.4))
    if pairs:
        rows_P2 = torch.randint(rows, (90, 2), generator=generator)
        for p in range(0, 90, 2):
            alike = (ids_N == ids_N[rows_P2[p, 0]]).nonzero()[:, 0]
            rows_P2[p, 1] = alike[p % len(alike)]
        same_P = ids_N[rows_P2[:, 0]] == ids_N[rows_P2[:, 1]]
        known = known._replace(pairs=Pairs(rows_P2, same_P, torch.arange(90) // 30))
    return Named(images_NCHW, known)


def annotate(images, **known):
    images.annotations = images.annotations._replace(**known)
    return images


@pytest.fixture
def given(monkeypatch):
    """A recipe whose data are these images; `asked` are keys of its evaluate section, `also` other
    images.
    """

    def make(images, asked="", also=None):
        for name, some in (("toy", images), ("also", also)):

            class Source:
                channels = 1
                held = some

                def split(self, name, size=None):
                    return self.held

            monkeypatch.setitem(SOURCES, name, Source)
        return from_text(TEXT.format(data="toy", words=asked), "some/toy.yaml", [], Experiment)

    return make


def features(images, model=None):
    model = model or Flat()
    return extract(embedder(model, model.architecture), images).x_ND


def near_by_loops(x_ND):
    """Cosine similarities in whole steps, a pair at a time."""
    x = x_ND.double().numpy()
    return np.array(
        [[round(a @ b / np.linalg.norm(a) / np.linalg.norm(b) / 1e-6) for b in x] for a in x]
    )


def lists_by_loops(images, task):
    """Of each query that has something to find: its row, and (row, near, kind) of its list,
    pessimistic.
    """
    near, labels = near_by_loops(features(images)), images.labels.tolist()
    everything = torch.ones(len(images), dtype=torch.bool)
    asks, searched = images.roles or (everything, everything)
    out = {}
    for q in asks.nonzero()[:, 0].tolist():
        items = []
        for g in searched.nonzero()[:, 0].tolist():
            kind = RIGHT if labels[q] == labels[g] else WRONG
            if (
                task == "reidentification"
                and kind == RIGHT
                and images.cameras[q] == images.cameras[g]
            ):
                kind = JUNK
            if g != q:
                items.append((g, int(near[q][g]), kind))
        items.sort(key=lambda item: (-item[1], -item[2], item[0]))
        if any(kind == RIGHT for _, _, kind in items):
            out[q] = items
    return out


def scores_by_loops(lists):
    """Means of hits, AP and the measures up to R over the lists without junk."""
    hits = {k: [] for k in (1, 5, 10)}
    ap, ap_r, r_precision, inp = [], [], [], []
    for items in lists.values():
        right = [kind == RIGHT for _, _, kind in items if kind != JUNK]
        at = [n for n, good in enumerate(right, 1) if good]
        for k, found in hits.items():
            found.append(any(right[:k]))
        ap.append(sum(m / n for m, n in enumerate(at, 1)) / len(at))
        ap_r.append(sum(m / n for m, n in enumerate(at, 1) if n <= len(at)) / len(at))
        r_precision.append(sum(right[: len(at)]) / len(at))
        inp.append(len(at) / at[-1])
    return (
        {k: np.mean(found) for k, found in hits.items()},
        np.mean(ap),
        np.mean(ap_r),
        np.mean(r_precision),
        np.mean(inp),
    )


@pytest.mark.parametrize("roles", [True, False])
def test_retrieval_is_that_of_loops(given, roles):
    images = crowd(roles=roles)
    found = evaluate(Flat(), given(images))
    lists = lists_by_loops(images, "retrieval")
    hits, ap, ap_r, r_precision, _ = scores_by_loops(lists)
    assert found["task"] == "retrieval"
    assert [found[f"recall@{k}"] for k in (1, 5, 10)] == pytest.approx(
        [hits[k] for k in (1, 5, 10)]
    )
    assert (found["map"], found["map@r"], found["r_precision"]) == pytest.approx(
        (ap, ap_r, r_precision)
    )
    asks, searched = (
        (60, 60)
        if not roles
        else (int(images.roles.query_N.sum()), int(images.roles.gallery_N.sum()))
    )
    assert (found["queries"], found["gallery"]) == (len(lists), searched)
    assert found["dropped"] == asks - len(lists)
    if roles:
        assert bool((images.roles.query_N & images.roles.gallery_N).any())


@pytest.mark.parametrize("roles", [True, False])
def test_reidentification_is_that_of_loops(given, roles):
    images = crowd(cameras=True, roles=roles)
    found = evaluate(Flat(), given(images, "" if roles else "task: reidentification"))
    lists = lists_by_loops(images, "reidentification")
    hits, ap, _, _, inp = scores_by_loops(lists)
    assert found["task"] == "reidentification"
    assert [found[f"cmc@{k}"] for k in (1, 5, 10)] == pytest.approx([hits[k] for k in (1, 5, 10)])
    assert (found["map"], found["minp"]) == pytest.approx((ap, inp))
    junk = sum(kind == JUNK for items in lists.values() for _, _, kind in items)
    assert found["junk"] >= junk > 10
    trapezoid = evaluate(Flat(), given(images, "task: reidentification, ap: trapezoid"))
    assert abs(trapezoid["map"] - found["map"]) > 1e-3


def test_cameras_without_roles_are_retrieval_until_it_is_asked_for(given):
    assert evaluate(Flat(), given(crowd(cameras=True)))["task"] == "retrieval"
    both = crowd(cameras=True, roles=True, pairs=True)
    assert evaluate(Flat(), given(both))["task"] == "verification"
    assert evaluate(Flat(), given(both, "task: retrieval"))["task"] == "retrieval"


def test_verification_is_scikit_learns_and_that_of_loops(given):
    images = crowd(pairs=True)
    found = evaluate(Flat(), given(images, "fars: [0.1]"))
    near = near_by_loops(features(images))
    scores = np.array([near[a][b] for a, b in images.pairs.rows_P2.tolist()]) * 1e-6
    same, folds = images.pairs.same_P.numpy(), images.pairs.folds_P.numpy()
    assert found["auc"] == pytest.approx(roc_auc_score(same, scores))
    allowed = [t for t in scores if (scores[~same] >= t).mean() <= 0.1]
    assert found["tar@far=0.1"] == pytest.approx(max((scores[same] >= t).mean() for t in allowed))
    accuracies = []
    for fold in range(3):
        held, thresholds = folds == fold, np.unique(scores)
        middles = np.concatenate([[-2], (thresholds[1:] + thresholds[:-1]) / 2, [2]])
        right = np.array([((scores >= t) == same)[~held].sum() for t in middles])
        accuracies.append(
            {((scores >= t) == same)[held].mean() for t in middles[right == right.max()]}
        )
    assert any(
        found["accuracy"] == pytest.approx(np.mean(c))
        for c in np.array(np.meshgrid(*map(list, accuracies))).T.reshape(-1, 3)
    )
    assert (found["pairs"], found["same"], found["folds"]) == (90, int(same.sum()), 3)
    assert {name: one["pairs"] for name, one in found["breakdown"]["fold"].items()} == {
        "0": 30,
        "1": 30,
        "2": 30,
    }
    few = evaluate(Flat(), given(images))
    assert {name for name in few if name.startswith("tar@")} == {"tar@far=0.1"} | (
        {"tar@far=0.01"} if (~same).sum() >= 100 else set()
    )


def test_pairs_need_no_labels(given):
    images = crowd(pairs=True)
    wanted = evaluate(Flat(), given(images))["auc"]
    annotate(images, labels=None, classes=())
    assert evaluate(Flat(), given(images))["auc"] == wanted
    with pytest.raises(Error, match=r"evaluate\.nmi: needs labels.*remove it"):
        evaluate(Flat(), given(images, "nmi: true"))


def test_more_rows_are_reported_beside_the_first(given):
    images = crowd(cameras=True, roles=True)
    plain = evaluate(Flat(), given(images))
    found = evaluate(
        Flat(), given(images, "rerank: {k1: 4, k2: 2, lambda: 1.0}, multi_query: true, nmi: true")
    )
    assert {name: found[name] for name in ("map", "cmc@1")} == {
        name: plain[name] for name in ("map", "cmc@1")
    }
    assert found["rerank/map"] == pytest.approx(
        plain["map"], abs=0.02
    )  # λ = 1 keeps the order, but for ties
    assert found["multi_query/map"] != found["map"]
    assert 0 < found["nmi"] < 1
    again = evaluate(Flat(), given(images, "rerank: true"))
    assert again["rerank/map"] != found["rerank/map"]
    assert again["protocol"]["rerank"] == {"k1": 20, "k2": 6, "weight": 0.3}


def test_intervals_hold_the_mean_and_groups_make_it_up(given):
    found = evaluate(Flat(), given(crowd(cameras=True, roles=True)))
    for name, (low, high) in found["intervals"].items():
        assert low <= found[name] <= high
        assert low < high or name.startswith("cmc@10")
    for groups in (found["breakdown"]["class"], found["breakdown"]["camera"]):
        sizes = [one["queries"] for one in groups.values()]
        assert sum(sizes) == found["queries"]
        mean = sum(
            one["map"] * size for one, size in zip(groups.values(), sizes, strict=True)
        ) / sum(sizes)
        assert mean == pytest.approx(found["map"])
    assert set(found["breakdown"]["class"]) <= {f"<b>person</b> {p}" for p in range(7)}
    bare = evaluate(
        Flat(), given(crowd(cameras=True, roles=True), "intervals: 0, breakdown: false")
    )
    assert bare["intervals"] == bare["breakdown"] == {}


def test_groups_and_intervals_are_those_of_the_queries_that_count(given):
    images = crowd(people=25, cameras=True, roles=True)
    found = evaluate(Flat(), given(images))
    assert found["dropped"] > 3
    lists = lists_by_loops(images, "reidentification")
    ap = {q: scores_by_loops({q: items})[1] for q, items in lists.items()}
    labels = {q: int(images.labels[q]) for q in lists}
    for name, one in found["breakdown"]["class"].items():
        of_class = [ap[q] for q in lists if images.classes[labels[q]] == name]
        assert (one["map"], one["queries"]) == (pytest.approx(np.mean(of_class)), len(of_class))
    for name, one in found["breakdown"]["camera"].items():
        assert one["map"] == pytest.approx(
            np.mean([ap[q] for q in lists if int(images.cameras[q]) == int(name)])
        )
    values = {"map": torch.tensor(list(ap.values()))}
    wanted = bootstrap.intervals(values, torch.tensor(list(labels.values())), seed=5)
    assert found["intervals"]["map"] == pytest.approx(list(wanted["map"]))


def test_embeddings_off_the_unit_sphere_are_compared_by_distance(given):
    images = crowd()
    x = features(images).double()
    labels = images.labels
    d = (torch.cdist(x, x) / (x - x.mean(0)).norm() * len(x) ** 0.5 / 1e-6).round()
    hits = []
    for q in range(len(x)):
        order = sorted(
            (j for j in range(len(x)) if j != q), key=lambda j: (d[q, j], labels[j] == labels[q])
        )
        hits.append(labels[order[0]] == labels[q])
    found = evaluate(Flat("euclidean"), given(images))
    assert found["recall@1"] == pytest.approx(np.mean(hits))
    assert found["protocol"]["nearness"] == "euclidean"
    assert found["map"] != evaluate(Flat(), given(images))["map"]


def test_labels_beyond_2_24_are_as_good_as_small_ones(given):
    small, large = crowd(), crowd()
    annotate(large, labels=small.labels + 2**24)
    assert len(torch.unique(large.labels.float())) < len(torch.unique(large.labels))
    one, other = (evaluate(Flat(), given(some)) for some in (small, large))
    assert (one["map"], one["classes"]) == (other["map"], other["classes"])


def test_a_label_below_0_names_no_class(given):
    images = crowd()
    annotate(images, labels=images.labels - 1)
    found = evaluate(Flat(), given(images))
    assert found["queries"] + found["dropped"] == int((images.labels >= 0).sum())
    assert found["gallery"] == 60


class Figures(HTMLParser):
    """What a page shows: of each strip its figures, (mark, texts, image)."""

    def __init__(self, text):
        super().__init__()
        self.strips, self.tags, self.open = [], set(), False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.add(tag)
        assert not [name for name in given if name.startswith("on")]
        if (
            tag == "div"
            and (given.get("class") or "").startswith("strip")
            and given["class"] != "strips"
        ):
            self.strips.append([])
        if tag == "figure":
            self.strips[-1].append([given["class"], [], None])
            self.open = True
        if tag == "img":
            self.strips[-1][-1][2] = given["src"]
            self.strips[-1][-1][1].append(given["alt"])

    def handle_endtag(self, tag):
        self.open &= tag != "figure"

    def handle_data(self, data):
        if self.open and data.strip():
            self.strips[-1][-1][1].append(data)


@pytest.mark.parametrize("task", ["retrieval", "reidentification"])
def test_the_page_shows_the_lists_of_the_scores(given, tmp_path, task):
    images = crowd(cameras=True, roles=True)
    evaluate(Flat(), given(images, f"task: {task}, examples: 9"), tmp_path)
    page = Figures((tmp_path / "evaluate.html").read_text())
    assert not page.tags & {"script", "iframe", "link"}
    lists = lists_by_loops(images, task)
    name_of = {images.name(i): i for i in range(len(images))}
    asked = []
    for query, *others in page.strips:
        assert query[0] == "query"
        q = name_of[query[1][0]]
        asked.append(q)
        place, wanted = 0, lists[q][:10]
        assert len(others) == len(wanted)
        for (mark, texts, _), (row, near, kind) in zip(others, wanted, strict=True):
            assert texts[0] == images.name(row)
            assert mark == {RIGHT: "right", WRONG: "wrong", JUNK: "junk"}[kind]
            place += kind != JUNK
            sign = {RIGHT: f"✓ {place}", WRONG: f"✗ {place}", JUNK: "– junk"}[kind]
            assert texts[1:4] == [sign, f"{near * 1e-6:.3f}", images.classes[images.labels[row]]]
    ap = {q: scores_by_loops({q: items})[1] for q, items in lists.items()}
    assert sorted(ap[q] for q in asked[:5]) == pytest.approx(sorted(ap.values())[:5])
    assert len(set(asked)) == len(asked) == 9
    if task == "reidentification":
        assert any(figure[0] == "junk" for strip in page.strips for figure in strip)


def test_the_images_on_the_page_are_those_of_the_names(given, tmp_path):
    images = crowd()
    evaluate(Flat(), given(images, "examples: 2"), tmp_path)
    name_of = {images.name(i): i for i in range(len(images))}
    for strip in Figures((tmp_path / "evaluate.html").read_text()).strips:
        for _, texts, source in strip:
            shown = Image.open(io.BytesIO(base64.b64decode(source.split(",")[1])))
            assert np.array_equal(
                np.asarray(shown)[..., 0], images.read(name_of[texts[0]])[0].numpy()
            )


def test_names_and_classes_are_text(given, tmp_path):
    evaluate(Flat(), given(crowd()), tmp_path, name="<script>alert(1)</script>")
    text = (tmp_path / "evaluate.html").read_text()
    assert "<img src=x" not in text
    assert "<b>person" not in text
    assert "<script" not in text
    assert "&lt;b&gt;person&lt;/b&gt; 3" in text


def test_the_page_of_pairs_shows_the_worst_errors_beside_their_thresholds(given, tmp_path):
    images = crowd(pairs=True)
    found = evaluate(Flat(), given(images, "examples: 8"), tmp_path)
    page = Figures((tmp_path / "evaluate.html").read_text())
    near = near_by_loops(features(images)) * 1e-6
    name_of = {images.name(i): i for i in range(len(images))}
    assert [len(strip) for strip in page.strips] == [2] * 8
    for place, ((mark, first, _), (_, second, _)) in enumerate(page.strips):
        a, b = name_of[first[0]], name_of[second[0]]
        assert (images.labels[a] == images.labels[b]) == (place >= 4)
        assert f"{near[a][b]:.3f}" in second
        assert mark in ("right", "wrong")
    text = (tmp_path / "evaluate.html").read_text()
    said = re.findall(
        r"<b>(accepted|rejected): (-?[\d.]+) (?:≥|&lt;) (-?[\d.]+), fold \d</b>", text
    )
    assert len(said) == 8
    for place, ((word, score, threshold), strip) in enumerate(zip(said, page.strips, strict=True)):
        assert (word == "accepted") == (float(score) >= float(threshold))
        assert (
            strip[0][0]
            == strip[1][0]
            == ("right" if (word == "accepted") == (place >= 4) else "wrong")
        )
    assert any(strip[0][0] == "wrong" for strip in page.strips)
    errors = [int(count) for count in re.findall(r"(\d+) of \d+ pairs are false", text)]
    assert len(errors) == 2
    assert 1 - sum(errors) / 90 == pytest.approx(found["accuracy"])


def test_behind_an_infinite_threshold_the_worst_are_still_first():
    images = crowd()
    pairs = Pairs(
        torch.arange(12).reshape(6, 2),
        torch.tensor([True, False] * 3),
        torch.zeros(6, dtype=torch.int64),
    )
    near_P = torch.tensor([0.5, 0.2, -0.1, 0.9, 0.3, 0.4])
    named = examples.Named(images, torch.arange(60))
    alike, unlike = examples.of_pairs(named, pairs, near_P, torch.full((6,), torch.inf), 6)
    assert [strip.about for strip in alike.strips] == [
        f"rejected: {x} < ∞, fold 0" for x in ("0.900", "0.400", "0.200")
    ]
    assert [strip.about[10:16] for strip in unlike.strips] == ["-0.100", "0.300 ", "0.500 "]
    assert [[card.mark for card in strip.cards] for strip in alike.strips] == [["right"] * 2] * 3
    assert unlike.note.startswith("3 of 3 pairs are false rejects")


def test_the_same_again_is_the_same_to_the_byte(given, tmp_path):
    recipe = given(crowd(cameras=True, roles=True))
    for folder in ("one", "two", "two"):
        evaluate(Flat(), recipe, tmp_path / folder, gallery=tmp_path / folder / "p.png")
    for name in ("evaluate.json", "evaluate.html", "p.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_sheet_holds_a_row_a_query_with_framed_tiles(given, tmp_path):
    evaluate(Flat(), given(crowd(), "examples: 3"), gallery=tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as sheet:
        assert sheet.size == (11 * 164 + 4, 3 * 164 + 4)
        pixels = np.asarray(sheet)
    assert tuple(pixels[6, 100]) == (9, 105, 218)
    assert {tuple(pixels[6, 164 * n + 100]) for n in range(1, 11)} <= {(26, 127, 55), (207, 34, 46)}
    assert list(tmp_path.iterdir()) == [tmp_path / "p.png"]
    evaluate(Flat(), given(crowd(pairs=True), "examples: 8"), gallery=tmp_path / "q.png")
    with Image.open(tmp_path / "q.png") as sheet:
        assert sheet.size[1] == 2 * 164 + 4


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("cameras", [True, False])
def test_the_nearest_are_those_of_a_sort(distance, cameras):
    generator = torch.Generator().manual_seed(0)
    x_QD, x_ND = (
        torch.randint(-1, 2, (n, 3), generator=generator).float() + 0.25 for n in (40, 70)
    )
    labels_Q, labels_N = (torch.randint(4, (n,), generator=generator) for n in (40, 70))
    seen = [torch.randint(2, (n,), generator=generator) if cameras else None for n in (40, 70)]
    own_Q = torch.randint(-1, 70, (40,), generator=generator)
    sets = Gallery(x_QD, labels_Q, seen[0], x_ND, labels_N, seen[1], own_Q, distance)
    some_B = torch.tensor([3, 39, 0])
    found = nearest(sets, some_B, 100)
    spread = (x_ND.double() - x_ND.double().mean(0)).square().sum(1).mean().sqrt()
    for b, q in enumerate(some_B.tolist()):
        items = []
        for n in range(70):
            a, z = x_QD[q].double(), x_ND[n].double()
            near = (
                torch.nn.functional.cosine_similarity(a, z, dim=0)
                if distance == "cosine"
                else (a - z).norm() / spread
            )
            kind = (
                WRONG
                if labels_Q[q] != labels_N[n]
                else JUNK
                if cameras and seen[0][q] == seen[1][n]
                else RIGHT
            )
            if n != own_Q[q]:
                steps = round(float(near) / 1e-6)
                items.append((-steps if distance == "cosine" else steps, -kind, n))
        items.sort()
        rows = [n for _, _, n in items]
        assert found.row_BK[b].tolist() == rows + [-1] * (70 - len(rows))
        assert found.kind_BK[b].tolist() == [-kind for _, kind, _ in items] + [ABSENT] * (
            70 - len(rows)
        )
        wanted = [abs(step) * 1e-6 for step, _, _ in items]
        assert found.near_BK[b, : len(rows)].abs().tolist() == pytest.approx(wanted, abs=1.1e-6)


def files(folder, order, labels, cameras, broken=()):
    """Files of noise by number, in this order; those broken are no images."""
    folder.mkdir(exist_ok=True)
    for i in order:
        pixels = np.random.default_rng(i).integers(0, 255, (4, 4), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
        if i in broken:
            (folder / f"{i:02d}.png").write_bytes(b"not an image")
    names = [f"{i:02d}.png" for i in order]
    pick = torch.tensor(order)
    classes = tuple("abcdefgh")
    known = Annotations(labels, classes, cameras).of(pick)
    return FileImages(str(folder), names, Reading(4, PixelFormat(1)), known)


def test_what_cannot_be_read_moves_no_camera_and_no_pair(given, tmp_path):
    generator = torch.Generator().manual_seed(1)
    labels, cameras = (
        torch.randint(4, (24,), generator=generator),
        torch.randint(2, (24,), generator=generator),
    )
    whole = list(range(24))
    left = [i for i in whole if i not in (0, 7, 8)]
    some = files(tmp_path / "a", left, labels, cameras)
    holed = files(tmp_path / "b", whole, labels, cameras, broken=(0, 7, 8))
    rows_P2 = torch.randint(24, (80, 2), generator=generator)
    same_P = labels[rows_P2[:, 0]] == labels[rows_P2[:, 1]]
    annotate(holed, pairs=Pairs(rows_P2, same_P, torch.arange(80) % 2))
    annotate(some, pairs=holed.pairs.of(torch.tensor(left)))
    for task in ("reidentification", "verification"):
        one, other = (
            evaluate(Flat(), given(p, f"task: {task}"), tmp_path / task) for p in (some, holed)
        )
        assert (one.pop("unreadable"), other.pop("unreadable")) == (0, 3)
        del one["data"], other["data"]
        assert one == other
    assert "3 images could not be read" in table({"x": {**other, "unreadable": 3}})


def test_features_of_sets_in_another_order_or_with_other_labels_are_not_mixed_up(given, tmp_path):
    generator = torch.Generator().manual_seed(2)
    labels, cameras = (
        torch.randint(4, (24,), generator=generator),
        torch.randint(2, (24,), generator=generator),
    )
    one = files(tmp_path / "a", list(range(24)), labels, cameras)
    other = files(tmp_path / "a", list(range(23, -1, -1)), labels, cameras)
    third = files(tmp_path / "a", list(range(24)), labels.roll(1), cameras)
    assert one.fingerprint == other.fingerprint == third.fingerprint
    assert len({cache_key(p) for p in (one, other, third)}) == 3
    alike = [
        files(tmp_path / "a", order, torch.zeros(24).long(), cameras) for order in ([0, 1], [1, 0])
    ]
    assert cache_key(alike[0]) != cache_key(alike[1])
    asked = "task: reidentification, examples: 0"
    first, second, last = (
        evaluate(Flat(), given(p, asked), tmp_path / "run") for p in (one, other, third)
    )
    assert (first["map"], first["cmc@1"]) == pytest.approx((second["map"], second["cmc@1"]))
    assert last == evaluate(Flat(), given(third, asked), tmp_path / "fresh")
    assert last["map"] != first["map"]


def test_another_data_set_is_scored_whole_and_beside_the_first(given, tmp_path):
    recipe = given(crowd(), "data: also", also=crowd(seed=4, pairs=True))
    found = evaluate(Flat(), recipe, tmp_path, name="elsewhere")
    assert found["task"] == "verification"
    evaluate(Flat(), given(crowd()), tmp_path, name="here")
    evaluate(Flat(), given(crowd(cameras=True, roles=True), "rerank: true"), tmp_path, name="seen")
    kept = json.loads((tmp_path / "evaluate.json").read_text())
    assert {name: one["task"] for name, one in kept.items()} == {
        "elsewhere": "verification",
        "here": "retrieval",
        "seen": "reidentification",
    }
    page = (tmp_path / "evaluate.html").read_text()
    assert page.index("seen, re-ranked") < page.index("elsewhere") < page.index("<h2>")


def test_the_table_is_aligned_and_a_table_a_task(given):
    scores = {
        "a": evaluate(Flat(), given(crowd())),
        "a longer name": evaluate(Flat(), given(crowd(pairs=True))),
        "c": evaluate(
            Flat(),
            given(crowd(cameras=True, roles=True), "rerank: true, intervals: 0, breakdown: false"),
        ),
        "d": evaluate(Flat(), given(crowd(), "ks: [2], nmi: true")),
    }
    lines = table(scores).splitlines()
    starts = [
        lines.index(next(line for line in lines if line.startswith(word)))
        for word in ("retr", "veri", "re-i")
    ]
    assert lines[starts[0]].split() == [
        "retrieval",
        "Recall@1",
        "Recall@5",
        "Recall@10",
        "R-precision",
        "MAP@R",
        "mAP",
        "Recall@2",
        "NMI",
    ]
    assert lines[starts[1]].split()[:4] == ["verification", "AUC", "EER", "Best"]
    assert lines[starts[2]].split() == [
        "re-identification",
        "Rank-1",
        "Rank-5",
        "Rank-10",
        "mAP",
        "mINP",
    ]
    for start, rows in zip(starts, (3, 2, 3), strict=True):
        assert len({len(line) for line in lines[start : start + rows]}) == 1
    half = 50 * (scores["a"]["intervals"]["map"][1] - scores["a"]["intervals"]["map"][0])
    assert f"{100 * scores['a']['map']:.2f} ± {half:.2f} %" in lines[starts[0] + 1]
    assert lines[starts[2] + 2].split()[:3] == [
        "c,",
        "re-ranked",
        f"{100 * scores['c']['rerank/cmc@1']:.2f}",
    ]
    assert f"± {100 * scores['a longer name']['accuracy_error']:.2f} %" in lines[starts[1] + 1]
    lowest = min(scores["a"]["breakdown"]["class"].items(), key=lambda item: item[1]["map"])
    assert f"a: lowest mAP by class: {lowest[0]} ({100 * lowest[1]['map']:.2f} %)" in "\n".join(
        lines
    )


def test_scores_of_an_earlier_version_are_still_a_table(given, tmp_path):
    (tmp_path / "evaluate.json").write_text(
        json.dumps({"old": {"recall@1": 0.5, "intervals": [], "recall@1_error": "x"}, "odd": [1]})
    )
    evaluate(Flat(), given(crowd()), tmp_path, name="new")
    assert "<td>old</td>" in (tmp_path / "evaluate.html").read_text()


def lonely():
    return annotate(crowd(rows=12), labels=torch.arange(12))


def alone():
    return annotate(crowd(rows=12), labels=torch.zeros(12, dtype=torch.int64))


def without(kind):
    made = crowd(roles=True)
    kept = (r & (name != kind) for name, r in zip(("query", "gallery"), made.roles, strict=True))
    return annotate(made, roles=QueryGallery(*kept))


def seen_by_one():
    return annotate(crowd(cameras=True, roles=True), cameras=torch.zeros(60, dtype=torch.int64))


def unlabelled():
    return annotate(crowd(), labels=None)


def coloured():
    return ArrayImages(
        torch.zeros(4, 3, 4, 4, dtype=torch.uint8), Annotations(torch.arange(4) // 2)
    )


@pytest.mark.parametrize(
    ("images", "asked", "pattern"),
    [
        (
            crowd,
            "task: reidentification",
            r"evaluate\.task: reidentification needs cameras.*add them",
        ),
        (
            crowd,
            "task: verification",
            r"evaluate\.task: verification needs pairs.*take data that lists pairs",
        ),
        (unlabelled, "", "evaluation needs labels, and these images have none: use class folders"),
        (
            lonely,
            "",
            "none of 12 queries has another image of its class in the gallery: give two or more",
        ),
        (seen_by_one, "", "has another image of its class of another camera in the gallery"),
        (alone, "", "all images are of one class, so every answer is right: give two or more"),
        (lambda: without("query"), "", r"no image is a query among 60 images: check the split"),
        (lambda: without("gallery"), "", "the gallery is empty among 60 images: check the split"),
        (
            crowd,
            "rerank: true",
            r"evaluate\.rerank: for re-identification only, this is retrieval: remove it",
        ),
        (crowd, "multi_query: true", r"evaluate\.multi_query: for re-identification only"),
        (
            lambda: crowd(pairs=True),
            "fars: [1e-4]",
            r"evaluate\.fars: 0\.0001, but 37 different pairs",
        ),
        (coloured, "", "data: 3 channels, but the model takes 1: make them equal"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_one_line(given, images, asked, pattern, tmp_path):
    with pytest.raises(Error, match=pattern) as refused:
        evaluate(Flat(), given(images(), asked), tmp_path)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "evaluate.json").exists()


def test_embeddings_that_are_no_numbers_name_the_model_and_their_count(given):
    with pytest.raises(
        Error, match=r"^fine-tuned: NaN or Inf in 30 of 60 embeddings: check the weights"
    ):
        evaluate(Flat(broken=True), given(crowd()), name="fine-tuned")


def test_scores_of_other_images_stand_in_a_table_of_their_own():
    one = {"task": "retrieval", "data": "a", "recall@1": 0.5, "queries": 4, "classes": 2}
    text = score_tables.text({"x": one, "y": {**one, "data": "b", "queries": 9}, "z": one})
    tables = [line for line in text.splitlines() if line.startswith("retrieval")]
    names = [line.split()[0] for line in text.splitlines() if line[0] in "xyz"]
    assert len(tables) == 2
    assert names == ["x", "z", "y"]


def test_images_that_are_none_are_refused_before_any_work(given, tmp_path):
    with pytest.raises(Error, match=r"p\.jpg: images are a \.png or an \.html: name it so"):
        evaluate(Flat(), given(crowd()), tmp_path, gallery=tmp_path / "p.jpg")
    with pytest.raises(
        Error, match=r"evaluate\.examples: 0, so there are no images to show: raise it"
    ):
        evaluate(Flat(), given(crowd(), "examples: 0"), tmp_path, gallery=tmp_path / "p.png")
    assert not list(tmp_path.iterdir())
    evaluate(Flat(), given(crowd(), "examples: 0"), tmp_path)
    assert not (tmp_path / "evaluate.html").exists()


def test_a_run_is_told_before_it_begins(given, monkeypatch):
    given(crowd())
    recipe = toy.recipe("evaluate={task: reidentification}")
    with pytest.raises(Error, match=r"evaluate\.task: reidentification needs cameras"):
        plan(Run(recipe))
    monkeypatch.setitem(
        SOURCES, "toy", type("Colours", (), {"channels": 3, "split": lambda *_: coloured()})
    )
    with pytest.raises(Error, match=r"evaluate\.data: 3 channels, but the model takes 1"):
        plan(Run(toy.recipe("evaluate={data: toy}")))


def test_the_verb_writes_scores_page_and_images(tmp_path, capsys):
    path = toy.write(tmp_path / "r.yaml")
    run, sheet = str(tmp_path / "run"), tmp_path / "p.png"
    words = [str(path), "pretrain.epochs=1", "--out", run]
    app(["pretrain", *words], standalone_mode=False)
    app(["evaluate", *words, "--gallery", str(sheet)], standalone_mode=False)
    said = capsys.readouterr().out
    kept = json.loads((tmp_path / "run/evaluate.json").read_text())
    assert set(kept) == {"backbone"}
    assert f"{100 * kept['backbone']['map@r']:.2f}" in said
    assert sheet.exists()
    assert (tmp_path / "run/evaluate.html").exists()
    assert kept["backbone"]["data"] == load_fingerprint(path)


def load_fingerprint(path):
    return toy.scored(load_recipe(path)).fingerprint


def test_without_the_whole_list_only_map_is_missing(given, tmp_path):
    images = crowd()
    whole = evaluate(Flat(), given(images), tmp_path / "whole")
    found = evaluate(Flat(), given(images, "whole_list: false"), tmp_path / "top")
    known = ("map", "intervals", "breakdown")
    left = {name: value for name, value in whole.items() if name not in known}
    assert {name: value for name, value in found.items() if name not in known} == left
    assert "map" not in found
    assert "lowest MAP@R by class" in table({"model": found})
    assert "lowest mAP by class" in table({"model": whole})
    assert (
        "lowest by class</th><th>queries</th><th>MAP@R"
        in (tmp_path / "top" / "evaluate.html").read_text()
    )
